"""From a source to raw tables: named, typed columns with the source's own ids.

Nothing is judged here beyond what a column's type demands; whether ids are unique, times in the
past or labels of two kinds is asked by the gate on the raw tables.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from feature_repo.dataset import Dataset, EntityTable, Events, Posts, Source
from feature_repo.dataset_columns import Rule
from pipelines.datasets import expressions as sql
from pipelines.datasets.expressions import Expression
from pipelines.datasets.parts import Databases, Part, check_types, drained_parts
from pipelines.errors import SourceError

Progress = Callable[[str, int, float], None]
"""Called with what is being done, the rows done, and the share done (0 to 1)."""

TIME = pa.timestamp("us", tz="UTC")
TEXTS = pa.list_(pa.string())
ATTRIBUTE_TYPES = {"categorical": pa.string(), "numeric": pa.float64(), "list": TEXTS}

EVENTS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("post_id", pa.string()),
        ("event_time", TIME),
        ("action", pa.string()),
        ("value", pa.float64()),
        ("is_impression", pa.bool_()),
        ("is_positive", pa.bool_()),
        ("weight", pa.float64()),
        ("event_order", pa.int64()),
    ]
)

_ROW = "feastrank row"  # the row's place over all parts, carried through every query
_SHOWN_VALUES = 3
_SYNTHETIC_START = "2000-01-01"
_SYNTHETIC_DAYS = 100
_SHUFFLE_SEED = 20000101


@dataclass(frozen=True)
class Before:
    """What earlier ingests read from databases.

    Attributes
    ----------
    reached
        The events' watermark up to which rows were read, as text; None if none were.
    types
        The columns' types in the database, by table and column.
    lake
        Where that is kept, for messages.
    """

    reached: str | None = None
    types: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lake: Path | None = None


@dataclass(frozen=True)
class RawTables:
    """A source's tables as parquet files with named, typed columns and the source's own ids.

    Attributes
    ----------
    dataset
        The description that they were read by.
    users
        A row a row of the source, in its order: user_id (string), known_time (null where the
        source has no creation time), and the described attributes. None without such a table.
    posts
        As users: post_id (string), known_time, title, text (the text columns joined by a line
        break), topics (list<string>, empty if none), image (string or binary), attributes.
    events
        A row a row of the source, in its order: user_id, post_id (string), event_time, action,
        value (double), is_impression, is_positive, weight (0 unless positive), event_order (the
        row's place over all files). Null wherever the source has no value.

    before, after
        What the reading began with, and what the next one is to begin with. If `before.reached`
        is not None, `events` holds only the rows from there on.

    All times are timestamp[us, UTC]. `validation` can read the files or `table(...)`.
    """

    dataset: Dataset
    users: Path | None
    posts: Path | None
    events: Path
    before: Before = Before()
    after: Before = Before()

    def table(self, name: str) -> pa.Table:
        """Return `users`, `posts` or `events` in memory."""
        path = {"users": self.users, "posts": self.posts, "events": self.events}[name]
        if path is None:
            raise KeyError(f"dataset {self.dataset.name} describes no {name} table")
        return pq.read_table(path)


def entity_schema(name: str, source: EntityTable | None) -> pa.Schema:
    """Return the columns of the raw `users` or `posts`; with no described table, those all have."""
    fields = [(f"{name.removesuffix('s')}_id", pa.string()), ("known_time", TIME)]
    if name == "posts":
        image = source.image if isinstance(source, Posts) else None
        is_bytes = image is not None and image.kind != "path"
        fields += [("title", pa.string()), ("text", pa.string()), ("topics", TEXTS)]
        fields += [("image", pa.binary() if is_bytes else pa.string())]
    attributes = () if source is None else source.attributes
    return pa.schema(fields + [(one.name, ATTRIBUTE_TYPES[one.type]) for one in attributes])


def read_raw(
    dataset: Dataset,
    base_folder: Path,
    folder: Path,
    on_progress: Progress | None = None,
    before: Before | None = None,
    drained: Path | None = None,
    until: datetime | None = None,
) -> RawTables:
    """Read a dataset's source into raw tables below `folder`, replacing those that are there.

    Rows are read in pieces: memory does not grow with their number, but for the sort of
    `file_order` and `random_order`, which DuckDB spills to disk. All tables of one database are
    read from one snapshot of it.

    Parameters
    ----------
    before
        What earlier ingests read: events with a watermark are read from there on.
    drained
        Folder of `pipelines.datasets.drain`, whose events follow those of the source; all of them
        are read every time.
    until
        Events from this moment on are left out; where there are such, the next ingest begins its
        reading where this one did. None: all events.

    Raises
    ------
    SourceError
        If a file is missing, empty, damaged or in another encoding, a database cannot be reached,
        a table is missing, a column is missing or changed its type, or values are not what the
        description says: times, numbers, lists. All values of a part are looked at before it is
        raised, so the counts are of the whole part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if until is not None and not dataset.has_clock:
        raise SourceError(f"dataset {dataset.name}: its events have no clock to cut windows by")
    reader = _Reader(base_folder, folder, before or Before(), on_progress, drained, until)
    entities: dict[str, Path | None] = {"users": None, "posts": None}
    with reader.databases:
        for name, source in (("users", dataset.users), ("posts", dataset.posts)):
            if source is not None:
                entities[name] = reader.read(name, _EntityPlan(source, f"{name[:-1]}_id"))
        events = reader.read("events", _EventsPlan(dataset.events))
    if not dataset.has_clock:
        _add_synthetic_times(events, shuffle=dataset.events.time.format == "random_order")
    after = Before(reader.reached, reader.types)
    return RawTables(dataset, entities["users"], entities["posts"], events, reader.before, after)


@dataclass(frozen=True)
class _EntityPlan:
    """What a users' or posts' table is made of."""

    source: EntityTable
    id_name: str

    @property
    def schema(self) -> pa.Schema:
        return entity_schema(f"{self.id_name.removesuffix('_id')}s", self.source)

    @property
    def zone(self) -> str:
        return self.source.created.zone if self.source.created else "UTC"

    def expressions(self, types: dict[str, pa.DataType]) -> dict[str, Expression]:
        source = self.source
        out = {self.id_name: sql.identifier(source.id, types)}
        if source.created is not None:
            out["known_time"] = sql.time(source.created, types)
        if isinstance(source, Posts):
            if source.title is not None:
                out["title"] = sql.text(source.title, types)
            if source.text:
                out["text"] = sql.joined_text(source.text, types)
            out["topics"] = sql.EMPTY_LIST
            if source.topics is not None:
                out["topics"] = sql.texts(source.topics.column, source.topics.separator, types)
            if source.image is not None:
                out["image"] = sql.image(source.image, types)
        for one in source.attributes:
            if one.type == "numeric":
                out[one.name] = sql.number(one.column, types)
            elif one.type == "list":
                out[one.name] = sql.texts(one.column, one.separator, types)
            else:
                out[one.name] = sql.text(one.column, types)
        return out


@dataclass(frozen=True)
class _EventsPlan:
    """What the events' table is made of."""

    source: Events
    schema: pa.Schema = field(default=EVENTS_SCHEMA)

    @property
    def zone(self) -> str:
        return self.source.time.zone

    def expressions(self, types: dict[str, pa.DataType]) -> dict[str, Expression]:
        source = self.source
        out = {
            "user_id": sql.identifier(source.user, types),
            "post_id": sql.identifier(source.post, types),
        }
        if not source.time.is_synthetic:
            out["event_time"] = sql.time(source.time, types)
        action = sql.constant(source.action.constant)
        if source.action.column is not None:
            action = sql.text(source.action.column, types)
        out["action"] = action
        if source.value is not None:
            out["value"] = sql.number(source.value, types)
        out["is_impression"] = self._rule(source.impressions, action, types)
        positive = self._rule(source.positive, action, types)
        out["is_positive"] = positive
        out["weight"] = sql.weight(source.weight, positive, types)
        return out

    @staticmethod
    def _rule(rule: Rule | None, action: Expression, types: dict[str, pa.DataType]) -> Expression:
        return sql.FALSE if rule is None else sql.rule(rule, action, types)


@dataclass
class _Fault:
    """Values of one column of one part that are not what they should be."""

    column: str
    expected: str
    count: int = 0
    rows: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def add(self, rows: pa.ChunkedArray, values: pa.ChunkedArray) -> None:
        room = _SHOWN_VALUES - len(self.rows)
        self.count += len(rows)
        self.rows += rows[:room].to_pylist()
        self.values += [repr(value) for value in values[:room].to_pylist()]


_Faults = dict[tuple[str, str], _Fault]  # by column and by what was expected


class _Reader:
    """Reads the tables of one source, one after another."""

    def __init__(
        self,
        base_folder: Path,
        folder: Path,
        before: Before,
        on_progress: Progress | None,
        drained: Path | None,
        until: datetime | None,
    ) -> None:
        self.base_folder, self.folder, self.before = base_folder, folder, before
        self.on_progress, self.drained, self.until = on_progress, drained, until
        self.databases = Databases()
        self.reached = before.reached
        self.types: dict[str, Mapping[str, str]] = {}

    def read(self, table: str, plan: "_EntityPlan | _EventsPlan") -> Path:
        """Write one raw table from all of its parts; return its file."""
        since = self.before.reached if table == "events" else None
        parts = self.databases.parts(plan.source, table, self.base_folder, since)
        own = parts
        if isinstance(plan.source, Events):
            parts = [*own, *drained_parts(plan.source, self.drained)]
        for part in parts:
            part.check_columns()
            check_types(part, self.before.types.get(table, {}), self.before.lake)
        target = self.folder / f"{table}.parquet"
        until = self.until if table == "events" else None
        rows, later = _convert(parts, target, plan, table, self.on_progress, until)
        if rows == 0 and since is None:
            raise SourceError(
                f"{parts[0].label} has no rows; expected one for each of the {table}; "
                f"{'fill it' if plan.source.is_database else 'export it again'}"
            )
        self.types[table] = own[0].types
        # A watermark need not be the events' time: rows left out may lie anywhere before its end.
        if table == "events" and not later:
            self.reached = own[-1].reached
        return target


def _convert(
    parts: Sequence[Part],
    target: Path,
    plan: "_EntityPlan | _EventsPlan",
    table: str,
    on_progress: Progress | None,
    until: datetime | None,
) -> tuple[int, int]:
    """Write one raw table from all of its parts; return the rows read, and those left out."""
    temporary = target.with_suffix(".tmp")
    total = later = 0
    connection = _connect(plan.zone, table)
    # Read once and removed: fast to write counts for more than small.
    cheap = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
    with connection, pq.ParquetWriter(temporary, plan.schema, **cheap) as writer:
        for position, part in enumerate(parts):
            faults: _Faults = {}
            start = total
            for batch, share in part.batches():
                batch = _with_zone(batch) if plan.zone == "UTC" else batch
                types = dict(zip(batch.column_names, batch.schema.types, strict=True))
                try:
                    expressions = plan.expressions(types)
                except SourceError as error:
                    raise SourceError(f"{part.label}: {error}") from error
                result = _run(connection, batch, expressions, total, part.label)
                _note_faults(result, batch, expressions, faults)
                shaped = _shape(result, plan.schema)
                kept = shaped if until is None else _before(shaped, until)
                writer.write_table(kept)
                total += batch.num_rows
                later += batch.num_rows - kept.num_rows
                if on_progress is not None:
                    on_progress(f"reading {table}", total, (position + share) / len(parts))
            if faults:
                raise SourceError(_describe(faults, part, plan.source, table, start, total))
    temporary.replace(target)
    return total, later


def _before(events: pa.Table, until: datetime) -> pa.Table:
    """Return the events before a moment, and those without a time, which a gate judges."""
    is_later = pc.greater_equal(events["event_time"], pa.scalar(until, TIME))
    return events.filter(pc.invert(pc.fill_null(is_later, False)))


def _connect(zone: str, table: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    try:
        connection.execute(f"SET TimeZone = {sql.literal(zone)}")
        # A batch is too small to share out, and each thread keeps memory of its own.
        connection.execute("SET threads = 1")
    except duckdb.Error as error:
        connection.close()
        raise SourceError(
            f"{table}: unknown time zone '{zone}'; write one such as 'UTC' or 'Europe/Berlin'"
        ) from error
    return connection


def _with_zone(batch: pa.Table) -> pa.Table:
    """Call times without a zone UTC: free of cost here, and slow in DuckDB."""
    for place, one in enumerate(batch.schema):
        if pt.is_timestamp(one.type) and one.type.tz is None:
            zoned = batch[one.name].cast(pa.timestamp(one.type.unit, "UTC"))
            batch = batch.set_column(place, one.name, zoned)
    return batch


def _run(
    connection: duckdb.DuckDBPyConnection,
    batch: pa.Table,
    expressions: dict[str, Expression],
    first_row: int,
    where: str,
) -> pa.Table:
    # Not from a numpy array: pyarrow would import pandas, which needs more memory than all else.
    rows = pa.arange(first_row, first_row + batch.num_rows)
    connection.register("batch", batch.append_column(_ROW, rows))
    parts = [f"{one.sql} AS {sql.quoted(name)}" for name, one in expressions.items()]
    parts += [
        f"{one.fault} AS {sql.quoted(_fault_name(name))}"
        for name, one in expressions.items()
        if one.fault is not None
    ]
    try:
        query = f"SELECT {', '.join(parts)}, {sql.quoted(_ROW)} FROM batch"
        return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        message = str(error).strip().split("\n")[0]
        raise SourceError(f"{where}: {message}; check the formats in the description") from error
    finally:
        connection.unregister("batch")


def _fault_name(name: str) -> str:
    return f"{name} is at fault"


def _note_faults(
    result: pa.Table,
    batch: pa.Table,
    expressions: dict[str, Expression],
    faults: _Faults,
) -> None:
    # A column may be read twice in the same way (a rating as value and as label): told once.
    conditions = {one.fault: name for name, one in expressions.items() if one.fault is not None}
    for name in conditions.values():
        wrong = result[_fault_name(name)]
        if not pc.any(wrong).as_py():
            continue
        expression, places = expressions[name], pc.indices_nonzero(wrong)
        key = (expression.column, expression.expected)
        fault = faults.setdefault(key, _Fault(*key))
        fault.add(result[_ROW].take(places), batch[expression.column].take(places))


def _shape(result: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a query's result the raw table's columns; those without an expression are null."""
    arrays: list[Any] = []
    for one in schema:
        if one.name == "event_order":
            arrays.append(result[_ROW])
        elif one.name in result.column_names:
            arrays.append(result[one.name].cast(one.type))
        else:
            arrays.append(pa.nulls(result.num_rows, one.type))
    return pa.table(arrays, schema=schema)


def _describe(faults: _Faults, part: Part, source: Source, table: str, start: int, end: int) -> str:
    lines = []
    for fault in faults.values():
        where = part.locate([row - start for row in fault.rows])
        shown = ", ".join(f"{at} {value}" for at, value in zip(where, fault.values, strict=True))
        lines.append(
            f"{part.label}: {fault.count:,} of {end - start:,} rows have a column '{fault.column}' "
            f"that is not {fault.expected} (first: {shown})"
        )
    hint = f", or list texts that mean null in {table}.nulls" if source.format == "csv" else ""
    lines[-1] += f"; correct the rows, or the description{hint}"
    return "\n".join(lines)


def _add_synthetic_times(events: Path, *, shuffle: bool) -> None:
    """Spread each user's events evenly over 100 days from 2000-01-01, in the order of the rows.

    Event j (from 0) of a user's n happens at the start + j / n * 100 days. md5 and not DuckDB's
    own hash shuffles: it stays the same between versions.
    """
    temporary = events.with_suffix(".tmp")
    order = f"md5('{_SHUFFLE_SEED} ' || event_order), event_order" if shuffle else "event_order"
    columns = ", ".join(EVENTS_SCHEMA.names).replace(
        "event_time",
        f"""
        TIMESTAMPTZ '{_SYNTHETIC_START} 00:00:00+00' + to_microseconds(CAST(
            {_SYNTHETIC_DAYS * 86_400_000_000} * (row_number() OVER in_order - 1)
            / count(*) OVER of_user AS BIGINT)) AS event_time""",
    )
    query = f"""
        SELECT {columns} FROM read_parquet({sql.literal(str(events))})
        WINDOW of_user AS (PARTITION BY user_id), in_order AS (of_user ORDER BY {order})
        ORDER BY event_order"""
    with (
        _connect("UTC", "events") as connection,
        pq.ParquetWriter(temporary, EVENTS_SCHEMA, compression="zstd") as writer,
    ):
        for batch in connection.sql(query).to_arrow_reader(1 << 18):
            writer.write_table(pa.Table.from_batches([batch]).cast(EVENTS_SCHEMA))
    temporary.replace(events)

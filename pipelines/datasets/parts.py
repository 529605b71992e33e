"""The parts that a described table is read from: each of its files, or a table of a database.

Every part gives its rows as Arrow batches, a stamp that changes when its content does, and the
places of rows, for messages.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.types as pt

from feature_repo.dataset import Events, Source
from feature_repo.dataset_columns import Watermark
from pipelines.datasets import commit
from pipelines.datasets.expressions import literal, quoted
from pipelines.datasets.files import check_columns, find_files, line_numbers, read_batches
from pipelines.datasets.postgres import ALIKE, Database, Relation
from pipelines.errors import SourceError

Stamp = tuple[Any, ...]


class Part(Protocol):
    """One file, or one table or query of a database."""

    @property
    def label(self) -> str:
        """What messages call it, with its table in front."""

    @property
    def types(self) -> dict[str, str]:
        """The described columns' types as the database names them; empty for a file."""

    @property
    def reached(self) -> str | None:
        """The largest value of the watermark that was read; None without a watermark."""

    def check_columns(self) -> None:
        """Raise `SourceError` unless it has every described column exactly once."""

    def batches(self) -> Iterator[tuple[pa.Table, float]]:
        """Yield the described columns in pieces, with the share that is read so far."""

    def locate(self, rows: Sequence[int]) -> list[str]:
        """Return where rows (0-based, ascending) stand, as in "line 7"."""

    def stamp(self) -> Stamp:
        """Return what changes when the content does."""


@dataclass(frozen=True)
class FilePart:
    """One file."""

    path: Path
    source: Source
    table: str
    types: dict[str, str] = field(default_factory=dict)
    reached: str | None = None

    @property
    def label(self) -> str:
        """See `Part`."""
        return f"{self.table}: {self.path}"

    def check_columns(self) -> None:
        """See `Part`."""
        check_columns(self.path, self.source, self.table)

    def batches(self) -> Iterator[tuple[pa.Table, float]]:
        """See `Part`."""
        return read_batches(self.path, self.source, self.table)

    def locate(self, rows: Sequence[int]) -> list[str]:
        """See `Part`."""
        return line_numbers(self.path, self.source, rows)

    def stamp(self) -> Stamp:
        """Return path, size and modification time."""
        stat = self.path.stat()
        return str(self.path.resolve()), stat.st_size, stat.st_mtime_ns


class TablePart:
    """One table or query of a database, from a watermark on if one is given.

    Parameters
    ----------
    since
        The watermark's value that rows were read up to before, as `reached` gave it; None reads
        everything.

    Attributes
    ----------
    reached
        The largest value of the watermark that was read, as text; `since` if there was none.
    """

    def __init__(
        self, database: Database, source: Source, table: str, since: str | None = None
    ) -> None:
        self.database, self.source, self.table = database, source, table
        self.since = self.reached = since
        self.relation: Relation = database.relation(source, table)
        self.label = self.relation.label

    @property
    def watermark(self) -> Watermark | None:
        """The described watermark."""
        return self.source.watermark if isinstance(self.source, Events) else None

    @property
    def types(self) -> dict[str, str]:
        """See `Part`."""
        there = self.relation.types
        return {name: there[name] for name in self.source.columns() if name in there}

    def check_columns(self) -> None:
        """See `Part`; also that the watermark can be one."""
        there = self.relation.schema.names
        for name in self.source.columns():
            if there.count(name) > 1:
                raise SourceError(f"{self.label} has more than one column '{name}'; rename one")
            if name not in there:
                near = difflib.get_close_matches(name, there, 1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else "correct the description"
                names = ", ".join(f"'{one}'" for one in there)
                raise SourceError(f"{self.label} has no column '{name}'; it has {names}; {hint}")
        if self.watermark is None:
            return
        name = self.watermark.column
        kind = self.relation.schema.field(name).type
        if not (pt.is_integer(kind) or pt.is_timestamp(kind) or pt.is_date(kind)):
            raise SourceError(
                f"{self.label}: the watermark '{name}' is of type {self.types[name]}; expected a "
                "whole number or a time; choose another column"
            )
        null = f"SELECT 1 FROM {self.relation.sql} WHERE {quoted(name)} IS NULL LIMIT 1"
        if self.database.rows(null, self.label):
            raise SourceError(
                f"{self.label} has rows without '{name}', the watermark: they would be read once "
                "and never again; fill it in, or choose another column"
            )

    def batches(self) -> Iterator[tuple[pa.Table, float]]:
        """See `Part`. With a watermark, in its order; the next batches are fetched ahead."""
        columns = self.source.columns()
        query = f"{self.relation.select(columns)} FROM {self.relation.sql}"
        if self.watermark is not None:
            column = quoted(self.watermark.column)
            if self.since is not None:
                query += f" WHERE {column} >= {self._start(self.since, self.watermark)}"
            query += f" ORDER BY {column}"
        estimate, done = self.database.estimate(query, self.label), 0
        for batch in self.database.batches(query, self.label):
            done += batch.num_rows
            if self.watermark is not None and batch.num_rows:
                self.reached = _as_text(batch[self.watermark.column][-1].as_py())
            yield pa.Table.from_batches([batch]), min(done / estimate, 1.0)

    def locate(self, rows: Sequence[int]) -> list[str]:
        """See `Part`: the place among the rows as they were read."""
        return [f"row {row + 1}" for row in rows]

    def stamp(self) -> Stamp:
        """Return what the server says of the content.

        With a watermark: its largest value, and how many rows the next ingest would begin with.
        Without: the number of rows and a checksum of the described columns, for which the server
        looks at every row.
        """
        relation, types = self.relation, sorted(self.types.items())
        if self.watermark is None:
            row = ", ".join(quoted(name) for name in self.source.columns())
            found = self.database.rows(
                f"SELECT count(*), sum(hashtextextended(ROW({row})::text, 0))::text "
                f"FROM {relation.sql}",
                self.label,
            )
            return (relation.sql, types, *found[0])
        column = quoted(self.watermark.column)
        [(last,)] = self.database.rows(f"SELECT max({column}) FROM {relation.sql}", self.label)
        if last is None:
            return relation.sql, types, None, 0
        start = self._start(_as_text(last), self.watermark)
        [(count,)] = self.database.rows(
            f"SELECT count(*) FROM {relation.sql} WHERE {column} >= {start}", self.label
        )
        return relation.sql, types, _as_text(last), count

    def _start(self, value: str, watermark: Watermark) -> str:
        """Return a watermark's value less the overlap, as an SQL literal."""
        kind = self.relation.schema.field(watermark.column).type
        if pt.is_integer(kind):
            return str(int(value) - int(watermark.overlap))
        start = datetime.fromisoformat(value) - timedelta(seconds=watermark.overlap)
        return f"CAST({literal(start.isoformat())} AS {self.types[watermark.column]})"


def check_types(part: Part, before: Mapping[str, str], lake: Path | None) -> None:
    """Raise `SourceError` if a column's type means something else than at the last ingest.

    Parameters
    ----------
    before
        The types at the last ingest; columns that are absent here were not read then.
    lake
        Where the lake lies, for the message.
    """
    for name, kind in part.types.items():
        old = before.get(name, kind)
        if kind != old and not any({kind, old} <= alike for alike in ALIKE):
            raise SourceError(
                f"{part.label}: column '{name}' was of type {old} at the last ingest and is "
                f"{kind} now, so the lake would hold values of two kinds; change it back, or "
                f"remove {lake or 'the lake'} and ingest everything again"
            )


class Databases:
    """The databases of one ingest, each connected once, so that its tables are of one moment."""

    def __init__(self) -> None:
        self._open: dict[str, Database] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for database in self._open.values():
            database.close()

    def parts(
        self, source: Source, table: str, base_folder: Path, since: str | None = None
    ) -> Sequence[Part]:
        """Return a described table's parts, in the order of reading.

        Raises
        ------
        SourceError
            If there is no such file or table, or no connection.
        """
        if not source.is_database:
            return [
                FilePart(path, source, table) for path in find_files(base_folder, source, table)
            ]
        if source.connection not in self._open:
            self._open[source.connection] = Database(source.connection)
        return [TablePart(self._open[source.connection], source, table, since)]


def drained_parts(events: Events, folder: Path | None) -> list[Part]:
    """Return the parts of drained events, in the order of draining.

    They have the described columns, whatever the source is; a killed drain is finished first.
    """
    if folder is None or not folder.exists():
        return []
    if commit.is_pending(folder):
        with commit.locked(folder):
            commit.finish(folder)
    where = {"format": "parquet", "path": ("part-*.parquet",), "header": True, "watermark": None}
    source = events.model_copy(update=where)
    return [FilePart(path, source, "events") for path in sorted(folder.glob("part-*.parquet"))]


def _as_text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    return value.isoformat() if isinstance(value, date) else str(value)

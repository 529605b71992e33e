"""The lake: users, posts and events of a dataset as parquet, under dense integer ids.

::

    users/part-000000.parquet      user_id int64, known_time, attributes; ordered by user_id
    posts/part-000000.parquet      post_id int64, known_time, title, text, topics, image, attributes
    events/event_month=YYYY-MM/part-NNNNNN.parquet
                                   user_id, post_id, event_time, action, value, is_impression,
                                   is_positive, weight, event_order; ordered by time, order
    ids/users.parquet              external_id string, user_id int64   (ids/posts.parquet alike)
    topics.parquet                 topic, topic_id int32, post_count int64; most frequent first

Times are timestamp[us, UTC]. A user's or post's id never changes; new ones are appended. Every
ingest adds one part to each month that it has new events of; a crash leaves the lake as it was, or
with an announced change that the next ingest (or `recover`) finishes.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.dataset import Dataset
from pipelines.datasets import commit
from pipelines.datasets.expressions import literal, quoted
from pipelines.datasets.lake_state import (
    IngestResult,
    check_readable,
    events_rules,
    followed_table,
    read_state,
    write_state,
)
from pipelines.datasets.normalise import (
    EVENTS_SCHEMA,
    TEXTS,
    TIME,
    Before,
    Progress,
    RawTables,
    entity_schema,
    read_raw,
)
from pipelines.errors import LakeError

LAKE_EVENTS_SCHEMA = pa.schema(
    pa.field(one.name, pa.int64()) if one.name in ("user_id", "post_id") else one
    for one in EVENTS_SCHEMA
)

_BATCH_ROWS = 1 << 18
_ENTITIES = {"users": "user_id", "posts": "post_id"}


def ingest(
    dataset: Dataset,
    base_folder: Path,
    lake: Path,
    *,
    drop_orphans: bool = False,
    on_progress: Progress | None = None,
) -> IngestResult:
    """Bring a dataset's source into the lake: `read_raw`, then `write_lake`.

    Raises
    ------
    SourceError, LakeError
        As those two; the lake is then as it was.
    """
    folder = lake.with_name(f".{lake.name}-raw")
    try:
        raw = read_raw(dataset, base_folder, folder, on_progress, read_before(dataset, lake))
        return write_lake(raw, lake, drop_orphans=drop_orphans, on_progress=on_progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_lake(
    raw: RawTables,
    lake: Path,
    *,
    drop_orphans: bool = False,
    on_progress: Progress | None = None,
    memory_limit: str = "2GB",
) -> IngestResult:
    """Add raw tables to the lake.

    Of users and posts the latest row wins. Of events that agree in user, post, action and time the
    first wins, whether it is in the source or in the lake. Without a clock no two events can be
    told to be the same: the source's events replace the lake's.

    Parameters
    ----------
    drop_orphans
        Leave out events whose user or post is in no users' or posts' table, instead of raising.
    memory_limit
        How much DuckDB may hold; beyond it, it spills to the lake's staging folder.

    Raises
    ------
    LakeError
        If an event has no user, post, action or time, a user or post no id, an event an unknown
        user or post, or no event is left; the lake is then as it was.
    """
    with commit.locked(lake), commit.staged(lake) as staging:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"SET memory_limit = '{memory_limit}'")
            connection.execute(f"SET temp_directory = {literal(str(staging / 'spill'))}")
            writer = _LakeWriter(raw, lake, staging, connection, on_progress)
            result = writer.write(drop_orphans=drop_orphans)
        shutil.rmtree(staging / "spill", ignore_errors=True)
        commit.commit(lake, writer.removed)
    return result


def read_before(dataset: Dataset, lake: Path) -> Before:
    """Return what the lake's earlier ingests read from databases.

    Nothing if the description reads events in another way now, or from another place.

    Raises
    ------
    LakeError
        If a file of the lake is damaged.
    """
    recover(lake)
    check_readable(lake)
    known = read_state(lake)
    followed = known.get("followed", {})
    same = followed.get("source") == followed_table(dataset)
    reached = followed.get("reached") if same and _has_events(lake) else None
    types = known.get("types", {}) if _has_events(lake) else {}
    return Before(reached, types, lake)


def recover(lake: Path) -> None:
    """Finish a change of the lake that a killed process had announced, if there is one."""
    if commit.is_pending(lake):
        with commit.locked(lake):
            commit.finish(lake)


class _LakeWriter:
    """One ingest: SQL over the raw tables and the lake as it is, written to the staging folder."""

    def __init__(
        self,
        raw: RawTables,
        lake: Path,
        staging: Path,
        connection: duckdb.DuckDBPyConnection,
        on_progress: Progress | None,
    ) -> None:
        self.raw, self.lake, self.staging, self.connection = raw, lake, staging, connection
        self.on_progress = on_progress
        self.described = {"users": raw.users, "posts": raw.posts}
        self.has_old_events = False
        self.removed: list[Path] = []

    def write(self, *, drop_orphans: bool) -> IngestResult:
        old_parts = sorted((self.lake / "events").glob("*/*.parquet"))
        known = read_state(self.lake)
        rebuilt = bool(old_parts) and (
            not self.raw.dataset.has_clock
            or known.get("events_rules") != events_rules(self.raw.dataset)
        )
        if rebuilt:
            self.removed += old_parts
        if self.raw.before.reached is not None and (rebuilt or not old_parts):
            raise LakeError(
                f"{self.lake}: it was changed while events were read; run the same command again"
            )
        self._open_lake([] if rebuilt else old_parts)
        self._check_keys()
        orphans = self._select_events(drop_orphans=drop_orphans)
        new = {name: self._extend_ids(name) for name in _ENTITIES}
        duplicates, already_known = self._find_new_events()
        counts = self._one(
            "SELECT count(*), min(event_time), max(event_time) FROM (SELECT event_time FROM "
            "old_events UNION ALL BY NAME SELECT event_time FROM new_events)"
        )
        if counts[0] == 0:
            raise LakeError(
                f"dataset {self.raw.dataset.name}: no event is left ({orphans:,} orphans dropped); "
                "compare the ids of events with those of users and posts"
            )
        self.connection.execute("CREATE TABLE span AS SELECT ? AS first_time", [counts[1]])
        rows = {name: self._write_entities(name) for name in _ENTITIES}
        topics = self._write_topics()
        kept_parts = [] if rebuilt else old_parts
        new_events = self._write_events(1 + max(map(_part_number, kept_parts), default=-1))
        write_state(self.raw, self.staging)
        return IngestResult(
            users=rows["users"],
            posts=rows["posts"],
            events=counts[0],
            topics=topics,
            new_users=new["users"],
            new_posts=new["posts"],
            new_events=new_events,
            duplicates=duplicates,
            already_known=already_known,
            orphans=orphans,
            first_time=counts[1],
            last_time=counts[2],
            rebuilt=rebuilt,
        )

    def _open_lake(self, parts: list[Path]) -> None:
        """Make the tables `raw_…`, `old_…` and `old_ids_…`; those that are absent are empty."""
        self._view("raw_events", [self.raw.events], EVENTS_SCHEMA)
        self._view("old_events", parts, LAKE_EVENTS_SCHEMA)
        self.has_old_events = bool(parts)
        for name, key in _ENTITIES.items():
            path = self.described[name]
            if path is not None:
                self._view(f"raw_{name}", [path], pa.schema([]))
            old = sorted((self.lake / name).glob("*.parquet"))
            self._view(f"old_{name}", old, pa.schema([(key, pa.int64()), ("known_time", TIME)]))
            ids = self.lake / "ids" / f"{name}.parquet"
            schema = pa.schema([("external_id", pa.string()), (key, pa.int64())])
            self._view(f"old_ids_{name}", [ids] if ids.exists() else [], schema)

    def _view(self, name: str, paths: list[Path], schema: pa.Schema) -> None:
        if not paths:
            self.connection.register(name, schema.empty_table())
            return
        listed = ", ".join(literal(str(path)) for path in paths)
        self.connection.execute(
            f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{listed}], "
            "hive_partitioning = false, file_row_number = true)"
        )

    def _check_keys(self) -> None:
        """Raise `LakeError` if a key is null: no row of the lake can stand for it."""
        keys: dict[str, tuple[str, ...]] = {
            "events": ("user_id", "post_id", "event_time", "action")
        }
        keys |= {name: (key,) for name, key in _ENTITIES.items() if self.described[name]}
        for table, columns in keys.items():
            nulls = ", ".join(f"count(*) FILTER ({column} IS NULL)" for column in columns)
            total, *missing = self._one(f"SELECT count(*), {nulls} FROM raw_{table}")
            found = [
                f"{count:,} have no {column}"
                for column, count in zip(columns, missing, strict=True)
                if count
            ]
            if found:
                raise LakeError(
                    f"{table} of dataset {self.raw.dataset.name}: of {total:,} rows "
                    f"{', '.join(found)}; fill them in or remove those rows from the source"
                )

    def _select_events(self, *, drop_orphans: bool) -> int:
        """Make `kept_events`: the raw events whose user and post are known; count the others."""
        (total,) = self._one("SELECT count(*) FROM raw_events")
        faults, tests = [], []
        for name, key in _ENTITIES.items():
            if self.described[name] is None:
                continue
            self.connection.execute(
                f"CREATE TABLE known_{name} AS SELECT external_id AS {key} FROM old_ids_{name} "
                f"UNION SELECT {key} FROM raw_{name}"
            )
            test = f"{key} IN (SELECT {key} FROM known_{name})"
            tests.append(test)
            (count,) = self._one(f"SELECT count(*) FROM raw_events WHERE NOT ({test})")
            if count:
                first = self.connection.execute(
                    f"SELECT {key} FROM raw_events WHERE NOT ({test}) ORDER BY event_order LIMIT 3"
                ).fetchall()
                faults.append(
                    f"{count:,} of {total:,} rows have a {key} missing from {name} "
                    f"(first: {', '.join(value for (value,) in first)})"
                )
        if faults and not drop_orphans:
            raise LakeError(
                f"events of dataset {self.raw.dataset.name}: {'; '.join(faults)}; fix the source "
                "or pass --drop-orphans"
            )
        condition = " AND ".join(tests) if faults else "true"
        self.connection.execute(
            f"CREATE VIEW kept_events AS SELECT * FROM raw_events WHERE {condition}"
        )
        (kept,) = self._one("SELECT count(*) FROM kept_events")
        return int(total - kept)

    def _extend_ids(self, name: str) -> int:
        """Make `ids_<name>` and stage it: old ids as they are, new ones in order of appearance."""
        key = _ENTITIES[name]
        appearances = (
            f"SELECT {key} AS external_id, min(event_order) AS place FROM kept_events GROUP BY ALL"
            if self.described[name] is None
            else f"SELECT {key} AS external_id, min(file_row_number) AS place FROM raw_{name} "
            "GROUP BY ALL"
        )
        self.connection.execute(
            f"""CREATE TABLE ids_{name} AS
            SELECT external_id, {key} FROM old_ids_{name}
            UNION ALL
            SELECT external_id, (SELECT count(*) FROM old_ids_{name})
                + row_number() OVER (ORDER BY place) - 1 AS {key}
            FROM ({appearances}) ANTI JOIN old_ids_{name} USING (external_id)"""
        )
        rows, old = self._one(
            f"SELECT (SELECT count(*) FROM ids_{name}), (SELECT count(*) FROM old_ids_{name})"
        )
        schema = pa.schema([("external_id", pa.string()), (key, pa.int64())])
        self._stage(f"ids/{name}.parquet", f"SELECT * FROM ids_{name} ORDER BY {key}", schema)
        return int(rows - old)

    def _find_new_events(self) -> tuple[int, int]:
        """Make `new_events`, with dense ids; return how many were duplicates, and known before."""
        columns = {
            "user_id": "ids_users.user_id",
            "post_id": "ids_posts.post_id",
            "event_order": "event_order + base",
        }
        selected = ", ".join(f"{columns.get(name, name)} AS {name}" for name in EVENTS_SCHEMA.names)
        self.connection.execute(
            f"""CREATE TABLE dense_events AS SELECT {selected}
            FROM kept_events AS events
            JOIN ids_users ON ids_users.external_id = events.user_id
            JOIN ids_posts ON ids_posts.external_id = events.post_id
            CROSS JOIN (SELECT coalesce(max(event_order) + 1, 0) AS base FROM old_events)"""
        )
        same = "user_id, post_id, action, event_time"
        keep, duplicates = "", 0
        (given,) = self._one("SELECT count(*) FROM dense_events")
        if self.raw.dataset.has_clock:
            self.connection.execute(
                "CREATE TABLE firsts AS SELECT min(event_order) AS event_order FROM dense_events "
                f"GROUP BY {same}"
            )
            duplicates = given - self._one("SELECT count(*) FROM firsts")[0]
            keep += "SEMI JOIN firsts USING (event_order) " if duplicates else ""
            keep += f"ANTI JOIN old_events USING ({same})" if self.has_old_events else ""
        if keep:
            self.connection.execute(f"CREATE TABLE new_events AS FROM dense_events {keep}")
            self.connection.execute("DROP TABLE dense_events")
        else:
            self.connection.execute("ALTER TABLE dense_events RENAME TO new_events")
        (new,) = self._one("SELECT count(*) FROM new_events")
        return int(duplicates), int(given - duplicates - new)

    def _write_entities(self, name: str) -> int:
        """Stage `users` or `posts`: the latest row of each id; count them."""
        key = _ENTITIES[name]
        source = getattr(self.raw.dataset, name)
        schema = _dense(entity_schema(name, source))
        others = [one for one in schema if one.name not in (key, "known_time")]
        if source is None:
            absent = ", ".join(["", *(_absent(one) for one in others)])
            query = f"SELECT {key}, first_time AS known_time{absent} FROM ids_{name}, span"
        else:
            old = self._schema_of(f"old_{name}")
            has_created = source.created is not None
            newer = ", ".join(["", *(quoted(one.name) for one in others)])
            older = ", ".join(
                ["", *(quoted(one.name) if one in old else _absent(one) for one in others)]
            )
            query = f"""
                WITH latest AS (
                    SELECT ids_{name}.{key}, coalesce(known_time, first_time) AS known_time{newer}
                    FROM (SELECT {key} AS external_id, * EXCLUDE {key} FROM raw_{name}
                        QUALIFY row_number() OVER (
                            PARTITION BY {key} ORDER BY file_row_number DESC) = 1)
                    JOIN ids_{name} USING (external_id) CROSS JOIN span)
                FROM latest UNION ALL
                SELECT {key}, {"known_time" if has_created else "first_time"}{older}
                FROM old_{name} ANTI JOIN latest USING ({key}) CROSS JOIN span"""
        target = f"{name}/part-000000.parquet"
        return self._stage(target, f"SELECT * FROM ({query}) ORDER BY {key}", schema)

    def _write_topics(self) -> int:
        posts = literal(str(self.staging / "posts" / "part-000000.parquet"))
        schema = pa.schema(
            [("topic", pa.string()), ("topic_id", pa.int32()), ("post_count", pa.int64())]
        )
        return self._stage(
            "topics.parquet",
            f"""SELECT topic, row_number() OVER (ORDER BY post_count DESC, topic) - 1 AS topic_id,
                post_count
            FROM (SELECT topic, count(*) AS post_count
                FROM (SELECT unnest(topics) AS topic FROM read_parquet({posts})) GROUP BY topic)
            ORDER BY topic_id""",
            schema,
        )

    def _write_events(self, part: int) -> int:
        """Stage the new events, one part for each month; return how many there are."""
        (total,) = self._one("SELECT count(*) FROM new_events")
        columns = ", ".join(LAKE_EVENTS_SCHEMA.names)
        reader = self.connection.sql(
            f"SELECT {columns}, strftime(event_time, '%Y-%m') AS event_month FROM new_events "
            "ORDER BY event_time, event_order"
        ).to_arrow_reader(_BATCH_ROWS)
        month, done = "", 0
        with ExitStack() as closing:
            for batch in reader:
                for run in _runs(pa.Table.from_batches([batch])):
                    if run["event_month"][0].as_py() != month:
                        month = run["event_month"][0].as_py()
                        closing.close()
                        writer = closing.enter_context(self._month_writer(month, part))
                    writer.write_table(run.drop_columns("event_month").cast(LAKE_EVENTS_SCHEMA))
                    done += run.num_rows
                if self.on_progress is not None:
                    self.on_progress("writing events", done, done / total)
        return done

    def _month_writer(self, month: str, part: int) -> pq.ParquetWriter:
        target = self.staging / "events" / f"event_month={month}" / f"part-{part:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        return pq.ParquetWriter(target, LAKE_EVENTS_SCHEMA, compression="zstd")

    def _stage(self, name: str, query: str, schema: pa.Schema) -> int:
        """Write a query's rows to the staging folder; return how many there are."""
        target = self.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = 0
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in self.connection.sql(query).to_arrow_reader(_BATCH_ROWS):
                writer.write_table(pa.Table.from_batches([batch]).cast(schema))
                rows += batch.num_rows
        return rows

    def _one(self, query: str) -> Any:
        return self.connection.execute(query).fetchall()[0]

    def _schema_of(self, table: str) -> pa.Schema:
        return self.connection.sql(f"SELECT * FROM {table} LIMIT 0").to_arrow_table().schema


def _has_events(lake: Path) -> bool:
    return any((lake / "events").glob("*/*.parquet"))


def _dense(schema: pa.Schema) -> pa.Schema:
    """Return a raw table's schema with the lake's integer id in the first column."""
    return schema.set(0, pa.field(schema.names[0], pa.int64()))


def _absent(field: pa.Field) -> str:
    empty = "CAST([] AS VARCHAR[])" if field.type == TEXTS else "NULL"
    return f"{empty} AS {quoted(field.name)}"


def _part_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))


def _runs(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table that is ordered by event_month into one piece for each month."""
    start = 0
    for count in pc.value_counts(table["event_month"]):
        length = count["counts"].as_py()
        yield table.slice(start, length)
        start += length

"""SQL of point-in-time joins and latest-per-key queries for DuckDB. Text in, text out.

Point-in-time semantics (those of Feast): for an entity row at time t, the row of the view with
the same keys, ``timestamp <= t``, the greatest timestamp, then the greatest created timestamp
(null last); nothing if ``timestamp + ttl < t``. With ``filter_by_created_timestamp`` only rows
with ``created <= t`` count. Null keys match nothing.

DuckDB's own ASOF join sorts and holds both sides. Here DuckDB only streams the keys, times and
ids of the rows that could be valid, in any order, and `feastpack.valid_rows` picks among them;
feature columns are then read once, for the rows found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from feastpack.sources import SourceScan, quoted

KEY_TABLE = "entity_keys"
FOUND_TABLE = "found_rows"
_TWO_64 = "18446744073709551616::HUGEINT"
_LOWEST = "'-9223372036854775808'::BIGINT"
_LOWEST_CREATED = str(-(2**62))
_SHIFT_CREATED = str(2**62)


@dataclass(frozen=True)
class ViewJoin:
    """One feature view to be joined to the entity rows.

    Attributes
    ----------
    view
        Name of the view, for messages.
    scan
        Its source.
    keys
        Pairs (name in the view, position of the entity table's key column).
    timestamp, created
        Columns of the source; `created` is None where the source has none.
    columns
        Columns of the source to return, in order.
    names
        Their names in the result.
    ttl
        None: values never expire.
    """

    view: str
    scan: SourceScan
    keys: tuple[tuple[str, int], ...]
    timestamp: str
    created: str | None
    columns: tuple[str, ...]
    names: tuple[str, ...]
    ttl: timedelta | None


@dataclass(frozen=True)
class TimeRange:
    """Earliest and latest time of the entity rows (both inclusive, UTC)."""

    earliest: datetime
    latest: datetime


def instant_literal(moment: datetime) -> str:
    """A moment as SQL; naive datetimes are UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ '{aware.astimezone(UTC).isoformat(sep=' ')}'"


def ticks(scan: SourceScan, column: str, *, nanoseconds: bool) -> str:
    """A time column as BIGINT microseconds (or nanoseconds) since 1970."""
    if nanoseconds:
        as_utc = (
            quoted(column) if scan.is_nanosecond(column) else f"{scan.instant(column)}::TIMESTAMP"
        )
        return f"epoch_ns({as_utc}::TIMESTAMP_NS)"
    return f"epoch_us({scan.instant(column)})"


def candidates_query(
    join: ViewJoin, span: TimeRange | None, *, by_created: bool, nanoseconds: bool
) -> str:
    """SQL of the rows of the source that could be valid for some entity row, in any order.

    It reads the table ``entity_keys(code, latest, k0, k1, ...)``: the combinations of join keys
    among the entity rows and the last time of each. Columns, all BIGINT and never null: ``code``;
    ``visible``, the time from which the row counts; then what it is preferred by, the weightiest
    first: ``t``, its time; ``created``, if the source has that; ``source_row``, its id.

    Parameters
    ----------
    span
        Bounds of the entity rows' times: the part of the history outside is not read.
    by_created
        Count only rows created by the entity row's time, where the source says when.
    nanoseconds
        Unit of times: nanoseconds since 1970 instead of microseconds.
    """
    scan = join.scan
    time = ticks(scan, join.timestamp, nanoseconds=nanoseconds)
    visible, levels = time, {"t": time}
    conditions = _span_conditions(join, span) if span is not None else []
    if join.created is not None:
        fine = nanoseconds or scan.is_nanosecond(join.created)
        created = ticks(scan, join.created, nanoseconds=fine)
        levels["created"] = f"coalesce({created}, {_LOWEST})"
        if by_created:
            visible = f"greatest({time}, {created})"
            conditions.append(f"{created} IS NOT NULL")
    levels["source_row"] = scan.row_id
    columns = {"visible": visible, **levels} | {
        f"k{number}": quoted(scan.column(name)) for number, (name, _) in enumerate(join.keys)
    }
    select = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    on = [f"h.k{number} = e.k{number}" for number in range(len(join.keys))]
    picked = ", ".join(f"h.{name}" for name in ("visible", *levels))
    return (
        f"SELECT e.code AS code, {picked}\nFROM (\nSELECT {select} FROM {scan.sql}{where}\n) AS h\n"
        f"JOIN {KEY_TABLE} AS e ON {' AND '.join([*on, 'h.visible <= e.latest'])}"
    )


def values_query(join: ViewJoin, part: slice) -> str:
    """SQL of some feature columns, ``f0, f1, ...``, of the rows in the table ``found_rows``.

    Each row of the source that is named there comes once, after its ``source_row``.
    """
    values = [f"{quoted(column)} AS f{number}" for number, column in enumerate(join.columns[part])]
    select = ", ".join([f"{join.scan.row_id} AS source_row", *values])
    return (
        f"SELECT {select}\nFROM {join.scan.sql}\n"
        f"WHERE {join.scan.row_id} IN (SELECT source_row FROM {FOUND_TABLE})"
    )


def uses_nanoseconds(join: ViewJoin, *, by_created: bool) -> bool:
    """Whether the source's times need more than microseconds."""
    times = [join.timestamp, *([join.created] if by_created and join.created else [])]
    return any(join.scan.is_nanosecond(column) for column in times)


def _span_conditions(join: ViewJoin, span: TimeRange) -> list[str]:
    # A microsecond of slack: times finer than that are compared exactly by the join.
    slack = timedelta(microseconds=1)
    time = join.scan.instant(join.timestamp)
    conditions = []
    if span.latest < datetime.max.replace(tzinfo=UTC) - slack:
        conditions.append(f"{time} <= {instant_literal(span.latest + slack)}")
    if join.ttl and span.earliest - datetime.min.replace(tzinfo=UTC) > join.ttl + slack:
        conditions.append(f"{time} >= {instant_literal(span.earliest - join.ttl - slack)}")
    return conditions


def preference(scan: SourceScan, time: str, created: str | None, *, nanoseconds: bool) -> str:
    """Which of two rows of a key is to be preferred, as one HUGEINT: greater is better.

    Upper half: the event time. Lower half: the created time (null: lowest) or, in a source
    without one, the row's place in the files, so that results do not depend on the threads.
    """
    lower = scan.row_id
    if created is not None:
        epoch = ticks(scan, created, nanoseconds=nanoseconds)
        lower = f"coalesce({epoch}, {_LOWEST_CREATED})::HUGEINT + {_SHIFT_CREATED}"
    return f"{time}::HUGEINT * {_TWO_64} + {lower}"


def ticks_of(length: timedelta, *, nanoseconds: bool) -> int:
    """A length of time in microseconds (or nanoseconds)."""
    return length // timedelta(microseconds=1) * (1000 if nanoseconds else 1)


def range_query(
    scan: SourceScan,
    columns: Sequence[str],
    timestamp: str,
    start: datetime | None,
    end: datetime | None,
) -> str:
    """SQL of all rows with ``start <= timestamp <= end``; None leaves a side open."""
    picked = ", ".join(map(quoted, columns))
    return f"SELECT {picked}\n{_rows_between(scan, timestamp, start, end)}"


def _rows_between(
    scan: SourceScan, timestamp: str, start: datetime | None, end: datetime | None
) -> str:
    time = scan.instant(timestamp)
    conditions = []
    if start is not None:
        conditions.append(f"{time} >= {instant_literal(start)}")
    if end is not None:
        conditions.append(f"{time} <= {instant_literal(end)}")
    where = f"\nWHERE {' AND '.join(conditions)}" if conditions else ""
    return f"FROM {scan.sql}{where}"


@dataclass(frozen=True)
class LatestQuery:
    """A latest-per-key query: what to run first, and what then returns the rows.

    `prepare` creates the temporary table ``winners(row_id)``, one row per row of the result.
    """

    prepare: str
    rows: str


def latest_query(
    scan: SourceScan,
    keys: Sequence[str],
    columns: Sequence[str],
    timestamp: str,
    created: str | None,
    start: datetime,
    end: datetime,
) -> LatestQuery:
    """SQL of the latest row per key (a null key is a key) with ``start <= timestamp <= end``.

    Latest: greatest timestamp, then greatest created (null last), then last in the files where
    there is no created column. The winners are found on the narrow columns; a second pass reads
    the wide ones and keeps the winners' rows, so memory follows the number of keys and not the
    width or the length of the history.
    """
    picked = ", ".join(map(quoted, columns))
    rows = _rows_between(scan, timestamp, start, end)
    key_list = ", ".join(map(quoted, keys))
    nanoseconds = any(scan.is_nanosecond(name) for name in (timestamp, created) if name)
    time = ticks(scan, timestamp, nanoseconds=nanoseconds)
    best = preference(scan, time, created, nanoseconds=nanoseconds)
    grouped = f"\nGROUP BY {key_list}" if keys else ""
    return LatestQuery(
        prepare=(
            "CREATE OR REPLACE TEMP TABLE winners AS\n"
            f"SELECT arg_max({scan.row_id}, {best}) AS row_id\n{rows}{grouped}"
        ),
        rows=f"SELECT {picked}\n{rows}\nAND {scan.row_id} IN (SELECT row_id FROM winners)",
    )

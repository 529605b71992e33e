"""Sliding-window counts as change points: a row on each day on which some window changes.

An event of day ``d`` is known from midnight of ``d + 1``. It enters every window then, and it
leaves the window of ``w`` days at midnight of ``d + 1 + w``. The value of a window on a day is
therefore a running sum of what entered and what left, and nothing is written between changes:
a point-in-time join takes the last row, whose value still holds.
"""

from collections.abc import Mapping, Sequence

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.operations as ops
import ibis.expr.types as ir

from feature_repo.definitions.columns import LIFETIME, window_suffixes

SECONDS_PER_DAY = 86_400


def unix_seconds(time: ir.TimestampColumn) -> ir.IntegerColumn:
    """Return whole seconds since 1970-01-01 UTC (int64), rounded down."""
    # DuckDB's are fractions, whatever Ibis says, and a cast would round half of them up.
    return time.epoch_seconds().floor().cast("int64")


def day_of(time: ir.TimestampColumn) -> ir.IntegerColumn:
    """Return whole days since 1970-01-01 UTC (int64)."""
    return (unix_seconds(time) // SECONDS_PER_DAY).cast("int64")


def midnight_of(day: ir.IntegerColumn) -> ir.TimestampColumn:
    """Return the start of ``day`` (days since 1970-01-01) as timestamp[us, UTC]."""
    return (day * SECONDS_PER_DAY).as_timestamp("s").cast("timestamp('UTC', 6)")


def count_changes(
    events: ir.Table,
    key: str,
    measures: Mapping[str, ir.Column],
    windows_days: Sequence[int],
) -> ir.Table:
    """Return what enters and leaves each window of summed measures.

    Parameters
    ----------
    measures
        Column prefix (``user_positive_count``) and the boolean or integer column that is summed.

    Returns
    -------
    ibis table
        ``key``, ``day`` (int64) and one int32 column ``<measure>_<window>`` per measure and
        window: the amount by which that window's value changes on that day.
    """
    daily = events.group_by(key, day=day_of(events.event_time)).agg(
        **{name: column.cast("int32").sum().cast("int32") for name, column in measures.items()}
    )
    columns = [(name, w) for name in measures for w in window_suffixes(windows_days)]
    entering = daily.select(
        key, day=daily.day + 1, **{f"{name}_{w}": daily[name] for name, w in columns}
    )
    zero = ibis.literal(0, "int32")
    leaving = [
        daily.select(
            key,
            day=daily.day + 1 + days,
            **{f"{name}_{w}": -daily[name] if w == f"{days}d" else zero for name, w in columns},
        )
        for days in windows_days
    ]
    return ibis.union(entering, *leaving) if leaving else entering


def distinct_changes(
    events: ir.Table, key: str, other: str, name: str, windows_days: Sequence[int]
) -> ir.Table:
    """Return what changes the number of distinct ``other`` ids per ``key`` in each window.

    An id is present from the day after an event until ``window`` days later; overlapping
    presences are one. So an event starts a presence only if the id's previous event had left
    the window, and ends one only if its next event comes too late.

    Returns
    -------
    ibis table
        ``key``, ``day`` (int64) and one int32 column ``<name>_<window>`` per window.
    """
    in_order = ibis.window(group_by=[key, other], order_by="day")
    seen = events.select(key, other, day=day_of(events.event_time))
    # Of several events on one day all but the first come 0 days after another, and all but the
    # last 0 days before one, so they count for nothing.
    gaps = seen.mutate(
        since=seen.day - seen.day.lag().over(in_order),
        until=seen.day.lead().over(in_order) - seen.day,
    )

    def count(rows: ir.BooleanValue) -> ir.IntegerValue:
        return ibis.ifelse(rows, 1, 0).cast("int32").sum().cast("int32")

    first = gaps.since.isnull()
    daily = gaps.group_by(key, "day").agg(
        **{f"entering_{w}d": count(first | (gaps.since >= w)) for w in windows_days},
        **{f"entering_{LIFETIME}": count(first)},
        **{f"leaving_{w}d": count(gaps.until.isnull() | (gaps.until >= w)) for w in windows_days},
    )
    names = window_suffixes(windows_days)
    zero = ibis.literal(0, "int32")
    entering = daily.select(
        key, day=daily.day + 1, **{f"{name}_{w}": daily[f"entering_{w}"] for w in names}
    )
    leaving = [
        daily.select(
            key,
            day=daily.day + 1 + days,
            **{f"{name}_{w}": -daily[f"leaving_{w}"] if w == f"{days}d" else zero for w in names},
        )
        for days in windows_days
    ]
    return ibis.union(entering, *leaving) if leaving else entering


def accumulate(changes: Sequence[ir.Table], key: str) -> ir.Table:
    """Merge changes of several measures and sum them up over time.

    Returns
    -------
    ibis table
        One row per ``key`` and ``day`` on which anything changes, with the running value of
        every column (int64, never null).
    """
    names = [name for table in changes for name in table.columns if name not in (key, "day")]
    zero = ibis.literal(0, "int32")
    aligned = [
        table.select(key, "day", **{n: table[n] if n in table.columns else zero for n in names})
        for table in changes
    ]
    merged = ibis.union(*aligned) if len(aligned) > 1 else aligned[0]
    per_day = merged.group_by(key, "day").agg(**{n: merged[n].sum().cast("int32") for n in names})
    changed = per_day.filter(ibis.or_(*(per_day[n] != 0 for n in names)))
    running = ibis.cumulative_window(group_by=key, order_by="day")
    return changed.select(
        key, "day", **{n: as_int64(changed[n].sum().over(running)) for n in names}
    )


def as_int64(value: ir.IntegerValue) -> ir.IntegerColumn:
    """Return a cast that stays in the query.

    DuckDB sums up in 128 bits, which it writes to parquet as double; Ibis takes a sum for int64
    already, so its own ``cast`` leaves out what seems to change nothing.
    """
    return ops.Cast(value, to=dt.int64).to_expr()

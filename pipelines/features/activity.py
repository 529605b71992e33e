"""Counts of events per user or per post; what user_activity and post_activity share."""

import ibis
import ibis.expr.types as ir

from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from pipelines.features.changes import (
    accumulate,
    count_changes,
    day_of,
    distinct_changes,
    midnight_of,
    unix_seconds,
)


def activity(events: ir.Table, dataset: Dataset, *, key: str, other: str) -> ir.Table:
    """Count a side's events over every window of the dataset.

    Parameters
    ----------
    key, other
        ``user`` and ``post``, or the other way round.

    Returns
    -------
    ibis table
        ``<key>_id``, ``day`` (int64), ``event_timestamp``, the measures of
        `feature_repo.definitions.columns.measures` and ``<other>_distinct_count`` per window
        (int64), ``first_event_unix_s`` and ``last_event_unix_s`` (int64).
    """
    key_id = f"{key}_id"
    days = c.windows_days(dataset)
    counted = {
        f"{key}_{m.name}": events[m.event_column] if m.event_column else events.event_time.notnull()
        for m in c.measures(dataset)
    }
    changes = [
        count_changes(events, key_id, counted, days),
        distinct_changes(events, key_id, f"{other}_id", f"{key}_{other}_distinct_count", days),
    ]
    counts = accumulate(changes, key_id)
    return _with_first_and_last(counts, events, key_id).mutate(
        event_timestamp=lambda t: midnight_of(t.day)
    )


def at_least_positives(exposures: ir.NumericValue, positives: ir.NumericValue) -> ir.NumericValue:
    """Return the exposures that a rate divides by: who liked a post has seen it, logged or not."""
    return ibis.greatest(exposures, positives)


def _with_first_and_last(counts: ir.Table, events: ir.Table, key_id: str) -> ir.Table:
    seconds = unix_seconds(events.event_time)
    daily = events.group_by(key_id, day=day_of(events.event_time) + 1).agg(
        first_event_unix_s=seconds.min(), last_event_unix_s=seconds.max()
    )
    joined = counts.left_join(daily, [key_id, "day"]).drop(f"{key_id}_right", "day_right")
    running = ibis.cumulative_window(group_by=key_id, order_by="day")
    return joined.mutate(
        first_event_unix_s=joined.first_event_unix_s.min().over(running),
        last_event_unix_s=joined.last_event_unix_s.max().over(running),
    )

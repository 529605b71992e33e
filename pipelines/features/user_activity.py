"""user_activity: how much a user did and liked, over sliding windows and for life.

Grain: one row per user and day on which a value changes. Columns: ``user_id`` int64,
``event_timestamp`` (midnight UTC from which the values hold: they count the events before it),
int64 counts, double rates (null while the window holds no exposure), ``user_last_event_unix_s``.
"""

import ibis.expr.types as ir

from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from pipelines.features.activity import activity, at_least_positives
from pipelines.features.tables import LakeTables


def compute(tables: LakeTables, dataset: Dataset) -> ir.Table:
    """Return the feature table, ordered by nothing in particular."""
    counts = activity(tables.events, dataset, key="user", other="post")
    rates = {}
    if dataset.has_impressions:
        for window in c.window_names(dataset):
            exposed = counts[f"user_{c.exposure(dataset)}_{window}"]
            positive = counts[f"user_positive_count_{window}"]
            rates[f"user_positive_rate_{window}"] = positive / at_least_positives(
                exposed, positive
            ).nullif(0)
    return (
        counts.mutate(**rates)
        .rename({c.USER_LAST_EVENT: "last_event_unix_s"})
        .drop("day", "first_event_unix_s")
    )

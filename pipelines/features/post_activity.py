"""post_activity: how often a post was shown and liked, over sliding windows and for life.

Grain: one row per post and day on which a count changes. Columns: ``post_id`` int64,
``event_timestamp`` (midnight UTC from which the values hold: they count the events before it),
int64 counts, double rates, ``post_first_event_unix_s``. Rates are shrunk towards the rate of all
posts up to the row's day, as if each post had been shown ``PRIOR_EXPOSURES`` times more at that
rate (the posterior mean of a beta-binomial model), so they are never null.
"""

import ibis
import ibis.expr.types as ir

from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from pipelines.features.activity import activity, at_least_positives
from pipelines.features.tables import LakeTables

PRIOR_EXPOSURES = 20


def compute(tables: LakeTables, dataset: Dataset) -> ir.Table:
    """Return the feature table, ordered by nothing in particular."""
    counts = activity(tables.events, dataset, key="post", other="user")
    if dataset.has_impressions:
        counts = _with_rates(counts, tables.daily_totals(), dataset)
    return counts.rename({c.POST_FIRST_EVENT: "first_event_unix_s"}).drop(
        "day", "last_event_unix_s"
    )


def _with_rates(counts: ir.Table, totals: ir.Table, dataset: Dataset) -> ir.Table:
    prior = _rate_of_all(totals, counts, dataset)
    joined = counts.join(prior, "day")
    return joined.mutate(
        **{
            f"post_positive_rate_smoothed_{window}": (
                joined[f"post_positive_count_{window}"] + PRIOR_EXPOSURES * joined.prior_rate
            )
            / (
                at_least_positives(
                    joined[f"post_{c.exposure(dataset)}_{window}"],
                    joined[f"post_positive_count_{window}"],
                )
                + PRIOR_EXPOSURES
            )
            for window in c.window_names(dataset)
        }
    ).drop("prior_rate")


def _rate_of_all(of_days: ir.Table, counts: ir.Table, dataset: Dataset) -> ir.Table:
    """Return ``day, prior_rate``: positives per exposure of all posts before each day."""
    daily = of_days.select(
        day=of_days.day + 1,
        exposures=of_days[c.exposure(dataset)],
        positives=of_days.positive_count,
    )
    zero = ibis.literal(0, "int64")
    asked = counts.select("day").distinct().select("day", exposures=zero, positives=zero)
    both = ibis.union(daily, asked)
    merged = both.group_by("day").agg(
        exposures=both.exposures.sum(), positives=both.positives.sum()
    )
    running = ibis.cumulative_window(order_by="day")
    totals = merged.select(
        "day",
        exposures=merged.exposures.sum().over(running),
        positives=merged.positives.sum().over(running),
    )
    rate = totals.positives / at_least_positives(totals.exposures, totals.positives).nullif(0)
    return totals.select("day", prior_rate=rate.fill_null(0.0))

"""user_topic_affinity: which topics a user likes.

Grain: one row per user and day after a day with events. ``event_timestamp`` is midnight UTC; the
values cover all events before it. Columns, list<float32> in the order of ``post_topic_vector``:

``user_topic_positive_share``
    The share of the user's positive events that falls to each topic (a post of n topics counts
    1/n for each); sums to at most 1; all 0 before the first positive event.
``user_topic_positive_rate``
    Positives per exposure to the topic, shrunk towards the user's own rate as if he had seen
    ``PRIOR_EXPOSURES`` more posts of the topic at that rate. Only where there are impressions.
"""

import ibis
import ibis.expr.types as ir

from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from pipelines.features.activity import at_least_positives
from pipelines.features.changes import day_of, midnight_of
from pipelines.features.tables import LakeTables
from pipelines.features.topics import topic_names

PRIOR_EXPOSURES = 5


def compute(tables: LakeTables, dataset: Dataset) -> ir.Table:
    """Return the feature table, ordered by nothing in particular."""
    topics = topic_names(tables)
    running = _running_sums(tables, dataset, topics)
    features = {c.USER_TOPIC_SHARE: _shares(running, len(topics))}
    if dataset.has_impressions:
        features[c.USER_TOPIC_RATE] = _rates(running, len(topics))
    return running.select("user_id", event_timestamp=midnight_of(running.day), **features)


def _running_sums(tables: LakeTables, dataset: Dataset, topics: list[str]) -> ir.Table:
    """Sum positives and exposures per user up to each day, in total and by topic."""
    joined = tables.events.join(_topic_shares(tables.posts, topics), "post_id")
    positive = joined.is_positive.cast("float64")
    every = c.exposure(dataset) == "event_count"
    exposed = ibis.literal(1.0) if every else joined.is_impression.cast("float64")
    sums = {"positives": positive.sum(), "exposures": (positive * 0.0 + exposed).sum()}
    for index in range(len(topics)):
        of_topic = joined[f"share_{index}"]
        sums[f"positives_{index}"] = (of_topic * positive).sum()
        sums[f"exposures_{index}"] = (of_topic * exposed).sum()
    daily = joined.group_by("user_id", day=day_of(joined.event_time) + 1).agg(**sums)
    running = ibis.cumulative_window(group_by="user_id", order_by="day")
    return daily.select("user_id", "day", **{n: daily[n].sum().over(running) for n in sums})


def _topic_shares(posts: ir.Table, topics: list[str]) -> ir.Table:
    """Return ``post_id`` and ``share_<i>``: 1/n for each of a post's n topics, 0 for the others.

    Once a post and not once an event: looking through lists costs more than all sums.
    """
    share = 1.0 / posts.topics.length().nullif(0).cast("float64")
    return posts.select(
        "post_id",
        **{
            f"share_{index}": ibis.ifelse(posts.topics.contains(topic), share, 0.0)
            for index, topic in enumerate(topics)
        },
    )


def _shares(running: ir.Table, topics: int) -> ir.ArrayValue:
    total = running.positives.nullif(0.0)
    return ibis.array(
        [(running[f"positives_{i}"] / total).fill_null(0.0).cast("float32") for i in range(topics)]
    )


def _rates(running: ir.Table, topics: int) -> ir.ArrayValue:
    exposures = at_least_positives(running.exposures, running.positives)
    own_rate = (running.positives / exposures.nullif(0.0)).fill_null(0.0)
    return ibis.array(
        [
            (
                (running[f"positives_{i}"] + PRIOR_EXPOSURES * own_rate)
                / (
                    at_least_positives(running[f"exposures_{i}"], running[f"positives_{i}"])
                    + PRIOR_EXPOSURES
                )
            ).cast("float32")
            for i in range(topics)
        ]
    )

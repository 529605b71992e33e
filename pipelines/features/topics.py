"""The topic vocabulary, as the order of every topic vector."""

import ibis

from feature_repo.definitions.columns import MAX_TOPICS
from pipelines.features.tables import LakeTables


def topic_names(tables: LakeTables) -> list[str]:
    """Return the vocabulary: at most ``MAX_TOPICS`` topics, most frequent first."""
    ranked = tables.topics.filter(tables.topics.topic_id < MAX_TOPICS)
    names = ranked.order_by(ibis.asc("topic_id")).topic.to_pyarrow().to_pylist()
    return [str(name) for name in names]

"""post_profile: what is known of a post without its events.

Grain: one row per post. ``event_timestamp`` is when the row became known; without a time column
in the source that is the dataset's first event. Columns: ``post_<attribute>``, string or double;
``post_topic_vector`` list<float32>, one element per topic of the lake's vocabulary (at most
``MAX_TOPICS``, most frequent first), 1/n for each of the post's n topics, else 0;
``post_text_length_characters`` int64; ``post_created_unix_s`` int64.
"""

import ibis
import ibis.expr.types as ir

from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from pipelines.features.changes import unix_seconds
from pipelines.features.tables import LakeTables
from pipelines.features.topics import topic_names


def compute(tables: LakeTables, dataset: Dataset) -> ir.Table:
    """Return the feature table, ordered by nothing in particular."""
    posts = tables.posts
    features: dict[str, ir.Value] = {
        c.post_attribute(a.name): posts[a.name] for a in dataset.post_attributes
    }
    if c.has_created_time(dataset):
        features[c.POST_CREATED] = unix_seconds(posts.known_time)
    if dataset.has_text:
        features[c.POST_TEXT_LENGTH] = posts.text.length().cast("int64")
    if dataset.has_topics:
        share = 1.0 / posts.topics.length().nullif(0)
        features[c.POST_TOPICS] = ibis.array(
            [
                ibis.ifelse(posts.topics.contains(topic), share, 0.0).cast("float32")
                for topic in topic_names(tables)
            ]
        )
    return posts.select("post_id", event_timestamp=posts.known_time, **features)

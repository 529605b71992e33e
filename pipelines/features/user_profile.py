"""user_profile: the attributes that the dataset description declares for users.

Grain: one row per user. ``event_timestamp`` is when the row became known; without a time column
in the source that is the dataset's first event. Columns: ``user_<attribute>``, string for
categorical, double for numeric attributes; null where the source has none.
"""

import ibis.expr.types as ir

from feature_repo.dataset import Dataset
from feature_repo.definitions.columns import user_attribute
from pipelines.features.tables import LakeTables


def compute(tables: LakeTables, dataset: Dataset) -> ir.Table:
    """Return the feature table, ordered by nothing in particular."""
    return tables.users.select(
        "user_id",
        event_timestamp=tables.users.known_time,
        **{user_attribute(a.name): tables.users[a.name] for a in dataset.user_attributes},
    )

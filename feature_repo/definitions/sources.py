"""Where feature values come from: a parquet file per view, and the request itself."""

from collections.abc import Sequence

from feast import Field, FileSource, RequestSource
from feast.data_source import DataSource
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Float64, Int64

from feature_repo.definitions import columns as c
from feature_repo.workspace import Workspace


def feature_table(workspace: Workspace, view: str, *, spark: bool = False) -> DataSource:
    """Return the source of the feature view ``view``.

    Parameters
    ----------
    spark
        Whether Feast's Spark store is to read it, which takes no other kind of source.
    """
    name, path = f"{view}_table", str(workspace.feature_table(view))
    if spark:
        return SparkSource(
            name=name, path=path, file_format="parquet", timestamp_field="event_timestamp"
        )
    return FileSource(name=name, path=path, timestamp_field="event_timestamp")


def request(sources: Sequence[str]) -> RequestSource:
    """Return the source of what comes with a request, for these candidate sources."""
    return RequestSource(
        name="request",
        schema=[
            Field(name=c.REQUEST_TIME, dtype=Int64),
            *(Field(name=c.source_score(source), dtype=Float64) for source in sources),
            *(Field(name=c.source_rank(source), dtype=Float64) for source in sources),
        ],
        description="The moment of the request, and what each candidate source says of the post.",
    )

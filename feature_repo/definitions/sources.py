"""Where feature values come from: a parquet file per view, and the request itself."""

from feast import Field, FileSource, RequestSource
from feast.types import Float64, Int64

from feature_repo.definitions import columns as c
from feature_repo.workspace import Workspace


def feature_table(workspace: Workspace, view: str) -> FileSource:
    """Return the source of the feature view ``view``."""
    return FileSource(
        name=f"{view}_table",
        path=str(workspace.feature_table(view)),
        timestamp_field="event_timestamp",
    )


request = RequestSource(
    name="request",
    schema=[
        Field(name=c.REQUEST_TIME, dtype=Int64),
        *(Field(name=f"{source}_score", dtype=Float64) for source in c.CANDIDATE_SOURCES),
        *(Field(name=f"{source}_rank", dtype=Float64) for source in c.CANDIDATE_SOURCES),
    ],
    description="The moment of the request, and what each candidate source says of the post.",
)

"""Settings of a job whose features, lists and events lie on a Redis Cluster."""

from pydantic import Field
from pydantic_settings import BaseSettings


class ClusterSettings(BaseSettings):
    """Where the Cluster is, and when something counts as written to it."""

    redis_cluster: str | None = Field(
        None,
        pattern=r"^[^\s:,=]+:\d+(,[^\s:,=]+:\d+)*(,\w+=[^\s,]*)*$",
        description="Some nodes of a Redis Cluster, host:port,host:port; options may follow, such "
        "as password=... What is published then lies there (docs/scale.md). By default REDIS_URL, "
        "or an embedded Redis.",
    )
    wait_for_replicas: int = Field(
        1,
        ge=0,
        description="With a Redis Cluster: how many replicas of a master must have what is written "
        "before it counts as written. 0 where masters have none.",
    )

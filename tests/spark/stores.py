"""Feast repositories over the same feature tables: on this machine, and on Spark."""

from pathlib import Path
from typing import Any

from feast import FeatureStore
from feast.repo_config import RepoConfig

from feature_repo.definitions.entities import post, user
from feature_repo.definitions.services import ranker_service
from feature_repo.definitions.views import feature_views, request_view
from feature_repo.workspace import Workspace
from pipelines.features.build import EXPRESSIONS
from pipelines.job.profile import spark_settings
from pipelines.settings import JobSettings

SPARK = {
    "offline_store": {
        "type": "feastpack.SparkArrowOfflineStore",
        "spark_conf": spark_settings(JobSettings(profile="spark")),
    },
    "batch_engine": {"type": "feastpack.SparkArrowComputeEngine", "partitions": 2},
}
HERE = {
    "offline_store": {"type": "feastpack.AsofDuckDBOfflineStore"},
    "batch_engine": {"type": "feastpack.ArrowComputeEngine"},
}
SERVICE = "ranker_v1"


def open_store(
    folder: Path, tables: Workspace, context: Any, name: str, server: Any, **online: Any
) -> FeatureStore:
    """Register the views that are expressions, on the stores ``spark`` or ``here``.

    The rows in Redis are a namespace of that name.
    """
    stores = SPARK if name.startswith("spark") else HERE
    config = RepoConfig(
        project=context.dataset.name,
        provider="local",
        registry=str(folder / f"{name}.db"),
        online_store={
            "type": "feastpack.PackedRedisOnlineStore",
            "connection_string": f"{server.host}:{server.port}",
            "namespace": name,
            **online,
        },
        entity_key_serialization_version=3,
        repo_path=folder,
        **stores,
    )
    store = FeatureStore(config=config)
    every = feature_views(context.dataset, tables, spark=stores is SPARK)
    views = [view for view in every if view.name in EXPRESSIONS]
    request = request_view(context.dataset, views)
    service = ranker_service(views, request)
    assert service.name == SERVICE
    store.apply([user, post, *views, request, service])
    return store

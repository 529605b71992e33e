"""All Feast objects of one dataset."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from feast import Project

from feature_repo.dataset import Dataset
from feature_repo.definitions.entities import post, user
from feature_repo.definitions.services import ranker_service
from feature_repo.definitions.views import feature_views, request_view
from feature_repo.tuned import TunedSettings
from feature_repo.workspace import Workspace, home

SPARK_STORES = ("spark", "feastpack.SparkArrowOfflineStore")
DEFAULT_DATASET = Path(__file__).parents[1] / "datasets" / "movielens_100k.toml"


def active_dataset() -> Path:
    """Return the description of the dataset that Feast commands are about."""
    configured = _configured()
    if configured is not None:
        return configured
    return Path(os.environ.get("FEASTRANK_DATASET") or DEFAULT_DATASET)


def _configured() -> Path | None:
    """Return the description that `feastrank apply` put beside the configuration in use."""
    configuration = os.environ.get("FEAST_FS_YAML_FILE_PATH")
    beside = Path(configuration).resolve().with_name("dataset.toml") if configuration else None
    return beside if beside is not None and beside.exists() else None


def _for_spark() -> bool:
    """Return whether the configuration in use has Feast's Spark store."""
    configuration = os.environ.get("FEAST_FS_YAML_FILE_PATH")
    if not configuration or not Path(configuration).exists():
        return False
    settings = yaml.safe_load(Path(configuration).read_text(encoding="utf-8"))
    return settings.get("offline_store", {}).get("type") in SPARK_STORES


def objects(
    dataset: Dataset | None = None,
    workspace: Workspace | None = None,
    sources: Sequence[str] | None = None,
    *,
    spark: bool | None = None,
) -> list[Any]:
    """Return project, entities, views and services of ``dataset``, by default the active one.

    The candidate sources are by default those that hold for the active dataset, see
    `feature_repo.tuned`. Whether they are for Feast's Spark store, ``spark``, follows by default
    from the configuration that ``FEAST_FS_YAML_FILE_PATH`` names.

    Raises
    ------
    feature_repo.dataset.DatasetError
        If the description, or its tuned settings, cannot be read.
    """
    described = dataset is not None
    dataset = dataset or Dataset.read(active_dataset())
    configured = _configured()
    # The state folder that the configuration lies in, wherever FEASTRANK_HOME points.
    state = home() if configured is None else configured.parents[1]
    workspace = workspace or Workspace(state, dataset.name)
    views = feature_views(dataset, workspace, spark=_for_spark() if spark is None else spark)
    if sources is None:
        tuned = TunedSettings() if described else TunedSettings.of(active_dataset(), workspace)
        sources = tuple(tuned.sources)
    request = request_view(dataset, views, sources)
    # Feast refuses a project whose name differs from feature_store.yaml's, which is what stands
    # between a forgotten environment variable and another dataset's registry.
    project = Project(name=dataset.name, description=f"feastrank on {dataset.name}")
    return [project, user, post, *views, request, ranker_service(views, request)]

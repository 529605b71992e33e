"""All Feast objects of one dataset."""

import os
from pathlib import Path
from typing import Any

from feast import Project

from feature_repo.dataset import Dataset
from feature_repo.definitions.entities import post, user
from feature_repo.definitions.services import ranker_service
from feature_repo.definitions.views import feature_views, request_view
from feature_repo.workspace import Workspace, home

DEFAULT_DATASET = Path(__file__).parents[1] / "datasets" / "movielens_100k.toml"


def active_dataset() -> Path:
    """Return the description of the dataset that Feast commands are about."""
    configuration = os.environ.get("FEAST_FS_YAML_FILE_PATH")
    if configuration and Path(configuration).with_name("dataset.toml").exists():
        return Path(configuration).with_name("dataset.toml")
    return Path(os.environ.get("FEASTRANK_DATASET") or DEFAULT_DATASET)


def objects(dataset: Dataset | None = None, workspace: Workspace | None = None) -> list[Any]:
    """Return project, entities, views and services of ``dataset``, by default the active one.

    Raises
    ------
    feature_repo.dataset.DatasetError
        If the description cannot be read.
    """
    dataset = dataset or Dataset.read(active_dataset())
    workspace = workspace or Workspace(home(), dataset.name)
    views = feature_views(dataset, workspace)
    request = request_view(dataset, views)
    # Feast refuses a project whose name differs from feature_store.yaml's, which is what stands
    # between a forgotten environment variable and another dataset's registry.
    project = Project(name=dataset.name, description=f"feastrank on {dataset.name}")
    return [project, user, post, *views, request, ranker_service(views, request)]

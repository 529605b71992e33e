"""Where everything of one dataset lies on disk; the only place that spells these paths."""

import os
from dataclasses import dataclass
from pathlib import Path


def home() -> Path:
    """Return the state folder: ``FEASTRANK_HOME`` if set, else ``.feastrank`` in the checkout."""
    configured = os.environ.get("FEASTRANK_HOME")
    return Path(configured).resolve() if configured else Path(__file__).parents[1] / ".feastrank"


@dataclass(frozen=True)
class Workspace:
    """The folders of one dataset below the state folder.

    Parameters
    ----------
    home
        The state folder, shared by all datasets.
    name
        The dataset's name; also the name of its Feast project.
    """

    home: Path
    name: str

    @property
    def root(self) -> Path:
        """Everything that belongs to this dataset."""
        return self.home / self.name

    @property
    def lake(self) -> Path:
        """Users, posts, events, id mappings and topics as parquet."""
        return self.root / "lake"

    @property
    def drained(self) -> Path:
        """Events that the service was told of, as files that ingest reads beside the source."""
        return self.root / "drained"

    @property
    def impressions(self) -> Path:
        """What the service showed to whom, see `serving.impressions`."""
        return self.root / "impressions"

    @property
    def features(self) -> Path:
        """One parquet file per feature view."""
        return self.root / "features"

    def feature_table(self, view: str) -> Path:
        """Return the parquet file of the feature view ``view``."""
        return self.features / f"{view}.parquet"

    @property
    def registry(self) -> Path:
        """Feast's registry."""
        return self.root / "registry.db"

    @property
    def feature_store_yaml(self) -> Path:
        """Feast's configuration for this dataset."""
        return self.root / "feature_store.yaml"

    @property
    def dataset_toml(self) -> Path:
        """The description that was run last, copied beside Feast's configuration."""
        return self.root / "dataset.toml"

    @property
    def tuned(self) -> Path:
        """Settings that `feastrank tune` found; see `feature_repo.tuned`."""
        return self.root / "tuned.json"

    @property
    def tuning(self) -> Path:
        """Trials of `feastrank tune`, and the examples that it looked at."""
        return self.root / "tuning"

    @property
    def training(self) -> Path:
        """The ranker's training set and the candidates that it was built from."""
        return self.root / "training"

    @property
    def bundles(self) -> Path:
        """Published generations and the pointer to the current one."""
        return self.root / "bundles"

    @property
    def online_namespace(self) -> Path:
        """Names the online store's rows that are served; `feature_store.yaml` points to it."""
        return self.bundles / "online_namespace"

    @property
    def staged_registry(self) -> Path:
        """Feast's registry as of the last materialization, which the next bundle carries."""
        return self.root / "staged_registry.db"

    @property
    def reports(self) -> Path:
        """Metrics as JSON, the HTML report, Data Docs."""
        return self.root / "reports"

    @property
    def steps(self) -> Path:
        """One record per finished step."""
        return self.root / "steps"

    @property
    def downloads(self) -> Path:
        """Cache of fetched packages, shared by all datasets."""
        return self.home / "downloads"

    @property
    def redis(self) -> Path:
        """Data of the embedded Redis, shared by all datasets."""
        return self.home / "redis"

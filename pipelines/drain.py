"""The command ``drain``: events out of Redis, into files that ingest reads."""

from rich.console import Console

from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.datasets.drain import drain as move_events
from pipelines.job.context import description_path, open_store, progress_bars
from pipelines.settings import DatasetSettings
from serving.recommender import redis_of


def drain(settings: DatasetSettings, console: Console) -> None:
    """Move all events that wait in the stream; say how many."""
    dataset = Dataset.read(description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    client = redis_of(open_store(workspace))
    with progress_bars(console) as bars:
        moved = move_events(
            client,
            dataset.name,
            dataset.events,
            workspace.drained,
            on_progress=bars.bar("events drained"),
        )
    console.print(
        f"{dataset.name}: {moved:,} events into {workspace.drained}; `feastrank run` learns from "
        "them",
        highlight=False,
    )

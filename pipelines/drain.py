"""The command ``drain``: events out of Redis, into files that ingest reads; old logs away."""

from datetime import UTC, datetime

from rich.console import Console

from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.datasets.drain import drain as move_events
from pipelines.job.context import description_path, open_store, progress_bars
from pipelines.settings import DrainSettings
from serving.impressions import tidy
from serving.recommender import redis_of


def drain(settings: DrainSettings, console: Console) -> None:
    """Move all events that wait in the stream, tidy the impression log; say how many."""
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
    log = settings.impression_log or workspace.impressions
    old, left = tidy(log, datetime.now(UTC), settings.keep_impressions_days)
    if old or left:
        console.print(
            f"{dataset.name}: {old:,} old files and {left:,} unfinished ones removed from {log}",
            highlight=False,
        )

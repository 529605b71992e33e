"""What every step of the main job is handed, and how a step is run, timed and skipped."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feast import FeatureStore
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_repo.dataset import Dataset
from feature_repo.definitions.repository import DEFAULT_DATASET
from feature_repo.tuned import TunedSettings
from feature_repo.workspace import Workspace
from pipelines.errors import MissingStepError
from pipelines.settings import DatasetSettings, JobSettings
from pipelines.steps import Ledger, StepRecord
from pipelines.storage.mirror import Mirror

FEATURE_REPO = DEFAULT_DATASET.parents[1]
STEPS = ("ingest", "features", "apply", "train", "evaluate", "materialize", "publish")
# What each step reads of the steps before it.
NEEDS: dict[str, tuple[str, ...]] = {
    "features": ("ingest",),
    "train": ("features",),
    "evaluate": ("train",),
    "materialize": ("features", "apply"),
    "publish": ("evaluate", "materialize"),
}
Bar = Callable[[int, int], None]


@dataclass(frozen=True)
class Context:
    """One dataset's job: its settings, description, folders, records of steps, tuned settings."""

    settings: JobSettings
    dataset: Dataset
    description: Path
    workspace: Workspace
    ledger: Ledger
    console: Console
    tuned: TunedSettings

    def record(self, name: str) -> StepRecord:
        """Return the record of an earlier step.

        Raises
        ------
        MissingStepError
            If it was never run, or not since a step that it reads of was run.
        """
        record = self.ledger.find(name)
        if record is None:
            raise self.missing(name, "has not been run")
        for needed, key in record.facts.get("needs", {}).items():
            if self.record(needed).key != key:
                raise self.missing(name, f"was run before the latest {needed}")
        return record

    @property
    def sources(self) -> tuple[str, ...]:
        """The candidate sources, in order."""
        return tuple(self.tuned.sources)

    @property
    def impression_log(self) -> Path:
        """The folder of the impression log."""
        return self.settings.impression_log or self.workspace.impressions

    @property
    def mirror(self) -> Mirror | None:
        """The dataset's publications in object storage; None if none is named."""
        return Mirror.of(self.workspace, self.settings.storage)

    def trained(self) -> StepRecord:
        """Return the record of the step train.

        Raises
        ------
        MissingStepError
            As `record`, or if it was run with other tuned settings than hold now.
        """
        record = self.record("train")
        if record.facts.get("tuned") != self.tuned.hash:
            raise self.missing("train", "was run with other tuned settings than hold now")
        return record

    def missing(self, name: str, what: str) -> MissingStepError:
        """Return the error that says what is wrong with an earlier step, and what to run."""
        return MissingStepError(
            f"{self.dataset.name}: the step {name} {what}; run `feastrank {name} "
            f"--dataset {self.settings.dataset}` first, or `feastrank run` for all steps"
        )

    def step(
        self,
        name: str,
        key: str,
        outputs: Iterable[Path],
        work: Callable[["Progresses"], Mapping[str, Any]],
        *,
        is_there: Callable[[], bool] = lambda: True,
    ) -> StepRecord:
        """Run ``work`` unless ``name`` finished with ``key`` before; print one line either way.

        Parameters
        ----------
        outputs
            Files and folders that ``work`` writes.
        is_there
            Whether what ``work`` wrote elsewhere (in Redis) is still there.
        """
        record = self.ledger.find(name)
        if record is not None and self.ledger.is_current(name, key) and is_there():
            self._print(name, "unchanged", record)
            return record
        start = time.monotonic()
        needs = {needed: self.record(needed).key for needed in NEEDS.get(name, ())}
        with progress_bars(self.console) as bars:
            facts = work(bars)
        record = self.ledger.write(name, key, outputs, {**facts, "needs": needs}, start)
        self._print(name, f"{record.seconds:.1f} s", record)
        return record

    def _print(self, name: str, duration: str, record: StepRecord) -> None:
        summary = record.facts.get("summary", "")
        self.console.print(
            f"[bold]{name:<12}[/] {duration:>10}  {summary}", highlight=False, soft_wrap=True
        )


class Progresses:
    """Progress bars of one step; each appears with its first report and stays two lines short."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def bar(self, title: str) -> Bar:
        """Return a function that takes (done, total) and draws the bar ``title``."""
        tasks: list[Any] = []

        def report(done: int, total: int) -> None:
            if not tasks:
                tasks.append(self._progress.add_task(title, total=total))
            self._progress.update(tasks[0], completed=done, total=total)

        return report


@contextmanager
def progress_bars(console: Console) -> Iterator[Progresses]:
    """Show progress bars while a step runs, and remove them afterwards."""
    columns = (
        TextColumn("  {task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # A file or a pipe has no place to draw in.
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        yield Progresses(progress)


def open_context(settings: JobSettings, console: Console) -> Context:
    """Read the description and lay out the dataset's folders.

    Raises
    ------
    feature_repo.dataset.DatasetError
        If the description, or its tuned settings, cannot be read.
    """
    description = description_path(settings)
    dataset = Dataset.read(description)
    workspace = Workspace(settings.home.resolve(), dataset.name)
    ledger, tuned = Ledger(workspace.steps), TunedSettings.of(description, workspace)
    return Context(settings, dataset, description, workspace, ledger, console, tuned)


def description_path(settings: DatasetSettings) -> Path:
    """Return the file of a description that is named, or that comes with feastrank."""
    shipped = FEATURE_REPO / "datasets" / f"{settings.dataset}.toml"
    return shipped if shipped.exists() else Path(settings.dataset)


def open_store(workspace: Workspace) -> FeatureStore:
    """Open the dataset's feature store, as Feast's own commands would.

    Raises
    ------
    MissingStepError
        If the step apply has not been run.
    """
    if not workspace.feature_store_yaml.exists():
        raise MissingStepError(
            f"{workspace.name}: no feature store yet; run `feastrank apply`, or `feastrank run` "
            "for all steps"
        )
    return FeatureStore(repo_path=str(FEATURE_REPO), fs_yaml_file=workspace.feature_store_yaml)


def moment_of(settings: JobSettings, last_event: datetime) -> datetime:
    """Return the moment that online features are for; see ``JobSettings.as_of``."""
    if settings.as_of is not None:
        return settings.as_of
    now = datetime.now(UTC)
    return now if (now - last_event).days <= 28 else last_event

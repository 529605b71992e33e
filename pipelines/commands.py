"""What each command does with its settings; imported only when a command runs."""

import time

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape

from feastpack.embedded import stop as stop_server
from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.datasets.propose import propose
from pipelines.errors import PipelineError, StorageError
from pipelines.evaluation.report import metrics_console
from pipelines.job import apply as apply_step
from pipelines.job import context as job
from pipelines.job import evaluate as evaluate_step
from pipelines.job import features as features_step
from pipelines.job import ingest as ingest_step
from pipelines.job import leakage as leakage_check
from pipelines.job import lists as lists_files
from pipelines.job import materialize as materialize_step
from pipelines.job import publish as publish_step
from pipelines.job import train as train_step
from pipelines.job import tune as tune_settings
from pipelines.job.profile import require_profile
from pipelines.job.slices import TEST
from pipelines.settings import (
    DatasetSettings,
    InitSettings,
    JobSettings,
    ListsSettings,
    RecommendSettings,
    TuneSettings,
)
from pipelines.storage.mirror import Mirror
from serving.answer import Answer
from serving.recommender import Recommender


def ingest(settings: JobSettings, console: Console) -> None:
    """Bring the source's files into the lake."""
    ingest_step.run(job.open_context(settings, console))


def features(settings: JobSettings, console: Console) -> None:
    """Compute the feature tables."""
    features_step.run(job.open_context(settings, console))


def apply(settings: JobSettings, console: Console) -> None:
    """Register the dataset's Feast objects."""
    apply_step.run(job.open_context(settings, console))


def train(settings: JobSettings, console: Console) -> None:
    """Build the training set and the rankers."""
    train_step.run(job.open_context(settings, console))


def evaluate(settings: JobSettings, console: Console) -> None:
    """Measure, report, judge; print the table."""
    context = job.open_context(settings, console)
    evaluate_step.run(context)
    _print_metrics(context)


def materialize(settings: JobSettings, console: Console) -> None:
    """Write the latest features into Redis."""
    materialize_step.run(job.open_context(settings, console))


def publish(settings: JobSettings, console: Console) -> None:
    """Publish a generation."""
    publish_step.run(job.open_context(settings, console))


def run(settings: JobSettings, console: Console) -> None:
    """Run all steps, then show recommendations, metrics and where the report lies."""
    context = job.open_context(settings, console)
    require_profile(context)
    console.print(f"[bold]{context.dataset.name}[/]: {context.description}", highlight=False)
    for step in (
        ingest_step,
        features_step,
        apply_step,
        train_step,
        evaluate_step,
        materialize_step,
        publish_step,
    ):
        step.run(context)
    recommender = _recommender(context.workspace)
    for user in examples(context):
        _print_answer(recommender.recommend(user, 5, explain=True), console)
    _print_metrics(context)


def tune(settings: TuneSettings, console: Console) -> None:
    """Search settings and write the best ones where every step finds them."""
    tune_settings.check(settings)
    context = job.open_context(settings, console)
    for step in (ingest_step, features_step, apply_step):
        step.run(context)
    found = tune_settings.run(context, settings)
    path = (settings.output or context.workspace.tuned).resolve()
    found.write(path)
    console.print(
        f"{path} written; `feastrank run --dataset {settings.dataset}` repeats what depends on it",
        highlight=False,
        soft_wrap=True,
    )


def recommend(settings: RecommendSettings, console: Console) -> None:
    """Answer one request."""
    dataset = Dataset.read(job.description_path(settings))
    recommender = _recommender(Workspace(settings.home.resolve(), dataset.name))
    _print_answer(recommender.recommend(settings.user, settings.top, explain=True), console)


def lists(settings: ListsSettings, console: Console) -> None:
    """Write every list as a file; print what was written and how good such lists are."""
    context = job.open_context(settings, console)
    folder = (settings.output or context.workspace.root / "lists").resolve()
    rows = lists_files.write_all(context, folder)
    for name, count in rows.items():
        console.print(f"{folder / f'{name}.parquet'}  {count:,} rows", highlight=False)
    if lists_files.CONTENT not in rows:
        console.print(
            f"{lists_files.CONTENT}.parquet is left out: the description of "
            f"{context.dataset.name} names neither topics nor text of posts",
            highlight=False,
        )
    console.print()
    console.print(lists_files.metrics_table(context))
    console.print(
        "These figures are of lists made in the same way from events before the test slice only; "
        "the files are made from all events, so nothing is left to measure them on. Posts that "
        "a user has an event with are never listed, so novelty is 1.",
        highlight=False,
    )


def leakage(settings: JobSettings, console: Console) -> None:
    """Check that nothing before a cut depends on what came after it."""
    leakage_check.check(job.open_context(settings, console))


def rollback(settings: DatasetSettings, console: Console) -> None:
    """Flip what is served to the generation before."""
    dataset = Dataset.read(job.description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    start = time.perf_counter()
    mirror = Mirror.of(workspace, settings.storage)
    left, manifest = publish_step.roll_back(workspace, mirror)
    console.print(
        f"generation {manifest.generation} of {manifest.created} is served again after "
        f"{time.perf_counter() - start:.2f} s, instead of {left}, which is kept until the "
        "next publication. `feastrank run` publishes what its inputs make: change what was wrong "
        "first.",
        highlight=False,
    )


def fetch(settings: DatasetSettings, console: Console) -> None:
    """Make the state folder what was published last to object storage."""
    dataset = Dataset.read(job.description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    mirror = Mirror.of(workspace, settings.storage)
    if mirror is None:
        raise PipelineError("fetch: --storage is missing; pass s3://BUCKET/PREFIX")
    start = time.perf_counter()
    fetched, latest = mirror.bring_up_to_date(), mirror.latest()
    if latest is None:
        raise StorageError(f"{mirror.url}: nothing is published; run `feastrank run` with it")
    size = sum(one.bytes for one in latest.files.values())
    console.print(
        f"{workspace.root}: publication {latest.number} of {mirror.url}, generation "
        f"{latest.generation} of {latest.published}, {len(latest.files):,} files, "
        f"{size / 1e6:,.1f} MB, "
        + ("was here already" if fetched is None else "fetched")
        + f" ({time.perf_counter() - start:.1f} s)",
        highlight=False,
    )


def init(settings: InitSettings, console: Console) -> None:
    """Propose a description and say what was assumed."""
    if settings.output.exists() and not settings.force:
        raise PipelineError(
            f"{settings.output}: exists already; pass --force to overwrite it, or --output"
        )
    name = settings.name or settings.output.resolve().stem
    text, assumptions = propose(
        settings.users, settings.posts, settings.events, name, settings.output.resolve().parent
    )
    settings.output.write_text(text, encoding="utf-8")
    console.print(f"{settings.output} written. Assumed, for you to check:", highlight=False)
    for assumption in assumptions:
        console.print(f"  - {assumption}", highlight=False, markup=False)
    console.print(f"Next: feastrank run --dataset {settings.output}", highlight=False)


def stop(settings: DatasetSettings, console: Console) -> None:
    """Stop the embedded Redis of the state folder."""
    stopped = stop_server(settings.home.resolve() / "redis")
    console.print("embedded Redis stopped" if stopped else "no embedded Redis was running")


def _recommender(workspace: Workspace) -> Recommender:
    return Recommender(workspace.bundles, job.open_store(workspace))


def examples(context: job.Context) -> list[str]:
    """Return the ids of three users of the test slice: with much, some and little history."""
    relevant = pq.read_table(train_step.TrainingFiles(context.workspace.training).relevant)
    users = pc.unique(relevant.filter(pc.equal(relevant["slice"], TEST))["user_id"])
    events = features_step.read_events(context.workspace.lake, "user_id")
    counts = (
        events.filter(pc.is_in(events["user_id"], users))
        .group_by("user_id")
        .aggregate([("user_id", "count")])
    )
    ordered = counts.sort_by([("user_id_count", "descending"), ("user_id", "ascending")])
    chosen = [ordered["user_id"][i].as_py() for i in (0, len(ordered) // 2, len(ordered) - 1)]
    ids = pq.read_table(context.workspace.lake / "ids" / "users.parquet")
    external = dict(zip(ids["user_id"].to_pylist(), ids["external_id"].to_pylist(), strict=True))
    return [external[user] for user in dict.fromkeys(chosen)]


def _print_answer(answer: Answer, console: Console) -> None:
    known = "" if answer.is_known else " (unknown, so popular posts are ranked)"
    title = f"user {answer.user}{known}, answered in {answer.milliseconds:.0f} ms"
    console.print(f"\n[bold]{escape(title)}[/]", highlight=False)
    if answer.degraded:
        console.print(f"  degraded: {', '.join(answer.degraded)}", style="yellow", highlight=False)
    for place, one in enumerate(answer.recommendations, 1):
        console.print(f"  {place:>2}. {escape(one.title or one.post)}", highlight=False)
        if one.reason is not None:
            sources = ", ".join(f"{name} #{rank}" for name, rank in one.reason.sources.items())
            largest = one.reason.contributions[:3]
            moved = ", ".join(f"{name} {value:+.2f}" for name, value in largest)
            console.print(f"      [dim]from {sources}; moved by {moved}[/]", highlight=False)


def _print_metrics(context: job.Context) -> None:
    report = evaluate_step.report_of(context)
    context.console.print()
    context.console.print(metrics_console(report))
    place = context.workspace.reports
    context.console.print(f"report     {place / 'report.html'}", highlight=False)
    context.console.print(f"Data Docs  {place / 'data_docs' / 'index.html'}", highlight=False)

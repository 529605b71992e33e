"""The command ``score``: the final list of every user, shard by shard; see `final_lists`.

The same lists as ``recommendations.parquet`` of ``feastrank lists``, but made in several processes
or on the executors of Spark, and gone on with after a kill. They are of the moment that the online
features are of, so that a shard made later belongs to the others.
"""

import shutil
from pathlib import Path

from rich.console import Console

from pipelines.errors import PipelineError
from pipelines.job.context import Context, Progresses, open_context, open_store, progress_bars
from pipelines.job.final_lists import RankUsers, freeze
from pipelines.job.in_shards import Done, in_shards, link
from pipelines.job.lake_events import LakeEvents
from pipelines.job.profile import require_profile
from pipelines.job.sources import generators
from pipelines.settings import ScoreSettings
from pipelines.steps import code_key, content_key
from serving.bundle import Manifest, open_current
from serving.generation import generation_store

# As `pipelines.shards` names them.
_FILES = "?????-????????????????.parquet"


def command(settings: ScoreSettings, console: Console) -> None:
    """Write the lists of all users; say how many and how fast.

    Raises
    ------
    MissingStepError, serving.errors.BundleError
        If the job has not been run, or not since something before it changed.
    PipelineError
        If the folder cannot be written.
    """
    context = open_context(settings, console)
    require_profile(context)
    context.trained()
    context.record("publish")
    output = (settings.output or context.workspace.root / "scores").resolve()
    with progress_bars(console) as bars:
        done = _score(context, settings, bars)
    _place(done, output)
    users = done.total("users", new=True)
    rate = f", {users / done.seconds:,.0f} users/s" if users else ""
    console.print(
        f"{output}: {done.rows:,} rows in {done.shards}; {users:,} users ranked in "
        f"{done.seconds:.1f} s{rate}",
        highlight=False,
        soft_wrap=True,
    )


def _score(context: Context, settings: ScoreSettings, bars: Progresses) -> Done:
    workspace = context.workspace
    generation, manifest = open_current(workspace.bundles)
    moment = manifest.as_of or manifest.materialized_until
    if moment is None:
        raise PipelineError(
            f"{context.dataset.name}: generation {manifest.generation} does not say of when its "
            "features are, as an older version published it; run `feastrank run`"
        )
    work = RankUsers(
        fitted=_fitted(context, generation, manifest, bars),
        generation=generation,
        lake=workspace.lake,
        sources=tuple(manifest.sources),
        moment=moment,
        candidates=settings.candidates_per_source,
        top=settings.top,
        together=settings.users_per_batch,
    )
    return in_shards(context, work, workspace.lake / "users", "user_id", bars, "users ranked")


def _fitted(context: Context, generation: Path, manifest: Manifest, bars: Progresses) -> Path:
    """Return the folder of the sources fitted on all events, made unless it is there."""
    key = content_key(
        "fitted",
        manifest.generation,
        context.record("ingest").key,
        context.tuned.hash,
        code_key("pipelines.candidates", "pipelines.ranking", "pipelines.job.final_lists"),
        code_key("feature_repo", "feastpack", "serving"),
    )
    place = context.workspace.root / "shards" / "fitted"
    folder = place / key[:16]
    if not folder.exists():
        shutil.rmtree(place, ignore_errors=True)
        with LakeEvents(context.workspace.lake) as events:
            interactions = events.interactions()
        bar, fitted = bars.bar("sources fitted"), {}
        wanted = generators(context, manifest.sources)
        for generator in wanted:
            fitted[generator.name] = generator.fit(interactions)
            bar(len(fitted), len(wanted))
        store = generation_store(open_store(context.workspace), generation, manifest)
        freeze(folder, store, context.workspace, fitted)
    return folder


def _place(done: Done, output: Path) -> None:
    """Make the shards' files those of a folder; each appears whole or not at all."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        names = {file.name for file in done.files}
        for file in done.files:
            link(file, output / file.name)
        for path in output.glob(_FILES):
            if path.name not in names:
                path.unlink()
    except OSError as error:
        raise PipelineError(
            f"scores: cannot write into {output}: {error.strerror}; free space, or choose another "
            "folder with --output"
        ) from error

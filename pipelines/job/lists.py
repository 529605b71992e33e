"""All lists as files, for whoever wants them without Redis: popular, personal, similar, final.

Files of the folder, external ids as strings, ``name`` (the post's title) only where the source
has titles; ``rank`` 1 is best:

``top_popular.parquet``             item_id, score, rank, name: 100 rows
``personal_als.parquet``            user_id, item_id, score, rank, name: up to 100 rows a user
``content_recommendations.parquet`` the same columns; only where posts have topics or text
``recommendations.parquet``         the same columns: the published ranker's order
``similar.parquet``                 item_id, similar_item_id, score, rank, name (of the similar
                                    one): up to 10 rows an item

Rows are ordered by user or item (in the order in which the source first named them), then rank.
No list repeats an item, and none of a user's holds what he has an event with.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from pipelines.candidates.als import ALS
from pipelines.candidates.content import Content
from pipelines.candidates.interactions import Ids
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.errors import PipelineError
from pipelines.evaluation.report import list_table, measured_users
from pipelines.job.context import Context, Progresses, open_store, progress_bars
from pipelines.job.evaluate import RANKED, measure_generator, report_of
from pipelines.job.final_lists import USERS_PER_BATCH, FinalLists, Outside
from pipelines.job.lake_events import LakeEvents
from pipelines.job.sources import generators
from serving.bundle import open_current
from serving.generation import generation_store

TOP, SIMILAR = 100, 10
CONTENT = "content_recommendations"
PERSONAL = "personal_als"
# Generator -> its file.
FILES = {ALS.name: PERSONAL, Content.name: CONTENT}
# File -> the list of the evaluation that was made in the same way before the test slice.
MEASURED = {
    "recommendations": RANKED,
    PERSONAL: ALS.name,
    CONTENT: Content.name,
    "top_popular": "popular",
}
METRICS = ("precision@5", "recall@5", "coverage@5", "coverage@100", "novelty@5")
STRANGER = np.array([-1])


def write_all(context: Context, folder: Path) -> dict[str, int]:
    """Write every file of the module's table; return the rows of each.

    A file is complete before it takes its name, and none does before all are.

    Raises
    ------
    MissingStepError, serving.errors.BundleError
        If the job has not been run, or not since something before it changed.
    PipelineError
        If the folder cannot be written.
    """
    context.trained()
    context.record("publish")
    staging = folder / ".lists-staging"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with progress_bars(context.console) as bars:
            rows = _Lists(context, staging, bars).write()
        for name in rows:
            (staging / f"{name}.parquet").replace(folder / f"{name}.parquet")
        if CONTENT not in rows:
            # One of another dataset would be taken for this one's.
            (folder / f"{CONTENT}.parquet").unlink(missing_ok=True)
    except OSError as error:
        raise PipelineError(
            f"lists: cannot write into {folder}: {error.strerror}; free space, or choose another "
            "folder with --output"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return rows


def metrics_table(context: Context) -> Table:
    """Tabulate the lists on the test slice: each fitted anew on what was before it."""
    report = report_of(context)
    results = {result.name: result.means for result in report.results}
    means: dict[str, Mapping[str, float]] = {
        name: results[model] for name, model in MEASURED.items() if model in results
    }
    for name, generator in _besides(context).items():
        means[FILES.get(name, name)] = measure_generator(context, generator).means
    table = list_table(f"Test slice: {measured_users(report)}")
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, values in means.items():
        cells = (f"{values[m]:.4f}" if m in values else "-" for m in METRICS)
        table.add_row(name, *cells)
    return table


def _besides(context: Context) -> dict[str, CandidateGenerator]:
    """Return the unfitted generators that have a file and are no candidate source."""
    names = [ALS.name]
    if context.dataset.has_topics or context.dataset.has_text:
        names.append(Content.name)
    besides = [name for name in names if name not in context.sources]
    return {generator.name: generator for generator in generators(context, besides)}


class _Lists:
    """The final lists: generators fitted on every event, the ranker as published."""

    def __init__(self, context: Context, folder: Path, bars: Progresses) -> None:
        self.context, self.folder, self.bars = context, folder, bars
        lake = context.workspace.lake
        users = pq.read_table(lake / "users", columns=["user_id"])["user_id"]
        self.users: Ids = pc.unique(users).sort().to_numpy()
        self.outside = Outside(lake)
        with LakeEvents(lake) as events:
            self.interactions = events.interactions()

    def write(self) -> dict[str, int]:
        bar = self.bars.bar("final generators")
        fitted: dict[str, Any] = {}
        besides = _besides(self.context).values()
        wanted = [*generators(self.context), *besides]
        for done, generator in enumerate(wanted, 1):
            fitted[generator.name] = generator.fit(self.interactions)
            bar(done, len(wanted))
        als, popular = fitted[ALS.name], fitted["popular"]
        tables = {
            "top_popular": iter([popular.recommend(STRANGER, TOP).drop_columns("user_id")]),
            PERSONAL: self._in_batches(PERSONAL, lambda u: als.recommend(u, TOP)),
            "similar": iter([als.similar(SIMILAR)]),
        }
        if Content.name in fitted:
            content = fitted[Content.name]
            tables[CONTENT] = self._in_batches(CONTENT, lambda u: content.recommend(u, TOP))
        final = _final_lists(self.context, [fitted[name] for name in self.context.sources])
        tables["recommendations"] = self._in_batches("recommendations", lambda u: final.of(u, TOP))
        return {name: self._write(name, parts) for name, parts in tables.items()}

    def _in_batches(self, title: str, lists_of: Callable[[Ids], pa.Table]) -> Iterator[pa.Table]:
        bar = self.bars.bar(title)
        for start in range(0, len(self.users), USERS_PER_BATCH):
            batch = self.users[start : start + USERS_PER_BATCH]
            yield lists_of(batch)
            bar(start + len(batch), len(self.users))

    def _write(self, name: str, parts: Iterable[pa.Table]) -> int:
        rows = 0
        writer: pq.ParquetWriter | None = None
        try:
            for part in parts:
                named = self.outside.named(part)
                if writer is None:
                    writer = pq.ParquetWriter(self.folder / f"{name}.parquet", named.schema)
                writer.write_table(named)
                rows += named.num_rows
        finally:
            if writer is not None:
                writer.close()
        return rows


def _final_lists(context: Context, sources: list[CandidateGenerator]) -> FinalLists:
    """Return the published ranker over fitted sources, now or at the bundle's own moment."""
    folder, manifest = open_current(context.workspace.bundles)
    store = generation_store(open_store(context.workspace), folder, manifest)
    now = datetime.now(UTC).replace(microsecond=0)
    moment = datetime.fromisoformat(manifest.as_of) if manifest.as_of else now
    candidates = context.settings.candidates_per_source
    return FinalLists(store, folder, manifest, sources, moment, candidates)

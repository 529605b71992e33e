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
from numpy.typing import NDArray
from rich.table import Table

from feature_repo.contract import Contract
from pipelines.candidates.als import ALS
from pipelines.candidates.content import Content
from pipelines.candidates.groups import ranked
from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.merge import merge_candidates
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.errors import PipelineError
from pipelines.evaluation.report import list_table, measured_users
from pipelines.job.context import Context, Progresses, open_store, progress_bars
from pipelines.job.evaluate import RANKED, measure_generator, report_of
from pipelines.job.features import read_events
from pipelines.job.sources import generators, recommend_with
from pipelines.ranking.training_set import label_candidates, pairs_of, retrieve
from serving.bundle import open_current
from serving.generation import generation_contract, generation_store
from serving.inputs import InputEncoder
from serving.ranker import Scorer, load_ranker

TOP, SIMILAR = 100, 10
# Their candidates and features are held at once.
USERS_PER_BATCH = 1_000
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
        self.outside = _Outside(lake)
        events = read_events(lake, "user_id", "post_id", "event_time", "weight")
        self.interactions = Interactions.from_table(events)

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
        final = _Final(self.context, [fitted[name] for name in self.context.sources])
        tables["recommendations"] = self._in_batches("recommendations", final.of)
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


class _Final:
    """The published ranker's order of what all sources propose, as the online answers have it."""

    def __init__(self, context: Context, sources: list[CandidateGenerator]) -> None:
        self.settings, self.sources = context.settings, sources
        folder, manifest = open_current(context.workspace.bundles)
        self.store = generation_store(open_store(context.workspace), folder, manifest)
        self.contract: Contract = generation_contract(self.store, manifest)
        self.encoder = InputEncoder.load(folder / "categories.json", self.contract)
        self.ranker: Scorer = load_ranker(folder / manifest.ranker)
        now = datetime.now(UTC).replace(microsecond=0)
        self.moment = datetime.fromisoformat(manifest.as_of) if manifest.as_of else now

    def of(self, users: Ids) -> pa.Table:
        """Return up to `TOP` posts of each user: user_id, post_id, score, rank."""
        proposed = [recommend_with(source, users, self.settings) for source in self.sources]
        # Nobody knows yet what will be liked; the join wants the training set's shape.
        unlabelled = pa.table({"user_id": users[:0], "post_id": users[:0]})
        candidates = merge_candidates(proposed)
        requests = label_candidates(candidates, unlabelled, at=self.moment, name="final")
        rows = retrieve(self.store, requests, self.contract)
        scores = self.ranker.predict(self.encoder.encode(rows))
        return ranked(*pairs_of(rows), scores, source="final", k=TOP)


class _Outside:
    """Dense ids to the source's ids and titles."""

    def __init__(self, lake: Path) -> None:
        self.users = pq.read_table(lake / "ids" / "users.parquet").sort_by("user_id")
        self.posts = pq.read_table(lake / "ids" / "posts.parquet").sort_by("post_id")
        titles = pq.read_table(lake / "posts", columns=["post_id", "title"]).sort_by("post_id")
        has_titles = titles["title"].null_count < titles.num_rows
        self.titles = titles if has_titles else None

    def named(self, lists: pa.Table) -> pa.Table:
        """Return one file's rows, columns in the module's order."""
        columns: dict[str, Any] = {}
        if "user_id" in lists.column_names:
            columns["user_id"] = _taken(self.users, "user_id", "external_id", lists["user_id"])
        columns["item_id"] = _taken(self.posts, "post_id", "external_id", lists["post_id"])
        shown = lists["post_id"]
        if "similar_post_id" in lists.column_names:
            shown = lists["similar_post_id"]
            columns["similar_item_id"] = _taken(self.posts, "post_id", "external_id", shown)
        columns |= {"score": lists["score"], "rank": lists["rank"]}
        if self.titles is not None:
            columns["name"] = _taken(self.titles, "post_id", "title", shown)
        return pa.table(columns)


def _taken(table: pa.Table, key: str, column: str, wanted: pa.ChunkedArray) -> pa.ChunkedArray:
    """Look values up in a table that is sorted by its key; null where the key is not there."""
    known: NDArray[np.int64] = np.asarray(table[key])
    places = positions(np.asarray(wanted), known)
    return table[column].take(pa.array(places, mask=places < 0))

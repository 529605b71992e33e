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

from feature_repo.contract import Contract, registered_contract
from feature_repo.dataset import Dataset
from feature_repo.definitions.columns import TEXT_EMBEDDING
from feature_repo.workspace import Workspace
from pipelines.candidates.als import ALS
from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.merge import merge_candidates
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.candidates.registry import make_generator
from pipelines.errors import PipelineError
from pipelines.evaluation.report import list_table, measured_users
from pipelines.job.context import Context, Progresses, open_store, progress_bars
from pipelines.job.evaluate import RANKED, measure_generator, report_of
from pipelines.job.features import read_events
from pipelines.job.train import generators, ranked, recommend_with
from pipelines.ranking.training_set import label_candidates, retrieve
from serving.bundle import open_current
from serving.inputs import InputEncoder
from serving.ranker import Scorer, load_ranker

TOP, SIMILAR = 100, 10
# Their candidates and features are held at once.
USERS_PER_BATCH = 1_000
CONTENT = "content_recommendations"
# File -> the list of the evaluation that was made in the same way before the test slice.
MEASURED = {"recommendations": RANKED, "personal_als": ALS.name, "top_popular": "popular"}
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


def content_generator(dataset: Dataset, workspace: Workspace) -> CandidateGenerator | None:
    """Return the unfitted content generator: of topics, or else of text; None without either."""
    if dataset.has_topics:
        columns = ["post_id", "topics"]
        posts = pq.read_table(workspace.lake / "posts", columns=columns)
        return make_generator("content", posts=posts)
    if not dataset.has_text:
        return None
    columns = ["post_id", TEXT_EMBEDDING]
    texts = pq.read_table(workspace.feature_table("post_text"), columns=columns)
    no_topics = pa.array([[]] * texts.num_rows, pa.list_(pa.string()))
    return make_generator(
        "content", {"text_weight": 1.0}, posts=texts.append_column("topics", no_topics)
    )


def metrics_table(context: Context) -> Table:
    """Tabulate the lists on the test slice: each fitted anew on what was before it."""
    report = report_of(context)
    results = {result.name: result.means for result in report.results}
    means: dict[str, Mapping[str, float]] = {n: results[model] for n, model in MEASURED.items()}
    content = content_generator(context.dataset, context.workspace)
    if content is not None:
        means[CONTENT] = measure_generator(context, content).means
    table = list_table(f"Test slice: {measured_users(report)}")
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, values in means.items():
        cells = (f"{values[m]:.4f}" if m in values else "-" for m in METRICS)
        table.add_row(name, *cells)
    return table


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
        settings, dataset = self.context.settings, self.context.dataset
        bar = self.bars.bar("final generators")
        fitted: dict[str, Any] = {}
        sources = generators(settings, has_clock=dataset.has_clock)
        for done, generator in enumerate(sources, 1):
            fitted[generator.name] = generator.fit(self.interactions)
            bar(done, len(sources))
        als, popular = fitted[ALS.name], fitted["popular"]
        tables = {
            "top_popular": iter([popular.recommend(STRANGER, TOP).drop_columns("user_id")]),
            "personal_als": self._in_batches("personal_als", lambda u: als.recommend(u, TOP)),
            "similar": iter([als.similar(SIMILAR)]),
        }
        content = content_generator(dataset, self.context.workspace)
        if content is not None:
            proposer = content.fit(self.interactions)
            tables[CONTENT] = self._in_batches(CONTENT, lambda u: proposer.recommend(u, TOP))
        final = _Final(self.context, list(fitted.values()))
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
        self.store = open_store(context.workspace)
        self.contract: Contract = registered_contract(self.store)
        folder, manifest = open_current(context.workspace.bundles, self.contract.hash)
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
        lists = ranked(rows, self.ranker.predict(self.encoder.encode(rows)))
        return lists.filter(pc.less_equal(lists["rank"], TOP))


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

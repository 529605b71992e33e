"""The command ``leakage``: change the future, and see whether the past moves.

Every event from a cut on gets another user, post and value; features and candidates are computed
again beside the real ones and compared, bit by bit, up to the cut. Then the ranker is fitted on
shuffled labels, from which it can learn nothing. The state that is served is not touched.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from feature_repo.contract import registered_contract
from feature_repo.definitions.entities import key_of
from feature_repo.definitions.views import feature_views
from feature_repo.workspace import Workspace
from pipelines.candidates.groups import ranked
from pipelines.candidates.interactions import Interactions
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.features.build import CLUSTERS_FILE
from pipelines.job import features as features_step
from pipelines.job.context import Context, open_store, progress_bars
from pipelines.job.slices import TEST, VALIDATION
from pipelines.job.sources import generators, recommend_with
from pipelines.job.train import TrainingFiles
from pipelines.ranking.models import make_ranker
from pipelines.ranking.training_set import SLICE, Examples, encode, pairs_of
from pipelines.steps import Ledger
from serving.inputs import InputEncoder
from validation.leakage import (
    Difference,
    LeakageError,
    chance_interval,
    differences,
    early_labels,
    late_features,
    perturbed,
)

USERS = 500
SHUFFLES = 3
RANDOM_ORDERS = 50


def check(context: Context) -> None:
    """Print what was compared.

    Raises
    ------
    LeakageError
        If anything before the cut moved, or a ranker learnt from shuffled labels.
    """
    context.record("features")
    if not context.dataset.has_clock:
        raise LeakageError(
            f"{context.dataset.name}: its events have no times, only an order, so no feature "
            "depends on time and there is no past that could be told from the future"
        )
    shadow = _shadow(context)
    try:
        found = [*_features(context, shadow), *_candidates(context, shadow)]
    finally:
        shutil.rmtree(shadow.workspace.home, ignore_errors=True)
    _show(context, found)
    if found:
        worst = ", ".join(f"{one.table}.{one.column}" for one in found[:5])
        raise LeakageError(
            f"{len(found)} columns change before the cut when events after it do ({worst}); "
            "a feature may use only events before its event_timestamp"
        )
    late = _training_rows(context)
    if late:
        worst = ", ".join(f"{one.table}.{one.column} ({one.example})" for one in late[:3])
        raise LeakageError(
            f"{len(late)} columns of the training set are not what was known at its rows' moments: "
            f"{worst}; run `feastrank train` again, and see the join of those views"
        )
    learnt = _shuffled(context)
    if learnt:
        raise LeakageError(learnt)


def _shadow(context: Context) -> Context:
    """Return the job of the same dataset in a folder of its own, with another future."""
    workspace = context.workspace
    home = workspace.root / ".leakage"
    shutil.rmtree(home, ignore_errors=True)
    other = Workspace(home, workspace.name)
    shutil.copytree(workspace.lake, other.lake, ignore=shutil.ignore_patterns("events"))
    events = ds.dataset(workspace.lake / "events", format="parquet", partitioning="hive").to_table()
    rng = np.random.default_rng(context.settings.seed)
    changed = perturbed(events, _cut(context), rng)
    target = other.lake / "events" / "event_month=all"
    target.mkdir(parents=True)
    pq.write_table(changed.drop_columns(["event_month"]), target / "part-000000.parquet")
    # Times stay as they are, so what ingest noted of them holds for the other future too.
    other.steps.mkdir(parents=True)
    shutil.copy(workspace.steps / "ingest.json", other.steps)
    # Texts stay as they are: their embeddings need not be computed again.
    if (workspace.home / "embeddings").exists():
        (home / "embeddings").symlink_to(workspace.home / "embeddings")
    # Clusters are fitted anew, on the other past, and numbered like those that are compared.
    if (workspace.features / CLUSTERS_FILE).exists():
        other.features.mkdir(parents=True)
        shutil.copy(workspace.features / CLUSTERS_FILE, other.features)
    settings = context.settings.model_copy(update={"refit_clusters": True})
    return dataclasses.replace(
        context, workspace=other, ledger=Ledger(other.steps), settings=settings
    )


def _cut(context: Context) -> datetime:
    """Return the beginning of the validation slice: half of what is learnt from is before it."""
    slices = features_step.slices_of_lake(context.workspace.lake, context.settings)
    start: datetime = slices.validation.start
    return start.astimezone(UTC)


def _features(context: Context, shadow: Context) -> Iterator[Difference]:
    with progress_bars(context.console) as bars:
        features_step.compute(shadow, bars)
    cut = _cut(context)
    for view in feature_views(context.dataset, context.workspace):
        yield from differences(
            view.name,
            context.workspace.feature_table(view.name),
            shadow.workspace.feature_table(view.name),
            [key_of(view), "event_timestamp"],
            cut,
        )


def _candidates(context: Context, shadow: Context) -> Iterator[Difference]:
    """Fit every source on the events before the cut, as they are and with another future."""
    columns = ("user_id", "post_id", "event_time", "is_positive", "weight")
    lists: list[list[pa.Table]] = []
    for one in (context, shadow):
        everything = Interactions.from_table(
            features_step.read_events(one.workspace.lake, *columns)
        )
        past = everything.until(_cut(context))
        users = past.user_ids[:USERS]
        fresh = generators(one)
        lists.append([recommend_with(g.fit(past), users, context.settings) for g in fresh])
    for name, mine, theirs in zip(context.sources, *lists, strict=True):
        if not mine.equals(theirs):
            rows = max(mine.num_rows, theirs.num_rows)
            yield Difference(f"candidates {name}", "lists", rows, rows, "lists of the users differ")


def _training_rows(context: Context) -> list[Difference]:
    """Compare the training set's features and labels with the times of what they are made of."""
    examples = TrainingFiles(context.workspace.training).examples
    if not examples.exists():
        return []
    views = feature_views(context.dataset, context.workspace)
    tables = {v.name: (context.workspace.feature_table(v.name), key_of(v)) for v in views}
    events = context.workspace.lake / "events"
    return [*late_features(examples, tables), *early_labels(examples, events)]


def _shuffled(context: Context) -> str | None:
    """Return what is wrong if a ranker learns from shuffled labels; None if it does not."""
    files = TrainingFiles(context.workspace.training)
    if not files.examples.exists():
        context.console.print("shuffled labels: not tried, `feastrank train` has not been run")
        return None
    table = pq.read_table(files.examples)
    encoder = InputEncoder.fit(registered_contract(open_store(context.workspace)), table)
    names = pc.unique(table[SLICE]).to_pylist()
    learnt = encode(encoder, table, [s for s in names if s not in (VALIDATION, TEST)])
    judged = encode(encoder, table, [VALIDATION])
    rng = np.random.default_rng(context.settings.seed)
    name = str(context.record("train").facts["ranker"])
    chance, reached = [], []
    for _ in range(SHUFFLES):
        truth = _truth(judged, _within_groups(judged, rng))
        ranker = make_ranker(name, {"seed": context.settings.seed}).fit(
            learnt.matrix,
            _within_groups(learnt, rng),
            learnt.group_sizes,
            encoder.contract.names,
            encoder.contract.category_indices,
        )
        reached.append(_ndcg(judged, ranker.predict(judged.matrix), truth))
        for _ in range(RANDOM_ORDERS):
            chance.append(_ndcg(judged, rng.random(len(judged.labels)), truth))
    low, high = chance_interval(chance)
    context.console.print(
        f"shuffled labels: NDCG@10 {np.mean(reached):.4f} learnt, {np.mean(chance):.4f} by chance "
        f"({low:.4f} to {high:.4f})",
        highlight=False,
    )
    if low <= float(np.mean(reached)) <= high:
        return None
    return (
        f"a ranker fitted on shuffled labels reaches NDCG@10 {np.mean(reached):.4f} on shuffled "
        f"labels, chance is {low:.4f} to {high:.4f}: an input or the order of rows gives labels "
        "away"
    )


def _within_groups(examples: Examples, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the labels, shuffled among each user's candidates."""
    groups = np.repeat(np.arange(len(examples.group_sizes)), examples.group_sizes)
    order = np.lexsort((rng.random(len(groups)), groups))
    return examples.labels[order]


def _truth(examples: Examples, labels: NDArray[np.float32]) -> pa.Table:
    return examples.keys.select(["user_id", "post_id"]).filter(pa.array(labels == 1))


def _ndcg(examples: Examples, scores: NDArray[Any], truth: pa.Table) -> float:
    lists = ranked(*pairs_of(examples.keys), scores, source="")
    return evaluate_lists(lists, truth, cutoffs=(10,)).means["ndcg@10"]


def _show(context: Context, found: list[Difference]) -> None:
    views = len(feature_views(context.dataset, context.workspace))
    context.console.print(
        f"events from {_cut(context):%Y-%m-%d %H:%M} UTC on were given other users, posts and "
        f"values: {views} feature tables and {len(context.sources)} candidate sources before it "
        f"{'changed' if found else 'are the same, bit by bit'}",
        highlight=False,
    )
    if found:
        table = Table("table", "column", "rows", "of", "first")
        for one in found:
            table.add_row(one.table, one.column, f"{one.count:,}", f"{one.rows:,}", one.example)
        context.console.print(table)

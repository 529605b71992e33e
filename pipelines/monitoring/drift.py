"""The command ``drift``: what the ranker learnt from, against today's data and what was served."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from feature_repo.contract import Contract, registered_contract
from pipelines.job.context import Context, open_store
from pipelines.job.features import slices_of_lake
from pipelines.job.slices import TEST
from pipelines.job.train import TrainingFiles
from pipelines.monitoring.page import write_page
from pipelines.monitoring.samples import (
    Sample,
    at,
    draw,
    kinds_and_units,
    parquet,
    with_inputs,
    with_vectors,
)
from pipelines.monitoring.served import log_folders
from validation.drift import DriftError, FeatureDrift, Thresholds, compare

HISTORY = "drift.jsonl"
PAGE = "drift.html"
_SHOWN = 12


@dataclass(frozen=True)
class Comparison:
    """The training window against one other sample.

    Parameters
    ----------
    against
        ``current`` or ``served``.
    says
        What that is, in words.
    rows
        Of both samples, by unit.
    features
        Greatest drift first.
    """

    against: str
    says: str
    rows: Mapping[str, Mapping[str, int]]
    features: Sequence[FeatureDrift]

    @property
    def drifted(self) -> list[FeatureDrift]:
        """The features that drifted."""
        return [one for one in self.features if one.drifted]


def check(context: Context) -> None:
    """Compare, keep, draw and print.

    Raises
    ------
    DriftError
        If a feature drifted and ``drift_gate`` is ``stop``.
    """
    comparisons = measure(context)
    keep(context, comparisons)
    page = _draw(context, comparisons)
    for one in comparisons:
        context.console.print(_table(one))
    context.console.print(f"page     {page}", highlight=False)
    context.console.print(f"history  {context.workspace.reports / HISTORY}", highlight=False)
    _judge(context, comparisons)


def gate(context: Context) -> None:
    """Stop a publication, or warn of it, as ``drift_gate`` says; nothing if it is off.

    Raises
    ------
    DriftError
        If a feature drifted and ``drift_gate`` is ``stop``.
    """
    if context.settings.drift_gate == "off":
        return
    comparisons = measure(context)
    keep(context, comparisons)
    _judge(context, comparisons)


def measure(context: Context) -> list[Comparison]:
    """Compare the training window with the current lake, and with what was served if it is known.

    Raises
    ------
    MissingStepError
        If the ranker was not trained for what is applied.
    """
    context.record("train")
    store = open_store(context.workspace)
    contract = registered_contract(store)
    kinds, units = kinds_and_units(store, contract)
    thresholds = thresholds_of(context.settings.drift_thresholds)
    training = with_vectors(_training(context), store)
    comparisons = []
    for against, says, sample in _others(context, store, contract):
        found = compare(
            training.columns(units), sample.columns(units), kinds, thresholds, context.settings.seed
        )
        found.sort(key=lambda one: (-one.drifted, -one.size / one.threshold, one.feature))
        rows = {"training": training.rows, against: sample.rows}
        comparisons.append(Comparison(against, says, rows, found))
    return comparisons


def thresholds_of(given: Mapping[str, float]) -> Thresholds:
    """Return thresholds from a setting: ``psi`` and ``auc`` hold for all, others for a feature."""
    named = dict(given)
    general = {name: named.pop(name) for name in ("psi", "auc") if name in named}
    return Thresholds(**general, by_feature=named)


def keep(context: Context, comparisons: Sequence[Comparison]) -> None:
    """Append the figures to the history, one line of JSON for each comparison."""
    path = context.workspace.reports / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("a", encoding="utf-8") as file:
        for one in comparisons:
            features = {f.feature: [round(f.size, 6), f.drifted] for f in one.features}
            line = {"at": now, "against": one.against, "rows": one.rows, "features": features}
            file.write(json.dumps(line) + "\n")


def history(reports: Path) -> list[dict[str, Any]]:
    """Return the lines of the history, oldest first."""
    path = reports / HISTORY
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _training(context: Context) -> Sample:
    files = TrainingFiles(context.workspace.training)
    relation = f"(SELECT * FROM {parquet(files.examples)} WHERE slice <> '{TEST}')"
    return draw(relation, context.settings.drift_rows, context.settings.seed)


def _others(context: Context, store: Any, contract: Contract) -> Iterator[tuple[str, str, Sample]]:
    """Yield name, words and sample of what the training window is compared with."""
    files, settings = TrainingFiles(context.workspace.training), context.settings
    # The cut that training on today's lake would test from: like is compared with like, values
    # at a cut of users who like something after it.
    cut = slices_of_lake(context.workspace.lake, settings).test.start.astimezone(UTC)
    # As in training, only users who like a candidate: others would be another population.
    relation = (
        f"(SELECT * FROM {parquet(files.requests)} WHERE slice = '{TEST}' "
        "QUALIFY max(label) OVER (PARTITION BY user_id) = 1)"
    )
    latest = at(draw(relation, settings.drift_rows, settings.seed), cut)
    current = with_vectors(with_inputs(latest, store, contract), store)
    yield (
        "current",
        f"the newest candidates, with today's features as of {cut:%Y-%m-%d %H:%M} UTC",
        current,
    )
    folder = context.impression_log / contract.hash[:12]
    if folder in log_folders(context.impression_log):
        # Known users whom the ranker answered; vectors as of what was materialized for them.
        relation = (
            "(SELECT *, coalesce(materialized_until, time) AS event_timestamp FROM "
            f"{parquet(folder / '*.parquet')} WHERE ranker_score IS NOT NULL AND user_id >= 0)"
        )
        served = draw(relation, settings.drift_rows, settings.seed)
        if all(served.rows.values()):
            yield "served", "what was served", with_vectors(served, store)


def _draw(context: Context, comparisons: Sequence[Comparison]) -> Path:
    earlier = history(context.workspace.reports)
    path = context.workspace.reports / PAGE
    write_page(
        path,
        "drift.html",
        dataset=context.dataset.name,
        made=datetime.now(UTC),
        comparisons=comparisons,
        before={
            one.against: [line for line in earlier if line["against"] == one.against][-8:-1]
            for one in comparisons
        },
    )
    return path


def _judge(context: Context, comparisons: Sequence[Comparison]) -> None:
    problems = []
    for one in comparisons:
        if one.drifted:
            worst = ", ".join(
                f"{f.feature} {f.size:.2f} (limit {f.threshold:g})" for f in one.drifted[:5]
            )
            problems.append(
                f"{len(one.drifted)} of {len(one.features)} features drifted between the training "
                f"window and {one.says}: {worst}"
            )
    if not problems:
        return
    advice = (
        "`feastrank drift` shows all; train on newer data, or allow more with --drift-thresholds"
    )
    message = f"drift: {'; '.join(problems)}; {advice}"
    if context.settings.drift_gate == "stop":
        raise DriftError(message)
    context.console.print(f"  [yellow]warning[/] {message}", highlight=False, soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    rows = {side: dict(units) for side, units in comparison.rows.items()}
    counts = "; ".join(
        f"{side}: {units['user_id']:,} users, {units['post_id']:,} posts"
        for side, units in rows.items()
    )
    table = Table(
        title=f"training window against {comparison.says}\n({counts}); "
        f"{len(comparison.drifted)} of {len(comparison.features)} features drifted",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("feature", no_wrap=True)
    for name in ("PSI, AUC", "limit", "KS", "p, Holm", "null before", "null now"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparison.features[: max(_SHOWN, len(comparison.drifted))]:
        table.add_row(
            one.feature,
            f"{one.size:.3f}",
            f"{one.threshold:g}",
            "-" if one.ks is None else f"{one.ks:.3f}",
            f"{one.p_adjusted:.1e}" if one.p_adjusted < 0.001 else f"{one.p_adjusted:.3f}",
            f"{one.nulls_reference:.1%}",
            f"{one.nulls_current:.1%}",
            style="yellow" if one.drifted else None,
        )
    return table

"""What one run is worth: the report's content, its two files and the terminal's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.evaluation import page
from pipelines.evaluation.bootstrap import Interval, mean_intervals, paired_differences
from pipelines.evaluation.calibration import ReliabilityBin
from pipelines.evaluation.errors import EvaluationError
from pipelines.evaluation.metrics import Evaluation

Kind = Literal["source", "fusion", "ranked"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
MAIN_METRICS = ("ndcg@10", "hit_rate@10")
# As many as fit into a terminal of 80 columns; the page has all.
_CONSOLE_METRICS = ("ndcg", "hit_rate", "recall", "map", "coverage", "novelty")


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Content):
    """One step of the run. `rows` is None where rows mean nothing; `reused` = not done anew."""

    name: str
    seconds: Annotated[float, Field(ge=0)]
    rows: Count | None = None
    reused: bool = False


class Span(_Content):
    """One named stretch of time, `[start, end)` in UTC, and its positive events."""

    name: str
    start: datetime
    end: datetime
    positives: Count


class Run(_Content):
    """What was run on what.

    Attributes
    ----------
    dataset
        Its name.
    has_clock
        False if the data has no times, so that they were made from the order of rows.
    users, posts, events
        Rows of the lake.
    spans
        History, label slices, validation and test; oldest first.
    steps
        In the order they ran.
    versions
        Package name to version.
    seed
        Of everything random in the run.
    """

    dataset: str
    has_clock: bool
    users: Count
    posts: Count
    events: Count
    spans: tuple[Span, ...]
    steps: tuple[Step, ...]
    versions: Mapping[str, str]
    seed: int


class Estimate(_Content):
    """A mean over users with its 95 % bootstrap interval."""

    mean: Finite
    low: Finite
    high: Finite

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        """Take over a bootstrap interval."""
        return cls(mean=interval.mean, low=interval.low, high=interval.high)


class ModelResult(_Content):
    """The metrics of one list: a candidate source, their fusion, or the ranked list.

    Attributes
    ----------
    means
        "metric@k" to value; metrics that nobody has a value of are left out.
    intervals
        "metric@k" to the interval of the means over users.
    """

    name: str
    kind: Kind
    users: Count
    users_without_list: Count
    means: Mapping[str, Finite]
    intervals: Mapping[str, Estimate]

    @classmethod
    def of(
        cls, name: str, kind: Kind, evaluation: Evaluation, *, rng: np.random.Generator
    ) -> ModelResult:
        """Summarize an evaluation, with an interval for each metric that users have."""
        means = {key: value for key, value in evaluation.means.items() if not np.isnan(value)}
        columns = {key: evaluation.per_user[key] for key in evaluation.per_user if key in means}
        intervals = mean_intervals(columns, rng=rng)
        return cls(
            name=name,
            kind=kind,
            users=evaluation.user_ids.size,
            users_without_list=evaluation.users_without_list,
            means=means,
            intervals={key: Estimate.of(interval) for key, interval in intervals.items()},
        )


class Difference(_Content):
    """Mean of `model` - `baseline` in one metric over the same users."""

    model: str
    baseline: str
    metric: str
    estimate: Estimate


class RecallCurve(_Content):
    """Element k - 1 of `recall` is recall@k of the source's first k posts."""

    source: str
    recall: tuple[Share, ...] = Field(min_length=1)


class RankerTrial(_Content):
    """One ranker that was tried; the one with `chosen` made the ranked list."""

    name: str
    validation_ndcg_10: Share
    prediction_us_per_request: Annotated[float, Field(ge=0)]
    training_seconds: Annotated[float, Field(ge=0)]
    chosen: bool


class GroupLoss(_Content):
    """What is lost on validation without a group of inputs: NDCG@10 with all minus without."""

    group: str
    inputs: tuple[str, ...]
    ndcg_10: Share
    loss: Estimate


class Calibration(_Content):
    """How well scores, mapped to probabilities, say what happens.

    `method` says in a sentence how the mapping was made and on which slices.
    """

    method: str
    bins: tuple[ReliabilityBin, ...] = Field(min_length=1)
    expected_calibration_error: Share


class ColdUsers(_Content):
    """Users of the test slice without an earlier event; `result` is None without any."""

    users: Count
    result: ModelResult | None = None


class GateOutcome(_Content):
    """One gate; `docs` is the path of its Data Docs page from the report's folder."""

    name: str
    passed: bool
    expectations: Count
    docs: str | None = None


class Report(_Content):
    """Everything the report says.

    Attributes
    ----------
    results
        One for each list; exactly one of kind "ranked" and at least one "source", all
        with NDCG@10 and hit rate@10, over the same warm users.
    differences
        Of the ranked list to the best single source and to popularity.
    candidate_recall
        One curve for each source, and one named "union".
    feature_importances
        Feature name to share of the chosen ranker's total importance.
    ablation
        One for each group of inputs, the greatest loss first; empty if it was not asked for.
    clusters_page
        Path of the page about clusters of posts from the report's folder; None without texts.
    """

    run: Run
    results: tuple[ModelResult, ...]
    differences: tuple[Difference, ...]
    candidate_recall: tuple[RecallCurve, ...]
    rankers: tuple[RankerTrial, ...]
    feature_importances: Mapping[str, Share]
    ablation: tuple[GroupLoss, ...] = ()
    clusters_page: str | None = None
    calibration: Calibration | None
    cold_users: ColdUsers
    gates: tuple[GateOutcome, ...]

    @model_validator(mode="after")
    def _check(self) -> Report:
        kinds = [result.kind for result in self.results]
        if kinds.count("ranked") != 1 or "source" not in kinds:
            raise ValueError(f"found lists of kinds {kinds}, expected one ranked and some source")
        for result in self.results:
            missing = [metric for metric in MAIN_METRICS if metric not in result.intervals]
            if missing:
                raise ValueError(f"{result.name}: {', '.join(missing)} missing; add cutoff 10")
        return self

    @property
    def ranked(self) -> ModelResult:
        """The result of the ranked list."""
        return next(result for result in self.results if result.kind == "ranked")

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """The cutoffs of the ranked list's metrics, ascending."""
        return tuple(sorted({int(name.rpartition("@")[2]) for name in self.ranked.means}))

    def sorted_results(self, metric: str) -> list[ModelResult]:
        """Sort the lists by a metric, best first; lists without it come last."""
        return sorted(self.results, key=lambda r: (-r.means.get(metric, -np.inf), r.name))


def best_source(results: Sequence[ModelResult], metric: str = "ndcg@10") -> str:
    """Name the candidate source with the highest metric.

    Taken on the test slice this is the strictest baseline: the source got to choose last.

    Raises
    ------
    EvaluationError
        If no source has the metric.
    """
    sources = [r for r in results if r.kind == "source" and metric in r.means]
    if not sources:
        raise EvaluationError(f"best source: no candidate source has {metric}; evaluate one first")
    return max(sources, key=lambda result: result.means[metric]).name


def differences_to(
    ranked: str,
    baseline: str,
    evaluations: Mapping[str, Evaluation],
    *,
    rng: np.random.Generator,
    metrics: Sequence[str] = MAIN_METRICS,
) -> tuple[Difference, ...]:
    """Compare two of the evaluations, user by user, in each metric."""
    intervals = paired_differences(evaluations[ranked], evaluations[baseline], metrics, rng=rng)
    return tuple(
        Difference(model=ranked, baseline=baseline, metric=name, estimate=Estimate.of(interval))
        for name, interval in intervals.items()
    )


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into a folder, which is made if missing.

    The page holds its style and plots and loads nothing. Each file appears whole or not
    at all. `Report.model_validate_json` reads the JSON back.

    Returns
    -------
    tuple of (json path, html path)

    Raises
    ------
    EvaluationError
        If the folder cannot be written.
    """
    contents = {
        folder / "report.json": report.model_dump_json(indent=2) + "\n",
        folder / "report.html": page.render(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            partial = path.with_suffix(path.suffix + ".partial")
            partial.write_text(content, encoding="utf-8")
            partial.replace(path)
    except OSError as error:
        raise EvaluationError(
            f"report: cannot write into {folder}: {error.strerror}; free space or choose a folder "
            "that can be written"
        ) from error
    json_path, html_path = contents
    return json_path, html_path


def metrics_console(report: Report, cutoff: int = 10) -> Table:
    """Tabulate the lists for a terminal, best NDCG first; the ranked list stands out."""
    table = list_table(f"{report.run.dataset}: {measured_users(report)}, first {cutoff} posts")
    shown = [name for name in _CONSOLE_METRICS if f"{name}@{cutoff}" in report.ranked.means]
    for name in shown:
        table.add_column(page.METRIC_NAMES[name], justify="right", no_wrap=True)
    table.add_column("NDCG, 95 %", justify="right", no_wrap=True)
    for result in report.sorted_results(f"ndcg@{cutoff}"):
        cells = [page.number(result.means.get(f"{name}@{cutoff}"), 3) for name in shown]
        interval = result.intervals.get(f"ndcg@{cutoff}")
        cells.append(f"{interval.low:.3f}-{interval.high:.3f}" if interval else "-")
        table.add_row(result.name, *cells, style="bold" if result.kind == "ranked" else None)
    return table


def list_table(title: str) -> Table:
    """Return a terminal's table of lists, with the column of their names only."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("list", no_wrap=True)
    return table


def measured_users(report: Report) -> str:
    """Say how many users were measured, and since when if the data have times."""
    start = report.run.spans[-1].start if report.run.spans and report.run.has_clock else None
    return f"{report.ranked.users:,} users" + (f" from {start:%Y-%m-%d}" if start else "")

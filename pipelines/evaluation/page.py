"""The report as one HTML page: words, numbers and plots put into `report.html`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import Markup

from pipelines.pages import page_environment

if TYPE_CHECKING:
    from pipelines.evaluation.plots import Dot
    from pipelines.evaluation.report import Difference, GroupLoss, ModelResult, RecallCurve, Report

# The metrics shown, in the order of the columns.
METRIC_NAMES = {
    "ndcg": "NDCG",
    "hit_rate": "hit rate",
    "precision": "precision",
    "recall": "recall",
    "map": "MAP",
    "mrr": "MRR",
    "coverage": "coverage",
    "novelty": "novelty",
    "inverse_user_frequency": "rarity, bits",
}
_IMPORTANCES_SHOWN = 20


def render(report: Report) -> str:
    """Render the page; the same report gives the same bytes."""
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            verdict=_verdict(report),
            metric_names=METRIC_NAMES,
            tables=[_metrics_table(report, k) for k in report.cutoffs],
            importances=_importances(report),
            ablation=[(one, _share_of(report, one)) for one in report.ablation],
            curves=_curves(report),
            figures={name: Markup(svg) for name, svg in _figures(report).items()},
        )
    )


def render_vectors(**content: Any) -> str:
    """Render the page of `pipelines.job.vectors`; figures are SVG by name."""
    figures = {name: Markup(svg) for name, svg in content.pop("figures").items()}
    return _environment().get_template("vectors.html").render(figures=figures, **content)


def number(value: float | None, digits: int = 4) -> str:
    """Format a value; a hyphen where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def metric_label(key: str) -> str:
    """Spell out a key such as "hit_rate@10"."""
    name, _, cutoff = key.partition("@")
    return f"{METRIC_NAMES.get(name, name)}@{cutoff}"


@cache
def _environment() -> Environment:
    filters: dict[str, Any] = {
        "number": number,
        "signed": lambda value: f"{value:+.4f}",
        "seconds": _seconds,
        "metric": metric_label,
    }
    return page_environment(Path(__file__).parent, filters)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {value % 60:.0f} s"


def _verdict(report: Report) -> list[str]:
    """Say in plain sentences what the ranked list gained, and whether chance explains it."""
    sentences = []
    for difference in report.differences:
        if difference.metric == "ndcg@10":
            sentences.append(_gain(difference))
    failed = [gate.name for gate in report.gates if not gate.passed]
    if failed:
        sentences.append(f"Gates that failed: {', '.join(failed)}. Nothing was published.")
    return sentences


def _gain(difference: Difference) -> str:
    estimate = difference.estimate
    direction = "above" if estimate.mean >= 0 else "below"
    chance = (
        "it includes zero, so on this test it may be chance"
        if estimate.low <= 0 <= estimate.high
        else "it excludes zero"
    )
    return (
        f"NDCG@10 of {difference.model} is {abs(estimate.mean):.4f} {direction} that of "
        f"{difference.baseline} (95 % interval of the difference {estimate.low:+.4f} to "
        f"{estimate.high:+.4f}: {chance})."
    )


def _metrics_table(report: Report, cutoff: int) -> dict[str, Any]:
    keys = [f"{name}@{cutoff}" for name in METRIC_NAMES]
    keys = [key for key in keys if any(key in result.means for result in report.results)]
    best = {key: max(r.means[key] for r in report.results if key in r.means) for key in keys}
    results = report.sorted_results(f"ndcg@{cutoff}")
    return {"cutoff": cutoff, "keys": keys, "best": best, "results": results}


def _importances(report: Report) -> dict[str, float]:
    ordered = sorted(report.feature_importances.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered)


def _share_of(report: Report, group: GroupLoss) -> float:
    return sum(report.feature_importances.get(name, 0.0) for name in group.inputs)


def _curves(report: Report) -> list[RecallCurve]:
    return sorted(report.candidate_recall, key=lambda curve: (-curve.recall[-1], curve.source))


def _figures(report: Report) -> dict[str, str]:
    """Draw every plot that the report has content for."""
    # Matplotlib takes a second to import, which commands that draw nothing need not pay.
    from pipelines.evaluation import plots

    figures = {
        "ndcg": plots.interval_plot(
            [_dot(result, "ndcg@10") for result in report.sorted_results("ndcg@10")],
            title="NDCG@10 of each list",
            x_label="NDCG@10, mean over users, with 95 % interval",
        ),
        "hit_rate": plots.interval_plot(
            [_dot(result, "hit_rate@10") for result in report.sorted_results("hit_rate@10")],
            title="Hit rate@10 of each list",
            x_label="share of users with a hit, with 95 % interval",
        ),
    }
    if report.run.spans:
        figures["timeline"] = plots.timeline_plot(
            [(span.name, span.start, span.end) for span in report.run.spans],
            title="How the time of the data was cut",
        )
    if report.differences:
        figures["differences"] = plots.interval_plot(
            [
                plots.Dot(
                    f"{metric_label(d.metric)}\nto {d.baseline}",
                    d.estimate.mean,
                    d.estimate.low,
                    d.estimate.high,
                    strong=d.metric.startswith("ndcg"),
                )
                for d in report.differences
            ],
            title="Gain of the ranked list, user by user",
            x_label="difference, with 95 % interval",
            zero=True,
        )
    if report.candidate_recall:
        figures["recall"] = plots.recall_plot(
            {curve.source: curve.recall for curve in _curves(report)},
            title="Relevant posts among the candidates",
            strong="union",
        )
    if report.feature_importances:
        shown = dict(list(_importances(report).items())[:_IMPORTANCES_SHOWN])
        figures["importances"] = plots.importance_plot(
            shown, title="What the ranker relies on", x_label="share of total importance"
        )
    if report.ablation:
        figures["ablation"] = plots.interval_plot(
            [
                plots.Dot(one.group, one.loss.mean, one.loss.low, one.loss.high, one.loss.low > 0)
                for one in report.ablation
            ],
            title="Loss of NDCG@10 without a group of inputs",
            x_label="NDCG@10 on validation with all inputs minus without, 95 % interval",
            zero=True,
        )
    if report.calibration:
        figures["calibration"] = plots.calibration_plot(
            report.calibration.bins, title="Predicted and observed relevance"
        )
    return figures


def _dot(result: ModelResult, metric: str) -> Dot:
    from pipelines.evaluation.plots import Dot

    interval = result.intervals[metric]
    strong = result.kind == "ranked"
    return Dot(result.name, interval.mean, interval.low, interval.high, strong)

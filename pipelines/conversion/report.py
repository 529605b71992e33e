"""What a study of conversion found, as figures, as a table in the console and as a page."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from rich.table import Table

from pipelines.conversion.advice import Advice
from pipelines.conversion.posts import Counts
from pipelines.conversion.study import Predictable, RateScore, ValueScore
from pipelines.evaluation import plots
from pipelines.evaluation.bootstrap import Interval, mean_interval
from pipelines.evaluation.calibration import ReliabilityBin
from pipelines.pages import rendered

Floats = NDArray[np.float64]
_BINS = 10


@dataclass(frozen=True)
class ActivityResult:
    """One activity: how well its rate is predicted, by model, and how much can be."""

    name: str
    count: int
    model: str
    scores: dict[str, RateScore]
    predictable: Predictable
    calibration: tuple[ReliabilityBin, ...]

    @property
    def verdict(self) -> str:
        """Say whether the main model beats the topic mean."""
        score, best = self.scores[self.model], self.predictable.most_r2
        return (
            f"{self.model} predicts {self.name} {_against(score.gain_per_view)} the topic mean per "
            f"view, and {_against(score.gain_per_post)} it per post. Of the deviance that the "
            f"global mean leaves above binomial noise, it explains {score.explained:.1%}. "
            f"Its R2 is {score.r2:.3f}; that of the true rates would be about {best:.3f}."
        )


@dataclass(frozen=True)
class TargetResult:
    """One weighted target: its weights, moments and how well it is predicted, by model."""

    name: str
    weights: dict[str, float]
    mean: float
    standard_deviation: float
    scores: dict[str, ValueScore]


@dataclass(frozen=True)
class ConversionReport:
    """All that `feastrank conversion` found."""

    source: str
    posts: int
    judged: int
    views: int
    never_viewed: int
    pictures: str
    judged_by: str
    activities: list[ActivityResult]
    targets: list[TargetResult]
    advice: list[Advice]

    def figures(self) -> dict[str, Any]:
        """Return everything measured, for a JSON file."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """Return a table of each activity and each weighted target for the console."""
        return [*map(_rate_table, self.activities), *map(_value_table, self.targets)]

    def page(self) -> str:
        """Render the page."""
        return rendered(
            Path(__file__).parent,
            "report.html",
            report=self,
            calibration={one.name: Markup(_calibration(one)) for one in self.activities},
            effects={one.topic: Markup(_effects(one)) for one in self.advice if one.claims},
        )


def rate_bins(
    count: Counts, views: Counts, predicted: Floats, rng: np.random.Generator
) -> tuple[ReliabilityBin, ...]:
    """Part posts into bins of like prediction; compare with their mean rate.

    Intervals are over posts: views of one post are too much alike for Wilson's.
    """
    order = np.argsort(predicted, kind="stable")
    bins = []
    for part in np.array_split(order, min(_BINS, len(order))):
        found = mean_interval((count / views)[part], rng=rng)
        mean = float(predicted[part].mean())
        bins.append(ReliabilityBin(mean, found.mean, found.low, found.high, len(part)))
    return tuple(bins)


def _against(gain: Interval) -> str:
    if not gain.excludes_zero:
        return "no better and no worse than chance explains against"
    return "better than" if gain.low > 0 else "worse than"


def _rate_table(result: ActivityResult) -> Table:
    table = Table(
        title=f"{result.name}: {result.count:,} of the judged views; noise floor of the deviance "
        f"{result.predictable.floor:.3f} a post, R2 of the true rates "
        f"{result.predictable.most_r2:.3f}",
        title_justify="left",
    )
    table.add_column("model")
    for name in (
        "log loss/view", "gain on topic mean, 95 %", "log loss/post", "gain, 95 %",
        "deviance/post", "explained", "MSE", "R2",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for name, score in result.scores.items():
        table.add_row(
            name,
            f"{score.log_loss_per_view:.5f}",
            _gain(score.gain_per_view, 1e5),
            f"{score.log_loss_per_post:.5f}",
            _gain(score.gain_per_post, 1e5),
            f"{score.deviance_per_post:.2f}",
            f"{score.explained:.1%}",
            f"{score.mse:.6f}",
            f"{score.r2:.3f}",
        )
    table.caption = "Gains in log loss are times 100,000."
    return table


def _value_table(result: TargetResult) -> Table:
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in result.weights.items())
    table = Table(
        title=f"weighted target, {result.name} ({weights}): mean {result.mean:.4f}, standard "
        f"deviation {result.standard_deviation:.4f}",
        title_justify="left",
    )
    table.add_column("model")
    for name in ("MSE", "R2", "gain on topic mean, 95 %"):
        table.add_column(name, justify="right")
    for name, score in result.scores.items():
        gain = score.gain
        interval = f"{gain.mean:+.6f} ({gain.low:+.6f} to {gain.high:+.6f})"
        table.add_row(name, f"{score.mse:.6f}", f"{score.r2:.3f}", interval)
    return table


def _gain(gain: Interval, times: float) -> str:
    return f"{times * gain.mean:+.1f} ({times * gain.low:+.1f} to {times * gain.high:+.1f})"


def _calibration(result: ActivityResult) -> str:
    return plots.calibration_plot(
        result.calibration,
        title=f"{result.name}: predicted and observed rate",
        x_label="predicted rate per view",
        y_label="mean rate of the posts",
        count_label="posts",
        from_zero=False,
    )


def _effects(advice: Advice) -> str:
    return plots.interval_plot(
        [
            plots.Dot(claim.words, 100 * claim.change, 100 * claim.low, 100 * claim.high, True)
            for claim in advice.claims
        ],
        title=f"{advice.topic}: what goes with a higher or lower rate",
        x_label="change of the predicted rate in percentage points",
        zero=True,
    )

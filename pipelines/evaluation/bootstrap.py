"""How far a mean over users could lie from its value by the choice of users alone.

Percentile bootstrap (Efron 1979) over users, seeded. All columns of one call share the
same resampled users, which costs one matrix product for them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.evaluation.errors import MetricsError
from pipelines.evaluation.metrics import Evaluation

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
# Resampled user indices held at once: 4 million are 32 MB, whatever the number of users.
_INDICES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over users and the percentile interval of its resampled means."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: for a difference, chance alone hardly explains it."""
        return self.low > 0 or self.high < 0


def mean_intervals(
    columns: Mapping[str, Floats],
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Bootstrap the mean of each column.

    Parameters
    ----------
    columns
        float64[users] each, all aligned to the same users. NaN means that the user has
        no value; such users are left out of that column's means.
    rng
        Decides the resamples; the same state gives the same intervals.
    resamples
        Number of resamples.
    confidence
        Share of the resampled means inside the interval.

    Raises
    ------
    MetricsError
        If the columns differ in length, have no users, or one has no value at all.
    """
    if not columns:
        return {}
    values = _stack(columns)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    means = filled.sum(axis=0) / known.sum(axis=0)
    resampled = _resampled_means(filled, known, rng, resamples)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail], axis=0)
    return {
        name: Interval(float(means[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(columns)
    }


def mean_interval(
    values: Floats,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Bootstrap one mean; as `mean_intervals` for float64[users]."""
    columns = {"values": values}
    return mean_intervals(columns, rng=rng, resamples=resamples, confidence=confidence)["values"]


def paired_differences(
    model: Evaluation,
    baseline: Evaluation,
    metrics: Sequence[str],
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Bootstrap the mean of model - baseline, user by user.

    Pairing removes what makes a user easy or hard for both, so this interval is the one
    to judge by, not whether two separate intervals overlap.

    Parameters
    ----------
    model, baseline
        Evaluated against the same relevant posts.
    metrics
        Names such as "ndcg@10" that both have for each user.
    rng, resamples, confidence
        As in `mean_intervals`.

    Raises
    ------
    MetricsError
        If the users differ, or a metric is missing from one of them.
    """
    if not np.array_equal(model.user_ids, baseline.user_ids):
        raise MetricsError(
            f"paired difference: {model.user_ids.size} and {baseline.user_ids.size} users, which "
            "are not the same; evaluate both models against the same relevant posts"
        )
    missing = [m for m in metrics if m not in model.per_user or m not in baseline.per_user]
    if missing:
        raise MetricsError(
            f"paired difference: no values by user for {', '.join(missing)}; "
            f"found {', '.join(model.per_user)}"
        )
    columns = {name: model.per_user[name] - baseline.per_user[name] for name in metrics}
    return mean_intervals(columns, rng=rng, resamples=resamples, confidence=confidence)


def _stack(columns: Mapping[str, Floats]) -> Floats:
    lengths = {np.asarray(values).shape for values in columns.values()}
    if len(lengths) > 1 or lengths == {(0,)}:
        raise MetricsError(
            f"bootstrap: found columns of shapes {sorted(lengths)}, expected one value for each "
            "user, at least one user, the same users in all columns"
        )
    values = np.column_stack([np.asarray(v, dtype=np.float64) for v in columns.values()])
    names = [name for name, column in zip(columns, values.T, strict=True) if np.isnan(column).all()]
    if names:
        raise MetricsError(
            f"bootstrap: no user has a value of {', '.join(names)}; leave out this metric"
        )
    return values


def _resampled_means(
    filled: Floats, known: npt.NDArray[np.bool_], rng: np.random.Generator, resamples: int
) -> Floats:
    """Draw users with replacement; float64[resamples, columns], NaN where none has a value."""
    users = filled.shape[0]
    complete = bool(known.all())
    means = np.empty((resamples, filled.shape[1]))
    at_once = max(1, _INDICES_AT_ONCE // users)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(users, size=(rows, users))
        drawn += np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        weights = times.astype(np.float64)
        counts = float(users) if complete else weights @ known.astype(np.float64)
        with np.errstate(invalid="ignore"):
            means[start : start + rows] = (weights @ filled) / counts
    return means

"""From ranker scores to probabilities, and whether the probabilities hold.

A ranker's score orders posts and is no probability. A sigmoid fitted on one slice
(validation) maps scores to probabilities; the bins are to be taken on another (test).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from pipelines.evaluation.errors import MetricsError

Floats = npt.NDArray[np.float64]
_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class Sigmoid:
    """probability = 1 / (1 + exp(-(slope * score + intercept))) (Platt 1999)."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, scores: Floats, labels: npt.NDArray[np.bool_]) -> Sigmoid:
        """Fit by maximum likelihood.

        Parameters
        ----------
        scores
            float64[n]: the ranker's scores, finite.
        labels
            bool[n]: whether the post turned out relevant.

        Raises
        ------
        MetricsError
            If the lengths differ, a score is not finite, or all labels are the same.
        """
        scores, labels = _checked(scores, labels)
        if labels.all() or not labels.any():
            raise MetricsError(
                f"calibration: all {labels.size} labels are {bool(labels[0])}; "
                "fit on a slice with both relevant and other posts"
            )
        # It takes a second to import, which who only reads a report need not pay.
        from sklearn.linear_model import LogisticRegression

        # Scores of any scale converge alike; C is large enough to be no regularization.
        centre, scale = scores.mean(), scores.std() or 1.0
        standard = (scores - centre) / scale
        model = LogisticRegression(C=1e6).fit(standard[:, None], labels)
        slope = float(model.coef_[0, 0]) / scale
        return cls(slope=float(slope), intercept=float(model.intercept_[0] - slope * centre))

    def probability(self, scores: Floats) -> Floats:
        """Map scores to probabilities; the shape of `scores`."""
        return np.asarray(expit(self.slope * np.asarray(scores) + self.intercept), np.float64)


@dataclass(frozen=True)
class ReliabilityBin:
    """Posts of similar predicted probability.

    Attributes
    ----------
    predicted : float
        Mean probability.
    observed : float
        Share that turned out relevant.
    low, high : float
        95 % interval of `observed` (Wilson 1927).
    count : int
        Number of (user, post) pairs, at least 1.
    """

    predicted: float
    observed: float
    low: float
    high: float
    count: int


def reliability_bins(
    probability: Floats, labels: npt.NDArray[np.bool_], bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Part predictions into bins of about equal count and compare with what happened.

    Equal probabilities share a bin, so there may be fewer than `bins`.

    Parameters
    ----------
    probability
        float64[n], in [0, 1].
    labels
        bool[n].

    Returns
    -------
    tuple of ReliabilityBin
        By ascending `predicted`.

    Raises
    ------
    MetricsError
        If there is nothing, the lengths differ, or a probability is outside [0, 1].
    """
    probability, labels = _checked(probability, labels)
    if probability.min() < 0 or probability.max() > 1:
        raise MetricsError(
            f"calibration: found predictions from {probability.min():g} to {probability.max():g}, "
            "expected probabilities; map scores with Sigmoid.fit first"
        )
    inner_edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1], method="lower")
    index = np.searchsorted(np.unique(inner_edges), probability, side="left")
    counts = np.bincount(index)
    predicted, relevant = (np.bincount(index, weights=w) for w in (probability, labels))
    return tuple(
        ReliabilityBin(
            float(predicted[i] / counts[i]),
            float(relevant[i] / counts[i]),
            *_wilson(relevant[i] / counts[i], int(counts[i])),
            count=int(counts[i]),
        )
        for i in np.flatnonzero(counts)
    )


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Mean of |predicted - observed| over pairs (Naeini et al. 2015)."""
    gaps = [abs(b.predicted - b.observed) for b in bins]
    return float(np.average(gaps, weights=[b.count for b in bins]))


def _wilson(share: float, count: int) -> tuple[float, float]:
    z2 = _NORMAL_975**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _NORMAL_975 * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half /= 1 + z2 / count
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _checked(values: Floats, labels: npt.NDArray[np.bool_]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    if values.shape != labels.shape or values.ndim != 1 or not values.size:
        raise MetricsError(
            f"calibration: found {values.shape} values and {labels.shape} labels, "
            "expected as many of each, at least one"
        )
    if not np.isfinite(values).all():
        raise MetricsError(
            f"calibration: {int((~np.isfinite(values)).sum())} of {values.size} values are not "
            "finite; check the ranker's inputs and scores"
        )
    return values, labels

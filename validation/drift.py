"""Drift: whether a sample of feature values could come from the population of another one.

Numbers are compared by the two-sample Kolmogorov-Smirnov test, categories and the share of nulls
by the chi-squared test of homogeneity, vectors by a classifier two-sample test (Lopez-Paz and
Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017): a logistic regression learns on one
half to tell both samples apart, and the area under its ROC curve on the other half is judged by
the Mann-Whitney test.

With enough rows every difference is significant and none may matter, so drift is what is both:
significant after Holm's correction over all features, and large. How large is the population
stability index (PSI), without what chance adds to it: under the null hypothesis its mean is
(bins - 1)(1/n + 1/m), see Yurdakul and Naranjo, "Statistical properties of the population
stability index", Journal of Risk Model Validation 14 (2020). Vectors have the area instead.

Rows must be independent: a user with a hundred rows is not a hundred users. Samples therefore
hold one row for each user, or for each post, see `pipelines.monitoring.samples`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from validation.errors import ValidationError

Kind = Literal["number", "category", "vector"]
Counts = NDArray[np.int64]

BINS = 10
CATEGORIES = 30
NULL, OTHER = "null", "other"


class DriftError(ValidationError):
    """Features drifted further than their thresholds allow."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as drift.

    Parameters
    ----------
    psi
        Least PSI, chance taken off, of numbers and categories. 0.1 is usually called a moderate
        and 0.25 a great shift.
    auc
        Least area under the ROC curve of vectors; 0.5 is chance, 1 a complete separation.
    by_feature
        Thresholds of single features, each in the measure of its kind.
    alpha
        Greatest chance of any false alarm in one comparison of all features.
    """

    psi: float = 0.2
    auc: float = 0.65
    by_feature: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 0.01

    def of(self, feature: str, kind: Kind) -> float:
        """Return the threshold of one feature."""
        return self.by_feature.get(feature, self.auc if kind == "vector" else self.psi)


@dataclass(frozen=True)
class Histogram:
    """Shares of both samples by bin; each side sums to 1 unless it is empty."""

    bins: tuple[str, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


@dataclass(frozen=True)
class FeatureDrift:
    """One feature, compared.

    Parameters
    ----------
    feature, kind
        What was compared.
    rows_reference, rows_current
        Rows of the samples, nulls included.
    nulls_reference, nulls_current
        Shares of null (or NaN).
    psi
        As measured; None for vectors.
    size
        What the threshold is for: PSI less what chance adds, at least 0; of vectors the area.
    ks
        Greatest distance between both distribution functions; numbers only.
    p_value
        Of the tests named in the module, before the correction.
    p_adjusted
        After it.
    threshold, drifted
        Of ``size``; and whether the feature drifted.
    histogram
        For a plot; of vectors the probabilities that the classifier gives.
    """

    feature: str
    kind: Kind
    rows_reference: int
    rows_current: int
    nulls_reference: float
    nulls_current: float
    psi: float | None
    size: float
    ks: float | None
    p_value: float
    p_adjusted: float
    threshold: float
    drifted: bool
    histogram: Histogram


def population_stability_index(reference: Sequence[int], current: Sequence[int]) -> float:
    """Return the sum over bins of (q - p) ln(q / p), of shares p of reference and q of current.

    A bin that is empty on one side counts as half a row there; one that is empty on both, nothing.
    0 where a whole side is empty.
    """
    first, second = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if not first.sum() or not second.sum():
        return 0.0
    used = (first > 0) | (second > 0)
    p = np.maximum(first[used], 0.5) / first.sum()
    q = np.maximum(second[used], 0.5) / second.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def chance_psi(bins: int, reference: int, current: int) -> float:
    """Return the mean PSI of two samples of one population."""
    if not reference or not current:
        return 0.0
    return max(bins - 1, 0) * (1 / reference + 1 / current)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm (1979): below alpha, no more than alpha of any is false."""
    order = np.argsort(p_values, kind="stable")
    adjusted, greatest = [0.0] * len(order), 0.0
    for position, index in enumerate(order):
        greatest = max(greatest, min(1.0, (len(order) - position) * p_values[index]))
        adjusted[index] = greatest
    return adjusted


def compare(
    reference: Mapping[str, pa.Array | pa.ChunkedArray],
    current: Mapping[str, pa.Array | pa.ChunkedArray],
    kinds: Mapping[str, Kind],
    thresholds: Thresholds,
    seed: int = 0,
) -> list[FeatureDrift]:
    """Compare every feature that both sides have, in the order of ``kinds``.

    Parameters
    ----------
    reference, current
        By feature its values, independent rows; sides and features may differ in length. Numbers
        may be of any numeric or boolean type, NaN is null; vectors are lists of equal length.
    kinds
        How to compare each feature.
    """
    measured = [
        _COMPARE[kind](name, reference[name], current[name], seed)
        for name, kind in kinds.items()
        if name in reference and name in current
    ]
    adjusted = holm([one["p_value"] for one in measured])
    results = []
    for one, p_adjusted in zip(measured, adjusted, strict=True):
        limit = thresholds.of(one["feature"], one["kind"])
        drifted = p_adjusted < thresholds.alpha and one["size"] >= limit
        results.append(FeatureDrift(**one, p_adjusted=p_adjusted, threshold=limit, drifted=drifted))
    return results


def _numbers(name: str, reference: Any, current: Any, seed: int) -> dict[str, Any]:
    first, second = _floats(reference), _floats(current)
    a, b = first[np.isfinite(first)], second[np.isfinite(second)]
    # Edges of equal values fall together: a feature that is mostly 0 has fewer bins.
    edges = np.unique(np.quantile(a, np.linspace(0, 1, BINS + 1)[1:-1])) if len(a) else np.empty(0)
    counts = [
        np.append(np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1), len(y) - len(x))
        for x, y in ((a, first), (b, second))
    ]
    labels = (*_between(edges), NULL)
    test = stats.ks_2samp(a, b, method="asymp") if len(a) and len(b) else None
    p_nulls = _homogeneity(
        np.array([[len(a), len(first) - len(a)], [len(b), len(second) - len(b)]])
    )
    p_values = [p_nulls, *([] if test is None else [float(test.pvalue)])]
    found = _of_counts(name, "number", labels, counts[0], counts[1])
    return found | {
        "ks": None if test is None else float(test.statistic),
        # Bonferroni over both tests of this feature.
        "p_value": min(1.0, len(p_values) * min(p_values)),
    }


def _categories(name: str, reference: Any, current: Any, seed: int) -> dict[str, Any]:
    tallies = [_tally(reference), _tally(current)]
    total: dict[str, int] = {}
    for tally in tallies:
        for value, count in tally.items():
            total[value] = total.get(value, 0) + count
    ranked = sorted((v for v in total if v != NULL), key=lambda v: (-total[v], v))
    shown = (*ranked[:CATEGORIES], OTHER, NULL)
    counts = [
        np.array(
            [
                *(tally.get(value, 0) for value in shown[:-2]),
                sum(tally.get(value, 0) for value in ranked[CATEGORIES:]),
                tally.get(NULL, 0),
            ]
        )
        for tally in tallies
    ]
    found = _of_counts(name, "category", shown, counts[0], counts[1])
    return found | {"ks": None, "p_value": _homogeneity(np.array(counts))}


def _vectors(name: str, reference: Any, current: Any, seed: int) -> dict[str, Any]:
    a, b = _matrix(reference), _matrix(current)
    nulls = [1 - len(x) / len(y) if len(y) else 0.0 for x, y in ((a, reference), (b, current))]
    area, p_value, scores, is_current = 0.5, 1.0, np.empty(0), np.empty(0, bool)
    if min(len(a), len(b)) >= _LEAST_VECTORS and a.shape[1] == b.shape[1]:
        area, p_value, scores, is_current = _tell_apart(a, b, seed)
    edges = np.linspace(0, 1, BINS + 1)
    shares = [
        np.histogram(scores[side], edges)[0] / max(int(side.sum()), 1)
        for side in (~is_current, is_current)
    ]
    return {
        "feature": name,
        "kind": "vector",
        "rows_reference": len(reference),
        "rows_current": len(current),
        "nulls_reference": nulls[0],
        "nulls_current": nulls[1],
        "psi": None,
        "size": area,
        "ks": None,
        "p_value": p_value,
        "histogram": Histogram(
            _between(edges[1:-1]), tuple(map(float, shares[0])), tuple(map(float, shares[1]))
        ),
    }


_COMPARE = {"number": _numbers, "category": _categories, "vector": _vectors}
_LEAST_VECTORS = 20


def _tell_apart(
    a: NDArray[np.float64], b: NDArray[np.float64], seed: int
) -> tuple[float, float, NDArray[np.float64], NDArray[np.bool_]]:
    """Return area, p-value, and of the half not learnt on the scores and which are current."""
    # Takes a second to import, which gates of tables need not pay.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = np.concatenate([a, b])
    # Squares let a linear model see a spread that changed around an equal mean.
    inputs = np.hstack([vectors, (vectors - vectors.mean(axis=0)) ** 2])
    is_current = np.repeat([False, True], [len(a), len(b)])
    rng = np.random.default_rng(seed)
    learnt = np.zeros(len(inputs), bool)
    for start, size in ((0, len(a)), (len(a), len(b))):
        learnt[start + rng.permutation(size)[: size // 2]] = True
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)
    )
    model.fit(inputs[learnt], is_current[learnt])
    scores = model.predict_proba(inputs[~learnt])[:, 1]
    side = is_current[~learnt]
    test = stats.mannwhitneyu(scores[side], scores[~side], alternative="greater")
    area = float(test.statistic) / (int(side.sum()) * int((~side).sum()))
    return max(area, 0.5), float(test.pvalue), scores, side


def _of_counts(
    name: str, kind: Kind, labels: Sequence[str], reference: Counts, current: Counts
) -> dict[str, Any]:
    n, m = int(reference.sum()), int(current.sum())
    psi = population_stability_index(reference.tolist(), current.tolist())
    used = int(((reference > 0) | (current > 0)).sum())
    shares = [tuple((c / max(c.sum(), 1)).tolist()) for c in (reference, current)]
    return {
        "feature": name,
        "kind": kind,
        "rows_reference": n,
        "rows_current": m,
        "nulls_reference": shares[0][-1],
        "nulls_current": shares[1][-1],
        "psi": psi,
        "size": max(0.0, psi - chance_psi(used, n, m)),
        "histogram": Histogram(tuple(labels), shares[0], shares[1]),
    }


def _homogeneity(counts: Counts) -> float:
    """Return the p-value of the chi-squared test; rare bins are one, as its approximation needs."""
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2 or not counts.sum(axis=1).all():
        return 1.0
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    rare = expected < 5
    kept = counts[:, ~rare]
    if rare.any():
        kept = np.column_stack([kept, counts[:, rare].sum(axis=1)])
    if kept.shape[1] == 2 and rare.any():
        return float(stats.fisher_exact(kept).pvalue)
    return float(stats.chi2_contingency(kept).pvalue) if kept.shape[1] > 1 else 1.0


def _tally(values: Any) -> dict[str, int]:
    if not pa.types.is_string(values.type):
        # A log may hold as 3.0 what training holds as 3; NaN is null.
        values = pc.if_else(pc.is_nan(floats := values.cast(pa.float64())), None, floats)
    texts = pc.coalesce(values.cast(pa.string()), pa.scalar(NULL))
    counted = pc.value_counts(texts)
    return dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))


def _floats(values: Any) -> NDArray[np.float64]:
    return np.asarray(values.cast(pa.float64(), safe=False), np.float64)


def _matrix(values: Any) -> NDArray[np.float64]:
    """Return the vectors that are there; those of another length than the first are left out."""
    rows = [row for row in values.to_pylist() if row]
    width = len(rows[0]) if rows else 0
    kept = [row for row in rows if len(row) == width]
    return np.asarray(kept, np.float64).reshape(len(kept), width)


def _between(edges: NDArray[np.float64]) -> tuple[str, ...]:
    if not len(edges):
        return ("any",)
    texts = [f"{edge:.4g}" for edge in edges]
    inner = (f"{low} to {high}" for low, high in pairwise(texts))
    return (f"up to {texts[0]}", *inner, f"above {texts[-1]}")

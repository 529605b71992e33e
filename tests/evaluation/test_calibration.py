"""Scores to probabilities, and the bins that check them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipelines.evaluation.calibration import (
    ReliabilityBin,
    Sigmoid,
    expected_calibration_error,
    reliability_bins,
)
from pipelines.evaluation.errors import MetricsError


def test_sigmoid_finds_the_curve_that_made_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(100, 20, size=50_000)
    labels = rng.random(scores.size) < 1 / (1 + np.exp(-(0.05 * scores - 7)))
    sigmoid = Sigmoid.fit(scores, labels)
    assert sigmoid.slope == pytest.approx(0.05, rel=0.05)
    assert sigmoid.intercept == pytest.approx(-7, rel=0.05)
    assert sigmoid.probability(scores).mean() == pytest.approx(labels.mean(), abs=1e-4)


def test_equal_scores_predict_the_mean():
    sigmoid = Sigmoid.fit(np.full(4, 3.0), np.array([True, False, False, False]))
    assert sigmoid.probability(np.array([3.0])) == pytest.approx(0.25, abs=1e-4)


def test_bins_by_hand():
    probability = np.array([0.1, 0.1, 0.2, 0.2, 0.6, 0.8])
    labels = np.array([False, False, True, False, True, True])
    bins = reliability_bins(probability, labels, bins=3)
    assert [b.count for b in bins] == [2, 2, 2]
    assert [b.predicted for b in bins] == pytest.approx([0.1, 0.2, 0.7])
    assert [b.observed for b in bins] == pytest.approx([0, 0.5, 1])
    error = (2 * 0.1 + 2 * 0.3 + 2 * 0.3) / 6
    assert expected_calibration_error(bins) == pytest.approx(error)


def test_intervals_are_wilsons():
    labels = np.arange(40) < 7
    (only,) = reliability_bins(np.full(40, 0.3), labels)
    expected = binomtest(7, 40).proportion_ci(method="wilson")
    assert (only.low, only.high) == pytest.approx((expected.low, expected.high))
    assert only == ReliabilityBin(pytest.approx(0.3), 7 / 40, only.low, only.high, 40)


def test_bins_hold_every_pair_whatever_its_place():
    rng = np.random.default_rng(1)
    probability, labels = rng.random(1003).round(2), rng.random(1003) < 0.3
    bins = reliability_bins(probability, labels)
    assert sum(b.count for b in bins) == 1003
    assert sum(b.count * b.observed for b in bins) == pytest.approx(labels.sum())
    assert max(b.count for b in bins) < 130
    order = rng.permutation(1003)
    again = reliability_bins(probability[order], labels[order])
    assert [b.count for b in again] == [b.count for b in bins]


def test_malformed_input_is_refused():
    both = np.array([True, False])
    with pytest.raises(MetricsError, match="all 2 labels are True; fit on a slice with both"):
        Sigmoid.fit(np.array([0.0, 1.0]), np.array([True, True]))
    with pytest.raises(MetricsError, match="1 of 2 values are not finite"):
        Sigmoid.fit(np.array([0.0, np.nan]), both)
    with pytest.raises(MetricsError, match=r"found \(3,\) values and \(2,\) labels"):
        reliability_bins(np.zeros(3), both)
    with pytest.raises(MetricsError, match="found predictions from -1 to 2, expected prob"):
        reliability_bins(np.array([-1.0, 2.0]), both)

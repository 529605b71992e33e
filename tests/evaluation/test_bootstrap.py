"""Bootstrap intervals: against SciPy, by hand where it is possible, and by coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pipelines.evaluation import bootstrap
from pipelines.evaluation.bootstrap import Interval, mean_interval, mean_intervals
from pipelines.evaluation.errors import MetricsError
from pipelines.evaluation.metrics import Evaluation, evaluate_lists


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_agrees_with_scipy_draw_by_draw(confidence):
    values = rng(1).exponential(size=300)
    ours = mean_interval(values, rng=rng(), resamples=500, confidence=confidence)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", rng=rng(),
        confidence_level=confidence,
    ).confidence_interval  # fmt: skip
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_a_constant_has_no_spread():
    assert mean_interval(np.full(9, 0.25), rng=rng()) == Interval(0.25, 0.25, 0.25)


def test_chunks_change_nothing(monkeypatch):
    values = rng(2).random(50)
    whole = mean_interval(values, rng=rng(), resamples=101)
    monkeypatch.setattr(bootstrap, "_INDICES_AT_ONCE", 150)
    assert mean_interval(values, rng=rng(), resamples=101) == whole


def test_users_without_a_value_are_left_out():
    known = rng(3).random(40)
    values = np.concatenate([known, np.full(10, np.nan)])
    interval = mean_interval(values, rng=rng())
    assert interval.mean == pytest.approx(known.mean())
    assert interval.low < known.mean() < interval.high
    # With one value only, most resamples either miss it or repeat it.
    assert mean_interval(np.array([np.nan, 3.0]), rng=rng()) == Interval(3, 3, 3)


def test_columns_share_their_resamples():
    values = rng(4).random(60)
    both = mean_intervals({"a": values, "b": 2 * values}, rng=rng())
    assert both["b"].low == pytest.approx(2 * both["a"].low)
    alone = mean_interval(values, rng=rng())
    assert (both["a"].low, both["a"].high) == pytest.approx((alone.low, alone.high))


def test_interval_holds_the_truth_about_as_often_as_it_says():
    draw = rng(5)
    intervals = [
        mean_interval(draw.normal(1.0, 1.0, size=80), rng=draw, resamples=400) for _ in range(300)
    ]
    held = np.mean([i.low <= 1.0 <= i.high for i in intervals])
    assert 0.90 <= held <= 0.98


def evaluation(hits: list[bool]) -> Evaluation:
    """Each user is recommended one post and likes post 1: a hit is post 1, a miss post 0."""
    users, ones = np.arange(len(hits)), np.ones(len(hits), dtype=np.int64)
    return evaluate_lists(
        pa.table({"user_id": users, "post_id": np.array(hits, dtype=np.int64), "rank": ones}),
        pa.table({"user_id": users, "post_id": ones}),
        cutoffs=(1,),
    )


def test_paired_difference_removes_what_users_share():
    base = rng(6).random(400) < 0.5
    better = base | (np.arange(400) % 20 == 0)  # the same hits and a few more
    difference = bootstrap.paired_differences(
        evaluation(list(better)), evaluation(list(base)), ["hit_rate@1", "ndcg@1"], rng=rng()
    )
    assert difference["hit_rate@1"].mean == pytest.approx(better.mean() - base.mean())
    assert difference["hit_rate@1"].excludes_zero
    assert difference["hit_rate@1"] == difference["ndcg@1"]
    apart = [mean_interval(np.asarray(v, dtype=float), rng=rng()) for v in (better, base)]
    assert apart[0].low < apart[1].high  # separate intervals overlap and would hide it


def test_difference_to_itself_is_zero():
    model = evaluation([True, False, True])
    difference = bootstrap.paired_differences(model, model, ["mrr@1"], rng=rng())["mrr@1"]
    assert difference == Interval(0, 0, 0)
    assert not difference.excludes_zero


def test_malformed_input_is_refused():
    model = evaluation([True, False])
    other = replace(model, user_ids=model.user_ids + 1)
    with pytest.raises(MetricsError, match="2 and 2 users, which are not the same"):
        bootstrap.paired_differences(model, other, ["mrr@1"], rng=rng())
    with pytest.raises(MetricsError, match="no values by user for mrr@9; found hit_rate@1"):
        bootstrap.paired_differences(model, model, ["mrr@9"], rng=rng())
    with pytest.raises(MetricsError, match=r"shapes \[\(2,\), \(3,\)\]"):
        mean_intervals({"a": np.ones(2), "b": np.ones(3)}, rng=rng())
    with pytest.raises(MetricsError, match="at least one user"):
        mean_interval(np.ones(0), rng=rng())
    with pytest.raises(MetricsError, match="no user has a value of b"):
        mean_intervals({"a": np.ones(2), "b": np.full(2, np.nan)}, rng=rng())

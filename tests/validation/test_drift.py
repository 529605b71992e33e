"""Drift: hand-worked measures, their properties, no alarm without a cause, an alarm with one."""

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from validation.drift import (
    FeatureDrift,
    Kind,
    Thresholds,
    chance_psi,
    compare,
    holm,
    population_stability_index,
)

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=12)
SAME = {
    "count": "number",
    "rate": "number",
    "mostly_null": "number",
    "constant": "number",
    "topic": "category",
    "embedding": "vector",
}
KINDS: Mapping[str, Kind] = SAME  # type: ignore[assignment]


def test_psi_by_hand():
    # (1/4 - 1/2) ln(1/2) + (3/4 - 1/2) ln(3/2)
    expected = 0.25 * math.log(2) + 0.25 * math.log(1.5)
    assert population_stability_index([50, 50], [25, 75]) == pytest.approx(expected)
    # An empty bin counts as half a row: (0.5/100 - 1/2) ln((0.5/100) / (1/2)) + 1/2 ln 2.
    expected = -0.495 * math.log(0.01) + 0.5 * math.log(2)
    assert population_stability_index([50, 50], [0, 100]) == pytest.approx(expected)
    assert population_stability_index([5, 0, 5], [5, 0, 5]) == 0
    assert population_stability_index([5, 5], [0, 0]) == 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(COUNTS, st.randoms(use_true_random=False))
def test_psi_is_symmetric_never_negative_and_zero_for_equal_shares(counts: list[int], random):
    other = [random.randint(1, 10_000) for _ in counts]
    both = population_stability_index(counts, other)
    assert both >= 0
    assert both == pytest.approx(population_stability_index(other, counts))
    assert population_stability_index(other, [3 * c for c in other]) == pytest.approx(0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_changes_nothing(seed: int):
    rng = np.random.default_rng(seed)
    values, others = rng.normal(size=50), rng.normal(1, size=60)
    shuffled = rng.permutation(others)
    first, second = (_one(values, x) for x in (others, shuffled))
    assert first == second


def test_ks_and_nulls_of_one_feature():
    before = [1.0, 2.0, 3.0, 4.0] * 50
    now = [3.0, 4.0, 5.0, 6.0] * 25 + [None, float("nan")] * 50
    found = _one(before, now)
    # Half of the old values lie below 3, none of the new ones.
    assert found.ks == pytest.approx(0.5)
    assert (found.nulls_reference, found.nulls_current) == (0.0, 0.5)
    assert found.drifted


def test_the_mean_psi_of_chance_is_what_is_taken_off():
    rng = np.random.default_rng(1)
    measured = [
        population_stability_index(*rng.multinomial(n, [0.1] * 10, size=1).tolist(), m.tolist())
        for n, m in ((400, rng.multinomial(700, [0.1] * 10)) for _ in range(2_000))
    ]
    assert np.mean(measured) == pytest.approx(chance_psi(10, 400, 700), rel=0.05)


def test_no_alarm_on_20_resamplings_of_the_same_data():
    everybody = _population(np.random.default_rng(3), 4_000)
    alarms = []
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        first = {n: v.take(pa.array(rng.integers(0, 4_000, 1_500))) for n, v in everybody.items()}
        second = {n: v.take(pa.array(rng.integers(0, 4_000, 700))) for n, v in everybody.items()}
        alarms += [f.feature for f in compare(first, second, KINDS, Thresholds()) if f.drifted]
    assert alarms == []


@pytest.mark.parametrize("feature", [name for name in SAME if name != "constant"])
def test_each_kind_of_shift_is_found_and_nothing_else(feature: str):
    before = _population(np.random.default_rng(4), 1_500)
    now = {**_population(np.random.default_rng(5), 900)}
    now[feature] = _shifted(feature, now[feature])
    drifted = [f.feature for f in compare(before, now, KINDS, Thresholds()) if f.drifted]
    assert drifted == [feature]


def test_a_spread_that_changed_around_an_equal_mean_is_seen_in_vectors():
    rng = np.random.default_rng(6)
    wide = pa.array(list(3 * rng.normal(size=(500, 8))))
    narrow = pa.array(list(rng.normal(size=(500, 8))))
    (found,) = compare({"v": narrow}, {"v": wide}, {"v": "vector"}, Thresholds())
    assert found.size > 0.9
    assert found.drifted


def test_a_small_shift_of_many_rows_is_significant_and_yet_no_drift():
    rng = np.random.default_rng(7)
    before, now = rng.normal(size=100_000), rng.normal(0.05, size=100_000)
    assert stats.ks_2samp(before, now).pvalue < 1e-6
    assert not _one(before, now).drifted
    found = _one(before, now, Thresholds(by_feature={"x": 0.001}))
    assert found.threshold == 0.001
    assert found.drifted


def test_empty_sides_and_features_of_one_side_are_no_drift():
    empty = pa.array([], pa.float64())
    for first, second in ((empty, [1.0, 2.0]), ([1.0, 2.0], empty), (empty, empty)):
        found = _one(first, second)
        assert not found.drifted
        assert found.size == 0
    assert compare({"x": empty}, {}, {"x": "number"}, Thresholds()) == []


def test_categories_that_are_numbers_are_the_same_whatever_their_type():
    codes = pa.array([1, 2, 3, None] * 50, pa.int64())
    logged = pa.array([1.0, 2.0, 3.0, float("nan")] * 50)
    (found,) = compare({"x": codes}, {"x": logged}, {"x": "category"}, Thresholds())
    assert found.psi == 0


def _one(before, now, thresholds: Thresholds | None = None) -> FeatureDrift:
    columns = [pa.array(values, pa.float64()) for values in (before, now)]
    (found,) = compare(
        {"x": columns[0]}, {"x": columns[1]}, {"x": "number"}, thresholds or Thresholds()
    )
    return found


def _population(rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
    """Return features as a feed has them: long tails, nulls, rare topics, vectors."""
    rates = rng.beta(2, 5, rows)
    return {
        "count": pa.array(rng.negative_binomial(1, 0.02, rows)),
        "rate": pa.array(np.where(rng.random(rows) < 0.1, np.nan, rates)),
        "mostly_null": pa.array(np.where(rng.random(rows) < 0.95, np.nan, rates)),
        "constant": pa.array(np.zeros(rows)),
        "topic": pa.array([f"t{t}" for t in rng.zipf(1.5, rows).clip(max=200)]),
        "embedding": pa.array(list(rng.normal(size=(rows, 16)).astype(np.float32))),
    }


def _shifted(feature: str, values: pa.Array) -> pa.Array:
    rows = len(values)
    if feature == "topic":
        return pa.array(["t9" if i % 4 == 0 else v for i, v in enumerate(values.to_pylist())])
    if feature == "embedding":
        return pa.array([(np.asarray(v) + 0.5).tolist() for v in values.to_pylist()])
    if feature == "mostly_null":
        return pa.array([0.5 if i % 3 == 0 else None for i in range(rows)])
    return pa.array(2 * values.to_numpy(zero_copy_only=False))

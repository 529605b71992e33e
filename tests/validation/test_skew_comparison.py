"""Skew: each difference is counted once, and gets the cause that its values show."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.skew import (
    CAUSES,
    FLOAT32,
    LATE_EVENT,
    NOT_MATERIALIZED,
    SCALE,
    TIME_ZONE,
    UNEXPLAINED,
    FeatureSkew,
    compare,
    merged,
)

VALUES = st.lists(
    st.none()
    | st.floats(allow_nan=True, allow_infinity=True, width=32)
    | st.integers(-5, 5).map(float),
    min_size=1,
    max_size=20,
)


def test_by_hand():
    served = [1.0, 2.0, None, 4.0, None, float("nan"), 7.5]
    offline = [1.0, 2.5, 3.0, None, None, None, 7.5]
    found = _compare(served, offline)
    assert (found.rows, found.equal) == (7, 4)
    assert (found.different, found.missing_online, found.missing_offline) == (1, 1, 1)
    assert found.causes == {UNEXPLAINED: 3}
    assert (found.mean_difference, found.max_difference) == (0.5, 0.5)
    assert found.examples[0] == {"row": 1, "served": 2.0, "offline": 2.5, "cause": UNEXPLAINED}
    assert found.faults == 3


def test_texts():
    found = _compare(["a", None, "c", None], ["a", "b", "x", None], kind=pa.string())
    assert (found.equal, found.different, found.missing_online) == (2, 1, 1)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_values_are_equal_to_themselves(values):
    assert _compare(values, values).equal == len(values)


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES)
def test_every_value_is_counted_once(first, second):
    size = min(len(first), len(second))
    found = _compare(first[:size], second[:size])
    parts = (found.different, found.missing_online, found.missing_offline, found.stale)
    assert found.equal + sum(parts) == found.rows == size
    assert sum(found.causes.values()) == sum(parts)
    both = merged([found, found])
    assert both.rows == 2 * size
    assert both.max_difference == found.max_difference


@pytest.mark.parametrize("hours", [-5, 0.75, 13])
def test_a_time_zone_is_one_offset_of_quarter_hours(hours: float):
    days = np.random.default_rng(0).uniform(0, 400, 50)
    found = _compare(days + hours / 24, days, hours_per_unit=24.0)
    assert found.causes == {TIME_ZONE: 50}
    assert found.detail == f"{hours:+g} h"
    assert _compare(days + hours / 24, days).causes == {UNEXPLAINED: 50}
    drifting = days + np.linspace(0.1, 0.2, 50)
    assert _compare(drifting, days, hours_per_unit=24.0).causes == {UNEXPLAINED: 50}


def test_a_unit_is_one_factor():
    seconds = np.random.default_rng(1).uniform(1, 1e6, 50)
    found = _compare(1000 * seconds, seconds)
    assert (found.causes, found.detail) == ({SCALE: 50}, "x 1000")


def test_rounding_to_32_bits_is_named():
    values = np.random.default_rng(2).uniform(0, 1, 50)
    rounded = values.astype(np.float32).astype(np.float64)
    assert _compare(rounded, values).causes == {FLOAT32: 50}
    assert _compare(values, rounded).causes == {FLOAT32: 50}


def test_what_is_proven_comes_first_and_what_only_fits_last():
    values = np.random.default_rng(3).uniform(0, 1, 4)
    rounded = values.astype(np.float32).astype(np.float64)
    served = [*rounded[:2], 9.0, 9.0]
    proven = [NOT_MATERIALIZED, None, None, None]
    suspected = [LATE_EVENT, LATE_EVENT, LATE_EVENT, None]
    found = _compare(served, values, proven, suspected)
    assert found.causes == {NOT_MATERIALIZED: 1, FLOAT32: 1, LATE_EVENT: 1, UNEXPLAINED: 1}
    assert found.stale == 1
    assert found.faults == 2
    assert all(meaning for _, meaning in CAUSES.values())


def _compare(
    served, offline, proven=None, suspected=None, hours_per_unit=None, kind=None
) -> FeatureSkew:
    kind = kind or pa.float64()
    nothing = [None] * len(served)
    return compare(
        "feature",
        pa.array(served, kind),
        pa.array(offline, kind),
        proven or nothing,
        suspected or nothing,
        hours_per_unit,
    )

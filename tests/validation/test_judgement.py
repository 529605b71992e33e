"""Differential tests: what we find equals what great-expectations finds on pandas."""

import datetime as dt
import math

import great_expectations as gx
import great_expectations.expectations as gxe
import pyarrow as pa
import pytest
from great_expectations.core import ExpectationSuite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from validation.engine import MeasuredTable
from validation.judgement import judge
from validation.measures import SUPPORTED

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
ROWS_KEPT = 20

TYPES = {
    "i": pa.int64(),
    "j": pa.int64(),
    "f": pa.float64(),
    "g": pa.float64(),
    "s": pa.string(),
    "b": pa.bool_(),
    "t": pa.timestamp("us", "UTC"),
    "u": pa.timestamp("us", "UTC"),
}
times = st.integers(-3, 3).map(lambda n: START + dt.timedelta(microseconds=n))
floats = st.sampled_from([0.0, -0.0, 0.1, 0.5, -1.5, 3.0, 1e300, math.nan, math.inf, -math.inf])
VALUES = {
    "i": st.integers(-3, 3),
    "j": st.integers(-(2**40), 2**40),
    "f": st.one_of(st.integers(-3, 3).map(float), st.floats(-10, 10)),
    "g": floats,
    "s": st.text(alphabet="aB'\"é😀 \n", max_size=4),
    "b": st.booleans(),
    "t": times,
    "u": times,
}


@st.composite
def tables(draw, expectation):
    """A table of all columns; values are drawn for those that the expectation is about."""
    asked = expectation.configuration.kwargs
    named = [asked.get(key) for key in ("column", "column_A", "column_B")]
    named += asked.get("column_list", [])
    rows = draw(st.integers(1, 25))
    columns = {}
    for name, values in VALUES.items():
        if name not in named:
            columns[name] = pa.nulls(rows, TYPES[name])
            continue
        present = st.none() | values if draw(st.booleans()) else values
        column = draw(st.lists(present, min_size=rows, max_size=rows))
        # A column of only missing values has no type in pandas: great-expectations then raises.
        if all(v is None or v != v for v in column):
            column[0] = draw(values.filter(lambda v: v == v))
        columns[name] = pa.array(column, TYPES[name])
    return pa.table(columns)


@st.composite
def between(draw, values, **strict):
    low, high = sorted([draw(values), draw(values)])
    return {
        "min_value": low,
        "max_value": high if draw(st.booleans()) else None,
        "strict_min": draw(st.booleans()),
        "strict_max": draw(st.booleans()),
        **strict,
    }


# `bounds` are several settings drawn together.
MOSTLY = st.sampled_from([1.0, 0.9, 0.5, 0.0])
ANY = st.sampled_from(["i", "f", "g", "s", "b", "t"])
NUMBER = st.sampled_from(["i", "j", "f", "g"])
SMALL = between(st.integers(-3, 3))
SHARE = between(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
COUNT = between(st.integers(0, 5))
SETS = {
    "i": [-3, 0, 2, None],
    "f": [0.0, 1.0, 2.5],
    "g": [0.1, math.inf],
    "s": ["", "a", "'", "é"],
    "b": [True],
}
PAIRS = [("i", "f"), ("f", "i"), ("t", "u"), ("g", "f"), ("i", "j")]
IGNORED_PAIRS = ["both_values_are_missing", "either_value_is_missing", "neither"]
IGNORED_ROWS = ["all_values_are_missing", "any_value_is_missing", "never"]

# Expectation class -> its settings, each drawn from a strategy.
ASKED = {
    gxe.ExpectColumnToExist: {"column": st.sampled_from(["i", "zz"])},
    gxe.ExpectTableColumnsToMatchSet: {
        "column_set": st.sets(st.sampled_from([*VALUES, "zz"]), min_size=1),
        "exact_match": st.booleans(),
    },
    gxe.ExpectTableRowCountToBeBetween: {"bounds": between(st.integers(0, 20))},
    gxe.ExpectColumnValuesToNotBeNull: {"column": ANY, "mostly": MOSTLY},
    gxe.ExpectColumnValuesToBeUnique: {"column": ANY, "mostly": MOSTLY},
    gxe.ExpectColumnValuesToBeInSet: {
        "bounds": st.sampled_from([{"column": c, "value_set": v} for c, v in SETS.items()]),
        "mostly": MOSTLY,
    },
    gxe.ExpectColumnValuesToBeBetween: {
        "mostly": MOSTLY,
        "bounds": NUMBER.flatmap(lambda c: between(st.integers(-3, 3), column=c))
        | between(times, column="t"),
    },
    gxe.ExpectColumnValueLengthsToBeBetween: {
        "column": st.just("s"),
        "mostly": MOSTLY,
        "bounds": between(st.integers(0, 4)),
    },
    gxe.ExpectColumnValuesToNotMatchRegex: {
        "column": st.just("s"),
        "mostly": MOSTLY,
        "regex": st.sampled_from(["a", "^B", "['é]", "x"]),
    },
    gxe.ExpectColumnPairValuesAToBeGreaterThanB: {
        "bounds": st.sampled_from([{"column_A": a, "column_B": b} for a, b in PAIRS]),
        "or_equal": st.booleans(),
        "ignore_row_if": st.sampled_from(IGNORED_PAIRS),
        "mostly": MOSTLY,
    },
    gxe.ExpectCompoundColumnsToBeUnique: {
        "column_list": st.lists(st.sampled_from(list(VALUES)), min_size=2, max_size=4, unique=True),
        "ignore_row_if": st.sampled_from(IGNORED_ROWS),
        "mostly": MOSTLY,
    },
    gxe.ExpectColumnUniqueValueCountToBeBetween: {"column": ANY, "bounds": COUNT},
    gxe.ExpectColumnProportionOfUniqueValuesToBeBetween: {"column": ANY, "bounds": SHARE},
    gxe.ExpectColumnProportionOfNonNullValuesToBeBetween: {"column": ANY, "bounds": SHARE},
    gxe.ExpectColumnMeanToBeBetween: {"column": NUMBER, "bounds": SMALL},
    gxe.ExpectColumnStdevToBeBetween: {"column": st.sampled_from(["i", "f"]), "bounds": COUNT},
    gxe.ExpectColumnMinToBeBetween: {"column": NUMBER, "bounds": SMALL},
    gxe.ExpectColumnMaxToBeBetween: {"column": NUMBER, "bounds": SMALL},
}


@st.composite
def asked_of(draw, kind):
    settings = {name: draw(strategy) for name, strategy in ASKED[kind].items()}
    return kind(**settings.pop("bounds", {}), **settings)


# great-expectations has no such expectation, or names types as pandas does: tested by hand.
COVERED_BY_HAND = {
    "expect_column_type_to_be",
    "expect_column_values_to_be_in_type_list",
    "expect_column_values_to_be_finite",
    "expect_column_list_elements_to_be_between",
    "expect_column_values_to_exist_in_table",
}


def test_every_supported_type_is_tested():
    assert {kind.expectation_type for kind in ASKED} | COVERED_BY_HAND == SUPPORTED


@pytest.fixture(scope="module")
def batch_definition():
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("frames")
    return source.add_dataframe_asset("frame").add_batch_definition_whole_dataframe("whole")


def by_great_expectations(batch_definition, expectation, table):
    batch = batch_definition.get_batch({"dataframe": table.to_pandas()})
    detail = {"result_format": "SUMMARY", "partial_unexpected_count": ROWS_KEPT}
    return batch.validate(expectation, result_format=detail)


def comparable(value):
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(v) for v in value]
    if value is None or value != value:
        return None
    return value


def same(ours, theirs):
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    return ours == theirs


EXACT = (
    "element_count",
    "unexpected_count",
    "unexpected_percent",
    "unexpected_percent_total",
    "unexpected_percent_nonmissing",
    "missing_count",
    "missing_percent",
    "observed_value",
    "details",
    "partial_unexpected_index_list",
)


every_kind = pytest.mark.parametrize("kind", list(ASKED), ids=lambda kind: kind.__name__)
thorough = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@every_kind
@given(data=st.data())
@settings(thorough, max_examples=6)
def test_results_equal_those_of_great_expectations_on_pandas(batch_definition, kind, data):
    expectation = data.draw(asked_of(kind))
    check_equal(batch_definition, data.draw(tables(expectation)), expectation)


@pytest.mark.slow
@every_kind
@given(data=st.data())
@thorough
def test_results_equal_in_many_examples(batch_definition, kind, data):
    expectation = data.draw(asked_of(kind))
    check_equal(batch_definition, data.draw(tables(expectation)), expectation)


def check_equal(batch_definition, table, expectation):
    theirs = by_great_expectations(batch_definition, expectation, table)
    with MeasuredTable(table) as measured:
        [ours] = judge(ExpectationSuite("one", expectations=[expectation]), measured, [], ROWS_KEPT)
    assert not theirs.exception_info.get("exception_message"), theirs.exception_info
    assert ours.result.success == theirs.success, (ours.result.result, theirs.result)
    for key in EXACT:
        a, b = (comparable(result.result.get(key)) for result in (ours.result, theirs))
        assert same(a, b), f"{key}: {a} instead of {b}"

"""What has to be measured of a table to judge each great-expectations expectation, as DuckDB SQL.

A measure names, for one expectation, the metrics that great-expectations' own judgement asks for
(``column.mean``, ``column_values.between.unexpected_count``, …) and the SQL that yields them. Most
are aggregates that share one pass over the table; only uniqueness and references need a query of
their own. The meaning of missing values is that of great-expectations on pandas: a NaN is missing.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from validation.columns import (
    SOURCE,
    Columns,
    MisfitError,
    kind_of,
    literal,
    quote,
    reference_view,
    text_literal,
    type_name,
)
from validation.errors import SuiteError

NULLS = "column_values.nonnull.unexpected_count"
ROWS = "table.row_count"


@dataclass(frozen=True)
class Measure:
    """How one expectation is measured.

    Parameters
    ----------
    aggregates
        Metric name to SQL aggregate; evaluated in the pass that all expectations share.
    own_query
        A query of one row, and metric name to column of that row.
    facts
        Metrics that the schema alone decides.
    verdict
        The whole judgement, where the schema alone decides and types are Arrow's.
    at_fault
        SQL condition that is true for exactly the rows at fault (never null); table alias `t`.
    subject
        Columns that the expectation is about.
    """

    aggregates: Mapping[str, str] = field(default_factory=dict)
    own_query: tuple[str, Mapping[str, str]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    at_fault: str | None = None
    subject: tuple[str, ...] = ()


def measure(expectation: Any, schema: pa.Schema, references: Mapping[str, pa.Schema]) -> Measure:
    """Return how to measure an expectation on a table of this schema.

    Parameters
    ----------
    expectation
        A great-expectations `Expectation`.
    schema
        The table's schema.
    references
        Schemas of the tables that values may have to exist in, by name.

    Raises
    ------
    MisfitError
        If the table lacks a column, or has it in a type that the expectation cannot be asked of.
    SuiteError
        If the expectation's type, or something it is set to, is not supported.
    """
    kind = expectation.expectation_type
    if kind not in _MEASURES:
        raise SuiteError(
            f"{kind} is not supported by the gates; use one of {', '.join(sorted(_MEASURES))}"
        )
    if getattr(expectation, "row_condition", None):
        raise SuiteError(f"{kind}: row_condition is not supported by the gates; remove it")
    for name, value in expectation.configuration.kwargs.items():
        if isinstance(value, dict):
            raise SuiteError(f"{kind}: {name} is a suite parameter; write the value itself")
    return _MEASURES[kind](expectation, Columns(schema), references)


_Measurer = Callable[[Any, Columns, Mapping[str, pa.Schema]], Measure]


def _bounds(value: str, expectation: Any, kind: str) -> str:
    bounds = []
    if expectation.min_value is not None:
        comparison = ">" if expectation.strict_min else ">="
        bounds.append(f"{value} {comparison} {literal(expectation.min_value, kind)}")
    if expectation.max_value is not None:
        comparison = "<" if expectation.strict_max else "<="
        bounds.append(f"{value} {comparison} {literal(expectation.max_value, kind)}")
    if not bounds:
        raise SuiteError(f"{expectation.expectation_type}: min_value and max_value are both None")
    return " AND ".join(bounds)


def _count(condition: str) -> str:
    return f"count(*) FILTER (WHERE {condition})"


def _rows(expectation: Any, at_fault: str, missing: str | None = None) -> Measure:
    """Measure a condition on each row; `missing` is true where there is no value to ask about."""
    aggregates = {f"{expectation.map_metric}.unexpected_count": _count(at_fault)}
    if missing is not None:
        aggregates[NULLS] = _count(missing)
    return Measure(aggregates=aggregates, at_fault=at_fault, subject=(expectation.column,))


def _values(expectation: Any, columns: Columns, good: str) -> Measure:
    """Measure a condition on each present value of a column."""
    value = columns.value(expectation.column)
    return _rows(expectation, f"{value} IS NOT NULL AND NOT ({good})", f"{value} IS NULL")


def _not_null(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    return _rows(expectation, f"{columns.value(expectation.column)} IS NULL")


def _between(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    kind = columns.require(expectation.column, "number", "time")
    for bound in (expectation.min_value, expectation.max_value):
        _check_bound(expectation, bound, kind, columns.type(expectation.column))
    return _values(
        expectation, columns, _bounds(columns.value(expectation.column), expectation, kind)
    )


def _check_bound(expectation: Any, bound: Any, kind: str, data_type: pa.DataType) -> None:
    if bound is None:
        return
    if isinstance(bound, dt.date | str) != (kind == "time"):
        raise MisfitError(f"cannot be compared with {bound}: found type {type_name(data_type)}")
    if isinstance(bound, dt.datetime) and pa.types.is_timestamp(data_type):
        zone = data_type.tz
        if (zone is None) != (bound.tzinfo is None):
            found = "times without a zone" if zone is None else f"times in zone {zone}"
            raise MisfitError(f"cannot be compared with {bound.isoformat()}: found {found}")


def _value_lengths(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    columns.require(expectation.column, "text")
    length = f"length({columns.value(expectation.column)})"
    return _values(expectation, columns, _bounds(length, expectation, "number"))


_SET_TYPES: Mapping[str, tuple[type, ...]] = {
    "number": (int, float),
    "text": (str,),
    "boolean": (bool,),
    "time": (dt.date,),
}


def _in_set(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    kind = columns.require(expectation.column, *_SET_TYPES)
    # A value of another type than the column's equals none of its values.
    comparable = [v for v in expectation.value_set if isinstance(v, _SET_TYPES[kind])]
    listed = ", ".join(literal(v, kind) for v in comparable)
    value = columns.value(expectation.column)
    return _values(expectation, columns, f"{value} IN ({listed})" if listed else "FALSE")


def _no_match(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    columns.require(expectation.column, "text")
    value = columns.value(expectation.column)
    good = f"NOT regexp_matches({value}, {text_literal(expectation.regex)})"
    return _values(expectation, columns, good)


def _finite(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    kind = columns.require(expectation.column, "number", "list")
    raw = f"t.{quote(expectation.column)}"
    # A sum is finite if all its parts are; it may overflow only near the largest double.
    number = f"list_sum({raw}::DOUBLE[])" if kind == "list" else f"{raw}::DOUBLE"
    return _rows(expectation, f"NOT coalesce(isfinite({number}), TRUE)", f"{raw} IS NULL")


def _list_elements(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    columns.require(expectation.column, "list")
    value = columns.value(expectation.column)
    bounds = []
    if expectation.min_value is not None:
        bounds.append(f"list_min({value}) >= {literal(expectation.min_value, 'number')}")
    if expectation.max_value is not None:
        bounds.append(f"list_max({value}) <= {literal(expectation.max_value, 'number')}")
    return _values(expectation, columns, f"coalesce({' AND '.join(bounds) or 'TRUE'}, TRUE)")


def _group_query(keys: list[str], kept: str) -> str:
    """Return a query of the number of distinct keys, of rows, and of rows that share a key."""
    selected = ", ".join(f"{key} AS k{i}" for i, key in enumerate(keys))
    return (
        "SELECT count(*) AS keys, coalesce(sum(n), 0)::BIGINT AS rows, "
        "coalesce(sum(n) FILTER (WHERE n > 1), 0)::BIGINT AS repeated, "
        "coalesce(count(*) / sum(n), 0)::DOUBLE AS proportion FROM "
        f"(SELECT {selected}, count(*) AS n FROM {SOURCE} AS t WHERE {kept} GROUP BY ALL)"
    )


def _scattered_query(keys: list[str], kept: str) -> str:
    """Return a query of rows, and of rows that share a key, for keys that hardly ever come again.

    They are grouped by a hash of 8 bytes first, and themselves only where a hash comes again.
    """
    selected = ", ".join(f"{key} AS k{i}" for i, key in enumerate(keys))
    code = f"hash({', '.join(keys)})"
    return (
        f"WITH again AS (SELECT {code} AS code FROM {SOURCE} AS t WHERE {kept} GROUP BY ALL "
        "HAVING count(*) > 1), "
        f"grouped AS (SELECT {selected}, count(*) AS n FROM {SOURCE} AS t "
        f"WHERE ({kept}) AND {code} IN (FROM again) GROUP BY ALL) "
        f"SELECT (SELECT count(*) FROM {SOURCE} AS t WHERE {kept}) AS rows, "
        "coalesce(sum(n) FILTER (WHERE n > 1), 0)::BIGINT AS repeated FROM grouped"
    )


def _repeated(keys: list[str], kept: str) -> str:
    selected = ", ".join(f"{key} AS k{i}" for i, key in enumerate(keys))
    same = " AND ".join(f"d.k{i} IS NOT DISTINCT FROM {key}" for i, key in enumerate(keys))
    groups = f"SELECT {selected} FROM {SOURCE} AS t WHERE {kept} GROUP BY ALL HAVING count(*) > 1"
    return f"({kept}) AND EXISTS (SELECT 1 FROM ({groups}) AS d WHERE {same})"


def _unique(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    value = columns.value(expectation.column)
    kept = f"{value} IS NOT NULL"
    return Measure(
        aggregates={NULLS: _count(f"{value} IS NULL")},
        own_query=(
            _group_query([value], kept),
            {f"{expectation.map_metric}.unexpected_count": "repeated"},
        ),
        at_fault=_repeated([value], kept),
        subject=(expectation.column,),
    )


def _compound_unique(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    values = [columns.value(column) for column in expectation.column_list]
    present = [f"{value} IS NOT NULL" for value in values]
    kept = {
        "all_values_are_missing": " OR ".join(present),
        "any_value_is_missing": " AND ".join(present),
        "never": "TRUE",
    }[expectation.ignore_row_if]
    metric = expectation.map_metric
    return Measure(
        own_query=(
            _scattered_query(values, kept),
            {f"{metric}.unexpected_count": "repeated", f"{metric}.filtered_row_count": "rows"},
        ),
        at_fault=_repeated(values, kept),
        subject=tuple(expectation.column_list),
    )


def _distinct(metric: str, column_of_query: str) -> _Measurer:
    def distinct(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
        value = columns.value(expectation.column)
        query = _group_query([value], f"{value} IS NOT NULL")
        return Measure(own_query=(query, {metric: column_of_query}), subject=(expectation.column,))

    return distinct


def _aggregate(metric: str, sql: str, *kinds: str) -> _Measurer:
    def aggregate(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
        if kinds:
            kind = columns.require(expectation.column, *kinds)
        else:
            kind = kind_of(columns.type(expectation.column))
        value = columns.value(expectation.column)
        number = f"{value}::INTEGER" if kind == "boolean" else value
        return Measure(
            aggregates={metric: sql.format(value=value, number=number)},
            subject=(expectation.column,),
        )

    return aggregate


def _exists_in(expectation: Any, columns: Columns, references: Mapping[str, pa.Schema]) -> Measure:
    table, column = expectation.other_table, expectation.other_column
    if table not in references:
        raise SuiteError(
            f"{expectation.column} must exist in {table}, but no table {table} was handed over; "
            f"pass references={{'{table}': …}} or leave the expectation out of the suite"
        )
    if column not in references[table].names:
        raise SuiteError(f"the reference table {table} has no column {column}")
    own, other = columns.type(expectation.column), references[table].field(column).type
    if kind_of(own) != kind_of(other):
        raise MisfitError(
            f"found type {type_name(own)}, but {column} of {table} is {type_name(other)}"
        )
    value = columns.value(expectation.column)
    at_fault = (
        f"{value} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {quote(reference_view(table))} AS r "
        f"WHERE r.{quote(column)} = {value})"
    )
    return Measure(
        aggregates={NULLS: _count(f"{value} IS NULL")},
        own_query=(
            f"SELECT count(*) AS n FROM {SOURCE} AS t WHERE {at_fault}",
            {f"{expectation.map_metric}.unexpected_count": "n"},
        ),
        at_fault=at_fault,
        subject=(expectation.column,),
    )


def _pair_greater(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    names = (expectation.column_A, expectation.column_B)
    kinds = {columns.require(name, "number", "time") for name in names}
    if len(kinds) > 1:
        raise MisfitError("found a number and a time, which cannot be compared")
    a, b = (columns.value(name) for name in names)
    kept = {
        "both_values_are_missing": f"({a} IS NOT NULL OR {b} IS NOT NULL)",
        "either_value_is_missing": f"({a} IS NOT NULL AND {b} IS NOT NULL)",
        "neither": "TRUE",
    }[expectation.ignore_row_if]
    comparison = ">=" if expectation.or_equal else ">"
    at_fault = f"{kept} AND NOT coalesce({a} {comparison} {b}, FALSE)"
    metric = expectation.map_metric
    return Measure(
        aggregates={
            f"{metric}.filtered_row_count": _count(kept),
            f"{metric}.unexpected_count": _count(at_fault),
        },
        at_fault=at_fault,
        subject=names,
    )


def _column_exists(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    columns.type(expectation.column)
    return Measure(facts={"table.columns": list(columns.schema.names)})


def _column_names(_: Any, columns: Columns, __: Mapping[str, pa.Schema]) -> Measure:
    return Measure(facts={"table.columns": list(columns.schema.names)})


def _row_count(_: Any, __: Columns, ___: Mapping[str, pa.Schema]) -> Measure:
    return Measure()


def _column_type(expectation: Any, columns: Columns, _: Mapping[str, pa.Schema]) -> Measure:
    several = hasattr(expectation, "type_list")
    allowed = expectation.type_list if several else [expectation.type_]
    found = type_name(columns.type(expectation.column))
    return Measure(
        verdict={
            "success": found in {_alias(name) for name in allowed},
            "result": {"observed_value": found},
        },
        subject=(expectation.column,),
    )


def _alias(name: str) -> str:
    """Return Arrow's own name of a type (`double` for `float64`); others as they are."""
    try:
        return str(pa.type_for_alias(name))
    except ValueError:
        return name


# A deviation of infinite values is undefined (pandas: NaN); DuckDB would raise.
_DEVIATION = (
    "CASE WHEN count(*) FILTER (WHERE isinf({value}::DOUBLE)) = 0 "
    "THEN stddev_samp({value}::DOUBLE) FILTER (WHERE NOT isinf({value}::DOUBLE)) END"
)

# The accurate average turns an infinite mean into NaN.
_MEAN = (
    "CASE WHEN count(*) FILTER (WHERE isinf({number}::DOUBLE)) = 0 "
    "THEN favg({number}::DOUBLE) ELSE avg({number}::DOUBLE) END"
)

_MEASURES: Mapping[str, _Measurer] = {
    "expect_column_to_exist": _column_exists,
    "expect_table_columns_to_match_set": _column_names,
    "expect_table_row_count_to_be_between": _row_count,
    "expect_column_type_to_be": _column_type,
    "expect_column_values_to_be_in_type_list": _column_type,
    "expect_column_values_to_not_be_null": _not_null,
    "expect_column_values_to_be_between": _between,
    "expect_column_values_to_be_in_set": _in_set,
    "expect_column_values_to_not_match_regex": _no_match,
    "expect_column_values_to_be_finite": _finite,
    "expect_column_values_to_be_unique": _unique,
    "expect_column_values_to_exist_in_table": _exists_in,
    "expect_column_list_elements_to_be_between": _list_elements,
    "expect_column_value_lengths_to_be_between": _value_lengths,
    "expect_compound_columns_to_be_unique": _compound_unique,
    "expect_column_pair_values_a_to_be_greater_than_b": _pair_greater,
    "expect_column_unique_value_count_to_be_between": _distinct(
        "column.distinct_values.count", "keys"
    ),
    "expect_column_proportion_of_unique_values_to_be_between": _distinct(
        "column.unique_proportion", "proportion"
    ),
    "expect_column_proportion_of_non_null_values_to_be_between": _aggregate(
        "column.non_null_proportion", "coalesce(count({value}) / nullif(count(*), 0), 0)::DOUBLE"
    ),
    "expect_column_mean_to_be_between": _aggregate("column.mean", _MEAN, "number", "boolean"),
    "expect_column_stdev_to_be_between": _aggregate(
        "column.standard_deviation", _DEVIATION, "number"
    ),
    "expect_column_min_to_be_between": _aggregate("column.min", "min({value})", "number"),
    "expect_column_max_to_be_between": _aggregate("column.max", "max({value})", "number"),
}

SUPPORTED = frozenset(_MEASURES)
"""Types of expectation that gates judge; any other is refused by name."""

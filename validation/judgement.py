"""Hands measured metrics to great-expectations' own code, which judges and words the results.

Importing this module imports great-expectations, which takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from great_expectations.core import ExpectationSuite
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.expectations.expectation import (
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    Expectation,
)

from validation.columns import ROW, MisfitError
from validation.engine import MeasuredTable
from validation.measures import Measure, measure


@dataclass(frozen=True)
class Judged:
    """One expectation, great-expectations' result, and the first rows at fault.

    `at_fault` is SQL that is true for the rows at fault; None if it is not about single rows.
    """

    expectation: Expectation
    result: ExpectationValidationResult
    misfit: str | None = None
    subject: tuple[str, ...] = ()
    first_rows: tuple[dict[str, Any], ...] = ()
    at_fault: str | None = None


def judge(
    suite: ExpectationSuite, table: MeasuredTable, id_columns: Sequence[str], rows_kept: int
) -> list[Judged]:
    """Judge a table by every expectation of a suite, in the suite's order.

    Parameters
    ----------
    suite
        The expectations.
    table
        The table.
    id_columns
        Columns to keep of a row at fault besides the expectation's own, where the table has them.
    rows_kept
        How many rows at fault to keep for each expectation.

    Raises
    ------
    SuiteError
        If an expectation is not supported.
    UnreadableTableError
        If the table turns out to be damaged.
    """
    measures = [_measure_or_misfit(expectation, table) for expectation in suite.expectations]
    taken = iter(table.metrics([m for m in measures if isinstance(m, Measure)]))
    judged = []
    for expectation, one in zip(suite.expectations, measures, strict=True):
        if isinstance(one, MisfitError):
            judged.append(_misfit(expectation, str(one)))
            continue
        judged.append(_judge_one(expectation, one, next(taken), table, id_columns, rows_kept))
    return judged


def suite_result(
    suite: ExpectationSuite, judged: Sequence[Judged], now: datetime
) -> ExpectationSuiteValidationResult:
    """Return great-expectations' result of the whole suite; all its renderers take it."""
    good = sum(bool(one.result.success) for one in judged)
    return ExpectationSuiteValidationResult(
        success=good == len(judged),
        results=[one.result for one in judged],
        suite_name=suite.name,
        statistics={
            "evaluated_expectations": len(judged),
            "successful_expectations": good,
            "unsuccessful_expectations": len(judged) - good,
            "success_percent": 100 * good / len(judged) if judged else None,
        },
        meta={
            "run_id": {"run_name": suite.name, "run_time": now.isoformat()},
            "batch_spec": {"data_asset_name": suite.name},
        },
    )


def _measure_or_misfit(expectation: Expectation, table: MeasuredTable) -> Measure | MisfitError:
    try:
        return measure(expectation, table.schema, table.reference_schemas)
    except MisfitError as misfit:
        return misfit


def _judge_one(
    expectation: Expectation,
    one: Measure,
    metrics: dict[str, Any],
    table: MeasuredTable,
    id_columns: Sequence[str],
    rows_kept: int,
) -> Judged:
    first_rows: list[dict[str, Any]] = []
    if one.at_fault is not None:
        map_metric = expectation.map_metric
        if metrics[f"{map_metric}.unexpected_count"]:
            first_rows = table.rows_at_fault(one, id_columns, rows_kept)
        metrics[f"{map_metric}.unexpected_values"] = [
            _value(expectation, row, one.subject) for row in first_rows
        ]
        metrics[f"{map_metric}.unexpected_index_list"] = [row[ROW] for row in first_rows]
    answer = dict(one.verdict) if one.verdict is not None else _ask(expectation, metrics, rows_kept)
    found = answer.get("result", {})
    if found.get("unexpected_count", 0) > len(first_rows):
        # Counted over the rows kept alone, it would not tell of the table.
        found.pop("partial_unexpected_counts", None)
    result = ExpectationValidationResult(
        success=bool(answer["success"]),
        expectation_config=expectation.configuration,
        result=found,
    )
    return Judged(expectation, result, None, one.subject, tuple(first_rows), one.at_fault)


def _ask(expectation: Expectation, metrics: dict[str, Any], rows_kept: int) -> dict[str, Any]:
    """Let great-expectations judge, as it does after its own engines have measured."""
    answer: dict[str, Any] = expectation._validate(
        metrics=metrics,
        runtime_configuration={
            "result_format": {"result_format": "SUMMARY", "partial_unexpected_count": rows_kept}
        },
    )
    return answer


def _value(expectation: Expectation, row: dict[str, Any], subject: tuple[str, ...]) -> Any:
    """Return what great-expectations lists for a row: a value, a pair, or a row of the columns."""
    if isinstance(expectation, ColumnMapExpectation):
        return row[subject[0]]
    if isinstance(expectation, ColumnPairMapExpectation):
        return tuple(row[name] for name in subject)
    return {name: row[name] for name in subject}


def _misfit(expectation: Expectation, reason: str) -> Judged:
    result = ExpectationValidationResult(
        success=False,
        expectation_config=expectation.configuration,
        result={},
        exception_info={
            "raised_exception": True,
            "exception_message": reason,
            "exception_traceback": "",
        },
    )
    named = getattr(expectation, "column", None) or getattr(expectation, "column_A", None)
    subject = (named,) if named else tuple(getattr(expectation, "column_list", ()))
    return Judged(expectation, result, reason, subject)

"""Expectations that great-expectations lacks, and how suites write any expectation.

Importing this module imports great-expectations, which takes seconds: only suites and the
rendering of results do so.
"""

from typing import Any, Literal, TypeVar, get_args

from great_expectations.core import ExpectationSuite
from great_expectations.expectations.expectation import ColumnMapExpectation, Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from validation.errors import SuiteError

Severity = Literal["stop", "quarantine", "warn"]
"""What a broken expectation does: end the run, set the rows at fault aside, or be reported."""

_FAILURE_SEVERITY = {
    "stop": FailureSeverity.CRITICAL,
    "quarantine": FailureSeverity.WARNING,
    "warn": FailureSeverity.WARNING,
}

AnyExpectation = TypeVar("AnyExpectation", bound=Expectation)


class ExpectColumnValuesToExistInTable(ColumnMapExpectation):  # type: ignore[misc]  # untyped base
    """Expect each present value of a column to be a value of a column of another table.

    Parameters
    ----------
    column
        The referring column.
    other_table, other_column
        What is referred to; the table is handed to the gate under this name.
    mostly
        The share of present values that must exist there, 0 to 1.
    """

    other_table: str
    other_column: str

    map_metric = "column_values.exist_in_table"
    success_keys = ("other_table", "other_column", "mostly")
    args_keys = ("column", "other_table", "other_column", "mostly")


class ExpectColumnValuesToBeFinite(ColumnMapExpectation):  # type: ignore[misc]  # untyped base
    """Expect each value of a column of numbers, or of lists of numbers, to be finite.

    NaN and both infinities are at fault; null is missing and is not. (Elsewhere, as in pandas,
    great-expectations takes NaN for missing.)
    """

    map_metric = "column_values.finite"
    args_keys = ("column", "mostly")


class ExpectColumnListElementsToBeBetween(ColumnMapExpectation):  # type: ignore[misc]  # untyped base
    """Expect every element of each list to lie between two bounds, which are allowed themselves.

    Parameters
    ----------
    column
        A column of lists of numbers; null lists, empty lists and null elements are not at fault.
    min_value, max_value
        The bounds; None for no bound.
    """

    min_value: float | None = None
    max_value: float | None = None

    map_metric = "column_list_elements.between"
    success_keys = ("min_value", "max_value", "mostly")
    args_keys = ("column", "min_value", "max_value", "mostly")


def expect(
    expectation: type[AnyExpectation],
    *,
    says: str,
    fix: str,
    severity: Severity = "stop",
    max_share: float | None = None,
    **settings: Any,
) -> AnyExpectation:
    """Return an expectation that can say itself what it expects and what to do about a failure.

    Parameters
    ----------
    expectation
        A class of great-expectations, or of this module.
    says
        What must hold, in plain words, naming the column: stands in Data Docs and in the failure.
    fix
        What to do next if it does not hold.
    severity
        ``stop``, ``quarantine`` or ``warn``; kept in the expectation's meta.
    max_share
        For ``quarantine``: the largest share of the rows that may be set aside; more of them stop
        the run. None: any number of them stops it.
    settings
        The expectation's own keyword arguments.

    Raises
    ------
    SuiteError
        If the severity is unknown.
    """
    if severity not in get_args(Severity):
        raise SuiteError(
            f"{says}: unknown severity '{severity}'; expected {' or '.join(get_args(Severity))}"
        )
    made: AnyExpectation = expectation(
        description=says,
        meta={"severity": severity, "fix": fix, "max_share": max_share or 0.0},
        severity=_FAILURE_SEVERITY[severity],
        **settings,
    )
    return made


def quarantining(suite: ExpectationSuite, max_share: float) -> ExpectationSuite:
    """Return a suite whose stopping expectations on single rows set up to a share of rows aside.

    Those that tolerate some rows at fault already (``mostly``) stay as they are.
    """
    relaxed = []
    for expectation in suite.expectations:
        meta = dict(expectation.meta or {})
        is_on_rows = isinstance(expectation, ColumnMapExpectation)
        stops = meta.get("severity", "stop") == "stop"
        if is_on_rows and stops and max_share and getattr(expectation, "mostly", 1.0) == 1.0:
            meta |= {"severity": "quarantine", "max_share": max_share}
            expectation = expectation.copy(update={"meta": meta})
        relaxed.append(expectation)
    return ExpectationSuite(suite.name, expectations=relaxed)

"""The words that suites are written in: expectations with their sentence and their advice.

Importing this module imports great-expectations, which takes seconds.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

from validation.expectations import (
    ExpectColumnListElementsToBeBetween,
    ExpectColumnValuesToBeFinite,
    ExpectColumnValuesToExistInTable,
    Severity,
    expect,
)

LARGEST = 1e12
"""Larger numbers are no attributes of anything, but damage or a default."""

TIME = "timestamp[us, tz=UTC]"
"""The only type of times: microseconds, UTC."""


def has_columns(columns: Sequence[str], fix: str) -> Expectation:
    """All these columns are there; others may be too."""
    return expect(
        gxe.ExpectTableColumnsToMatchSet,
        says=f"columns {', '.join(columns)} must be there",
        fix=fix,
        column_set=list(columns),
        exact_match=False,
    )


def has_rows(least: int, what: str, fix: str) -> Expectation:
    """The table has at least so many rows."""
    return expect(
        gxe.ExpectTableRowCountToBeBetween,
        says=f"there must be at least {least} {what}",
        fix=fix,
        min_value=least,
    )


def is_of_type(column: str, types: str | Sequence[str], fix: str) -> Expectation:
    """A column has one of these Arrow types."""
    allowed = [types] if isinstance(types, str) else list(types)
    return expect(
        gxe.ExpectColumnValuesToBeInTypeList,
        says=f"{column} must be of type {' or '.join(allowed)}",
        fix=fix,
        column=column,
        type_list=allowed,
    )


def is_present(
    column: str, fix: str, *, max_null_share: float = 0.0, severity: Severity = "stop"
) -> Expectation:
    """A column is null in at most this share of the rows."""
    says = f"{column} must not be null"
    if max_null_share:
        says += f" in more than {max_null_share:.3g} of the rows"
    return expect(
        gxe.ExpectColumnValuesToNotBeNull,
        says=says,
        fix=fix,
        severity=severity,
        column=column,
        mostly=1 - max_null_share,
    )


def is_not_all_null(column: str, fix: str) -> Expectation:
    """A column has at least one value."""
    return expect(
        gxe.ExpectColumnProportionOfNonNullValuesToBeBetween,
        says=f"{column} must not be null in every row (share of rows with a value above 0)",
        fix=fix,
        column=column,
        min_value=0,
        strict_min=True,
    )


def is_unique(column: str, fix: str) -> Expectation:
    """No value of a column comes twice."""
    return expect(
        gxe.ExpectColumnValuesToBeUnique, says=f"{column} must be unique", fix=fix, column=column
    )


def are_unique_together(
    columns: Sequence[str],
    fix: str,
    *,
    max_repeated_share: float = 0.0,
    severity: Severity = "stop",
) -> Expectation:
    """Rows that share all these columns with another are at most this share of the rows."""
    says = f"no two rows may share {', '.join(columns)}"
    if max_repeated_share:
        says += f" (in more than {max_repeated_share:.3g} of the rows)"
    return expect(
        gxe.ExpectCompoundColumnsToBeUnique,
        says=says,
        fix=fix,
        severity=severity,
        column_list=list(columns),
        mostly=1 - max_repeated_share,
    )


def exists_in(column: str, table: str, other_column: str, fix: str) -> Expectation:
    """Each value of a column exists in a column of another table."""
    return expect(
        ExpectColumnValuesToExistInTable,
        says=f"{column} must exist in {table}",
        fix=fix,
        column=column,
        other_table=table,
        other_column=other_column,
    )


_UNPRINTABLE = r"[\x{00}-\x{08}\x{0e}-\x{1f}\x{7f}\x{fffd}\x{202a}-\x{202e}\x{2066}-\x{2069}]"
_UNFIT_IN_IDS = rf"^\s|\s$|[\t\r\n\x{{200b}}\x{{feff}}]|{_UNPRINTABLE}"


def is_clean_text(column: str, fix: str, *, severity: Severity = "stop") -> Expectation:
    """No control characters, replacement characters, or changes of writing direction."""
    return expect(
        gxe.ExpectColumnValuesToNotMatchRegex,
        says=f"{column} must not hold control or replacement characters",
        fix=fix,
        severity=severity,
        column=column,
        regex=_UNPRINTABLE,
    )


def is_clean_id(column: str, fix: str, longest: int = 256) -> list[Expectation]:
    """Ids are neither empty nor long, and hold nothing that is not seen."""
    return [
        expect(
            gxe.ExpectColumnValuesToNotMatchRegex,
            says=f"{column} must hold no spaces around it and no characters that are not seen",
            fix=fix,
            column=column,
            regex=_UNFIT_IN_IDS,
        ),
        expect(
            gxe.ExpectColumnValueLengthsToBeBetween,
            says=f"{column} must have 1 to {longest} characters",
            fix=fix,
            column=column,
            min_value=1,
            max_value=longest,
        ),
    ]


def lies_between(
    column: str,
    least: float | datetime | None,
    most: float | datetime | None,
    fix: str,
    *,
    in_lists: bool = False,
    severity: Severity = "stop",
) -> Expectation:
    """Values, or the elements of lists, lie between two bounds, which are allowed themselves."""
    bounds = [f"at least {_words(least)}"] if least is not None else []
    bounds += [f"at most {_words(most)}"] if most is not None else []
    return expect(
        ExpectColumnListElementsToBeBetween if in_lists else gxe.ExpectColumnValuesToBeBetween,
        says=f"{column} must be {' and '.join(bounds)}",
        fix=fix,
        severity=severity,
        column=column,
        min_value=least,
        max_value=most,
    )


def is_finite(column: str, fix: str) -> Expectation:
    """No NaN and no infinity; nulls are not asked."""
    return expect(
        ExpectColumnValuesToBeFinite,
        says=f"{column} must be finite (no NaN, no infinity)",
        fix=fix,
        column=column,
    )


def has_distinct(
    column: str, least: int, says: str, fix: str, *, severity: Severity = "stop"
) -> Expectation:
    """A column has at least so many distinct values."""
    return expect(
        gxe.ExpectColumnUniqueValueCountToBeBetween,
        says=says,
        fix=fix,
        severity=severity,
        column=column,
        min_value=least,
    )


def varies(column: str, fix: str, *, severity: Severity = "stop") -> Expectation:
    """A column is not constant."""
    says = f"{column} must not be constant (distinct values at least 2)"
    return has_distinct(column, 2, says, fix, severity=severity)


def share_of_true(
    column: str, says: str, fix: str, *, severity: Severity = "stop", **bounds: Any
) -> Expectation:
    """The share of rows in which a boolean column is true lies between bounds."""
    return expect(
        gxe.ExpectColumnMeanToBeBetween,
        says=says,
        fix=fix,
        severity=severity,
        column=column,
        **bounds,
    )


def flat(*groups: Expectation | Iterable[Expectation]) -> list[Expectation]:
    """Return single expectations and groups of them as one list."""
    listed: list[Expectation] = []
    for group in groups:
        listed.extend([group] if isinstance(group, Expectation) else group)
    return listed


def _words(bound: float | datetime) -> str:
    return bound.isoformat() if isinstance(bound, datetime) else f"{bound:g}"

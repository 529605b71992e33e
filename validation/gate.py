"""The gates between the steps: judge a whole table by a suite, stop the run, write Data Docs.

::

    ValidationError
    ├── GateFailure           a table broke an expectation of severity "stop"; carries the result
    ├── MeasuringError        a table that memory does not suffice for, even with spilling to disk
    ├── UnreadableTableError  a table that cannot be read: missing, truncated, not parquet
    └── SuiteError            a suite that cannot be judged: an expectation type or a severity
                              that gates do not know, a reference table that was not handed over

Suites and results are great-expectations' own objects and its own code judges; only the measuring
is ours (`validation.engine`). great-expectations takes seconds to import, so it is imported when a
gate runs and not with this module.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from validation.columns import ROW
from validation.engine import MEMORY_LIMIT, MeasuredTable, Table
from validation.errors import MeasuringError, SuiteError, UnreadableTableError, ValidationError

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite

    from validation.judgement import Judged

__all__ = [
    "CheckResult",
    "Gate",
    "GateFailure",
    "GateResult",
    "MeasuringError",
    "Quarantine",
    "SuiteError",
    "Table",
    "UnreadableTableError",
    "ValidationError",
    "run_gate",
]

ID_COLUMNS = (
    *("user_id", "post_id", "external_id", "event_timestamp"),
    *("file", "view", "first_difference"),
)
"""Columns that tell which row it is; shown with a row at fault, where the table has them."""

ROWS_KEPT = 20
"""Rows at fault that a result keeps for each expectation."""

_COLUMNS_TYPE = "expect_table_columns_to_match_set"

ROWS_SHOWN = 3
"""Rows at fault that a message shows."""


@dataclass(frozen=True)
class CheckResult:
    """What became of one expectation.

    Parameters
    ----------
    expectation
        great-expectations' name of its type, such as ``expect_column_values_to_be_unique``.
    says
        What must hold, in plain words.
    column
        The column, or the columns with commas between; None for the whole table.
    severity
        ``stop``, ``quarantine`` or ``warn``.
    success
        Whether it holds.
    rows
        Rows of the table.
    unexpected_count
        Rows at fault; None where the expectation is not about single rows.
    observed
        What was measured instead (a mean, a count, the columns); None for single rows.
    misfit
        Why it could not be asked of this table (no such column, wrong type); None if it could.
    fix
        What to do next.
    first_rows
        The first rows at fault: ``row_position`` (from 0), ids and the columns concerned.
    max_share
        For ``quarantine``: the largest share of the rows that may be set aside.
    """

    expectation: str
    says: str
    column: str | None
    severity: str
    success: bool
    rows: int
    unexpected_count: int | None
    observed: Any
    misfit: str | None
    fix: str
    first_rows: tuple[dict[str, Any], ...]
    max_share: float = 0.0

    @property
    def stops(self) -> bool:
        """Whether it ends the run: broken, and not to be reported or set aside only."""
        if self.success or self.severity == "warn":
            return False
        if self.severity == "quarantine" and self.unexpected_count is not None:
            return self.unexpected_count > self.max_share * self.rows
        return True

    @property
    def message(self) -> str:
        """What must hold, what was found instead, and what to do next."""
        return f"{self.says}: {self._found()}" + (f"; {self.fix}" if self.fix else "")

    def _found(self) -> str:
        if self.success:
            return "holds"
        if self.misfit is not None:
            return self.misfit
        if self.expectation == _COLUMNS_TYPE:
            return f"{', '.join(self.observed['missing'])} missing"
        if self.unexpected_count is None:
            return f"found {_shown(self.observed)}"
        counts = f"{self.unexpected_count:,} of {self.rows:,} rows fail"
        if self.severity == "quarantine" and self.stops:
            counts += f", more than the share of {self.max_share:g} that may be set aside"
        if not self.first_rows:
            return counts
        shown = "; ".join(_row_text(row) for row in self.first_rows[:ROWS_SHOWN])
        more = "; …" if self.unexpected_count > ROWS_SHOWN else ""
        return f"{counts} (first: {shown}{more})"


@dataclass(frozen=True)
class GateResult:
    """What a gate found in one table.

    Parameters
    ----------
    gate
        The suite's name.
    success
        Whether no broken expectation stops the run.
    rows
        Rows of the table.
    checked_at
        The `now` that the gate was given, ISO 8601.
    seconds
        How long measuring took.
    checks
        One entry an expectation, in the suite's order.
    page
        The gate's Data Docs page.
    quarantined
        Rows set aside.
    quarantine
        The parquet file of those rows; None if there are none.
    """

    gate: str
    success: bool
    rows: int
    checked_at: str
    seconds: float
    checks: tuple[CheckResult, ...]
    page: str
    quarantined: int = 0
    quarantine: str | None = None

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The broken expectations that stop the run."""
        return tuple(check for check in self.checks if check.stops)

    @property
    def set_aside(self) -> tuple[CheckResult, ...]:
        """The broken expectations whose rows were set aside."""
        return tuple(c for c in self._broken("quarantine") if not c.stops)

    @property
    def warnings(self) -> tuple[CheckResult, ...]:
        """The broken expectations that are only reported."""
        return self._broken("warn")

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values, each check with its message."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        for check, entry in zip(self.checks, content["checks"], strict=True):
            entry["message"] = check.message
        return content

    def _broken(self, severity: str) -> tuple[CheckResult, ...]:
        return tuple(c for c in self.checks if not c.success and c.severity == severity)


class GateFailure(ValidationError):  # noqa: N818 - a gate fails; the name is the published API
    """A table broke at least one expectation that stops the run.

    Parameters
    ----------
    result
        Everything that the gate found.
    """

    def __init__(self, result: GateResult) -> None:
        self.result = result
        reasons = [c for c in result.failures if not _follows_from_missing(c, result.failures)]
        lines = [f"gate {result.gate}: {check.message}" for check in reasons]
        super().__init__("\n".join([*lines, f"Data Docs: {result.page}"]))


@dataclass(frozen=True)
class Quarantine:
    """Where a gate splits a table into, if expectations of severity ``quarantine`` are broken.

    Parameters
    ----------
    kept
        Parquet file of the rows that go on, in the table's order.
    removed
        Parquet file of the others: ``reason`` string (what must hold, ``; `` between several),
        ``row_position`` int64 from 0, then the table's columns. Removed if there are none.
    """

    kept: Path
    removed: Path


@dataclass(frozen=True)
class Gate:
    """A suite and the folder that its Data Docs go to.

    Parameters
    ----------
    suite
        The expectations; its name names the gate.
    docs_folder
        Folder of the Data Docs; made if it does not exist.
    """

    suite: "ExpectationSuite"
    docs_folder: Path

    def run(
        self,
        table: Table,
        *,
        now: datetime,
        references: Mapping[str, Table] | None = None,
        memory_limit: str = MEMORY_LIMIT,
    ) -> GateResult:
        """Judge a table; see `run_gate`."""
        return run_gate(
            self.suite,
            table,
            docs=self.docs_folder,
            now=now,
            references=references,
            memory_limit=memory_limit,
        )


def run_gate(
    suite: "ExpectationSuite",
    table: Table,
    *,
    docs: Path,
    now: datetime,
    references: Mapping[str, Table] | None = None,
    memory_limit: str = MEMORY_LIMIT,
    quarantine: Quarantine | None = None,
) -> GateResult:
    """Judge every row of a table by a suite and write Data Docs.

    Parameters
    ----------
    suite
        The expectations. Each one's severity and advice are in its meta (`expectations.expect`);
        without, it stops the run.
    table
        An Arrow table or dataset, or the path of a parquet file or folder.
    docs
        Folder of the Data Docs: ``<gate>.html``, ``<gate>.json`` and ``index.html``.
    now
        The time of the run, with a zone; stands in the result.
    references
        Tables that values must exist in, by the name that the suite uses.
    memory_limit
        What DuckDB may hold before it spills to disk.
    quarantine
        Where rows that are set aside go; without it they stop the run.

    Returns
    -------
    GateResult
        Also when expectations of severity ``warn`` were broken, or rows were set aside.

    Raises
    ------
    GateFailure
        If an expectation is broken that stops the run; Data Docs are written before.
    UnreadableTableError, MeasuringError
        If the table cannot be read or measured.
    SuiteError
        If the suite holds something that gates do not know.
    """
    # Takes seconds: not paid by those who import this module for its errors alone.
    from validation import data_docs, judgement

    if not re.fullmatch(r"\w[\w.-]*", suite.name):
        raise SuiteError(f"a suite's name becomes a file's: '{suite.name}' is not fit; rename it")
    started = time.perf_counter()
    try:
        with MeasuredTable(table, references, memory_limit) as measured:
            judged = judgement.judge(suite, measured, ID_COLUMNS, ROWS_KEPT)
            rows = measured.rows
            checks = tuple(_check(one, rows, quarantine) for one in judged)
            success = not any(check.stops for check in checks)
            quarantined = _set_aside(judged, checks, measured, quarantine) if success else 0
    except (MeasuringError, UnreadableTableError, SuiteError) as error:
        raise type(error)(f"gate {suite.name}: {error}") from error
    result = GateResult(
        gate=suite.name,
        success=success,
        rows=rows,
        checked_at=now.isoformat(),
        seconds=round(time.perf_counter() - started, 3),
        checks=checks,
        page=str(docs / f"{suite.name}.html"),
        quarantined=quarantined,
        quarantine=str(quarantine.removed) if quarantine is not None and quarantined else None,
    )
    data_docs.write(docs, result.to_dict(), judgement.suite_result(suite, judged, now))
    if not result.success:
        raise GateFailure(result)
    return result


def _set_aside(
    judged: Iterable["Judged"],
    checks: Iterable[CheckResult],
    table: MeasuredTable,
    quarantine: Quarantine | None,
) -> int:
    """Split the table, if rows are to be set aside; return how many were."""
    reasons = {
        check.says: one.at_fault
        for one, check in zip(judged, checks, strict=True)
        if not check.success and check.severity == "quarantine" and one.at_fault is not None
    }
    if quarantine is None:
        return 0
    if not reasons:
        quarantine.removed.unlink(missing_ok=True)
        return 0
    return table.split(reasons, quarantine.kept, quarantine.removed)


def _check(judged: "Judged", rows: int, quarantine: Quarantine | None) -> CheckResult:
    expectation, found = judged.expectation, judged.result.result
    meta = expectation.meta or {}
    kind = expectation.expectation_type
    severity = meta.get("severity", "stop")
    if severity == "quarantine" and (quarantine is None or judged.at_fault is None):
        # Nowhere to put the rows, or not about single rows.
        severity = "stop"
    observed = found.get("details", {}).get("mismatched", found.get("observed_value"))
    return CheckResult(
        expectation=kind,
        says=expectation.description or _words(kind, expectation.configuration.kwargs),
        column=", ".join(judged.subject) or getattr(expectation, "column", None),
        severity=severity,
        success=bool(judged.result.success),
        rows=rows,
        unexpected_count=found.get("unexpected_count"),
        observed=observed,
        misfit=judged.misfit,
        fix=meta.get("fix", ""),
        first_rows=judged.first_rows,
        max_share=meta.get("max_share", 0.0),
    )


def _follows_from_missing(check: CheckResult, failures: Iterable[CheckResult]) -> bool:
    """Whether a check failed only because a column is missing, which another check says."""
    missing = {
        column
        for other in failures
        if other.expectation == _COLUMNS_TYPE
        for column in other.observed["missing"]
    }
    return check.misfit is not None and check.column in missing


def _words(kind: str, settings: Mapping[str, Any]) -> str:
    """Name an expectation that was written without words of its own."""
    listed = ", ".join(f"{name}={_shown(value)}" for name, value in settings.items())
    return f"{kind.replace('_', ' ')} ({listed})"


def _row_text(row: Mapping[str, Any]) -> str:
    values = " ".join(f"{name}={_shown(value)}" for name, value in row.items() if name != ROW)
    return f"row {row[ROW]:,} {values}".rstrip()


def _shown(value: Any, limit: int = 60) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    text = "null" if value is None else str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"

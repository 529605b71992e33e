"""The gates of the job: judge a table, keep the result for the report, stop on failure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.job.context import Context
from pipelines.steps import write_json
from validation.gate import GateFailure, GateResult, Table, run_gate

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite


def judge(
    context: Context,
    suite: "ExpectationSuite",
    table: Table,
    references: Mapping[str, Table] | None = None,
) -> GateResult:
    """Judge a table by a suite; write Data Docs and the result, and show warnings.

    Raises
    ------
    validation.gate.GateFailure
        If an expectation that stops the run is broken.
    """
    docs = data_docs(context)
    try:
        result = run_gate(suite, table, docs=docs, now=datetime.now(UTC), references=references)
    except GateFailure as failure:
        _keep(context, failure.result)
        raise
    _keep(context, result)
    for warning in result.warnings:
        context.console.print(f"  [yellow]warning[/] gate {result.gate}: {warning.message}")
    return result


def data_docs(context: Context) -> Path:
    """Return the folder of the Data Docs."""
    return context.workspace.reports / "data_docs"


def results_folder(context: Context) -> Path:
    """Return the folder with the last result of every gate as JSON."""
    return context.workspace.reports / "gates"


def _keep(context: Context, result: GateResult) -> None:
    write_json(results_folder(context) / f"{result.gate}.json", result.to_dict())

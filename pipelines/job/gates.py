"""The gates of the job: judge a table, keep the result for the report, stop on failure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from pipelines.job.context import Context
from pipelines.steps import write_json
from validation.gate import GateFailure, GateResult, Quarantine, Table, run_gate

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite


def judge(
    context: Context,
    suite: "ExpectationSuite",
    table: Table,
    references: Mapping[str, Table] | None = None,
    kept: Path | None = None,
) -> GateResult:
    """Judge a table by a suite; write Data Docs and the result, show warnings and rows set aside.

    Parameters
    ----------
    kept
        File for the rows that are left, if some are set aside; without it they stop the run.

    Raises
    ------
    validation.gate.GateFailure
        If an expectation that stops the run is broken.
    """
    aside = quarantine_folder(context) / f"{suite.name}.parquet"
    try:
        result = run_gate(
            suite,
            table,
            docs=data_docs(context),
            now=datetime.now(UTC),
            references=references,
            quarantine=None if kept is None else Quarantine(kept, aside),
        )
    except GateFailure as failure:
        _keep(context, failure.result)
        raise
    _keep(context, result)
    for warning in result.warnings:
        context.console.print(f"  [yellow]warning[/] gate {result.gate}: {escape(warning.message)}")
    for check in result.set_aside:
        context.console.print(f"  [yellow]set aside[/] gate {result.gate}: {escape(check.message)}")
    if result.quarantined:
        context.console.print(
            f"  gate {result.gate}: {result.quarantined:,} of {result.rows:,} rows set aside: "
            f"{result.quarantine}",
            highlight=False,
            soft_wrap=True,
        )
    return result


def suites_file(context: Context) -> Path:
    """Return the file of reviewed suites that the raw gates read beside the built-in ones."""
    return context.description.with_name(f"{context.description.stem}.gates.toml")


def quarantine_folder(context: Context) -> Path:
    """Return the folder of the rows that gates set aside."""
    return context.workspace.reports / "quarantine"


def data_docs(context: Context) -> Path:
    """Return the folder of the Data Docs."""
    return context.workspace.reports / "data_docs"


def results_folder(context: Context) -> Path:
    """Return the folder with the last result of every gate as JSON."""
    return context.workspace.reports / "gates"


def _keep(context: Context, result: GateResult) -> None:
    write_json(results_folder(context) / f"{result.gate}.json", result.to_dict())

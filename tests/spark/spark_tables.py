"""A lake, and the tables of its feature expressions from DuckDB and from Spark."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from feature_repo.definitions.views import feature_views
from feature_repo.workspace import Workspace
from pipelines.features.build import EXPRESSIONS, write_expressions
from pipelines.features.tables import connect, connect_spark, open_lake
from pipelines.job.context import Context, open_context
from pipelines.settings import JobSettings

SMALL = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.adaptive.enabled": "false",
    # Plans of hundreds of columns are compiled for longer than these tables are read.
    "spark.sql.codegen.wholeStage": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    "spark.log.level": "ERROR",
}


@dataclass(frozen=True)
class Tables:
    """One lake, and the tables of its expressions as DuckDB and as Spark wrote them."""

    context: Context
    by_duckdb: Workspace
    by_spark: Workspace

    @property
    def views(self) -> list[Any]:
        every = feature_views(self.context.dataset, self.by_spark)
        return [view for view in every if view.name in EXPRESSIONS]


def make_tables(context: Context, session: Any, folder: Path) -> Tables:
    """Compute every expression of a lake on both."""
    name, lake = context.dataset.name, context.workspace.lake
    made = Tables(context, Workspace(folder / "duckdb", name), Workspace(folder / "spark", name))
    for backend, place in (
        (connect(), made.by_duckdb),
        (connect_spark(session), made.by_spark),
    ):
        tables = open_lake(backend, lake)
        rows = dict(write_expressions(backend, tables, context.dataset, made.views, place.features))
        assert rows.keys() == {view.name for view in made.views}
    return made


def context_of(**settings: Any) -> Context:
    return open_context(JobSettings(**settings), Console(file=io.StringIO()))

"""The lake's tables as Ibis tables, on DuckDB or on any backend that holds the same tables."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ibis
import ibis.expr.types as ir

from pipelines.datasets.expressions import literal
from pipelines.features.changes import as_int64, day_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class LakeTables:
    """What every feature view is computed from; columns as the lake's documentation lists them.

    Parameters
    ----------
    totals
        What `daily_totals` returns, where `events` are those of some users or posts only.
    """

    users: ir.Table
    posts: ir.Table
    events: ir.Table
    topics: ir.Table
    totals: ir.Table | None = None

    def daily_totals(self) -> ir.Table:
        """Return the events of all users and posts, counted by day.

        Returns
        -------
        ibis table
            ``day`` (days since 1970-01-01 UTC), ``event_count``, ``impression_count`` and
            ``positive_count``, int64.
        """
        if self.totals is not None:
            return self.totals
        events = self.events
        return events.group_by(day=day_of(events.event_time)).agg(
            event_count=events.count(),
            impression_count=as_int64(events.is_impression.cast("int64").sum()),
            positive_count=as_int64(events.is_positive.cast("int64").sum()),
        )


def connect(memory_limit: str = "4GB", spill: Path | None = None) -> ibis.BaseBackend:
    """Return a DuckDB backend in UTC that spills to disk beyond ``memory_limit``.

    Parameters
    ----------
    spill
        The folder for it; by default ``.tmp`` in the working directory.
    """
    # Ibis 12 calls what DuckDB 2 has renamed; users of features can do nothing about it.
    warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)
    backend = ibis.duckdb.connect()
    backend.raw_sql("SET TimeZone = 'UTC'")
    backend.raw_sql(f"SET memory_limit = '{memory_limit}'")
    if spill is not None:
        backend.raw_sql(f"SET temp_directory = {literal(str(spill))}")
    return backend


def connect_spark(session: "SparkSession") -> ibis.BaseBackend:
    """Return a backend on Spark."""
    return ibis.pyspark.connect(session)


def open_lake(backend: ibis.BaseBackend, lake: Path) -> LakeTables:
    """Open the parquet tables below ``lake``, which every executor must see at the same place."""
    return LakeTables(
        users=backend.read_parquet(str(lake / "users" / "*.parquet"), table_name="users"),
        posts=backend.read_parquet(str(lake / "posts" / "*.parquet"), table_name="posts"),
        events=backend.read_parquet(str(lake / "events" / "*" / "*.parquet"), table_name="events"),
        topics=backend.read_parquet(str(lake / "topics.parquet"), table_name="topics"),
    )

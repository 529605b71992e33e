"""Point-in-time joins: Feast's DuckDB store, ours, and a hand-written ASOF query.

``python -m benchmarks.point_in_time`` prints a table, then one line of JSON. Each side runs in
a process of its own; results are compared, value by value and row by row, before anything is
reported. ``*_cpu_s`` is the processor time of all threads, which other programs on the machine
disturb less than wall time; ``*_peak_mb`` is the process's peak, ``import_mb`` what it holds
before the join, with Feast imported and the entity rows loaded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import isolated, report

EPOCH_US = 1_700_000_000_000_000
SPAN_US = 60 * 86_400_000_000
TIME = pa.timestamp("us", tz="UTC")
STORES = {"stock": "duckdb", "ours": "feastpack.AsofDuckDBOfflineStore"}


@dataclass(frozen=True)
class Shape:
    """How many entity rows ask about how many keys, with how many versions and features."""

    rows: int
    keys: int
    versions: int
    features: int

    @property
    def name(self) -> str:
        """What the case is called in the report."""
        return f"{self.rows:,} rows, {self.keys:,} keys x {self.versions}, {self.features} features"


SHAPES = [
    Shape(500_000, 20_000, 60, 10),
    Shape(1_000_000, 100_000, 10, 40),
    Shape(1_000_000, 1_000_000, 10, 40),
    Shape(50_000, 2_000, 600, 10),
]


def generate(folder: str, shape: dict[str, int]) -> None:
    """Write history.parquet, in no order, no two rows of a key at one time, and rows.parquet."""
    wanted = Shape(**shape)
    rng = np.random.default_rng(0)
    total = wanted.keys * wanted.versions
    # One slot of the period per version keeps the times of a key apart.
    slot = SPAN_US // wanted.versions
    versions = np.tile(np.arange(wanted.versions), wanted.keys)
    times = EPOCH_US + versions * slot + rng.integers(0, slot, total)
    order = rng.permutation(total)
    columns: dict[str, Any] = {
        "driver_id": np.repeat(np.arange(wanted.keys), wanted.versions)[order],
        "event_timestamp": pa.array(times[order], TIME),
    }
    for number in range(wanted.features):
        columns[f"f{number}"] = rng.random(total, dtype=np.float32)
    pq.write_table(pa.table(columns), Path(folder) / "history.parquet")
    rows = {
        "driver_id": rng.integers(0, wanted.keys, wanted.rows),
        "event_timestamp": pa.array(EPOCH_US + rng.integers(0, SPAN_US, wanted.rows), TIME),
        "row": np.arange(wanted.rows),
    }
    pq.write_table(pa.table(rows), Path(folder) / "rows.parquet")


def through_feast(folder: str, side: str, features: int, repeats: int) -> dict[str, Any]:
    """Time ``get_historical_features(...).to_arrow()`` on one of the two stores."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32

    config = RepoConfig(
        project="bench",
        provider="local",
        registry=f"{folder}/registry_{side}.db",
        online_store=None,
        offline_store={"type": STORES[side]},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    names = [f"f{number}" for number in range(features)]
    history = FeatureView(
        name="history",
        entities=[driver],
        schema=[Field(name=name, dtype=Float32) for name in names],
        source=FileSource(
            name="history", path=f"{folder}/history.parquet", timestamp_field="event_timestamp"
        ),
    )
    store.apply([driver, history])
    rows = pq.read_table(f"{folder}/rows.parquet").to_pandas()

    def join() -> pa.Table:
        references = [f"history:{name}" for name in names]
        return store.get_historical_features(rows, references).to_arrow()

    return timed(join, repeats, Path(folder) / f"{side}.parquet")


def by_hand(folder: str, features: int, repeats: int) -> dict[str, Any]:
    """Time the ASOF query that somebody would write for exactly this data."""
    import duckdb

    connection = duckdb.connect()
    connection.register("entity_rows", pq.read_table(f"{folder}/rows.parquet"))
    columns = ", ".join(f"h.f{number}" for number in range(features))
    query = (
        f"SELECT e.*, {columns} FROM entity_rows e ASOF LEFT JOIN '{folder}/history.parquet' h "
        "ON e.driver_id = h.driver_id AND e.event_timestamp >= h.event_timestamp ORDER BY e.row"
    )
    return timed(
        lambda: connection.sql(query).to_arrow_table(), repeats, Path(folder) / "floor.parquet"
    )


def timed(action: Callable[[], pa.Table], repeats: int, result_path: Path) -> dict[str, Any]:
    """Run an action some times; the peak is that of the first, as in a job that runs once."""
    import_mb = memory_mb("VmRSS")
    seconds, cpu, peak = [], [], 0.0
    for number in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = action()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        if number == 0:
            peak = memory_mb("VmHWM")
            pq.write_table(result.sort_by("row"), result_path, compression="none")
        del result
    return {
        "s": statistics.median(seconds),
        "cpu_s": statistics.median(cpu),
        "peak_mb": peak,
        "import_mb": import_mb,
    }


def memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def compare(folder: str) -> None:
    """Refuse to report a speed of results that differ."""
    expected = pq.read_table(f"{folder}/stock.parquet")
    for side in ("ours", "floor"):
        found = pq.read_table(f"{folder}/{side}.parquet").select(expected.column_names)
        assert found.cast(expected.schema).equals(expected), f"{side} differs from stock"


def run(shape: Shape, repeats: int) -> dict[str, Any]:
    """Measure one shape."""
    with tempfile.TemporaryDirectory() as folder:
        here = "benchmarks.point_in_time:"
        isolated(f"{here}generate", folder=folder, shape=asdict(shape))
        common = {"folder": folder, "features": shape.features}
        floor = isolated(f"{here}by_hand", **common, repeats=repeats)
        ours = isolated(f"{here}through_feast", **common, side="ours", repeats=repeats)
        stock = isolated(f"{here}through_feast", **common, side="stock", repeats=1)
        isolated(f"{here}compare", folder=folder)
    sides = {"stock": stock, "ours": ours, "floor": floor}
    measured = {
        f"{side}_{what}": round(values[what], 3)
        for side, values in sides.items()
        for what in ("s", "cpu_s", "peak_mb", "import_mb")
    }
    return {
        "case": shape.name,
        **measured,
        "ratio_stock": round(stock["s"] / ours["s"], 2),
        "ratio_floor": round(ours["s"] / floor["s"], 2),
        "ratio_stock_cpu": round(stock["cpu_s"] / ours["cpu_s"], 2),
        "ratio_floor_cpu": round(ours["cpu_s"] / floor["cpu_s"], 2),
        "ratio_peak": round(ours["peak_mb"] / stock["peak_mb"], 3),
        "ratio_peak_above_import": round(
            (ours["peak_mb"] - ours["import_mb"]) / (stock["peak_mb"] - stock["import_mb"]), 3
        ),
    }


def main() -> None:
    """Run all shapes, or those whose numbers are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, action="append", help="0 to 3; all if not given")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours and of the floor")
    options = parser.parse_args()
    chosen = range(len(SHAPES)) if options.shape is None else options.shape
    report("point_in_time", [run(SHAPES[number], options.repeats) for number in chosen])


if __name__ == "__main__":
    main()

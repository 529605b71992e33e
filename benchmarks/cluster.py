"""Redis Cluster beside one Redis: what reads and writes cost on three masters with replicas.

Run ``python -m benchmarks.cluster``. All nodes run on this machine, so what is measured is the cost
of speaking to several: a real Cluster adds its network, and each node has a machine of its own.

- ``read``: 500 entities x 88 floats in 4 views, `FeatureReader` to a matrix; 2,000 keys
- ``redis_py``: the same keys on the Cluster by redis-py's own ``mget_nonatomic``, values only
- ``write``: rows of 22 floats a second, 100,000 at once
- ``one_row``: one row, written through `PackedRedisOnlineStore`

``acknowledged`` is the Cluster with ``wait_for_replicas: 1``. Sides take turns, call by call; of
several rounds, each in a process of its own, the median counts. The matrices are compared first.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureStore, RepoConfig

from benchmarks import online_read
from benchmarks.common import isolated, median_seconds
from feastpack import FeatureReader
from feastpack.embedded import EmbeddedRedis
from feastpack.local_cluster import LocalCluster

SIDES = ("one_node", "cluster", "acknowledged")
READS, ROWS, BULKS, SINGLE, ROUNDS = 301, 100_000, 3, 301, 3


def feature_store(folder: str, side: str, where: dict[str, str]) -> FeatureStore:
    """Open the repository of `benchmarks.online_read` on one of the sides."""
    online: dict[str, Any] = {"type": "feastpack.PackedRedisOnlineStore"}
    if side == "one_node":
        online["connection_string"] = where["one_node"]
    else:
        online |= {"redis_type": "redis_cluster", "connection_string": where["cluster"]}
        online["wait_for_replicas"] = int(side == "acknowledged")
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(Path(folder) / f"{side}.db"),
        online_store=online,
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    return FeatureStore(config=config)


def fill(folder: str, where: dict[str, str]) -> dict[str, Any]:
    """Write the rows that are read to every side."""
    for side in SIDES:
        store = feature_store(folder, side, where)
        store.apply(online_read.definitions(Path(folder)))
        online = store._get_provider().online_store
        for seed, view in enumerate(store.list_feature_views()):
            online.online_write_arrow(store.config, view, online_read.table_of(view, seed))
    return {}


def measure(folder: str, where: dict[str, str]) -> dict[str, Any]:
    """Time everything on all sides, which take turns call by call."""
    stores = {side: feature_store(folder, side, where) for side in SIDES}
    features, entities = online_read.request(stores["one_node"], "floats")
    readers = {side: FeatureReader(one, registry_ttl_seconds=None) for side, one in stores.items()}
    matrices = [reader.read(features, entities).matrix for reader in readers.values()]
    assert all(np.array_equal(one, matrices[0]) for one in matrices), "the sides read other values"

    def read(side: str) -> Any:
        return readers[side].read(features, entities).matrix

    view = stores["one_node"].get_feature_view("floats_0")
    tables = [online_read.table_of(view, seed, ROWS) for seed in range(BULKS + 1)]

    def write(side: str, table: Any) -> None:
        store = stores[side]
        store._get_provider().online_store.online_write_arrow(store.config, view, table)

    bulks = {side: iter(tables) for side in SIDES}
    row = tables[0].slice(0, 1)
    reads = _milliseconds(read, READS)
    bulk = _milliseconds(lambda side: write(side, next(bulks[side])), BULKS)
    single = _milliseconds(lambda side: write(side, row), SINGLE)
    return {
        side: {
            "read_ms_p50": statistics.median(reads[side]),
            "read_ms_p99": float(np.percentile(reads[side], 99)),
            "write_rows_per_s": 1000 * ROWS / statistics.median(bulk[side]),
            "one_row_ms_p50": statistics.median(single[side]),
        }
        for side in SIDES
    }


def through_redis_py(folder: str, where: dict[str, str]) -> dict[str, Any]:
    """Time redis-py's own read of the same keys of the Cluster; values, not decoded."""
    store = feature_store(folder, "cluster", where)
    reader = FeatureReader(store, registry_ttl_seconds=None)
    features, entities = online_read.request(store, "floats")
    keys: list[bytes] = []
    for view in reader.prepare(features).views:
        layout = view.layout.keys.of_columns(entities, len(entities["user_id"]))
        keys += layout.to_pylist()
    client: Any = store._get_provider().online_store.client(store.config)
    assert None not in client.mget_nonatomic(keys)
    seconds = median_seconds(lambda: client.mget_nonatomic(keys), 31)
    return {"read_ms_p50": round(1000 * seconds, 3), "keys": len(keys)}


def _milliseconds(action: Callable[[str], Any], repeats: int) -> dict[str, list[float]]:
    """Time an action of every side, in turns, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(repeats + 1):
        for side in SIDES:
            start = time.perf_counter()
            action(side)
            if number:
                times[side].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Run all sides in turns; print a table, then one line of JSON."""
    here = "benchmarks.cluster"
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(Path(folder) / "redis") as one,
        LocalCluster(Path(folder) / "cluster") as cluster,
    ):
        where = {"one_node": f"127.0.0.1:{one.port}", "cluster": cluster.connection_string}
        given: dict[str, Any] = {"folder": folder, "where": where}
        isolated(f"{here}:fill", **given)
        rounds = [isolated(f"{here}:measure", **given) for _ in range(ROUNDS)]
        redis_py = isolated(f"{here}:through_redis_py", **given)
    found = {
        side: {
            name: round(statistics.median(one[side][name] for one in rounds), 3)
            for name in rounds[0][side]
        }
        for side in SIDES
    }
    for name in found["one_node"]:
        cells = "  ".join(f"{side} {found[side][name]:>12,.2f}" for side in SIDES)
        print(f"{name:>18}  {cells}")
    print(f"{'read_ms_p50':>18}  redis_py {redis_py['read_ms_p50']:>12,.2f}")
    cost = found["cluster"]["read_ms_p50"] / found["one_node"]["read_ms_p50"]
    ours = {"benchmark": "cluster", "read_cost": round(cost, 2), **found}
    print(json.dumps({**ours, "redis_py": redis_py}))


if __name__ == "__main__":
    main()

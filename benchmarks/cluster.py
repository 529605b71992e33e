"""Redis Cluster beside one Redis: what reads and writes cost on three masters with replicas.

Run ``python -m benchmarks.cluster``. All nodes run on this machine, so what is measured is the cost
of speaking to several: a real Cluster adds its network, and each node has a machine of its own.

- ``read``: 500 entities x 88 floats in 4 views, `FeatureReader` to a matrix; 2,000 keys
- ``redis_py``: the same keys on the Cluster by redis-py's own ``mget_nonatomic``, values only
- ``write``: rows of 22 floats a second, all at once
- ``one_row``: one row, written through `PackedRedisOnlineStore`

``acknowledged`` is the Cluster with ``wait_for_replicas: 1``. Sides take turns over several rounds,
each in a process of its own; the median round counts. The matrices are compared first.
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
from benchmarks.common import isolated
from feastpack import FeatureReader
from feastpack.embedded import EmbeddedRedis
from feastpack.local_cluster import LocalCluster

SIDES = ("one_node", "cluster", "acknowledged")
READS, ROWS, SINGLE, ROUNDS = 301, 100_000, 301, 3


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


def measure(folder: str, side: str, where: dict[str, str]) -> dict[str, Any]:
    """Time everything on one side."""
    store = feature_store(folder, side, where)
    reader = FeatureReader(store, registry_ttl_seconds=None)
    features, entities = online_read.request(store, "floats")
    reads = _milliseconds(lambda: reader.read(features, entities).matrix, READS)
    online, view = store._get_provider().online_store, store.get_feature_view("floats_0")
    stored, online_read.STORED = online_read.STORED, ROWS
    table = online_read.table_of(view, 5)
    online_read.STORED = stored
    start = time.perf_counter()
    online.online_write_arrow(store.config, view, table)
    seconds = time.perf_counter() - start
    row = table.slice(0, 1)
    single = _milliseconds(lambda: online.online_write_arrow(store.config, view, row), SINGLE)
    return {
        "read_ms_p50": statistics.median(reads),
        "read_ms_p99": float(np.percentile(reads, 99)),
        "write_rows_per_s": ROWS / seconds,
        "one_row_ms_p50": statistics.median(single),
        "matrix": float(reader.read(features, entities).matrix.sum()),
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
    times = _milliseconds(lambda: client.mget_nonatomic(keys), 31)
    return {"read_ms_p50": statistics.median(times), "keys": len(keys)}


def _milliseconds(action: Callable[[], Any], repeats: int) -> list[float]:
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
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
        rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            isolated(f"{here}:fill", **given)
            for side in SIDES:
                rounds[side].append(isolated(f"{here}:measure", side=side, **given))
        redis_py = isolated(f"{here}:through_redis_py", **given)
    sums = {one["matrix"] for results in rounds.values() for one in results}
    assert len(sums) == 1, f"the sides read different values: {sums}"
    found = {
        side: {
            name: round(statistics.median(one[name] for one in results), 3)
            for name in results[0]
            if name != "matrix"
        }
        for side, results in rounds.items()
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

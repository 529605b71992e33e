"""Materialization: the same as Feast's engine, into any online store, and after a kill."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.feature_view import DUMMY_ENTITY_ID
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int64, String
from offline_repository import DRIVER, OURS, TIME, at, local_store, trip_view, trips, write

from feastpack.embedded import EmbeddedRedis
from feastpack.engine import ArrowComputeEngineConfig
from feastpack.errors import OnlineStoreError

pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")

ENGINE = "feastpack.ArrowComputeEngine"
CITY = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)


def packed(server: EmbeddedRedis) -> dict[str, Any]:
    return {
        "type": "feastpack.PackedRedisOnlineStore",
        "connection_string": f"{server.host}:{server.port}",
    }


def sqlite(folder: Path, name: str) -> dict[str, Any]:
    return {"type": "sqlite", "path": str(folder / f"{name}.db")}


def rich_view(folder: Path) -> FeatureView:
    """Composite keys, mapped names, ties by created time, null keys and values, lists."""
    table = pa.table(
        {
            "driver_id": pa.array([1, 1, 1, 2, 2, None, 3, 3], pa.int64()),
            "city": ["a", "a", "b", "a", "a", "a", None, "é"],
            "when": pa.array([at(m) for m in (0, 5, 5, 7, 7, 1, 2, 3)], TIME),
            "made": pa.array([at(m) for m in (9, 9, 9, 2, 1, 3, 3)] + [None], TIME),
            "raw": [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0],
            "words": [["x"], ["y", "z"], [], None, ["q"], ["r"], ["s"], ["t", ""]],
        }
    )
    source = FileSource(
        name="rich",
        path=str(write(table, folder / "rich.parquet")),
        timestamp_field="at",
        created_timestamp_column="made",
        field_mapping={"raw": "value", "when": "at"},
    )
    fields = [
        Field(name="value", dtype=Float64),
        Field(name="words", dtype=Array(String)),
        Field(name="driver_id", dtype=Int64),
        Field(name="city", dtype=String),
    ]
    return FeatureView(
        name="rich", entities=[DRIVER, CITY], schema=fields, source=source, ttl=timedelta(0)
    )


def online(store: FeatureStore, rows: list[dict[str, Any]], features: list[str]) -> Any:
    return store.get_online_features(features, rows).to_dict()


RICH_ROWS = [
    {"driver_id": driver, "city": city} for driver in (1, 2, 3, 4) for city in ("a", "b", "é")
]


@pytest.mark.parametrize("offline", [OURS, "duckdb", "dask"])
@pytest.mark.parametrize("store_kind", ["packed", "sqlite"])
def test_same_as_feasts_engine(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any, offline: str, store_kind: str
) -> None:
    objects = [DRIVER, CITY, rich_view(tmp_path)]
    theirs = local_store(tmp_path, objects, OURS, sqlite(tmp_path, "theirs"))
    target = packed(redis_server) if store_kind == "packed" else sqlite(tmp_path, "ours")
    ours = local_store(tmp_path, objects, offline, target, ENGINE)
    # Feast's engine fails on rows without a key or a created time: it gets a period with neither.
    for store in (theirs, ours):
        store.materialize(at(4), at(6))
        store.materialize(at(4), at(7))
    features = ["rich:value", "rich:words"]
    found = online(ours, RICH_ROWS, features)
    assert found == online(theirs, RICH_ROWS, features)
    assert found["value"][RICH_ROWS.index({"driver_id": 2, "city": "a"})] == 4.0


@pytest.mark.parametrize("store_kind", ["packed", "sqlite"])
def test_rows_without_a_key_are_left_out(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any, store_kind: str
) -> None:
    target = packed(redis_server) if store_kind == "packed" else sqlite(tmp_path, "ours")
    store = local_store(tmp_path, [DRIVER, CITY, rich_view(tmp_path)], OURS, target, ENGINE)
    store.materialize(at(0), at(99))
    found = online(store, RICH_ROWS, ["rich:value"])
    assert found["value"] == [2.0, None, None, 4.0, *[None] * 4, 8.0, None, None, None]


def test_entityless_view(tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any) -> None:
    path = write(trips([(1, 0, 1.0), (2, 9, 2.0), (3, 5, 3.0)]), tmp_path / "a.parquet")
    view = trip_view(path, entities=[], schema=[Field(name="rating", dtype=Float64)])
    store = local_store(tmp_path, [view], OURS, packed(redis_server), ENGINE)
    store.materialize(at(0), at(99))
    key = EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[Value(string_val="")])
    found = store._get_provider().online_read(
        store.config, store.get_feature_view("trips"), [key], ["rating"]
    )
    assert [(time, values["rating"].double_val) for time, values in found] == [(at(9), 2.0)]


def test_incremental_runs_look_back_for_late_rows(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    def run_twice(late_data_look_back_seconds: float) -> list[float | None]:
        folder = tmp_path / str(late_data_look_back_seconds)
        path = write(trips([(1, 10, 1.0), (2, 10, 2.0)]), folder / "a.parquet")
        online_store = packed(redis_server)
        options = {"late_data_look_back_seconds": late_data_look_back_seconds}
        store = local_store(
            folder, [DRIVER, trip_view(path)], OURS, online_store, ENGINE, engine_options=options
        )
        redis_client.flushall()
        store.materialize(at(0), at(20))
        # Reaches the source after the run, with an event time before its end.
        write(trips([(1, 10, 1.0), (2, 10, 2.0), (1, 15, 8.0), (2, 5, 9.0)]), path)
        store.materialize_incremental(at(30))
        rows = [{"driver_id": 1}, {"driver_id": 2}]
        return list(online(store, rows, ["trips:rating"])["rating"])

    assert run_twice(0) == [1.0, 2.0]
    assert run_twice(16 * 60) == [8.0, 2.0]


def test_what_the_engine_cannot_do_goes_to_feasts_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(trips([(1, 0, 1.0)]), tmp_path / "a.parquet")
    view = trip_view(path, enable_validation=True)
    store = local_store(tmp_path, [DRIVER, view], OURS, sqlite(tmp_path, "o"), ENGINE)
    with caplog.at_level(logging.WARNING, "feastpack.engine"):
        store.materialize(at(0), at(1))
    assert online(store, [{"driver_id": 1}], ["trips:rating"])["rating"] == [1.0]
    assert "trips is to be validated: materialized by Feast's LocalComputeEngine" in caplog.text


def test_slow_ways_and_speed_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    view = trip_view(write(trips([(1, 0, 1.0)]), tmp_path / "a.parquet"))
    store = local_store(tmp_path, [DRIVER, view], OURS, sqlite(tmp_path, "o"), ENGINE)
    with caplog.at_level(logging.INFO, "feastpack.engine"):
        store.materialize(at(0), at(1))
    assert "SqliteOnlineStore has no online_write_arrow" in caplog.text
    assert "trips: 1 rows in" in caplog.text


def test_views_that_are_not_online_are_left_out(tmp_path: Path) -> None:
    view = trip_view(write(trips([(1, 0, 1.0)]), tmp_path / "a.parquet"), online=False)
    store = local_store(tmp_path, [DRIVER, view], OURS, sqlite(tmp_path, "o"), ENGINE)
    store.materialize(at(0), at(1))


@pytest.mark.parametrize("after_s", [0.0, 60.0])
def test_the_bar_counts_rows_of_what_takes_long(
    tmp_path: Path,
    redis_server: EmbeddedRedis,
    redis_client: Any,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    after_s: float,
) -> None:
    monkeypatch.setattr("feastpack.engine._BAR_AFTER_S", after_s)
    view = trip_view(
        write(
            trips([(1, 0, 1.0), (1, 1, 1.0), (2, 0, 2.0), (None, 0, 0.0)]), tmp_path / "a.parquet"
        )
    )
    store = local_store(tmp_path, [DRIVER, view], OURS, packed(redis_server), ENGINE)
    store.materialize(at(0), at(1))
    assert ("3.00/3.00" in capfd.readouterr().err) == (after_s == 0)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="batch_rows"):
        ArrowComputeEngineConfig(batch_rows=0)


# --- Kills. A run is killed in the middle; the next one must end as if it had not been. ---

ROWS = 200_000
FEATURES = [f"f{number}" for number in range(8)]
RUN = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_engine import big_store
    from offline_repository import at
    big_store(Path({folder!r}), {address!r}).materialize(at(0), at(60))
"""


def big_store(folder: Path, address: str) -> FeatureStore:
    path = folder / "big.parquet"
    if not path.exists():
        rng = np.random.default_rng(0)
        minutes = rng.integers(0, 60, 2 * ROWS) * 60_000_000
        start = int(at(0).timestamp()) * 1_000_000
        columns: dict[str, Any] = {
            "driver_id": rng.permutation(np.arange(2 * ROWS) % ROWS),
            "event_timestamp": pa.array(start + minutes, TIME),
            **{name: rng.random(2 * ROWS) for name in FEATURES},
        }
        write(pa.table(columns), path)
    view = trip_view(path, schema=[Field(name=name, dtype=Float64) for name in FEATURES])
    online_store = {
        "type": "feastpack.PackedRedisOnlineStore",
        "connection_string": address,
    }
    return local_store(folder, [DRIVER, view], OURS, online_store, ENGINE)


def contents(server: EmbeddedRedis) -> dict[bytes, bytes]:
    with redis.Redis(host=server.host, port=server.port) as client:
        keys = sorted(
            key for key in client.scan_iter(count=10_000) if client.type(key) == b"string"
        )
        return dict(zip(keys, client.mget(keys), strict=True)) if keys else {}


def size(server: EmbeddedRedis) -> int:
    with redis.Redis(host=server.host, port=server.port) as client:
        return int(client.dbsize())


def wait_for_rows(server: EmbeddedRedis, rows: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while size(server) < rows:
        assert time.monotonic() < deadline, f"no {rows} rows within {seconds} s"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_process_is_run_again(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        address = f"{server.host}:{server.port}"
        big_store(tmp_path, address).materialize(at(0), at(60))
        expected = contents(server)
        assert len(expected) == ROWS
        with redis.Redis(host=server.host, port=server.port) as client:
            client.flushall()
        code = textwrap.dedent(RUN).format(
            tests=str(Path(__file__).parent), folder=str(tmp_path), address=address
        )
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        wait_for_rows(server, 10_000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 10_000 <= size(server) < ROWS
        big_store(tmp_path, address).materialize(at(0), at(60))
        assert contents(server) == expected


@pytest.mark.slow
def test_a_killed_redis_is_an_error_and_the_run_is_run_again(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        big_store(tmp_path, f"{server.host}:{server.port}").materialize(at(0), at(60))
        expected = contents(server)
        with redis.Redis(host=server.host, port=server.port) as client:
            client.flushall()
        killer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WATCH).format(port=server.port, pid=server.pid)]
        )
        with pytest.raises(OnlineStoreError, match="writing feature view"):
            big_store(tmp_path, f"{server.host}:{server.port}").materialize(at(0), at(60))
        assert killer.wait() == 0
        server.ensure_running()
        big_store(tmp_path, f"{server.host}:{server.port}").materialize(at(0), at(60))
        assert contents(server) == expected


#: Kills Redis, from outside, once some rows are there.
WATCH = """
    import os, signal, time, redis
    client = redis.Redis(port={port})
    while client.dbsize() < 10_000:
        time.sleep(0.005)
    os.kill({pid}, signal.SIGKILL)
"""

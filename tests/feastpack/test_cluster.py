"""Redis Cluster of three masters and three replicas: rows written and read, slots moved, lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore
from feast.types import Float64, Int64, String
from feast_values import feature_store, user_entity, user_view
from offline_repository import DRIVER, at, local_store, trip_view, trips, write
from redis.crc import key_slot

from feastpack import FeatureReader
from feastpack.cluster import ClusterClient
from feastpack.embedded import EmbeddedRedis
from feastpack.errors import ConnectionStringError, OnlineStoreError
from feastpack.keys import KeySpace
from feastpack.local_cluster import LocalCluster
from feastpack.partition_writer import PartitionWriter
from feastpack.rows import uniform_binary
from feastpack.slots import slots_of

FEATURES = ["v:x", "v:n", "v:s"]
KEYS = KeySpace("shop", "v", (("user_id", "INT64"),))
MOMENT = pd.Timestamp.now("UTC").floor("us")


def store_on(folder: Path, cluster: LocalCluster, **settings: Any) -> FeatureStore:
    online = {
        "type": "feastpack.PackedRedisOnlineStore",
        "redis_type": "redis_cluster",
        "connection_string": cluster.connection_string,
        **settings,
    }
    view = user_view(folder, "v", {"x": Float64, "n": Int64, "s": String})
    return feature_store(folder, online, [user_entity(), view])


@pytest.fixture
def store(tmp_path: Path, redis_cluster: LocalCluster) -> Iterator[FeatureStore]:
    opened = store_on(tmp_path, redis_cluster)
    yield opened
    opened.teardown()
    client_of(opened).close()


def client_of(store: FeatureStore) -> ClusterClient:
    client: ClusterClient = store._get_provider().online_store.client(store.config)
    return client


def table(users: Any, version: int = 0) -> pa.Table:
    """Rows whose values follow from user and version; later versions are of later times."""
    ids = np.asarray(users)
    time = MOMENT + pd.Timedelta(seconds=version)
    return pa.table(
        {
            "user_id": ids,
            "x": ids / 2 + version,
            "n": ids * 10 + version,
            "s": [f"s{user}v{version}" for user in ids],
            "event_timestamp": pa.array([time] * len(ids), pa.timestamp("us", "UTC")),
        }
    )


def write_rows(store: FeatureStore, users: Any, version: int = 0) -> int:
    online, view = store._get_provider().online_store, store.get_feature_view("v")
    return int(online.online_write_arrow(store.config, view, table(users, version)))


def read_rows(store: FeatureStore, users: Any) -> dict[str, list[Any]]:
    reader = FeatureReader(store, registry_ttl_seconds=None)
    return reader.read(FEATURES, {"user_id": np.asarray(users)}).to_dict()


def expected(users: Any, version: int = 0) -> dict[str, list[Any]]:
    rows = table(users, version).drop_columns(["event_timestamp"])
    return dict(rows.to_pydict())


def test_slots_are_those_of_redis():
    rng = np.random.default_rng(3)
    alphabet = np.frombuffer(b"{}ab\x00", np.uint8)
    for width in (1, 7, 30):
        keys = alphabet[rng.integers(0, len(alphabet), (300, width))]
        keys[:, : width // 3] = ord("f")
        wanted = [key_slot(key.tobytes()) for key in keys]
        assert slots_of(keys).tolist() == wanted
        assert slots_of(uniform_binary(keys)).tolist() == wanted
    # As ids: little endian, the bytes of the second are {a}.
    ids = KEYS.laid_out({"user_id": np.array([1, 0x7D617B, 2, 0x7D7B, 0x7B])}, 5)
    assert slots_of(ids).tolist() == [key_slot(key.tobytes()) for key in ids]
    assert slots_of(ids)[1] == key_slot(b"a")


def test_rows_lie_on_all_masters_and_are_read_in_order(
    store: FeatureStore, redis_cluster: LocalCluster
):
    users = np.arange(5000)
    assert write_rows(store, users) == 5000
    asked = np.random.default_rng(5).permutation(6000)
    found = read_rows(store, asked)
    known = asked < 5000
    assert [n for n, there in zip(found["n"], known, strict=True) if there] == (
        asked[known] * 10
    ).tolist()
    assert {n for n, there in zip(found["s"], known, strict=True) if not there} == {None}
    sizes = [redis_cluster.ask(port, "DBSIZE") for port in redis_cluster.masters]
    assert len(sizes) == 3
    assert min(sizes) > 1000


def test_a_later_time_wins_whatever_the_order(store: FeatureStore):
    users = np.arange(3000)
    write_rows(store, users, version=2)
    assert write_rows(store, users, version=1) == 0
    assert write_rows(store, users[:10], version=3) == 10
    assert read_rows(store, users[:10]) == expected(users[:10], 3)
    assert read_rows(store, users[10:20]) == expected(users[10:20], 2)


def test_through_feast_and_on_an_event_loop(store: FeatureStore):
    write_rows(store, [1, 2, 3])
    wanted = expected([3, 1])
    assert store.get_online_features(FEATURES, {"user_id": [3, 1]}).to_dict() == wanted

    async def read() -> dict[str, list[Any]]:
        reader = FeatureReader(store, registry_ttl_seconds=None)
        await store.write_to_online_store_async("v", table([4]).to_pandas())
        frame = await reader.read_async(FEATURES, {"user_id": [3, 1, 4]})
        await store._get_provider().online_store.close()
        return frame.to_dict()

    assert asyncio.run(read()) == expected([3, 1, 4])


def test_materialized_and_deleted_on_all_nodes(
    tmp_path: Path, store: FeatureStore, redis_cluster: LocalCluster
):
    write_rows(store, [1, 2])
    drivers, offline = 900, tmp_path / "trips.parquet"
    write(trips([(d, minute, d + minute) for d in range(drivers) for minute in (1, 2)]), offline)
    online = store.config.online_store.model_dump()
    engine = "feastpack.ArrowComputeEngine"
    batch = local_store(tmp_path, [DRIVER, trip_view(offline)], online=online, engine=engine)
    batch.materialize(at(0), at(10))
    ids = np.random.default_rng(5).permutation(drivers + 10)
    frame = FeatureReader(batch, registry_ttl_seconds=None).read("trips:rating", {"driver_id": ids})
    np.testing.assert_array_equal(frame.matrix[:, 0], np.where(ids < drivers, ids + 2.0, np.nan))
    batch.teardown()
    client = client_of(store)
    assert list(client.scan_iter(KeySpace("trips", "trips", ()).pattern)) == []
    assert read_rows(store, [1, 2]) == expected([1, 2])  # another project's rows stay
    client_of(batch).close()


def test_a_partition_of_spark_is_written_to_all_nodes(store: FeatureStore):
    config = {
        "project": store.project,
        "provider": "local",
        "registry": store.config.registry.model_dump(),
        "online_store": store.config.online_store.model_dump(mode="json"),
        "offline_store": "file",
        "entity_key_serialization_version": 3,
    }
    view = store.get_feature_view("v").to_proto().SerializeToString()
    (report,) = PartitionWriter(view, config)(table(range(500)).to_batches())
    assert report["rows"].to_pylist() == [500]
    assert read_rows(store, range(500)) == expected(range(500))


def users_of_one_slot(count: int) -> tuple[int, list[int]]:
    """Return a slot and as many users whose rows lie in it."""
    users = np.arange(400_000)
    slots = slots_of(KEYS.laid_out({"user_id": users}, len(users)))
    slot = int(np.bincount(slots).argmax())
    found = users[slots == slot][:count].tolist()
    assert len(found) == count
    return slot, found


def test_while_a_slot_is_moved_its_rows_are_read_and_written(
    store: FeatureStore, redis_cluster: LocalCluster
):
    slot, users = users_of_one_slot(20)
    write_rows(store, users[:10])
    source = redis_cluster.master_of(slot)
    target = next(port for port in map(redis_cluster.master_of, (0, 8000, 16383)) if port != source)
    redis_cluster.begin_move(slot, target)
    redis_cluster.move_keys(slot, target, 4)
    # Four are there, six are here, ten are nowhere.
    assert read_rows(store, users[:10]) == expected(users[:10])
    assert read_rows(store, users[10:])["n"] == [None] * 10
    # One call of the script for all of them would be refused on either side.
    assert write_rows(store, users, version=1) == 20
    assert read_rows(store, users) == expected(users, 1)
    redis_cluster.finish_move(slot, target)
    # The client still believes that they are where they were.
    assert read_rows(store, users) == expected(users, 1)
    assert write_rows(store, users, version=2) == 20
    assert read_rows(store, users) == expected(users, 2)
    assert redis_cluster.ask(target, "CLUSTER", "COUNTKEYSINSLOT", slot) == 20
    redis_cluster.wait_until(redis_cluster.is_whole, "all nodes know of the move")


def test_a_write_waits_for_replicas_or_says_that_they_lack_it(
    tmp_path: Path, redis_cluster: LocalCluster
):
    careful = store_on(tmp_path, redis_cluster, wait_for_replicas=1)
    assert write_rows(careful, range(100)) == 100
    assert read_rows(careful, [7]) == expected([7])
    client_of(careful).close()
    string = redis_cluster.connection_string + ",socket_timeout=0.4"
    impossible = store_on(tmp_path, redis_cluster, wait_for_replicas=2, connection_string=string)
    said = r"1 of 2 replicas acknowledged it in time: .*; run it again once"
    with pytest.raises(OnlineStoreError, match=said):
        write_rows(impossible, [1])
    client_of(impossible).close()


def test_a_slot_without_a_master_is_named_with_what_to_do(tmp_path: Path):
    with LocalCluster(tmp_path / "nodes", replicas=0) as cluster:
        running = store_on(tmp_path, cluster)
        write_rows(running, range(100))
        for port in cluster.ports:
            cluster.ask(port, "CLUSTER", "DELSLOTS", *range(5000, 5010), 16383)
        cluster.wait_until(
            lambda: all(
                cluster.ask(port, "CLUSTER INFO")["cluster_state"] == "fail"
                for port in cluster.ports
            ),
            "the nodes refuse to answer",
        )
        said = r"no master has the slots 5000-5009, 16383, says .*start the node .*cluster fix"
        with pytest.raises(OnlineStoreError, match=said):
            read_rows(running, range(100))
        with pytest.raises(OnlineStoreError, match=said):
            write_rows(running, range(100))
        with pytest.raises(OnlineStoreError, match=said):
            read_rows(store_on(tmp_path, cluster), range(100))
        client_of(running).close()
        for port in cluster.ports:
            cluster.kill(port)
        with pytest.raises(OnlineStoreError, match=r"cannot be connected.*check that Redis runs"):
            read_rows(store_on(tmp_path, cluster), range(100))


def test_a_node_that_hangs_is_waited_for_once(tmp_path: Path, redis_cluster: LocalCluster):
    string = redis_cluster.connection_string + ",socket_timeout=0.6,socket_connect_timeout=0.6"
    store = store_on(tmp_path, redis_cluster, connection_string=string)
    write_rows(store, range(100))
    hangs = redis_cluster.masters[1]
    redis_cluster.pause(hangs)
    try:
        start = time.monotonic()
        with pytest.raises(OnlineStoreError, match="Timeout"):
            read_rows(store, range(100))
        assert time.monotonic() - start < 1.8
    finally:
        redis_cluster.resume(hangs)
    assert read_rows(store, range(100)) == expected(range(100))
    client_of(store).close()


def test_another_database_is_refused(tmp_path: Path, redis_cluster: LocalCluster):
    string = redis_cluster.connection_string + ",db="
    assert read_rows(store_on(tmp_path, redis_cluster, connection_string=string + "0"), [1])
    with pytest.raises(ConnectionStringError, match="has one database only"):
        read_rows(store_on(tmp_path, redis_cluster, connection_string=string + "1"), [1])


def test_only_a_cluster_waits_for_replicas(tmp_path: Path, redis_cluster: LocalCluster):
    with pytest.raises(ValueError, match="wait_for_replicas needs redis_type: redis_cluster"):
        store_on(tmp_path, redis_cluster, redis_type="redis", wait_for_replicas=1)


def test_one_server_is_no_cluster(tmp_path: Path, redis_server: EmbeddedRedis):
    online = {
        "type": "feastpack.PackedRedisOnlineStore",
        "redis_type": "redis_cluster",
        "connection_string": f"127.0.0.1:{redis_server.port}",
    }
    view = user_view(tmp_path, "v", {"x": Float64, "n": Int64, "s": String})
    store = feature_store(tmp_path, online, [user_entity(), view])
    with pytest.raises(OnlineStoreError, match="Cluster mode is not enabled"):
        read_rows(store, [1])

"""What the packed store promises beyond Feast's: ttl, schemas, deletion."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureStore, RepoConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float32, Float64, Int64, String
from feast_values import feature_store, packed, stock, user_entity, user_key, user_view
from online_shop import NOW, Shop, row, table_of

from feastpack.connection import RedisAddress, resolve_redis
from feastpack.embedded import EmbeddedRedis, close_shared
from feastpack.errors import (
    ConnectionStringError,
    OnlineStoreError,
    RowFormatError,
    SchemaError,
    UnsupportedError,
)
from feastpack.local_cluster import LocalCluster
from feastpack.writer import delete_namespace


@pytest.fixture
def shop(tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any) -> Shop:
    return Shop(tmp_path, redis_server.port)


def test_ttl_is_honoured_per_view_when_read(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    shop = Shop(tmp_path, redis_server.port, ttl=timedelta(hours=1))
    shop.write(row(1, 1.0, minutes=-30), row(2, 2.0, minutes=-61))
    assert shop.read(1, 2) == [1.0, None]
    response = shop.store.get_online_features(["v:x"], {"user_id": [1, 2]})
    assert response.to_dict()["x"] == [1.0, None]
    as_stock = Shop(tmp_path, redis_server.port, ttl=timedelta(hours=1), honour_ttl=False)
    assert as_stock.read(1, 2) == [1.0, 2.0]
    # Feast's own store serves rows of any age
    view = user_view(tmp_path, "v", {"x": Float64}, ttl=timedelta(hours=1))
    theirs = feature_store(tmp_path, stock(redis_server.port), [user_entity(), view])
    online = theirs._get_provider().online_store
    online.online_write_batch(theirs.config, view, [row(2, 2.0, minutes=-61)], None)
    stock_response = theirs.get_online_features(["v:x"], {"user_id": [2]})
    assert stock_response.to_dict()["x"] == [2.0]


def test_keys_expire_in_redis(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    def seconds_left(shop: Shop) -> list[int]:
        keys = redis_client.scan_iter(b"fp:shop:v:*")
        return sorted(redis_client.ttl(key) for key in keys)

    hour = timedelta(hours=1)
    shop = Shop(tmp_path, redis_server.port, ttl=hour, expire_after_ttl_seconds=60)
    shop.write(row(1, 1.0), row(2, 2.0, minutes=-30))
    # NOW is when the tests were collected
    passed = (datetime.now(UTC) - NOW).total_seconds()
    left = [30 * 60 + 60 - passed, 60 * 60 + 60 - passed]
    assert seconds_left(shop) == pytest.approx(left, abs=10)
    redis_client.flushall()
    both = Shop(tmp_path, redis_server.port, ttl=hour, key_ttl_seconds=100)
    both.write(row(1, 1.0), row(2, 2.0, minutes=-60 * 24 * 365))
    assert seconds_left(both)[-1] == pytest.approx(100, abs=5)
    assert len(seconds_left(both)) <= 2  # the second expires within a second
    redis_client.flushall()
    never = Shop(tmp_path, redis_server.port, ttl=hour, honour_ttl=False)
    never.write(row(1, 1.0))
    assert seconds_left(never) == [-1]


def test_rows_of_an_older_schema_still_decode(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    def with_features(features: dict[str, Any]) -> FeatureStore:
        view = user_view(tmp_path, "v", features)
        return feature_store(tmp_path, packed(redis_server.port), [user_entity(), view])

    old = with_features({"x": Float64, "dropped": String})
    values = {"x": Value(double_val=1.0), "dropped": Value(string_val="d")}
    old.write_to_online_store("v", _frame(user_id=[1, 2], x=[1.0, 2.0], dropped=["d", "e"]))
    new = with_features({"added": String, "x": Float64})
    features = ["v:x", "v:added"]
    read = new.get_online_features(features, {"user_id": [1, 2, 3]}).to_dict()
    assert read == {"user_id": [1, 2, 3], "x": [1.0, 2.0, None], "added": [None] * 3}
    new.write_to_online_store("v", _frame(user_id=[2], x=[5.0], added=["a"]))
    read = new.get_online_features(features, {"user_id": [1, 2, 3]}).to_dict()
    assert read["x"] == [1.0, 5.0, None]
    assert read["added"] == [None, "a", None]
    assert set(values) == {"x", "dropped"}


def _frame(**columns: Any) -> Any:
    import pandas as pd

    return pd.DataFrame({**columns, "event_timestamp": pd.Timestamp.now("UTC")})


def test_a_schema_that_redis_does_not_know_is_an_error(shop: Shop, redis_client: Any) -> None:
    shop.write(row(1, 1.0))
    key = next(redis_client.scan_iter(b"fp:shop:v:*"))
    stored = bytearray(redis_client.get(key))
    stored[16] ^= 0xFF
    redis_client.set(key, bytes(stored))
    with pytest.raises(RowFormatError, match="which Redis does not know"):
        shop.read(1)
    redis_client.set(key, b"not ours")
    with pytest.raises(RowFormatError, match="is no packed row"):
        shop.read(1)


def test_removed_views_and_teardown_leave_nothing_behind(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    names = ["v", "v[1]", "v2"]
    views = [user_view(tmp_path, name, {"x": Float64}) for name in names]
    store = feature_store(tmp_path, packed(redis_server.port), [user_entity(), *views])
    online = store._get_provider().online_store
    for view in views:
        online.online_write_batch(store.config, view, [row(1, 1.0), row(2, 2.0)], None)
    redis_client.set("other", "stays")
    store.apply([], objects_to_delete=[views[1]], partial=False)
    assert not list(redis_client.scan_iter(b"fp:shop:v\\[1\\]:*"))
    rows = [online.online_read(store.config, v, [user_key(1)])[0][1] for v in views]
    assert [r is not None for r in rows] == [True, False, True]
    store.teardown()
    assert list(redis_client.keys("*")) == [b"other"]


def test_two_projects_share_a_server(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    first = Shop(tmp_path, redis_server.port)
    second = Shop(tmp_path, redis_server.port)
    second.store.config.project = "other_shop"
    first.write(row(1, 1.0))
    assert second.read(1) == [None]


def test_versions_of_a_view_are_kept_apart(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    shop = Shop(tmp_path, redis_server.port)
    config: RepoConfig = shop.store.config
    config.registry.enable_online_feature_view_versioning = True
    shop.view.current_version_number = 1
    shop.write(row(1, 1.0))
    shop.view.current_version_number = 2
    assert shop.read(1) == [None]
    shop.write(row(1, 2.0))
    shop.view.projection.version_tag = 1
    assert shop.read(1) == [1.0]


def test_asyncio_reads_and_writes(shop: Shop) -> None:
    config = shop.store.config

    async def work() -> tuple[Any, Any]:
        await shop.online.online_write_batch_async(config, shop.view, [row(1, 7.0)], None)
        await shop.online.online_write_batch_async(config, shop.view, [row(1, 6.0, -1)], None)
        rows = await shop.online.online_read_async(config, shop.view, [user_key(1), user_key(2)])
        response = await shop.store.get_online_features_async(["v:x"], {"user_id": [2, 1]})
        await shop.online.close()
        return rows, response.to_dict()

    for _ in range(2):  # a second event loop gets connections of its own
        rows, response = asyncio.run(work())
        assert rows[0][1]["x"].double_val == 7.0
        assert rows[1] == (None, None)
        assert response == {"user_id": [2, 1], "x": [None, 7.0]}


def test_push_and_write_to_online_store(shop: Shop) -> None:
    shop.store.write_to_online_store("v", _frame(user_id=[1, 2], x=[1.5, None]))
    response = shop.store.get_online_features(["v:x"], {"user_id": [1, 2]}).to_dict()
    assert response["x"] == [1.5, None]


def test_bad_writes_name_what_is_wrong(shop: Shop) -> None:
    good = table_of([1], [1.0], [0])
    with pytest.raises(SchemaError, match="lacks the features x; it has user_id, event"):
        shop.write_arrow(good.drop_columns(["x"]))
    with pytest.raises(SchemaError, match="needs the join key user_id"):
        shop.write_arrow(good.drop_columns(["user_id"]))
    with pytest.raises(SchemaError, match="no event time for feature view v"):
        shop.write_arrow(good.drop_columns(["event_timestamp"]))
    nulls = pa.table({**{c: good[c] for c in ("x", "event_timestamp")}, "user_id": [None]})
    with pytest.raises(SchemaError, match=r"user_id of feature view v is .*null"):
        shop.write_arrow(nulls.cast(pa.schema([*list(nulls.schema)[:2], ("user_id", pa.int64())])))
    timeless = good.set_column(2, "event_timestamp", pa.array([None], pa.timestamp("us")))
    with pytest.raises(SchemaError, match="1 of 1 rows have no event_timestamp"):
        shop.write_arrow(timeless)
    with pytest.raises(SchemaError, match="has the join keys user_id, but the entity has shop_id"):
        shop.online.online_read(
            shop.store.config,
            shop.view,
            [EntityKey(join_keys=["shop_id"], entity_values=[Value(int64_val=1)])],
        )


def test_search_is_refused_with_advice(shop: Shop) -> None:
    with pytest.raises(UnsupportedError, match="no vector or text index"):
        shop.online.retrieve_online_documents(shop.store.config, shop.view, ["x"], [0.0], 3)
    with pytest.raises(UnsupportedError, match="no vector or text index"):
        shop.online.retrieve_online_documents_v2(shop.store.config, shop.view, ["x"], [0.0], 3)


def test_redis_that_is_down_is_said_clearly(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shop = Shop.__new__(Shop)
    with EmbeddedRedis(tmp_path / "redis") as server:
        shop = Shop(tmp_path, server.port)
    shop.store.config.online_store.connection_string = f"127.0.0.1:{port},socket_timeout=1"
    with pytest.raises(OnlineStoreError, match="reading 1 rows from Redis: ConnectionError"):
        shop.read(1)
    with pytest.raises(OnlineStoreError, match="check that Redis runs at"):
        shop.write(row(1, 1.0))


def test_redis_cluster(tmp_path: Path, redis_cluster: LocalCluster) -> None:
    port = redis_cluster.ports[0]
    shop = Shop(tmp_path, port, redis_type="redis_cluster")
    written = shop.write_arrow(table_of([1, 2, 3], [1.0, 2.0, 3.0], [0, 0, 0]))
    assert written == 3
    shop.write(row(1, 9.0, minutes=-1), row(2, 5.0, minutes=1))
    assert shop.read(1, 2, 3, 4) == [1.0, 5.0, 3.0, None]

    async def work() -> list[Any]:
        config = shop.store.config
        await shop.online.online_write_batch_async(config, shop.view, [row(4, 4.0)], None)
        rows = await shop.online.online_read_async(config, shop.view, [user_key(4)])
        await shop.online.close()
        return list(rows)

    assert asyncio.run(work())[0][1]["x"].double_val == 4.0
    shop = Shop(tmp_path, port, redis_type="redis_cluster")
    shop.store.teardown()
    assert shop.read(1, 2, 3, 4) == [None] * 4


def test_connection_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_redis("a:1,b:2,db=3,ssl=true,password=p=w") == RedisAddress(
        nodes=(("a", 1), ("b", 2)), options={"db": 3, "ssl": True, "password": "p=w"}
    )
    assert resolve_redis("rediss://u:p@h:7/2").url == "rediss://u:p@h:7/2"
    for wrong in ("", "db=1", "localhost", "localhost:port", "embedded:"):
        with pytest.raises(ConnectionStringError, match=r"connection string|names no"):
            resolve_redis(wrong)
    monkeypatch.delenv("REDIS_URL", raising=False)
    embedded = resolve_redis("embedded:redis", base_folder=tmp_path).embedded
    assert embedded is not None
    assert embedded.folder == (tmp_path / "redis").resolve()
    close_shared(tmp_path / "redis")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:1/0")
    assert resolve_redis("embedded:redis").url == "redis://elsewhere:1/0"


def test_embedded_server_needs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    view = user_view(tmp_path, "v", {"x": Float32, "n": Int64, "l": Array(Float32)})
    settings = {
        "type": "feastpack.PackedRedisOnlineStore",
        "connection_string": "embedded:redis-data",
    }
    store = feature_store(tmp_path, settings, [user_entity(), view])
    store.write_to_online_store("v", _frame(user_id=[1], x=[0.5], n=[2], l=[[1.0, 2.0]]))
    read = store.get_online_features(["v:x", "v:n", "v:l"], {"user_id": [1]}).to_dict()
    assert read == {"user_id": [1], "x": [0.5], "n": [2], "l": [[1.0, 2.0]]}
    assert (tmp_path / "redis-data" / "server.json").exists()
    close_shared(tmp_path / "redis-data")


def test_feasts_own_metrics_count_what_was_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = pytest.importorskip("feast.metrics")
    monkeypatch.setattr(metrics._config, "online_features", True)
    shop.write(row(1, 1.0))
    counter = metrics.online_features_status_total

    def counts() -> list[float]:
        labels = ({"feature_view": "v", "status": s} for s in ("present", "not_found"))
        return [counter.labels(**label)._value.get() for label in labels]

    before = counts()
    shop.store.get_online_features(["v:x"], {"user_id": [1, 1, 2]})
    assert [a - b for a, b in zip(counts(), before, strict=True)] == [2, 1]


def test_namespaces_do_not_see_each_other(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    plain = Shop(tmp_path, redis_server.port)
    blue = Shop(tmp_path, redis_server.port, namespace="blue")
    green = Shop(tmp_path, redis_server.port, namespace="green")
    for number, shop in enumerate((plain, blue, green)):
        shop.write(row(1, float(number)))
    assert [shop.read(1) for shop in (plain, blue, green)] == [[0.0], [1.0], [2.0]]
    client = green.online.client(green.store.config)
    project = green.store.project
    assert delete_namespace(client, project, "blue") == 1
    assert [shop.read(1) for shop in (plain, blue, green)] == [[0.0], [None], [2.0]]
    assert delete_namespace(client, project, "") == 1
    assert [shop.read(1) for shop in (plain, green)] == [[None], [2.0]]


def test_one_replaced_file_switches_the_namespace(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    file = tmp_path / "served"
    shop = Shop(tmp_path, redis_server.port, namespace_file=str(file))
    shop.write(row(1, 0.0))
    for number, name in enumerate(("blue", "green"), 1):
        partial = tmp_path / "partial"
        partial.write_text(f"{name}\n")
        partial.replace(file)
        assert shop.read(1) == [None]
        shop.write(row(1, float(number)))
    file.write_text("blue")
    assert shop.read(1) == [1.0]
    file.write_text("a:b")
    with pytest.raises(OnlineStoreError, match=r"served: found 'a:b', expected one name"):
        shop.read(1)
    file.unlink()
    assert shop.read(1) == [0.0]

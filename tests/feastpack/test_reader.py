"""FeatureReader: hand-worked requests, on-demand views against Feast, errors, threads."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType
from feast_values import feature_store, file_source, packed, user_entity, user_view

from feastpack import FeatureReader
from feastpack.embedded import EmbeddedRedis
from feastpack.errors import RequestError, UnsupportedError

NOW = datetime.now(UTC).replace(microsecond=0)
POST = Entity(name="post", join_keys=["post_id"], value_type=ValueType.INT64)


def repository(folder: Path) -> list[Any]:
    users = user_view(
        folder,
        "users",
        {"age": Int32, "city": String, "taste": Array(Float32), "vip": Bool, "rate": Float32},
    )
    posts = FeatureView(
        name="posts",
        entities=[POST],
        ttl=timedelta(days=1),
        schema=[
            Field(name="likes", dtype=Int64),
            Field(name="score", dtype=Float64),
            Field(name="topic", dtype=String),
            Field(name="vector", dtype=Array(Float32)),
            Field(name="posted", dtype=UnixTimestamp),
            Field(name="quality", dtype=Float64),
        ],
        source=file_source(folder, {"post_id": [1]}),
    )
    request = RequestSource(name="now", schema=[Field(name="hour", dtype=Int64)])

    @on_demand_feature_view(
        sources=[users, posts, request],
        schema=[Field(name="match", dtype=Float64), Field(name="late", dtype=Bool)],
        mode="pandas",
    )
    def fit(inputs: pd.DataFrame) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        out = pd.DataFrame()
        pairs = zip(inputs["taste"], inputs["vector"], strict=True)
        out["match"] = [np.nan if a is None or b is None else float(np.dot(a, b)) for a, b in pairs]
        out["late"] = inputs["hour"] > 20
        return out

    @on_demand_feature_view(
        sources=[posts], schema=[Field(name="double_score", dtype=Float64)], mode="python"
    )
    def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"double_score": [None if s is None else 2 * s for s in inputs["score"]]}

    # the module of the test is not importable when Feast loads the function again
    ranker = FeatureService(
        name="ranker",
        features=[users, posts[["score", "likes", "topic"]], fit, doubled],
    )
    return [user_entity(), POST, users, posts, fit, doubled, ranker]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> FeatureStore:
    folder = tmp_path_factory.mktemp("reader")
    store = feature_store(folder, packed(redis_server.port), repository(folder))
    moment = pd.Timestamp(NOW)
    users = {
        "user_id": [1, 2],
        "age": [30, None],
        "city": ["Oslo", None],
        "taste": [[1.0, 2.0], [0.5, 0.5]],
        "vip": [True, None],
        "rate": [0.25, None],
        "event_timestamp": moment,
    }
    posts = {
        "post_id": [10, 11, 12],
        "likes": [2**53 + 1, 5, 6],
        "score": [0.5, 1.5, 2.5],
        "topic": ["sport", None, ""],
        "vector": [[3.0, 4.0], [1.0, 0.0], None],
        "posted": [pd.Timestamp("2026-01-02", tz="UTC"), None, pd.Timestamp(0, tz="UTC")],
        "quality": [0.1, 0.2, 0.3],
        "event_timestamp": [moment, moment, moment - pd.Timedelta(days=2)],
    }
    online = store._get_provider().online_store
    for view, columns in (("users", users), ("posts", posts)):
        table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
        settings = store.config.online_store.model_copy(update={"expire_after_ttl_seconds": None})
        config = store.config.model_copy()
        config._online_store = settings
        online.online_write_arrow(config, store.get_feature_view(view), table)
    return store


@pytest.fixture(scope="module")
def reader(store: FeatureStore) -> FeatureReader:
    return FeatureReader(store, registry_ttl_seconds=None)


def test_a_user_and_some_posts(reader: FeatureReader) -> None:
    features = ["posts:score", "users:age", "users:vip", "posts:topic", "users:rate"]
    frame = reader.read(features, {"user_id": 1, "post_id": np.array([11, 10, 99])})
    assert len(frame) == 3
    assert frame.names == ("score", "age", "vip", "topic", "rate")
    assert frame.numeric_names == ("score", "age", "vip", "rate")
    np.testing.assert_array_equal(
        frame.matrix,
        [[1.5, 30, 1, 0.25], [0.5, 30, 1, 0.25], [np.nan, 30, 1, 0.25]],
    )
    assert frame.column("topic").tolist() == [None, "sport", None]
    assert frame.column("vip").tolist() == [True] * 3
    assert frame.statuses("score").tolist() == [
        FieldStatus.PRESENT,
        FieldStatus.PRESENT,
        FieldStatus.NOT_FOUND,
    ]
    assert frame.statuses("age").tolist() == [FieldStatus.PRESENT] * 3
    times = frame.event_times("score")
    assert times[0] == np.datetime64(NOW.replace(tzinfo=None))
    assert np.isnat(times[2])


def test_a_read_in_two_parts_is_the_read_in_one(reader: FeatureReader, redis_server) -> None:
    features = ["posts:score", "users:age", "posts:topic", "users:rate"]
    entities = {"user_id": 1, "post_id": [11, 10, 99]}
    with redis.Redis(port=redis_server.port) as client:
        client.set("beside", b"value")
    begun = reader.begin(features, {"user_id": 1}, [b"beside", b"no such key"])
    assert begun.beside == [b"value", None]
    assert len(begun.answers) == 1
    whole, parts = reader.read(features, entities), reader.read(features, entities, begun=begun)
    assert parts.to_arrow().equals(whole.to_arrow())
    # What was read of other features is not taken for these.
    others = reader.begin(["users:city"], {"user_id": 2})
    again = reader.read(features, entities, begun=others)
    assert again.to_arrow().equals(whole.to_arrow())
    # Nothing of the features is known by these entities, and nothing was asked beside them.
    assert reader.begin(["posts:score"], {"user_id": 1}).answers == {}


def test_nulls_and_missing_users_in_the_matrix(reader: FeatureReader) -> None:
    frame = reader.read(["users:age", "users:vip", "users:rate"], {"user_id": [1, 2, 3]})
    nan = np.nan
    np.testing.assert_array_equal(frame.matrix, [[30, 1, 0.25], [nan, nan, nan], [nan, nan, nan]])
    assert frame.statuses("age").tolist() == [1, 1, 3]
    shared = reader.read(["users:age", "posts:score"], {"user_id": 2, "post_id": [10, 11]})
    np.testing.assert_array_equal(shared.matrix, [[nan, 0.5], [nan, 1.5]])


def test_rows_that_are_too_old_are_null_and_say_so(reader: FeatureReader) -> None:
    frame = reader.read(["posts:score", "posts:topic"], {"post_id": [12, 10]})
    assert frame.column("topic").tolist() == [None, "sport"]
    assert frame.statuses("score").tolist() == [FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.PRESENT]


def test_columns_of_every_shape(reader: FeatureReader) -> None:
    features = ["posts:vector", "posts:posted", "posts:likes", "users:taste", "users:city"]
    frame = reader.read(features, {"post_id": [10, 11, 99], "user_id": 1})
    np.testing.assert_array_equal(frame.column("vector"), [[3, 4], [1, 0], [np.nan, np.nan]])
    assert frame.column("vector").dtype == np.float32
    np.testing.assert_array_equal(frame.column("taste"), [[1, 2]] * 3)
    assert frame.column("posted").dtype == np.dtype("datetime64[us]")
    assert frame.column("posted")[0] == np.datetime64("2026-01-02")
    assert np.isnat(frame.column("posted")[1:]).all()
    assert frame.column("city").tolist() == ["Oslo"] * 3
    only_known = reader.read(["posts:likes"], {"post_id": [10, 11]})
    assert only_known.column("likes").tolist() == [2**53 + 1, 5]  # exact: not through float64
    assert frame.arrow("likes").to_pylist() == [2**53 + 1, 5, None]
    pandas = frame.to_pandas()
    assert list(pandas.columns) == ["user_id", "post_id", *frame.names] or list(pandas.columns) == [
        "post_id",
        "user_id",
        *frame.names,
    ]
    assert pandas["vector"][2] is None
    assert frame.to_arrow().num_rows == 3


def test_float32_matrix(store: FeatureStore) -> None:
    reader = FeatureReader(store, registry_ttl_seconds=None, dtype=np.float32)
    frame = reader.read(["posts:score"], {"post_id": [10]})
    assert frame.matrix.dtype == np.float32
    assert not frame.matrix.flags.writeable


@pytest.mark.parametrize("full_feature_names", [False, True])
def test_service_with_on_demand_views_equals_feast(
    store: FeatureStore, reader: FeatureReader, full_feature_names: bool
) -> None:
    entities = {"user_id": [1, 1, 2], "post_id": [10, 11, 10]}
    frame = reader.read(
        "ranker", entities, {"hour": [21, 3, 22]}, full_feature_names=full_feature_names
    )
    service = store.get_feature_service("ranker")
    theirs = store.get_online_features(
        service, {**entities, "hour": [21, 3, 22]}, full_feature_names=full_feature_names
    ).to_dict()
    ours = frame.to_dict()
    if full_feature_names:
        # Feast loses what Python functions return when full names are asked for
        assert "doubled__double_score" not in theirs
        theirs["doubled__double_score"] = [1.0, 3.0, 1.0]
    assert ours == theirs
    prefix = {"fit": "fit__", "doubled": "doubled__"} if full_feature_names else {}
    assert frame.column(prefix.get("fit", "") + "match").tolist() == [11.0, 1.0, 3.5]
    assert frame.column(prefix.get("fit", "") + "late").tolist() == [True, False, True]
    double_score = prefix.get("doubled", "") + "double_score"
    place = frame.numeric_names.index(double_score)
    assert frame.matrix[:, place].tolist() == [1.0, 3.0, 1.0]


def test_names_are_in_the_order_of_the_service(reader: FeatureReader) -> None:
    frame = reader.read("ranker", {"user_id": 1, "post_id": [10]}, {"hour": 1})
    of_users = ("age", "city", "taste", "vip", "rate")
    assert frame.names == (
        *of_users,
        *("score", "likes", "topic"),
        *("match", "late"),
        "double_score",
    )


def test_on_demand_inputs_that_were_not_asked_for_stay_out(reader: FeatureReader) -> None:
    frame = reader.read(["fit:match"], {"user_id": 1, "post_id": [10, 99]}, {"hour": 1})
    assert frame.names == ("match",)
    assert frame.column("match")[0] == 11.0
    assert np.isnan(frame.column("match")[1])
    assert list(frame.to_dict()) == [*frame.entities, "match"]


def test_join_key_aliases(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    view = user_view(tmp_path, "people", {"x": Float64})
    service = FeatureService(
        name="pairs",
        features=[
            view.with_name("author").with_join_key_map({"user_id": "author_id"}),
            view.with_name("visitor").with_join_key_map({"user_id": "visitor_id"}),
        ],
    )
    store = feature_store(tmp_path, packed(redis_server.port), [user_entity(), view, service])
    rows = pd.DataFrame({"user_id": [1, 2], "x": [1.0, 2.0], "event_timestamp": pd.Timestamp(NOW)})
    store.write_to_online_store("people", rows)
    reader = FeatureReader(store, registry_ttl_seconds=None)
    frame = reader.read("pairs", {"author_id": [1, 2], "visitor_id": 2}, full_feature_names=True)
    assert frame.names == ("author__x", "visitor__x")
    assert frame.matrix.tolist() == [[1.0, 2.0], [2.0, 2.0]]


def test_errors_name_what_is_wrong(reader: FeatureReader) -> None:
    good = {"user_id": [1]}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("nosuch", good, "cannot resolve feature service 'nosuch'"),
        (["users:nosuch"], good, "nosuch"),
        (["nosuch:age"], good, "nosuch"),
        ([], good, r"cannot resolve the features \(none\)"),
        (["users:age"], {}, "missing in the request: user_id"),
        (["users:age"], {"user_id": [1], "shop": [1]}, "unknown in the request: shop"),
        (["users:age"], {"user_id": []}, "no values given for user_id"),
        (["users:age"], {"user_id": ["ann"]}, "user_id of feature view users is declared INT64"),
        (["users:age"], {"user_id": [1.5]}, "user_id of feature view users"),
        (["users:age"], {"user_id": [1, None]}, "user_id of feature view users is null"),
        (["users:age"], {"user_id": None}, "user_id of feature view users is"),
        (["users:age"], {"user_id": [1, "x"]}, "values of user_id are not of one type"),
        (["fit:match"], {"user_id": 1, "post_id": [1]}, "missing in the request: hour"),
        (
            ["users:age", "posts:score"],
            {"user_id": [1, 2, 3], "post_id": [1, 2]},
            "numbers of values differ",
        ),
    ]
    for features, entities, message in cases:
        with pytest.raises(RequestError, match=message):
            reader.read(features, entities)
    with pytest.raises(RequestError, match="no feature city in this result; it has age"):
        reader.read(["users:age"], good).column("city")


def test_another_online_store_is_refused(tmp_path: Path) -> None:
    store = feature_store(tmp_path, {"type": "sqlite", "path": str(tmp_path / "o.db")}, [])
    with pytest.raises(UnsupportedError, match="the online store is SqliteOnlineStore"):
        FeatureReader(store)


def test_many_threads_share_a_reader(reader: FeatureReader) -> None:
    failures: list[object] = []

    def work(first: int) -> None:
        for turn in range(50):
            ids = [10, 11] if (first + turn) % 2 else [11, 10]
            frame = reader.read(["posts:score", "users:age"], {"post_id": ids, "user_id": 1})
            expected = [[0.5 if post == 10 else 1.5, 30.0] for post in ids]
            if frame.matrix.tolist() != expected:
                failures.append(frame.matrix)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_asyncio(store: FeatureStore, reader: FeatureReader) -> None:
    async def work() -> list[Any]:
        reads = (reader.read_async(["posts:score"], {"post_id": [post]}) for post in (10, 11, 99))
        frames = await asyncio.gather(*reads)
        await store._get_provider().online_store.close()
        return [frame.matrix.item() for frame in frames]

    assert asyncio.run(work()) == [0.5, 1.5, pytest.approx(np.nan, nan_ok=True)]


def test_registry_is_renewed_in_the_background(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    service = FeatureService(name="svc", features=[])
    first = user_view(tmp_path, "w", {"x": Float64, "y": Float64})
    service = FeatureService(name="svc", features=[first[["x"]]])
    store = feature_store(tmp_path, packed(redis_server.port), [user_entity(), first, service])
    reader = FeatureReader(store, registry_ttl_seconds=0.05)
    assert reader.read("svc", {"user_id": 1}).names == ("x",)
    store.apply([FeatureService(name="svc", features=[first[["y", "x"]]])])
    deadline = datetime.now(UTC) + timedelta(seconds=10)
    while reader.read("svc", {"user_id": 1}).names != ("y", "x"):
        assert datetime.now(UTC) < deadline
    reader.close()


def test_the_request_path_does_not_touch_the_registry(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FeatureReader(store, registry_ttl_seconds=None)
    reader.prepare("ranker")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the registry was looked up while a request waited")

    for method in ("list_entities", "get_feature_service", "get_any_feature_view", "refresh"):
        monkeypatch.setattr(store.registry, method, refuse)
    frame = reader.read("ranker", {"user_id": 1, "post_id": [10]}, {"hour": 1})
    assert frame.column("score").tolist() == [0.5]


def test_old_readers_are_collected(store: FeatureStore) -> None:
    import gc
    import weakref

    reader = FeatureReader(store, registry_ttl_seconds=60)
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None

"""What Feast's universal integration tests look at, on the three classes together.

The scenarios are those of Feast's own suite that no other test here goes through; the tests
are our own. Feast's suite itself runs with ``feast_universal.py``.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.aggregation import Aggregation
from feast.errors import (
    FeatureNameCollisionError,
    RequestDataNotFoundInEntityDfException,
    SavedDatasetLocationAlreadyExists,
)
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import MaterializationConfig
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from offline_repository import local_store

from feastpack import FeatureReader
from feastpack.embedded import EmbeddedRedis
from feastpack.errors import UnsupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Saving dataset is an experimental feature"),
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
]

NOW = pd.Timestamp(datetime.now(UTC)).floor("s")
HOUR = pd.Timedelta(hours=1)
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
PLACE = Entity(name="place", join_keys=["place_id"], value_type=ValueType.INT64)


class Repository:
    """Feature stores on the three classes, over parquet files in one folder."""

    def __init__(self, folder: Path, server: EmbeddedRedis) -> None:
        self.folder = folder
        self.online = {
            "type": "feastpack.PackedRedisOnlineStore",
            "connection_string": f"{server.host}:{server.port}",
        }

    def source(self, columns: dict[str, Any], **options: Any) -> FileSource:
        name = options.pop("name", "stats")
        path = self.folder / f"{name}.parquet"
        pd.DataFrame(columns).to_parquet(path, index=False)
        return FileSource(name=name, path=str(path), timestamp_field="ts", **options)

    def store(self, *objects: Any, **online: Any) -> FeatureStore:
        settings = {**self.online, **online}
        return local_store(
            self.folder, objects, online=settings, engine="feastpack.ArrowComputeEngine"
        )


@pytest.fixture
def repository(tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any) -> Repository:
    return Repository(tmp_path, redis_server)


def stats_view(source: Any, name: str = "stats", **features: Any) -> FeatureView:
    wanted = features or {"trips": Int32, "rate": Float32}
    return FeatureView(
        name=name,
        entities=[DRIVER],
        schema=[Field(name=feature, dtype=dtype) for feature, dtype in wanted.items()],
        source=source,
        ttl=timedelta(days=7),
    )


def stats(**columns: Any) -> dict[str, Any]:
    defaults = {"driver_id": [1, 2], "trips": [4, 5], "rate": [0.5, 0.25], "ts": [NOW, NOW - HOUR]}
    return {**defaults, **columns}


def test_written_rows_and_materialized_rows_take_the_newest(repository: Repository) -> None:
    view = stats_view(repository.source(stats()))
    store = repository.store(DRIVER, view)

    def trips() -> list[Any]:
        rows = {"driver_id": [1, 2]}
        result: list[Any] = store.get_online_features(["stats:trips"], rows).to_dict()["trips"]
        return result

    store.write_to_online_store("stats", pd.DataFrame(stats(trips=[10, 20], ts=NOW - 2 * HOUR)))
    assert trips() == [10, 20]
    store.write_to_online_store("stats", pd.DataFrame(stats(trips=[11, 21], ts=NOW - 3 * HOUR)))
    assert trips() == [10, 20]
    newest = pd.DataFrame(stats(trips=[12, 0], ts=[NOW + HOUR, NOW - 4 * HOUR]))
    store.write_to_online_store("stats", newest)
    store.materialize(NOW - 12 * HOUR, NOW)
    assert trips() == [12, 5]


def test_keys_are_gone_after_their_time(repository: Repository) -> None:
    store = repository.store(DRIVER, stats_view(repository.source(stats())), key_ttl_seconds=2)
    store.write_to_online_store("stats", pd.DataFrame(stats()))
    features, rows = ["stats:trips", "stats:rate"], {"driver_id": [1]}
    assert store.get_online_features(features, rows).to_df()["trips"].tolist() == [4]
    time.sleep(2.2)
    assert store.get_online_features(features, rows).to_df()[["trips", "rate"]].isna().all(None)


def test_a_feature_of_another_view_on_the_same_source(repository: Repository) -> None:
    source = repository.source(stats())
    one = stats_view(source, "one", trips=Int32)
    two = stats_view(source, "two", trips=Int32, rate=Float32)
    store = repository.store(DRIVER, one, two)
    rows = pd.DataFrame({"driver_id": [1, 2], "event_timestamp": NOW})
    with pytest.raises(KeyError, match="rate"):
        store.get_online_features(["one:rate"], {"driver_id": [1, 2]})
    with pytest.raises(KeyError, match="rate"):
        store.get_historical_features(rows, ["one:rate"]).to_df()
    assert store.get_historical_features(rows, ["two:rate"]).to_df()["rate"].tolist() == [0.5, 0.25]


def test_event_timestamps_in_the_frame(repository: Repository) -> None:
    store = repository.store(DRIVER, stats_view(repository.source(stats())))
    store.write_to_online_store("stats", pd.DataFrame(stats()))
    features, rows = ["stats:trips", "stats:rate"], {"driver_id": [1, 2]}
    expected = [int(moment.timestamp()) for moment in (NOW, NOW - HOUR)]

    async def read() -> pd.DataFrame:
        response = await store.get_online_features_async(features, rows)
        await store._get_provider().online_store.close()
        return response.to_df(True)

    for frame in (store.get_online_features(features, rows).to_df(True), asyncio.run(read())):
        assert frame["driver_id"].tolist() == [1, 2]
        assert frame["trips"].tolist() == [4, 5]
        for name in ("trips", "rate"):
            assert frame[f"{name}__ts"].tolist() == expected


def test_a_view_removed_and_made_again_is_empty(repository: Repository) -> None:
    source = repository.source(stats())
    kept, removed = stats_view(source, "kept"), stats_view(source, "removed")
    store = repository.store(DRIVER, kept, removed)
    store.materialize(NOW - 12 * HOUR, NOW + HOUR)

    def trips(view: str) -> list[Any]:
        rows = {"driver_id": [1, 2]}
        result: list[Any] = store.get_online_features([f"{view}:trips"], rows).to_dict()["trips"]
        return result

    assert trips("kept") == trips("removed") == [4, 5]
    store.apply([kept], objects_to_delete=[removed], partial=False)
    assert trips("kept") == [4, 5]
    store.apply([DRIVER, stats_view(source, "removed")])
    assert trips("removed") == [None, None]


def test_one_view_under_two_names_with_mapped_keys(repository: Repository) -> None:
    """From a place to a place: online and offline; short names would collide."""
    columns = {"place_id": [1, 2, 3], "heat": [10, 20, 30], "ts": [NOW - HOUR] * 3}
    view = FeatureView(
        name="places",
        entities=[PLACE],
        schema=[Field(name="heat", dtype=Int32)],
        source=repository.source(columns, name="places"),
    )
    ends = [
        view.with_name(name).with_join_key_map({"place_id": f"{name}_id"})
        for name in ("origin", "target")
    ]
    service = FeatureService(name="trip", features=ends)
    store = repository.store(PLACE, view, service)
    store.materialize(NOW - 12 * HOUR, NOW)
    rows = {"origin_id": [1, 2], "target_id": [3, 9]}
    online = store.get_online_features(service, rows, full_feature_names=True).to_dict()
    assert online == {**rows, "origin__heat": [10, 20], "target__heat": [30, None]}
    entities = pd.DataFrame({**rows, "event_timestamp": NOW})
    offline = store.get_historical_features(entities, service, full_feature_names=True).to_df()
    assert offline["origin__heat"].tolist() == [10, 20]
    assert offline["target__heat"].iloc[0] == 30
    assert pd.isna(offline["target__heat"].iloc[1])
    with pytest.raises(FeatureNameCollisionError, match="heat"):
        store.get_online_features(service, rows)
    with pytest.raises(FeatureNameCollisionError, match="heat"):
        store.get_historical_features(entities, service)


def test_on_demand_outputs_are_those_asked_for(repository: Repository) -> None:
    view = stats_view(repository.source(stats()), trips=Int32)
    request = RequestSource(name="more", schema=[Field(name="extra", dtype=Int64)])

    @on_demand_feature_view(
        sources=[view, request],
        schema=[Field(name="plus_extra", dtype=Int64), Field(name="plus_100", dtype=Int64)],
        mode="pandas",
    )
    def added(inputs: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        out = pd.DataFrame()
        out["plus_extra"] = inputs["trips"] + inputs["extra"]
        out["plus_100"] = inputs["trips"] + 100
        return out

    store = repository.store(DRIVER, view, added)
    rows = pd.DataFrame({"driver_id": [2, 1], "event_timestamp": NOW})
    with pytest.raises(RequestDataNotFoundInEntityDfException, match="extra"):
        store.get_historical_features(rows, ["added:plus_extra"])
    rows["extra"] = [1, 2]
    for full, name in ((False, "plus_extra"), (True, "added__plus_extra")):
        frame = store.get_historical_features(rows, ["added:plus_extra"], full).to_df()
        assert frame[name].tolist() == [6, 6]
        assert not [column for column in frame if column.endswith("plus_100")]


def test_a_mapped_join_key(repository: Repository) -> None:
    columns = {"id": [1, 2], "trips": [4, 5], "ts": [NOW - HOUR] * 2}
    source = repository.source(columns, field_mapping={"id": "driver_id"})
    store = repository.store(DRIVER, stats_view(source, trips=Int32))
    rows = pd.DataFrame({"driver_id": [2, 1], "event_timestamp": NOW})
    assert store.get_historical_features(rows, ["stats:trips"]).to_df()["trips"].tolist() == [5, 4]
    store.materialize(NOW - 12 * HOUR, NOW)
    online = store.get_online_features(["stats:trips"], {"driver_id": [2, 1]}).to_dict()
    assert online["trips"] == [5, 4]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (Int32, np.array([3, 4], "int32")),
        (Int64, np.array([3, 2**60])),
        (Float32, np.array([0.5, 1.5], "float32")),
        (Float64, [0.1, None]),
        (String, ["a", None]),
        (Bool, [True, False]),
        (UnixTimestamp, [NOW, NOW - HOUR]),
        (Array(Int64), [[1, 2], []]),
        (Array(Float64), [[0.1], [0.2, 0.3]]),
        (Array(String), [["x", ""], ["y"]]),
        (Array(Bool), [[True], [False, True]]),
    ],
    # Names without values: a time in one would differ between the processes that run the tests.
    ids=lambda part: "" if isinstance(part, list | np.ndarray) else str(part),
)
@pytest.mark.parametrize("key", [[1, 2], ["one", "zwei"]], ids=["int", "string"])
def test_types_from_file_to_both_ends(
    repository: Repository, dtype: Any, values: Any, key: list[Any]
) -> None:
    """What the file holds is what comes back, offline and, after materialization, online."""
    kind = ValueType.INT64 if isinstance(key[0], int) else ValueType.STRING
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=kind)
    source = repository.source({"driver_id": key, "value": values, "ts": [NOW - HOUR] * 2})
    view = stats_view(source, value=dtype)
    view = FeatureView(name="stats", entities=[driver], schema=view.schema, source=source)
    store = repository.store(driver, view)
    rows = pd.DataFrame({"driver_id": key[::-1], "event_timestamp": NOW})
    table = store.get_historical_features(rows, ["stats:value"]).to_arrow()
    backwards = [plain(value) for value in values][::-1]
    assert [plain(value) for value in table["value"].to_pylist()] == backwards
    store.materialize(NOW - 12 * HOUR, NOW)
    online = store.get_online_features(["stats:value"], {"driver_id": key[::-1]}).to_dict()
    assert [plain(value) for value in online["value"]] == backwards


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp() if value.tzinfo else value.replace(tzinfo=UTC).timestamp()
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "inferred"])
@pytest.mark.parametrize("latest", [True, False], ids=["latest", "all"])
def test_online_follows_offline_run_by_run(
    repository: Repository, declared: bool, latest: bool
) -> None:
    """After each incremental run, online is what an offline join at its end gives."""
    times = [NOW - HOUR * hours for hours in (9, 8, 6, 4, 4, 2)]
    columns = {"driver_id": [1, 3, 1, 2, 3, 1], "value": np.arange(6.0), "ts": times}
    source = repository.source({**columns, "made": times}, created_timestamp_column="made")
    fields = [Field(name="value", dtype=Float64)] if declared else []
    view = FeatureView(
        name="stats", entities=[DRIVER], schema=fields, source=source, ttl=timedelta(days=1)
    )
    store = repository.store(DRIVER, view)
    store.config.materialization_config = MaterializationConfig(pull_latest_features=latest)
    store.materialize(NOW - 24 * HOUR, NOW - 5 * HOUR)
    for end in (NOW - 5 * HOUR, NOW):
        if end == NOW:
            store.materialize_incremental(NOW, ["stats"])
        rows = pd.DataFrame({"driver_id": [1, 2, 3, 4], "event_timestamp": end})
        offline = store.get_historical_features(rows, ["stats:value"]).to_df()["value"]
        online = store.get_online_features(["stats:value"], {"driver_id": [1, 2, 3, 4]}).to_df()
        np.testing.assert_array_equal(online["value"].astype(float), offline.astype(float))


def test_saved_dataset_does_not_replace_a_source(repository: Repository) -> None:
    source = repository.source(stats())
    store = repository.store(DRIVER, stats_view(source))
    job = store.get_historical_features(
        pd.DataFrame({"driver_id": [1], "event_timestamp": NOW}), ["stats:trips"]
    )
    with pytest.raises(SavedDatasetLocationAlreadyExists, match=r"stats\.parquet"):
        store.create_saved_dataset(
            from_=job, name="training", storage=SavedDatasetFileStorage.from_data_source(source)
        )


def test_pushed_rows_are_read(repository: Repository) -> None:
    push = PushSource(name="pushed", batch_source=repository.source(stats()))
    store = repository.store(DRIVER, stats_view(push))
    store.push("pushed", pd.DataFrame(stats()))
    features = ["stats:trips"]
    assert store.get_online_features(features, {"driver_id": [2]}).to_dict()["trips"] == [5]

    async def push_and_read() -> Any:
        newer = pd.DataFrame(stats(trips=[6, 7], ts=NOW + HOUR))
        await store.push_async("pushed", newer)
        response = await store.get_online_features_async(features, {"driver_id": [2]})
        await store._get_provider().online_store.close()
        return response.to_dict()["trips"]

    assert asyncio.run(push_and_read()) == [7]


def test_aggregations_at_request_time_are_left_to_feast(repository: Repository) -> None:
    view = stats_view(repository.source(stats()), trips=Int32)

    @on_demand_feature_view(
        sources=[view],
        schema=[Field(name="sum_trips", dtype=Int64)],
        aggregations=[Aggregation(column="trips", function="sum")],
        mode="python",
    )
    def totals(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"sum_trips": inputs["trips"]}

    store = repository.store(DRIVER, view, totals)
    reader = FeatureReader(store, registry_ttl_seconds=None)
    with pytest.raises(UnsupportedError, match=r"totals aggregates .*get_online_features"):
        reader.read("totals:sum_trips", {"driver_id": [1]})

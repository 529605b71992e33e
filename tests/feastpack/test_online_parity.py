"""Our online store against Feast's own Redis store: same writes, same requests, same answers.

Known differences, each with its test here or in test_online.py, are listed in
docs/feastpack.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType
from feast_values import (
    FEAST_TYPES,
    feature_store,
    file_source,
    packed,
    stock,
    user_entity,
    user_key,
    user_view,
    value_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feastpack import FeatureReader
from feastpack.embedded import EmbeddedRedis

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ALL_TYPES = {f"f_{name.lower()}": dtype for name, dtype in FEAST_TYPES.items()}


class Pair:
    """The same feature repository on both online stores."""

    def __init__(self, folder: Path, port: int, *objects: Any) -> None:
        self.ours = feature_store(folder, packed(port), objects)
        self.theirs = feature_store(folder, stock(port), objects)
        self.reader = FeatureReader(self.ours, registry_ttl_seconds=None)

    def write(self, view: str, rows: list[Any]) -> None:
        for store in (self.ours, self.theirs):
            online = store._get_provider().online_store
            # a copy: Feast's own store is free to change what it is given
            online.online_write_batch(store.config, store.get_feature_view(view), list(rows), None)

    def answers(self, features: list[str], entities: dict[str, list[Any]]) -> tuple[Any, Any]:
        return (
            self.ours.get_online_features(features, entities),
            self.theirs.get_online_features(features, entities),
        )


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> Pair:
    folder = tmp_path_factory.mktemp("everything")
    return Pair(folder, redis_server.port, user_entity(), user_view(folder, "all", ALL_TYPES))


@st.composite
def _histories(draw: st.DrawFn) -> list[Any]:
    """Writes of a few users, every one at a time of its own (ties are another test)."""
    times = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True))
    rows = []
    for minutes in times:
        values = {
            name: draw(value_of(name.removeprefix("f_").upper())) for name in sorted(ALL_TYPES)
        }
        user = draw(st.integers(1, 3))
        rows.append((user_key(user), values, NOW + timedelta(minutes=minutes), None))
    return rows


@given(_histories(), st.lists(st.integers(0, 4), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_value_type_history_and_request(
    everything: Pair, rows: list[Any], users: list[int]
) -> None:
    for store in (everything.ours, everything.theirs):
        online = store._get_provider().online_store
        view = store.get_feature_view("all")
        online.teardown(store.config, [view], [user_entity()])
    half = len(rows) // 2
    everything.write("all", rows[:half])
    everything.write("all", rows[half:])
    features = [f"all:{name}" for name in ALL_TYPES]
    ours, theirs = everything.answers(features, {"user_id": users})
    assert ours.to_dict() == theirs.to_dict()
    known = {entity.entity_values[0].int64_val for entity, _, _, _ in rows}
    _assert_equal_protos(ours, theirs, [user in known for user in users])
    frame = everything.reader.read(features, {"user_id": users})
    assert frame.to_dict() == ours.to_dict()
    assert frame.statuses("f_int64").tolist() == [
        FieldStatus.PRESENT if user in known else FieldStatus.NOT_FOUND for user in users
    ]


def _assert_equal_protos(ours: Any, theirs: Any, known: list[bool]) -> None:
    """Equal values and times; equal statuses but for entities that were never written.

    Feast's Redis store calls those PRESENT, at the time 0; other stores of Feast, and ours,
    NOT_FOUND.
    """
    mine = dict(zip(ours.proto.metadata.feature_names.val, ours.proto.results, strict=True))
    other = dict(zip(theirs.proto.metadata.feature_names.val, theirs.proto.results, strict=True))
    assert set(mine) == set(other)
    for name, vector in mine.items():
        assert list(vector.values) == list(other[name].values)
        for status, stock_status, present in zip(
            vector.statuses, other[name].statuses, known, strict=True
        ):
            if present or name == "user_id":
                assert status == stock_status == FieldStatus.PRESENT
            else:
                assert (status, stock_status) == (FieldStatus.NOT_FOUND, FieldStatus.PRESENT)
        if name != "user_id":
            times = [
                t for t, present in zip(vector.event_timestamps, known, strict=True) if present
            ]
            stock_times = [
                t for t, present in zip(other[name].event_timestamps, known, strict=True) if present
            ]
            assert times == stock_times


@pytest.mark.parametrize(
    ("join_keys", "values"),
    [
        ({"name": ValueType.STRING}, [{"name": "ann"}, {"name": ""}, {"name": "ж"}]),
        ({"n": ValueType.INT32}, [{"n": 1}, {"n": -5}]),
        (
            {"b": ValueType.STRING, "a": ValueType.INT64},
            [{"b": "x", "a": 1}, {"b": "x1", "a": -1}, {"b": "", "a": 0}],
        ),
        ({}, [{}]),
    ],
)
def test_string_composite_and_no_keys(
    tmp_path: Path,
    redis_server: EmbeddedRedis,
    redis_client: Any,
    join_keys: dict[str, ValueType],
    values: list[dict[str, Any]],
) -> None:
    entities = [
        Entity(name=f"entity_{name}", join_keys=[name], value_type=value_type)
        for name, value_type in join_keys.items()
    ]
    example: dict[str, Any] = {name: [value] for name, value in values[0].items()}
    view = FeatureView(
        name="keyed",
        entities=entities,
        schema=[Field(name="x", dtype=Int64), Field(name="s", dtype=String)],
        source=file_source(tmp_path, {**example, "x": [1], "s": ["a"]}),
    )
    pair = Pair(tmp_path, redis_server.port, *entities, view)
    attributes = {
        ValueType.STRING: "string_val",
        ValueType.INT32: "int32_val",
        ValueType.INT64: "int64_val",
    }
    rows = []
    for index, key in enumerate(values):
        names = list(key) or ["__dummy_id"]
        cells = [Value(**{attributes[join_keys[n]]: v}) for n, v in key.items()]
        entity = EntityKey(join_keys=names, entity_values=cells or [Value(string_val="")])
        features = {"x": Value(int64_val=index), "s": Value(string_val=str(index))}
        rows.append((entity, features, NOW, None))
    pair.write("keyed", rows)
    request = {name: [key[name] for key in values] for name in join_keys} or {"whatever": [1]}
    ours, theirs = pair.answers(["keyed:x", "keyed:s"], request)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.to_dict()["x"] == list(range(len(values)))
    frame = pair.reader.read(["keyed:x", "keyed:s"], request if join_keys else {})
    assert frame.to_dict() == theirs.to_dict()


def test_arrow_write_equals_feasts_conversion(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    """What the batch engine writes as columns is what Feast would write value by value."""
    types = {
        "i32": ("INT32", pa.array([1, None, -3], pa.int32())),
        "i64": ("INT64", pa.array([2**53 - 1, 0, -3], pa.int64())),
        "f32": ("FLOAT", pa.array([0.1, None, float("nan")], pa.float32())),
        "f64": ("DOUBLE", pa.array([0.1, None, float("inf")])),
        "flag": ("BOOL", pa.array([True, None, False])),
        "at": ("UNIX_TIMESTAMP", pa.array([-1_500_000, 0, 10**15], pa.timestamp("us", "UTC"))),
        "text": ("STRING", pa.array(["a", None, ""])),
        "raw": ("BYTES", pa.array([b"a", None, b""])),
        "floats": ("FLOAT_LIST", pa.array([[0.5], None, []], pa.list_(pa.float32()))),
        "ints": ("INT64_LIST", pa.array([[1, 2], None, []], pa.list_(pa.int64()))),
        "texts": ("STRING_LIST", pa.array([["a", "bc"], None, []], pa.list_(pa.string()))),
        "json": ("JSON", pa.array(['{"a": 1}', None, "2"])),
    }
    view = user_view(
        tmp_path, "wide", {name: FEAST_TYPES[kind] for name, (kind, _) in types.items()}
    )
    pair = Pair(tmp_path, redis_server.port, user_entity(), view)
    table = pa.table(
        {
            "user_id": [1, 2, 3],
            "event_timestamp": pa.array([NOW] * 3, pa.timestamp("us", "UTC")),
            **{name: column for name, (_, column) in types.items()},
        }
    )
    ours, theirs = pair.ours, pair.theirs
    online = ours._get_provider().online_store
    assert online.online_write_arrow(ours.config, ours.get_feature_view("wide"), table) == 3
    stock_view = theirs.get_feature_view("wide")
    rows = _convert_arrow_to_proto(table, stock_view, {"user_id": ValueType.INT64})
    theirs._get_provider().online_store.online_write_batch(theirs.config, stock_view, rows, None)
    features = [f"wide:{name}" for name in types]
    mine, other = pair.answers(features, {"user_id": [3, 1, 2]})
    # UNIX_TIMESTAMP null, where Feast stores a mark, comes out as None in both
    assert mine.to_dict() == other.to_dict()


def test_feature_services_and_full_names(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    from feast import FeatureService

    first = user_view(tmp_path, "first", {"x": Float64, "y": Float64})
    second = user_view(tmp_path, "second", {"x": Float64})
    service = FeatureService(name="svc", features=[second, first[["y"]].with_name("alias")])
    pair = Pair(tmp_path, redis_server.port, user_entity(), first, second, service)
    row = {"x": Value(double_val=1.0), "y": Value(double_val=2.0)}
    pair.write("first", [(user_key(1), row, NOW, None)])
    pair.write("second", [(user_key(1), {"x": Value(double_val=3.0)}, NOW, None)])
    results = []
    for store in (pair.ours, pair.theirs):
        loaded = store.get_feature_service("svc")
        response = store.get_online_features(loaded, {"user_id": [1, 9]}, full_feature_names=True)
        results.append(response.to_dict())
    assert results[0] == results[1]
    assert results[0] == {
        "user_id": [1, 9],
        "second__x": [3.0, None],
        "alias__y": [2.0, None],
    }
    frame = pair.reader.read("svc", {"user_id": [1, 9]}, full_feature_names=True)
    assert frame.to_dict() == results[0]
    assert frame.names == ("second__x", "alias__y")

"""Hypothesis strategies of Feast's value types and small feature stores for tests."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    BytesList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    Int64Set,
    Map,
    RepeatedValue,
    StringList,
    StringSet,
    Value,
    ZonedTimestamp,
)
from feast.types import from_value_type
from feast.value_type import ValueType
from hypothesis import strategies as st

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
SECONDS = st.integers(-(10**9), 4 * 10**9)
FLOAT = st.floats(width=32, allow_nan=False)
DOUBLE = st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
BYTES = st.binary(max_size=12)
JSON_TEXT = st.sampled_from(['{"a": 1}', "[1, 2]", '"x"', "3"])
DECIMAL = st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str)
UUID = st.uuids().map(str)
TEXTS = st.lists(TEXT, max_size=4)


def _wrapped(message: Callable[..., Any], items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=4).map(lambda values: message(val=values))


VALUES: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "INT32": ("int32_val", INT32),
    "INT64": ("int64_val", INT64),
    "DOUBLE": ("double_val", DOUBLE),
    "FLOAT": ("float_val", FLOAT),
    "BOOL": ("bool_val", st.booleans()),
    "UNIX_TIMESTAMP": ("unix_timestamp_val", SECONDS),
    "STRING": ("string_val", TEXT),
    "BYTES": ("bytes_val", BYTES),
    "JSON": ("json_val", JSON_TEXT),
    "UUID": ("uuid_val", UUID),
    "TIME_UUID": ("time_uuid_val", UUID),
    "DECIMAL": ("decimal_val", DECIMAL),
    "INT32_LIST": ("int32_list_val", _wrapped(Int32List, INT32)),
    "INT64_LIST": ("int64_list_val", _wrapped(Int64List, INT64)),
    "DOUBLE_LIST": ("double_list_val", _wrapped(DoubleList, DOUBLE)),
    "FLOAT_LIST": ("float_list_val", _wrapped(FloatList, FLOAT)),
    "BOOL_LIST": ("bool_list_val", _wrapped(BoolList, st.booleans())),
    "UNIX_TIMESTAMP_LIST": ("unix_timestamp_list_val", _wrapped(Int64List, SECONDS)),
    "STRING_LIST": ("string_list_val", _wrapped(StringList, TEXT)),
    "BYTES_LIST": ("bytes_list_val", _wrapped(BytesList, BYTES)),
    "UUID_LIST": ("uuid_list_val", _wrapped(StringList, UUID)),
    "JSON_LIST": ("json_list_val", _wrapped(StringList, JSON_TEXT)),
    "INT64_SET": ("int64_set_val", _wrapped(Int64Set, INT64)),
    "STRING_SET": ("string_set_val", _wrapped(StringSet, TEXT)),
    "MAP": (
        "map_val",
        st.dictionaries(TEXT, INT64, max_size=3).map(
            lambda entries: Map(val={k: Value(int64_val=v) for k, v in entries.items()})
        ),
    ),
    "VALUE_LIST": (
        "list_val",
        _wrapped(Int64List, INT64).map(
            lambda inner: RepeatedValue(val=[Value(int64_list_val=inner)])
        ),
    ),
    "ZONED_TIMESTAMP": (
        "zoned_timestamp_val",
        SECONDS.map(lambda s: ZonedTimestamp(unix_timestamp=s, zone="Europe/Paris")),
    ),
}


def value_of(value_type: str) -> st.SearchStrategy[Value]:
    """A set value of the type, or (now and then) null."""
    attribute, content = VALUES[value_type]
    present = content.map(lambda inner: Value(**{attribute: inner}))
    return st.one_of(present, present, present, st.just(Value()))


FEAST_TYPES = {
    name: from_value_type(ValueType[name]) for name in VALUES if name not in ("VALUE_LIST",)
}


def feature_store(
    folder: Path, online_store: dict[str, Any], objects: Sequence[Any], **settings: Any
) -> FeatureStore:
    """A feature store in a folder, its objects applied."""
    config = RepoConfig(
        project="shop",
        provider="local",
        registry=str(folder / f"registry_{uuid.uuid4().hex}.db"),
        online_store=online_store,
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
        repo_path=folder,
        **settings,
    )
    store = FeatureStore(config=config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="On demand feature view is an experimental")
        store.apply(list(objects))
    return store


def packed(port: int, **settings: Any) -> dict[str, Any]:
    """Settings of our online store."""
    where = {"type": "feastpack.PackedRedisOnlineStore", "connection_string": f"127.0.0.1:{port}"}
    return {**where, **settings}


def stock(port: int, **settings: Any) -> dict[str, Any]:
    """Settings of Feast's own Redis store; another database, so that both can be compared."""
    return {"type": "redis", "connection_string": f"127.0.0.1:{port},db=1", **settings}


def file_source(folder: Path, columns: dict[str, Any]) -> FileSource:
    """A parquet source of one row, from which Feast infers types at apply."""
    import pandas as pd

    path = folder / f"{uuid.uuid4().hex}.parquet"
    moment = pd.Timestamp("2026-01-01", tz="UTC")
    pd.DataFrame({**columns, "event_timestamp": [moment]}).to_parquet(path)
    return FileSource(path=str(path), timestamp_field="event_timestamp")


def user_entity() -> Entity:
    return Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)


def user_view(folder: Path, name: str, features: dict[str, Any], **settings: Any) -> FeatureView:
    return FeatureView(
        name=name,
        entities=settings.pop("entities", [user_entity()]),
        schema=[Field(name=feature, dtype=dtype) for feature, dtype in features.items()],
        source=file_source(folder, {"user_id": [1]}),
        **settings,
    )


def user_key(user_id: int) -> EntityKey:
    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user_id)])

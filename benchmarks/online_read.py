"""Online reads: stock Feast, feastpack and the physical floor, on one Redis.

Run ``python -m benchmarks.online_read``. Results are compared before anything is timed.

- ``floats``: 500 entities x 88 float features in 4 views (the shape of Feast's issue 6856)
- ``strings``: 1 user (4 floats) and 500 posts with 8 string features
- ``api``: the request of ``floats`` through Feast's own ``get_online_features``
- ``memory``: what Redis holds per row of the same data

The floor is one MGET of the same bytes and the least code that turns them into arrays.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float32, String
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType

from benchmarks.common import isolated, median_seconds, peak_mb, report, rounded
from feastpack import FeatureReader, Frame
from feastpack.embedded import EmbeddedRedis
from feastpack.rows import HEADER_BYTES

ENTITIES = 500
STORED = 2000
FLOAT_VIEWS, FLOATS_PER_VIEW = 4, 22
TEXTS = 8
REPEATS = {"stock": 7, "ours": 101, "floor": 101, "api": 15}


def definitions(folder: Path) -> list[Any]:
    """The feature repository of all cases."""
    source = folder / "source.parquet"
    columns: dict[str, Any] = {"user_id": [1], "post_id": [1]}
    moment = pd.Timestamp("2026-01-01", tz="UTC")
    if not source.exists():
        pd.DataFrame({**columns, "event_timestamp": [moment]}).to_parquet(source)
    file = FileSource(path=str(source), timestamp_field="event_timestamp")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    post = Entity(name="post", join_keys=["post_id"], value_type=ValueType.INT64)

    def view(name: str, entity: Entity, features: dict[str, Any]) -> FeatureView:
        schema = [Field(name=feature, dtype=dtype) for feature, dtype in features.items()]
        return FeatureView(name=name, entities=[entity], schema=schema, source=file)

    floats = [
        view(f"floats_{v}", user, {f"f{v}_{i}": Float32 for i in range(FLOATS_PER_VIEW)})
        for v in range(FLOAT_VIEWS)
    ]
    texts = view("texts", post, {f"text_{i}": String for i in range(TEXTS)})
    profile = view("profile", user, {f"p{i}": Float32 for i in range(4)})
    return [user, post, *floats, texts, profile]


def feature_store(folder: str, port: int, side: str, *, apply: bool = False) -> FeatureStore:
    """Open the repository on one of the two online stores."""
    where = f"127.0.0.1:{port},db={1 if side == 'stock' else 0}"
    kind = "redis" if side == "stock" else "feastpack.PackedRedisOnlineStore"
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(Path(folder) / f"{side}.db"),
        online_store={"type": kind, "connection_string": where},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    if apply:
        store.apply(definitions(Path(folder)))
    return store


def table_of(view: FeatureView, seed: int) -> pa.Table:
    """Random rows of a view for STORED entities."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {view.join_keys[0]: np.arange(STORED)}
    for field in view.features:
        if field.dtype == String:
            lengths = rng.integers(3, 30, STORED)
            columns[field.name] = ["x" * int(n) + str(i) for i, n in enumerate(lengths)]
        else:
            columns[field.name] = rng.random(STORED, dtype=np.float32)
    now = datetime.now(UTC)
    columns["event_timestamp"] = pa.array([now] * STORED, pa.timestamp("us", "UTC"))
    return pa.table(columns)


def write(folder: str, port: int, side: str) -> dict[str, Any]:
    """Write all rows to one side; return seconds and Redis' memory per row in bytes."""
    store = feature_store(folder, port, side, apply=True)
    online = store._get_provider().online_store
    client: Any = redis.Redis(port=port)
    before = client.info("memory")["used_memory"]
    rows, start = 0, time.perf_counter()
    for seed, view in enumerate(store.list_feature_views()):
        table = table_of(view, seed)
        rows += table.num_rows
        if side == "stock":
            keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
            messages = _convert_arrow_to_proto(table, view, keys)
            online.online_write_batch(store.config, view, messages, None)
        else:
            online.online_write_arrow(store.config, view, table)
    seconds = time.perf_counter() - start
    used = client.info("memory")["used_memory"] - before
    return {"seconds": seconds, "bytes_per_row": used / rows}


def request(store: FeatureStore, case: str) -> tuple[list[str], dict[str, Any]]:
    """Features and entities of a case."""
    names = ["texts", "profile"] if case == "strings" else [f"floats_{v}" for v in range(4)]
    views = [store.get_feature_view(name) for name in names]
    features = [f"{view.name}:{field.name}" for view in views for field in view.features]
    ids = np.random.default_rng(3).permutation(STORED)[:ENTITIES]
    return features, {"post_id": ids, "user_id": 7} if case == "strings" else {"user_id": ids}


def as_feast_takes_it(entities: dict[str, Any]) -> dict[str, list[int]]:
    """Entities for Feast's own interface: lists of one length."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else [value] * ENTITIES
        for name, value in entities.items()
    }


def through_feast(folder: str, port: int, side: str, case: str, repeats: int) -> dict[str, Any]:
    """Time ``get_online_features().to_df()`` on one of the stores."""
    store = feature_store(folder, port, side)
    features, entities = request(store, case)
    rows = as_feast_takes_it(entities)

    def read() -> pd.DataFrame:
        frame: pd.DataFrame = store.get_online_features(features, rows).to_df()
        return frame

    seconds = median_seconds(read, repeats)
    return {"seconds": seconds, "peak_mb": peak_mb(), "values": checksum(read())}


def through_reader(folder: str, port: int, case: str) -> dict[str, Any]:
    """Time FeatureReader: to the matrix (floats) or to the columns (strings)."""
    store = feature_store(folder, port, "ours")
    reader = FeatureReader(store, registry_ttl_seconds=None)
    features, entities = request(store, case)
    read = reader_action(reader, features, entities, case)
    seconds = median_seconds(read, REPEATS["ours"])
    to_pandas = median_seconds(lambda: reader.read(features, entities).to_pandas(), 51)
    as_arrow = median_seconds(lambda: _arrow_columns(reader.read(features, entities)), 51)
    frame = reader.read(features, entities)
    return {
        "seconds": seconds,
        "to_arrow_s": as_arrow,
        "to_pandas_s": to_pandas,
        "peak_mb": peak_mb(),
        "values": checksum(frame.to_pandas()),
    }


def _arrow_columns(frame: Frame) -> list[pa.Array]:
    return [frame.arrow(name) for name in frame.names if name not in frame.numeric_names]


def reader_action(reader: FeatureReader, features: list[str], entities: Any, case: str) -> Any:
    """What is timed of FeatureReader: to the matrix, and for strings to their columns too."""
    texts = [name.partition(":")[2] for name in features if name.startswith("texts:")]

    def read() -> Any:
        frame = reader.read(features, entities)
        return frame.matrix, [frame.column(name) for name in texts]

    return read


def floor(folder: str, port: int, case: str) -> dict[str, Any]:
    """Time one MGET of the same keys and the least decoding of the same bytes."""
    store = feature_store(folder, port, "ours")
    reader = FeatureReader(store, registry_ttl_seconds=None)
    features, entities = request(store, case)
    plan = reader.prepare(features)
    client: Any = redis.Redis(port=port)
    keys: list[bytes] = []
    for view in plan.views:
        values = {name: np.atleast_1d(entities[name]) for name in view.join_keys}
        count = len(next(iter(values.values())))
        keys += view.layout.keys.of_columns(values, count).to_pylist()
    sizes = [view.layout.schema.fixed_bytes for view in plan.views]

    def read_floats() -> Any:
        joined = np.frombuffer(b"".join(client.mget(keys)), dtype=np.uint8)
        cells = joined.reshape(FLOAT_VIEWS, ENTITIES, sizes[0])
        end = HEADER_BYTES + 4 * FLOATS_PER_VIEW
        blocks = cells[:, :, HEADER_BYTES:end].view("<f4")
        return np.concatenate(list(blocks), axis=1).astype(np.float64)

    def read_texts() -> Any:
        rows = client.mget(keys)
        start, columns = sizes[0], [np.empty(ENTITIES, dtype=object) for _ in range(TEXTS)]
        for index, row in enumerate(rows[:ENTITIES]):
            ends = np.frombuffer(row, dtype="<u4", count=TEXTS, offset=HEADER_BYTES).tolist()
            at = start
            for column, end in zip(columns, ends, strict=True):
                column[index] = row[at : start + end].decode()
                at = start + end
        profile = np.frombuffer(rows[-1], dtype="<f4", count=4, offset=HEADER_BYTES)
        return np.broadcast_to(profile, (ENTITIES, 4)).astype(np.float64), columns

    bare = median_seconds(lambda: client.mget(keys), REPEATS["floor"])
    read = read_texts if case == "strings" else read_floats
    theirs = read()
    ours = reader_action(reader, features, entities, case)()
    if case == "strings":
        np.testing.assert_array_equal(theirs[0], ours[0])
        assert all((a == b).all() for a, b in zip(theirs[1], ours[1], strict=True))
    else:
        np.testing.assert_array_equal(theirs, ours[0])
    return {"seconds": median_seconds(read, REPEATS["floor"]), "mget_s": bare}


def checksum(frame: pd.DataFrame) -> list[str]:
    """A hash per column, the same however the column's numbers are stored."""
    result = []
    for name in sorted(frame.columns):
        values = frame[name]
        values = values.astype("float64") if values.dtype.kind in "fiu" else values.astype(str)
        result.append(f"{name}:{int(pd.util.hash_pandas_object(values, index=False).sum())}")
    return result


def compare(folder: str, port: int, case: str) -> dict[str, Any]:
    """One case: stock, ours and the floor, each in its own process."""
    here = "benchmarks.online_read"
    arguments: dict[str, Any] = {"folder": folder, "port": port, "case": case}
    stock = isolated(f"{here}:through_feast", side="stock", repeats=REPEATS["stock"], **arguments)
    ours = isolated(f"{here}:through_reader", **arguments)
    assert stock["values"] == ours["values"], "stock and feastpack read different values"
    least = isolated(f"{here}:floor", **arguments)
    return rounded(
        {
            "case": case,
            "stock_s": stock["seconds"],
            "ours_s": ours["seconds"],
            "floor_s": least["seconds"],
            "mget_alone_s": least["mget_s"],
            "ours_to_pandas_s": ours["to_pandas_s"],
            "ours_to_arrow_s": ours["to_arrow_s"],
            "ratio_stock": stock["seconds"] / ours["seconds"],
            "ratio_floor": ours["seconds"] / least["seconds"],
            "stock_peak_mb": stock["peak_mb"],
            "ours_peak_mb": ours["peak_mb"],
        }
    )


def compare_api(folder: str, port: int) -> dict[str, Any]:
    """Feast's own interface on both stores."""
    here = "benchmarks.online_read:through_feast"
    arguments: dict[str, Any] = {"folder": folder, "port": port, "case": "floats"}
    stock = isolated(here, side="stock", repeats=REPEATS["stock"], **arguments)
    ours = isolated(here, side="ours", repeats=REPEATS["api"], **arguments)
    assert stock["values"] == ours["values"], "stock and feastpack read different values"
    return rounded(
        {
            "case": "api",
            "stock_s": stock["seconds"],
            "ours_s": ours["seconds"],
            "ratio_stock": stock["seconds"] / ours["seconds"],
            "stock_peak_mb": stock["peak_mb"],
            "ours_peak_mb": ours["peak_mb"],
        }
    )


def print_profile(folder: str, port: int) -> None:
    """Print where the time of Feast's own interface on our store goes."""
    store = feature_store(folder, port, "ours")
    features, entities = request(store, "floats")
    rows = as_feast_takes_it(entities)
    store.get_online_features(features, rows).to_df()
    profile = cProfile.Profile()
    with profile:
        for _ in range(10):
            store.get_online_features(features, rows).to_df()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(22)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", action="store_true", help="also profile Feast's interface")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as server:
        here = "benchmarks.online_read:write"
        written = {
            side: isolated(here, folder=folder, port=server.port, side=side)
            for side in ("stock", "ours")
        }
        cases = [compare(folder, server.port, case) for case in ("floats", "strings")]
        cases.append(compare_api(folder, server.port))
        if options.profile:
            print_profile(folder, server.port)
        memory = {
            "stock_bytes_per_row": round(written["stock"]["bytes_per_row"], 1),
            "ours_bytes_per_row": round(written["ours"]["bytes_per_row"], 1),
            "ratio": round(written["stock"]["bytes_per_row"] / written["ours"]["bytes_per_row"], 2),
        }
        first = {k: v for k, v in cases[0].items() if k != "case"}
        report("online_read", cases, redis_memory=memory, **first)


if __name__ == "__main__":
    main()

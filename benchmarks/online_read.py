"""Online reads: stock Feast, feastpack and the physical floor, on one Redis.

Run ``python -m benchmarks.online_read``. Results are compared before anything is timed.

- ``floats``: 500 entities x 88 float features in 4 views (the shape of Feast's issue 6856)
- ``strings``: 1 user (4 floats) and 500 posts with 8 string features, to a matrix and Arrow
  string arrays
- ``strings_pandas``: the same to a pandas frame of Python strings, what ``to_df`` gives
- ``api``: the request of ``floats`` through Feast's own ``get_online_features``
- ``memory``: what Redis holds per row of the same data

The floor is one MGET of the same bytes, its command packed ahead, and the least code that
makes the same thing of them: a matrix, Arrow arrays or a pandas frame. Stock is always timed
up to ``to_df()``. Sides take turns over several rounds, each in a process of its own, and the
median round counts; ``*_cpu_s`` is processor time of the client for the same work.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
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
REPEATS = {"stock": 5, "ours": 151, "floor": 151, "api": 9}
ROUNDS = 3
CASES = ("floats", "strings", "strings_pandas", "api")


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


def table_of(view: FeatureView, seed: int, rows: int = STORED) -> pa.Table:
    """Random rows of a view, one for each of so many entities."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {view.join_keys[0]: np.arange(rows)}
    for field in view.features:
        if field.dtype == String:
            lengths = rng.integers(3, 30, rows)
            columns[field.name] = ["x" * int(n) + str(i) for i, n in enumerate(lengths)]
        else:
            columns[field.name] = rng.random(rows, dtype=np.float32)
    now = datetime.now(UTC)
    columns["event_timestamp"] = pa.array([now] * rows, pa.timestamp("us", "UTC"))
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
    names = (
        ["texts", "profile"] if case.startswith("strings") else [f"floats_{v}" for v in range(4)]
    )
    views = [store.get_feature_view(name) for name in names]
    features = [f"{view.name}:{field.name}" for view in views for field in view.features]
    ids = np.random.default_rng(3).permutation(STORED)[:ENTITIES]
    return features, {"post_id": ids, "user_id": 7} if case.startswith("strings") else {
        "user_id": ids
    }


def as_feast_takes_it(entities: dict[str, Any]) -> dict[str, list[int]]:
    """Entities for Feast's own interface: lists of one length."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else [value] * ENTITIES
        for name, value in entities.items()
    }


def timed(action: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median wall time and mean processor time of an action, in seconds."""
    action()
    start = time.process_time()
    seconds = median_seconds(action, repeats, warm_up=0)
    return {"seconds": seconds, "cpu": (time.process_time() - start) / repeats}


def through_feast(folder: str, port: int, side: str, case: str, repeats: int) -> dict[str, Any]:
    """Time ``get_online_features().to_df()`` on one of the stores."""
    store = feature_store(folder, port, side)
    features, entities = request(store, case)
    rows = as_feast_takes_it(entities)

    def read() -> pd.DataFrame:
        frame: pd.DataFrame = store.get_online_features(features, rows).to_df()
        return frame

    return {**timed(read, repeats), "peak_mb": peak_mb(), "values": checksum(read())}


def through_reader(folder: str, port: int, case: str) -> dict[str, Any]:
    """Time FeatureReader up to what the case asks for."""
    store = feature_store(folder, port, "ours")
    reader = FeatureReader(store, registry_ttl_seconds=None)
    features, entities = request(store, case)
    times = timed(lambda: finished(reader.read(features, entities), case), REPEATS["ours"])
    frame = reader.read(features, entities)
    return {**times, "peak_mb": peak_mb(), "values": checksum(frame.to_pandas())}


def finished(frame: Frame, case: str) -> Any:
    """The form of a read that a case is about."""
    if case.endswith("_pandas"):
        return frame.to_pandas()
    return frame.matrix, [frame.arrow(n) for n in frame.names if n not in frame.numeric_names]


def floor(folder: str, port: int, case: str) -> dict[str, Any]:
    """Time one MGET of the same keys and the least decoding of the same bytes."""
    store = feature_store(folder, port, "ours")
    reader = FeatureReader(store, registry_ttl_seconds=None)
    features, entities = request(store, case)
    plan = reader.prepare(features)
    keys: list[bytes] = []
    for view in plan.views:
        values = {name: np.atleast_1d(entities[name]) for name in view.join_keys}
        count = len(next(iter(values.values())))
        keys += view.layout.keys.of_columns(values, count).to_pylist()
    connection: Any = redis.Redis(port=port).connection_pool.get_connection()
    command = [b"".join(connection.pack_command("MGET", *keys))]
    size = plan.views[0].layout.schema.fixed_bytes

    def mget() -> list[bytes]:
        connection.send_packed_command(command)
        rows: list[bytes] = connection.read_response(disable_decoding=True)
        return rows

    def read() -> Any:
        rows = mget()
        if case == "floats":
            return floats_of(rows, size)
        matrix, texts = texts_of(rows, size)
        if case == "strings":
            return matrix, texts
        columns = {f"p{i}": matrix[:, i] for i in range(4)}
        objects = {f"text_{i}": text.to_numpy(False) for i, text in enumerate(texts)}
        return pd.DataFrame({**entities, **objects, **columns}, copy=False)

    theirs, ours = read(), finished(reader.read(features, entities), case)
    if case == "strings_pandas":
        assert checksum(theirs) == checksum(ours)
    else:
        np.testing.assert_array_equal(theirs[0], ours[0])
        assert theirs[1] == ours[1]
    return {**timed(read, REPEATS["floor"]), "mget": median_seconds(mget, REPEATS["floor"])}


def floats_of(rows: list[bytes], size: int) -> tuple[Any, list[Any]]:
    """The matrix of the float case from rows of ``size`` bytes."""
    joined = np.frombuffer(b"".join(rows), dtype=np.uint8)
    cells = joined.reshape(FLOAT_VIEWS, ENTITIES, size)
    end = HEADER_BYTES + 4 * FLOATS_PER_VIEW
    blocks = cells[:, :, HEADER_BYTES:end].view("<f4")
    return np.concatenate(list(blocks), axis=1).astype(np.float64), []


def texts_of(rows: list[bytes], size: int) -> tuple[Any, list[pa.StringArray]]:
    """The matrix and the string arrays of the string cases; ``size``: of rows' fixed part."""
    joined = b"".join(rows[:ENTITIES])
    lengths = np.fromiter(map(len, rows[:ENTITIES]), dtype=np.int64, count=ENTITIES)
    starts = lengths.cumsum() - lengths
    end = HEADER_BYTES + 4 * TEXTS
    ends = np.ndarray((len(joined) - end + 1, end), np.uint8, joined, 0, (1, 1))[starts]
    offsets = np.empty(ENTITIES * (TEXTS + 1) + 1, dtype=np.int32)
    grid = offsets[:-1].reshape(ENTITIES, TEXTS + 1)
    grid[:, 0], grid[:, 1] = starts, starts + size
    grid[:, 2:] = (starts + size)[:, None] + ends[:, HEADER_BYTES:].view("<u4")[:, :-1]
    offsets[-1] = len(joined)
    count = ENTITIES * (TEXTS + 1)
    pieces = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(joined))
    index = np.arange(1, TEXTS + 1)[:, None] + np.arange(0, len(offsets) - 1, TEXTS + 1)
    texts = pieces.take(pa.array(index.ravel()))
    profile = np.frombuffer(rows[-1], dtype="<f4", count=4, offset=HEADER_BYTES)
    matrix = np.empty((ENTITIES, 4))
    matrix[:] = profile
    return matrix, [texts.slice(ENTITIES * i, ENTITIES) for i in range(TEXTS)]


def checksum(frame: pd.DataFrame) -> list[str]:
    """A hash per column, the same however the column's numbers are stored."""
    result = []
    for name in sorted(frame.columns):
        values = frame[name]
        values = values.astype("float64") if values.dtype.kind in "fiu" else values.astype(str)
        result.append(f"{name}:{int(pd.util.hash_pandas_object(values, index=False).sum())}")
    return result


def in_turns(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run every side ROUNDS times in processes of their own; the median of each number."""
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, arguments in sides.items():
            rounds[side].append(isolated(**arguments))
    read = [one["values"] for side in ("stock", "ours") for one in rounds[side]]
    assert all(values == read[0] for values in read), "stock and feastpack read different values"
    return {
        side: {
            name: statistics.median(one[name] for one in results)
            for name in results[0]
            if name != "values"
        }
        for side, results in rounds.items()
    }


def compare(folder: str, port: int, case: str) -> dict[str, Any]:
    """One case: stock, ours and the floor, in turns."""
    here = "benchmarks.online_read"
    where: dict[str, Any] = {"folder": folder, "port": port, "case": case}
    feast = {"function": f"{here}:through_feast", **where}
    sides = {"stock": {**feast, "side": "stock", "repeats": REPEATS["stock"]}}
    if case == "api":
        sides["ours"] = {**feast, "side": "ours", "repeats": REPEATS["api"]}
    else:
        sides["ours"] = {"function": f"{here}:through_reader", **where}
        sides["floor"] = {"function": f"{here}:floor", **where}
    results = in_turns(sides)
    stock, ours = results["stock"], results["ours"]
    numbers = {
        "stock_s": stock["seconds"],
        "ours_s": ours["seconds"],
        "ratio_stock": stock["seconds"] / ours["seconds"],
        "stock_cpu_s": stock["cpu"],
        "ours_cpu_s": ours["cpu"],
        "ratio_stock_cpu": stock["cpu"] / ours["cpu"],
        "stock_peak_mb": stock["peak_mb"],
        "ours_peak_mb": ours["peak_mb"],
    }
    if "floor" in results:
        least = results["floor"]
        numbers |= {
            "floor_s": least["seconds"],
            "floor_cpu_s": least["cpu"],
            "mget_alone_s": least["mget"],
            "ratio_floor": ours["seconds"] / least["seconds"],
        }
    return {"case": case, **rounded(numbers)}


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
        cases = [compare(folder, server.port, case) for case in CASES]
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

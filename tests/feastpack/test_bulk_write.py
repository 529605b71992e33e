"""Which row stays, however rows are written: their order, in bulk, many writers, Redis killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64
from feast_values import feature_store, packed, stock, user_entity, user_key, user_view
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_shop import NOW, Shop, row, table_of

from feastpack.embedded import EmbeddedRedis
from feastpack.errors import OnlineStoreError


@pytest.fixture
def shop(tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any) -> Shop:
    return Shop(tmp_path, redis_server.port)


def test_an_older_event_never_overwrites_a_newer_one(shop: Shop) -> None:
    shop.write(row(1, 10.0, minutes=5))
    shop.write(row(1, 20.0, minutes=4))
    assert shop.read(1) == [10.0]
    shop.write(row(1, 30.0, minutes=6))
    assert shop.read(1) == [30.0]
    # also within one batch, whatever the order
    shop.write(row(1, 50.0, minutes=9), row(1, 40.0, minutes=8), row(2, 1.0), row(2, 2.0, -1))
    assert shop.read(1, 2) == [50.0, 1.0]
    written = shop.write_arrow(table_of([1, 2], [0.0, 3.0], [0, 1]))
    assert written == 1
    assert shop.read(1, 2) == [50.0, 3.0]


def test_times_before_1970_and_far_apart_are_ordered(shop: Shop) -> None:
    early, late = datetime(1931, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
    for when, x in ((early, 1.0), (late, 2.0), (early - timedelta(days=1), 3.0)):
        shop.write((user_key(1), {"x": Value(double_val=x)}, when, None))
    assert shop.read(1) == [2.0]
    one_microsecond_later = late + timedelta(microseconds=1)
    shop.write((user_key(1), {"x": Value(double_val=4.0)}, one_microsecond_later, None))
    shop.write((user_key(1), {"x": Value(double_val=5.0)}, late, None))
    assert shop.read(1) == [4.0]


def test_ties_are_broken_by_created_time_then_by_the_later_write(
    shop: Shop, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    shop.write(row(1, 1.0, created=5), row(1, 2.0, created=4))
    assert shop.read(1) == [1.0]
    shop.write(row(1, 3.0, created=6))
    shop.write(row(1, 4.0))  # an unknown created time is older than any
    assert shop.read(1) == [3.0]
    shop.write(row(1, 5.0, created=6))
    assert shop.read(1) == [5.0]
    # Feast's own store keeps the first row of an event time, so that values that were
    # computed anew, or a new feature, are not stored until the next event.
    view = user_view(tmp_path, "v", {"x": Float64})
    theirs = feature_store(tmp_path, stock(redis_server.port), [user_entity(), view])
    online = theirs._get_provider().online_store
    for x in (1.0, 2.0):
        online.online_write_batch(theirs.config, view, [row(1, x)], None)
    (_, values), *_ = online.online_read(theirs.config, view, [user_key(1)])
    assert values["x"].double_val == 1.0


@pytest.mark.parametrize("rows_per_command", [7, 2000])
def test_concurrent_writers_leave_the_newest_row(
    rows_per_command: int, tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    shop = Shop(tmp_path, redis_server.port, write_batch_rows=rows_per_command)
    rng = np.random.default_rng(7)
    versions = rng.permutation(40)

    def write(part: np.ndarray[Any, Any]) -> None:
        for version in part.tolist():
            shop.write_arrow(table_of(list(range(50)), [float(version)] * 50, [version] * 50))

    threads = [threading.Thread(target=write, args=(versions[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shop.read(*range(50)) == [39.0] * 50


def test_bulk_write_over_many_commands(shop: Shop) -> None:
    n = 10_001
    table = table_of(list(range(n)), np.arange(n, dtype=float).tolist(), [0] * n)
    done: list[int] = []
    written = shop.online.online_write_arrow(
        shop.store.config, shop.view, table, progress=done.append
    )
    assert written == sum(done) == n
    assert len(done) == 6
    assert shop.read(0, 1999, 2000, n - 1, n) == [0.0, 1999.0, 2000.0, n - 1.0, None]


WRITE = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), min_size=1, max_size=14)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(writes=st.lists(st.lists(WRITE, max_size=4), min_size=1, max_size=3))
def test_new_rows_and_others_in_any_mixture(
    writes: list[list[list[tuple[int, int]]]],
    tmp_path: Path,
    redis_server: EmbeddedRedis,
    redis_client: Any,
) -> None:
    """Each write is some record batches of (user, minute), sent three rows a command.

    What Redis is asked depends on which keys exist, are repeated, and fill a command.
    """
    redis_client.flushall()
    shop = Shop(tmp_path, redis_server.port, write_batch_rows=3)
    expected: dict[int, tuple[int, float]] = {}
    value = 0.0
    for write in writes:
        batches = []
        for rows in write:
            values = [value + 1 + at for at in range(len(rows))]
            value = values[-1]
            for (user, minute), x in zip(rows, values, strict=True):
                if minute >= expected.get(user, (minute, 0.0))[0]:
                    expected[user] = (minute, x)
            users, minutes = ([one[at] for one in rows] for at in (0, 1))
            batches += table_of(users, values, minutes).to_batches()
        done: list[int] = []
        shop.online.online_write_arrow(
            shop.store.config, shop.view, iter(batches), progress=done.append
        )
        assert sum(done) == sum(map(len, write))
    assert shop.read(*range(12)) == [expected.get(user, (0, None))[1] for user in range(12)]


def test_what_fetching_raises_is_raised_and_nothing_hangs(shop: Shop) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from table_of([1], [1.0], [0]).to_batches()
        raise FileNotFoundError("the second part")

    with pytest.raises(FileNotFoundError, match="the second part"):
        shop.online.online_write_arrow(shop.store.config, shop.view, batches())
    assert shop.write_arrow(table_of([1], [2.0], [1])) == 1


def test_redis_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The write fails loudly; run again after the restart, it ends as if nothing happened."""
    n = 300_000
    table = table_of(list(range(n)), np.arange(n, dtype=float).tolist(), [0] * n)
    with EmbeddedRedis(tmp_path / "redis") as server:
        shop = Shop(tmp_path, server.port)
        shop.write(row(0, -1.0, minutes=60))  # newer than what follows
        client = redis.Redis(port=server.port)
        client.save()

        def kill_midway(_: int) -> None:
            if client.dbsize() > n // 4:
                os.kill(server.pid, signal.SIGKILL)

        with pytest.raises((OnlineStoreError, redis.exceptions.ConnectionError)):
            shop.online.online_write_arrow(
                shop.store.config, shop.view, table, progress=kill_midway
            )
        server.ensure_running()
        assert shop.read(0) == [-1.0]
        assert shop.write_arrow(table) == n - 1
        assert shop.read(0, 1, n - 1) == [-1.0, 1.0, n - 1.0]


def test_a_row_is_written_whole(
    tmp_path: Path, redis_server: EmbeddedRedis, redis_client: Any
) -> None:
    """A message that lacks a feature makes it null; Feast's store keeps the old value."""
    view = user_view(tmp_path, "v", {"x": Float64, "y": Float64})
    full = {"x": Value(double_val=1.0), "y": Value(double_val=2.0)}
    part = {"x": Value(double_val=3.0)}
    reads = []
    for online_store in (packed(redis_server.port), stock(redis_server.port)):
        store = feature_store(tmp_path, online_store, [user_entity(), view])
        online = store._get_provider().online_store
        for minutes, values in enumerate((full, part)):
            when = NOW + timedelta(minutes=minutes)
            rows = [(user_key(1), values, when, None)]
            online.online_write_batch(store.config, store.get_feature_view("v"), rows, None)
        response = store.get_online_features(["v:x", "v:y"], {"user_id": [1]}).to_dict()
        reads.append((response["x"], response["y"]))
    assert reads == [([3.0], [None]), ([3.0], [2.0])]

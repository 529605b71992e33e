"""A feature store with one view, and rows for it, to try the packed store with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64
from feast_values import feature_store, packed, user_entity, user_key, user_view

from feastpack.online import PackedRedisOnlineStore

NOW = datetime.now(UTC).replace(microsecond=0)
Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


def row(user: int, x: float, minutes: float = 0, created: float | None = None) -> Row:
    when = None if created is None else NOW + timedelta(minutes=created)
    return (user_key(user), {"x": Value(double_val=x)}, NOW + timedelta(minutes=minutes), when)


class Shop:
    """A feature store with one view of one feature on our online store."""

    def __init__(self, folder: Path, port: int, ttl: timedelta | None = None, **settings: Any):
        view = user_view(folder, "v", {"x": Float64}, ttl=ttl or timedelta(0))
        self.store = feature_store(folder, packed(port, **settings), [user_entity(), view])
        self.view = self.store.get_feature_view("v")
        self.online: PackedRedisOnlineStore = self.store._get_provider().online_store

    def write(self, *rows: Row) -> None:
        self.online.online_write_batch(self.store.config, self.view, list(rows), None)

    def write_arrow(self, table: pa.Table) -> int:
        return self.online.online_write_arrow(self.store.config, self.view, table)

    def read(self, *users: int) -> list[float | None]:
        keys = [user_key(user) for user in users]
        rows = self.online.online_read(self.store.config, self.view, keys)
        return [None if values is None else values["x"].double_val for _, values in rows]


def table_of(users: list[int], x: list[float], minutes: list[float]) -> pa.Table:
    times = [NOW + timedelta(minutes=m) for m in minutes]
    return pa.table(
        {
            "user_id": users,
            "x": x,
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )

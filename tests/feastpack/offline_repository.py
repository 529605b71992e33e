"""A small Feast repository over parquet files, for tests of the offline store and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64

OURS = "feastpack.AsofDuckDBOfflineStore"
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


def at(minute: float) -> datetime:
    return EPOCH + timedelta(minutes=minute)


def local_store(
    folder: Path,
    objects: Sequence[Any],
    offline: str = OURS,
    online: dict[str, Any] | None = None,
    engine: str = "local",
    engine_options: dict[str, Any] | None = None,
    **settings: Any,
) -> FeatureStore:
    batch_engine: Any = {"type": engine, **(engine_options or {})} if engine != "local" else "local"
    store = FeatureStore(
        config=RepoConfig(
            project="trips",
            provider="local",
            registry=str(folder / f"registry_{offline}_{engine}.db"),
            online_store=online,
            offline_store={"type": offline, **settings},
            batch_engine=batch_engine,
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    store.apply(list(objects))
    return store


def trips(rows: Sequence[tuple[int | None, float, float | None]]) -> pa.Table:
    """Rows of (driver, minute, value) as a source's table."""
    return pa.table(
        {
            "driver_id": pa.array([row[0] for row in rows], pa.int64()),
            "event_timestamp": pa.array([at(row[1]) for row in rows], TIME),
            "rating": pa.array([row[2] for row in rows], pa.float64()),
        }
    )


def write(table: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def trip_view(path: str | Path, **options: Any) -> FeatureView:
    source = options.pop("source", None) or FileSource(
        name="trips", path=str(path), timestamp_field="event_timestamp"
    )
    defaults: dict[str, Any] = {
        "name": "trips",
        "entities": [DRIVER],
        "schema": [Field(name="rating", dtype=Float64), Field(name="driver_id", dtype=Int64)],
        "ttl": None,
        "source": source,
    }
    return FeatureView(**{**defaults, **options})


def entity_rows(rows: Sequence[tuple[int | None, float]]) -> pa.Table:
    """Rows of (driver, minute) as entity rows."""
    return trips([(driver, minute, None) for driver, minute in rows]).drop_columns(["rating"])

"""Feast plug-ins at the speed of the hardware; useful to any Feast user."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: serving needs no DuckDB, and an offline job needs no Redis.
_HOMES = {
    "ArrowComputeEngine": "feastpack.engine",
    "ArrowComputeEngineConfig": "feastpack.engine",
    "AsofDuckDBOfflineStore": "feastpack.offline",
    "AsofDuckDBOfflineStoreConfig": "feastpack.offline",
    "AtomicFileRegistryStore": "feastpack.registry",
    "PackedRedisOnlineStore": "feastpack.online",
    "PackedRedisOnlineStoreConfig": "feastpack.online",
    "SparkArrowComputeEngine": "feastpack.spark_engine",
    "SparkArrowComputeEngineConfig": "feastpack.spark_engine",
    "SparkArrowOfflineStore": "feastpack.spark_offline",
    "SparkArrowOfflineStoreConfig": "feastpack.spark_offline",
    "FeatureReader": "feastpack.reader",
    "Frame": "feastpack.frame",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

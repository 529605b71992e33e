"""SparkArrowComputeEngine: materialization by the executors of Spark, partition by partition."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.compute_engines.spark.compute import SparkComputeEngine
from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkRetrievalJob
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.online_stores.online_store import OnlineStore
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field, StrictStr

from feastpack.connection import resolve_redis
from feastpack.engine import ArrowComputeEngine
from feastpack.errors import SparkError, UnsupportedError
from feastpack.online import PackedRedisOnlineStore
from feastpack.partition_writer import REPORT_DDL, PartitionWriter
from feastpack.spark_session import (
    is_on_this_machine,
    settings_of,
    spark_failures,
    spark_session,
)
from feastpack.views import namespace_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SparkArrowComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings of the engine, the ``batch_engine`` block of ``feature_store.yaml``.

    Spark's own settings are those of ``offline_store.spark_conf``: there is one session.
    """

    type: StrictStr = "feastpack.SparkArrowComputeEngine"
    """The engine's import path."""

    partitions: int = Field(default=0, ge=0)
    """Into how many parts, written side by side, a view's rows are cut; 0: as Spark's query leaves
    them (``spark.sql.shuffle.partitions`` and adaptive execution)."""

    late_data_look_back_seconds: float = Field(default=0, ge=0)
    """As `feastpack.ArrowComputeEngineConfig.late_data_look_back_seconds`."""


class SparkArrowComputeEngine(ArrowComputeEngine):
    """Materializes plain feature views from the executors into packed rows in Redis.

    Feast's Spark offline store finds the latest row per entity; every partition of the result is
    packed and written by the executor that holds it, as Arrow batches. The driver receives two
    numbers a partition. Views that need more than their latest rows go to Feast's own Spark
    engine, with a warning.
    """

    def __init__(
        self,
        *,
        repo_config: RepoConfig,
        offline_store: OfflineStore,
        online_store: OnlineStore,
        **settings: Any,
    ) -> None:
        look_back = settings.get("late_data_look_back_seconds", 0)
        super().__init__(
            repo_config=repo_config,
            offline_store=offline_store,
            online_store=online_store,
            late_data_look_back_seconds=look_back,
        )
        self.spark_settings = SparkArrowComputeEngineConfig(**settings)
        self._other = SparkComputeEngine(
            repo_config=repo_config, offline_store=offline_store, online_store=online_store
        )

    def _stream(self, registry: Any, task: MaterializationTask) -> None:
        began = time.monotonic()
        view = task.feature_view
        if not isinstance(self.online_store, PackedRedisOnlineStore):
            raise UnsupportedError(
                f"feature view {view.name}: SparkArrowComputeEngine writes to "
                f"feastpack.PackedRedisOnlineStore, not to {type(self.online_store).__name__}; "
                "set one of the two, or batch_engine to Feast's spark.engine"
            )
        session = spark_session(settings_of(self.repo_config))
        with spark_failures(f"feature view {view.name}"):
            job = self._latest_rows(registry, task)
            if not isinstance(job, SparkRetrievalJob):
                raise UnsupportedError(
                    f"feature view {view.name}: SparkArrowComputeEngine reads from Feast's Spark "
                    "offline store; set offline_store: {type: spark} in feature_store.yaml"
                )
            rows = job.to_spark_df()
            if self.spark_settings.partitions:
                rows = rows.repartition(self.spark_settings.partitions)
            local = is_on_this_machine(session)
            writer = PartitionWriter(
                view.to_proto().SerializeToString(), executor_config(self.repo_config, local=local)
            )
            reports = rows.mapInArrow(writer, REPORT_DDL).collect()
        newest = max((report.newest_us for report in reports), default=None)
        self._note(
            task,
            sum(report.rows for report in reports),
            None if newest is None else _EPOCH + timedelta(microseconds=newest),
            time.monotonic() - began,
        )


def executor_config(config: RepoConfig, *, local: bool) -> dict[str, Any]:
    """Return arguments of `feast.RepoConfig` with which an executor writes to the online store.

    Parameters
    ----------
    local
        Whether the executors run on this machine.

    Raises
    ------
    SparkError
        If the online store is an embedded Redis, which executors elsewhere cannot reach.
    """
    online = config.online_store
    # The file that names the namespace may be this machine's alone.
    online = online.model_copy(
        update={
            "connection_string": _reachable(config, local=local),
            "namespace": namespace_of(config),
            "namespace_file": None,
        }
    )
    return {
        "project": config.project,
        "provider": "local",
        "registry": config.registry.model_dump(),
        "online_store": online.model_dump(mode="json"),
        # Never opened there; as a name it is not even imported.
        "offline_store": "file",
        "entity_key_serialization_version": config.entity_key_serialization_version,
    }


def _reachable(config: RepoConfig, *, local: bool) -> str:
    given: str = config.online_store.connection_string
    if not given.strip().startswith("embedded:"):
        return given
    url = os.environ.get("REDIS_URL")
    if url:
        return url
    if not local:
        raise SparkError(
            f"online_store.connection_string {given}: executors on other machines cannot reach "
            "the embedded Redis; set REDIS_URL, or connection_string, to a server that they can"
        )
    [(host, port)] = resolve_redis(given, base_folder=config.repo_path).nodes
    return f"{host}:{port}"

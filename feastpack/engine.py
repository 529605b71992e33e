"""ArrowComputeEngine: materialization as a stream of Arrow record batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import BatchFeatureView, Entity, FeatureView
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.common.retrieval_task import HistoricalRetrievalTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _convert_arrow_to_proto, _get_column_names, make_tzaware
from pydantic import Field, StrictStr
from tqdm import tqdm

from feastpack.duckdb_job import DuckDBRetrievalJob
from feastpack.partition_writer import event_time_of, rows_with_keys

logger = logging.getLogger(__name__)

#: Told how many more rows are done.
Progress = Callable[[int], Any]

_BAR_AFTER_S = 2.0


class ArrowComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings of the engine, the ``batch_engine`` block of ``feature_store.yaml``."""

    type: StrictStr = "feastpack.ArrowComputeEngine"
    """The engine's import path."""

    batch_rows: int = Field(default=65_536, ge=1)
    """Rows per record batch on their way to the online store: what is held in memory."""

    late_data_look_back_seconds: float = Field(default=0, ge=0)
    """How much earlier than the end of the last run an incremental run starts to read, for rows
    that reach the source after a run with an event time before its end. Reading a row twice
    changes nothing."""


class ArrowComputeEngine(ComputeEngine):  # type: ignore[misc]
    """Materializes plain feature views without a Python object per value.

    The offline store finds the latest row per entity; ours streams them, others return them at
    once. An online store with ``online_write_arrow`` (`feastpack.PackedRedisOnlineStore`) takes
    the batches as they are, any other gets Feast's messages batch by batch. Rows without a join
    key are left out: no request can name them. A run that was killed is simply run again: writes
    are idempotent, and Feast advances a view's interval only after the last of them.

    Views that need more than that (transformations, aggregations, source views, validation,
    writing back to the offline store, streams) go to Feast's own local engine, with a warning.
    """

    def __init__(
        self,
        *,
        repo_config: RepoConfig,
        offline_store: OfflineStore,
        online_store: OnlineStore,
        **settings: Any,
    ) -> None:
        super().__init__(
            repo_config=repo_config, offline_store=offline_store, online_store=online_store
        )
        self.settings = ArrowComputeEngineConfig(**settings)
        self._other: ComputeEngine = LocalComputeEngine(
            repo_config=repo_config, offline_store=offline_store, online_store=online_store
        )

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """Nothing to prepare: the engine runs in this process."""

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Entity]) -> None:
        """Nothing to remove."""

    def get_historical_features(
        self, registry: BaseRegistry, task: HistoricalRetrievalTask
    ) -> RetrievalJob | pa.Table:
        """Feast's local engine answers; `FeatureStore` asks the offline store instead."""
        return self._other.get_historical_features(registry, task)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        view = task.feature_view
        reason = why_not_plain(task)
        if reason is not None:
            logger.warning(
                "feature view %s %s: materialized by Feast's %s",
                *(view.name, reason, type(self._other).__name__),
            )
            return self._other._materialize_one(registry, task, **kwargs)
        if view.online:
            self._stream(registry, task)
        return LocalMaterializationJob(
            job_id=f"{view.name}-{task.start_time}-{task.end_time}",
            status=MaterializationJobStatus.SUCCEEDED,
        )

    def _stream(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        began = time.monotonic()
        view = task.feature_view
        job = self._latest_rows(registry, task)
        done, with_key, newest = 0, 0, None
        times = event_time_of(view)

        def with_keys() -> Iterator[pa.RecordBatch]:
            nonlocal done, with_key, newest
            for batch in _batches(job, self.settings.batch_rows):
                rows = _renamed(batch, view)
                known = rows_with_keys(rows, view)
                done, with_key = done + rows.num_rows, with_key + known.num_rows
                newest = _later(newest, pc.max(rows.column(times)).as_py())
                yield known

        bar = _progress_bar(task, job)
        try:
            self._write(view, with_keys(), bar.update)
            bar.update(done - with_key)
        finally:
            bar.close()
        self._note(task, done, newest, time.monotonic() - began)

    def _note(
        self, task: MaterializationTask, rows: int, newest: datetime | None, seconds: float
    ) -> None:
        """Keep and log that a view is materialized."""
        view = task.feature_view
        note = getattr(self.online_store, "note_materialized", None)
        if note is not None:
            note(self.repo_config, view, make_tzaware(task.end_time), newest)
        pace = rows / max(seconds, 1e-9)
        logger.info("feature view %s: %d rows in %.1f s (%.0f/s)", view.name, rows, seconds, pace)

    def _latest_rows(self, registry: BaseRegistry, task: MaterializationTask) -> RetrievalJob:
        view = task.feature_view
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys, features, timestamp, created = _get_column_names(view, entities)
        look_back = timedelta(seconds=self.settings.late_data_look_back_seconds)
        start = task.start_time - look_back if _is_incremental(task) else task.start_time
        return self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=view.batch_source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=timestamp,
            created_timestamp_column=created,
            start_date=start,
            end_date=task.end_time,
        )

    def _write(
        self, view: FeatureView, batches: Iterator[pa.RecordBatch], progress: Progress
    ) -> None:
        takes_arrow = getattr(self.online_store, "online_write_arrow", None)
        if takes_arrow is not None:
            takes_arrow(self.repo_config, view, batches, progress=progress)
            return
        logger.warning(
            "online store %s has no online_write_arrow: feature view %s is written as Feast's "
            "messages, which takes far longer",
            type(self.online_store).__name__,
            view.name,
        )
        for rows in batches:
            self._write_messages(view, rows, progress)

    def _write_messages(self, view: FeatureView, rows: pa.RecordBatch, progress: Progress) -> None:
        if rows.num_rows == 0:
            return
        key_types = {entity.name: entity.dtype.to_value_type() for entity in view.entity_columns}
        limit = self.repo_config.materialization_config.online_write_batch_size or rows.num_rows
        for first in range(0, rows.num_rows, limit):
            part = rows.slice(first, limit)
            messages = [
                # Feast's own stores cannot keep pandas' missing time.
                (key, values, event_time, None if pd.isna(created) else created)
                for key, values, event_time, created in _convert_arrow_to_proto(
                    part, view, key_types
                )
            ]
            self.online_store.online_write_batch(self.repo_config, view, messages, progress)


def why_not_plain(task: MaterializationTask) -> str | None:
    """What a task needs beyond copying the latest rows, as the end of a sentence; None: nothing."""
    view = task.feature_view
    if not isinstance(view, FeatureView) or type(view) not in (FeatureView, BatchFeatureView):
        return f"is a {type(view).__name__}"
    reasons = {
        "has a transformation": getattr(view, "feature_transformation", None),
        "has aggregations": getattr(view, "aggregations", None),
        "is computed from other views": getattr(view, "source_views", None),
        "has a filter": getattr(view, "filter", None),
        "is to be validated": getattr(view, "enable_validation", False),
        "is written to the offline store": getattr(view, "offline", False),
        "has a stream source": view.stream_source,
        "has no batch source": view.batch_source is None,
        "is to keep all rows": not task.only_latest,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _later(first: datetime | None, second: datetime | None) -> datetime | None:
    """Return the later of two times, of which each may be unknown."""
    known = [make_tzaware(one) for one in (first, second) if one is not None]
    return max(known, default=None)


def _is_incremental(task: MaterializationTask) -> bool:
    last_end: datetime | None = task.feature_view.most_recent_end_time
    return last_end is not None and make_tzaware(last_end) == make_tzaware(task.start_time)


def _batches(job: RetrievalJob, batch_rows: int) -> Iterator[pa.RecordBatch]:
    if isinstance(job, DuckDBRetrievalJob):
        yield from job.to_record_batches(batch_rows)
    else:
        # Feast's interface has nothing that streams.
        yield from job.to_arrow().to_batches(max_chunksize=batch_rows)


def _progress_bar(task: MaterializationTask, job: RetrievalJob) -> Any:
    hidden = task.tqdm_builder is None
    rows = job.count_rows() if isinstance(job, DuckDBRetrievalJob) and not hidden else None
    # Not Feast's own bar, which appears at once: most views are done before one could be read.
    return tqdm(
        total=rows, ncols=100, unit=" rows", unit_scale=True, delay=_BAR_AFTER_S, disable=hidden
    )


def _renamed(batch: pa.RecordBatch, view: FeatureView) -> pa.RecordBatch:
    mapping = view.batch_source.field_mapping or {}
    return batch.rename_columns([mapping.get(name, name) for name in batch.schema.names])

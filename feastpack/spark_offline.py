"""SparkArrowOfflineStore: Feast's Spark offline store, with checks first and Arrow last."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
    SparkOfflineStore,
    SparkOfflineStoreConfig,
    SparkRetrievalJob,
)
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.repo_config import RepoConfig
from pydantic import StrictStr

from feastpack.spark_session import settings_of, spark_failures, spark_session


class SparkArrowOfflineStoreConfig(SparkOfflineStoreConfig):  # type: ignore[misc]
    """Settings of the store: those of Feast's ``spark``."""

    type: StrictStr = "feastpack.SparkArrowOfflineStore"
    """The store's import path."""


class SparkArrowOfflineStore(SparkOfflineStore):  # type: ignore[misc]
    """Feast's queries; a session that is checked before it starts, and results as Arrow.

    Feast's own results pass through pandas, where whole numbers with a gap become float64 and
    times lose their zone.
    """

    @staticmethod
    def get_historical_features(config: RepoConfig, *args: Any, **kwargs: Any) -> RetrievalJob:
        """Join point in time, as Feast does."""
        spark_session(settings_of(config))
        with spark_failures("joining features point in time"):
            return _in_arrow(SparkOfflineStore.get_historical_features(config, *args, **kwargs))

    @staticmethod
    def pull_latest_from_table_or_query(config: RepoConfig, *args: Any, **kwargs: Any) -> Any:
        """Find the latest row per entity, as Feast does."""
        spark_session(settings_of(config))
        with spark_failures("reading the latest rows"):
            job = SparkOfflineStore.pull_latest_from_table_or_query(config, *args, **kwargs)
        return _in_arrow(job)

    @staticmethod
    def pull_all_from_table_or_query(config: RepoConfig, *args: Any, **kwargs: Any) -> Any:
        """Read all rows of a time range, as Feast does."""
        spark_session(settings_of(config))
        with spark_failures("reading rows"):
            job = SparkOfflineStore.pull_all_from_table_or_query(config, *args, **kwargs)
        return _in_arrow(job)


class SparkArrowRetrievalJob(SparkRetrievalJob):  # type: ignore[misc]
    """A lazy query on Spark whose result comes as Arrow."""

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with spark_failures("Spark's query"):
            if self._should_use_staging_for_arrow():
                return self._to_arrow_via_staging()
            return self.to_spark_df().toArrow()


def _in_arrow(job: SparkRetrievalJob) -> SparkArrowRetrievalJob:
    return SparkArrowRetrievalJob(
        job.spark_session,
        job.query,
        job.full_feature_names,
        job._config,
        job.on_demand_feature_views,
        job._metadata,
    )

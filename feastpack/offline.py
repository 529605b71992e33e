"""AsofDuckDBOfflineStore: Feast's offline store over parquet, with ASOF joins in DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.utils import compute_non_entity_date_range
from pydantic import Field, StrictStr

from feastpack.asof_sql import ViewJoin, latest_query, range_query
from feastpack.duckdb_job import DuckDBRetrievalJob, connect, fetch_arrow, run, stream_arrow
from feastpack.entity_rows import entity_rows_of_period, read_entity_rows
from feastpack.errors import UnsupportedError
from feastpack.parquet_files import append_log, append_rows
from feastpack.point_in_time import PointInTime
from feastpack.sources import local_path, open_source, require_parquet_source

#: A column that Feast's logging adds and that its own stores leave out.
_LOG_DATE = "__log_date"


class AsofDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Settings of the offline store, under ``offline_store`` in ``feature_store.yaml``."""

    type: StrictStr = "feastpack.AsofDuckDBOfflineStore"

    memory_limit: StrictStr | None = None
    """How much DuckDB may hold before it spills to disk, such as ``4GB``; None: its default,
    80 % of the machine. Results themselves come on top."""

    temp_directory: StrictStr | None = None
    """Where DuckDB spills to; None: a folder in the system's temporary directory."""

    threads: int | None = Field(default=None, ge=1)
    """How many threads DuckDB uses; None: one per core."""

    batch_rows: int = Field(default=262_144, ge=1)
    """Rows per batch of results that are streamed."""


class AsofDuckDBOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's DuckDB store with the same results from point-in-time joins that scale.

    Sources are parquet ``FileSource``s: one file, a folder (nested and hive partitioned ones
    too), a glob, or a URI. Jobs stream with `DuckDBRetrievalJob.to_record_batches`.
    """

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Join features to entity rows as they were known at each row's time.

        Parameters
        ----------
        entity_df
            Join keys, a time column, and any other columns (kept): a pandas DataFrame, an Arrow
            table, SQL for DuckDB, or None for every entity with an event between `start_date`
            and `end_date`, as of `end_date`.

        Returns
        -------
        RetrievalJob
            Grain: one row per row of `entity_df`, in its order, duplicates kept; its columns,
            then the features by view. Null: no value known at that time, or it had expired.

        Raises
        ------
        UnsupportedError
            If a view's source is not parquet.
        RequestError
            If `entity_df` is no table, or has a column with the name of a feature.
        SchemaError
            If a source lacks a column, or a join key has another kind of type than in
            `entity_df`.
        """
        connection = _connect(config)
        joins, keys = _plan(connection, config, feature_views, feature_refs, full_feature_names)
        if entity_df is None:
            start, end = compute_non_entity_date_range(feature_views, start_date, end_date)
            entities = entity_rows_of_period(connection, joins, keys, start, end)
        else:
            entities = read_entity_rows(connection, entity_df)
        stream = PointInTime(
            joins,
            keys,
            entities,
            by_created=filter_by_created_timestamp,
        )
        stream.check()
        return DuckDBRetrievalJob(
            connection,
            stream,
            stream.statements,
            batch_rows=config.offline_store.batch_rows,
            repo_path=config.repo_path,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(
                feature_refs, project, registry
            ),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.table.column_names if name != entities.timestamp],
                min_event_timestamp=entities.span.earliest if entities.span else None,
                max_event_timestamp=entities.span.latest if entities.span else None,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Latest row per key between two times (inclusive); names are those of the source."""
        connection = _connect(config)
        scan = open_source(connection, data_source, config.repo_path)
        columns = _without_log_date(
            [*join_key_columns, *feature_name_columns, timestamp_field]
            + ([created_timestamp_column] if created_timestamp_column else [])
        )
        query = latest_query(
            scan,
            join_key_columns,
            columns,
            timestamp_field,
            created_timestamp_column or None,
            start_date,
            end_date,
        )
        return _scan_job(config, connection, query.rows, query.prepare)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows between two times (inclusive, None: open); names are those of the source.

        Without feature columns all columns of the source are returned: that is how Feast asks
        on behalf of views that compute their features from the raw columns.
        """
        connection = _connect(config)
        scan = open_source(connection, data_source, config.repo_path)
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        if created_timestamp_column:
            columns.append(created_timestamp_column)
        if not feature_name_columns:
            columns = list(scan.types)
        query = range_query(scan, _without_log_date(columns), timestamp_field, start_date, end_date)
        return _scan_job(config, connection, query)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the source of a view: a file is replaced at once, a folder gets a file.

        Raises
        ------
        UnsupportedError
            If the source is not local parquet, or a glob.
        SchemaError
            If the columns are not those of the source, in its order.
        """
        append_rows(table, require_parquet_source(feature_view.batch_source), config.repo_path)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add logged features to the folder of a ``FileLoggingDestination``.

        Raises
        ------
        UnsupportedError
            If the destination is of another kind, or a URI.
        """
        destination = logging_config.destination
        folder = (
            local_path(destination.path, config.repo_path)
            if isinstance(destination, FileLoggingDestination)
            else None
        )
        if folder is None:
            raise UnsupportedError(
                f"feature logging: found {type(destination).__name__} "
                f"{getattr(destination, 'path', '')!r}, expected a FileLoggingDestination with a "
                "local path"
            )
        append_log(data, folder, destination.partition_by)


class _Scan:
    """One query, after a statement that creates ``winners`` where it needs that table."""

    def __init__(self, query: str, prepare: str | None) -> None:
        self._query = query
        self._prepare = prepare
        self._is_prepared = False

    def __call__(
        self, connection: duckdb.DuckDBPyConnection, batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """Run the query; the preparation of a count just before is used, once."""
        if not self._is_prepared:
            self._run_preparation(connection)
        self._is_prepared = False
        if batch_rows is None:
            yield fetch_arrow(connection, self._query)
        else:
            yield from stream_arrow(connection, self._query, batch_rows)

    def count(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Count the rows: by the winners where there are, else by the query."""
        self._run_preparation(connection)
        self._is_prepared = True
        rows = "winners" if self._prepare else f"({self._query})"
        counted = fetch_arrow(connection, f"SELECT count(*) FROM {rows}")
        return int(counted.column(0)[0].as_py())

    def _run_preparation(self, connection: duckdb.DuckDBPyConnection) -> None:
        if self._prepare is not None:
            run(connection, self._prepare)


def _connect(config: RepoConfig) -> duckdb.DuckDBPyConnection:
    settings = config.offline_store
    return connect(
        memory_limit=settings.memory_limit,
        temp_directory=settings.temp_directory,
        threads=settings.threads,
        repo_path=config.repo_path,
    )


def _plan(
    connection: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    feature_views: Sequence[FeatureView],
    feature_refs: Sequence[str],
    full_feature_names: bool,
) -> tuple[list[ViewJoin], list[str]]:
    """One join per view, and the entity columns that hold the keys."""
    keys: list[str] = []
    joins = []
    for view in feature_views:
        scan = open_source(connection, view.batch_source, config.repo_path)
        pairs = []
        for entity in view.entity_columns:
            if entity.name == DUMMY_ENTITY_ID:
                continue
            column = view.projection.join_key_map.get(entity.name, entity.name)
            if column not in keys:
                keys.append(column)
            pairs.append((entity.name, keys.index(column)))
        prefix = f"{view.projection.name_to_use()}:"
        features = [ref.split(":")[1] for ref in feature_refs if ref.startswith(prefix)]
        base = view.projection.name_alias or view.name
        created = view.batch_source.created_timestamp_column
        joins.append(
            ViewJoin(
                view=view.name,
                scan=scan,
                keys=tuple(pairs),
                timestamp=scan.column(view.batch_source.timestamp_field),
                created=scan.column(created) if created else None,
                columns=tuple(scan.column(name) for name in features),
                names=tuple(f"{base}__{name}" if full_feature_names else name for name in features),
                ttl=view.ttl or None,
            )
        )
    return joins, keys


def _scan_job(
    config: RepoConfig,
    connection: duckdb.DuckDBPyConnection,
    query: str,
    prepare: str | None = None,
) -> DuckDBRetrievalJob:
    return DuckDBRetrievalJob(
        connection,
        _Scan(query, prepare),
        [query] if prepare is None else [prepare, query],
        batch_rows=config.offline_store.batch_rows,
        repo_path=config.repo_path,
    )


def _without_log_date(columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name != _LOG_DATE]

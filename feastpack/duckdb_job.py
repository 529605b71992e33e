"""DuckDB connections and the retrieval jobs that run on them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage

from feastpack.errors import OfflineStoreError
from feastpack.parquet_files import persist_batches
from feastpack.sources import literal


class TableStream(Protocol):
    """The queries of a job."""

    def __call__(
        self, connection: duckdb.DuckDBPyConnection, batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """Yield the result `batch_rows` rows at a time (None: all at once), at least a table."""

    def count(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Number of rows of the result."""


def connect(
    *,
    memory_limit: str | None,
    temp_directory: str | None,
    threads: int | None,
    repo_path: Path | str | None,
) -> duckdb.DuckDBPyConnection:
    """Open a private in-memory DuckDB whose session time zone is UTC.

    Raises
    ------
    OfflineStoreError
        If DuckDB refuses a setting.
    """
    settings: dict[str, str] = {
        "temp_directory": temp_directory or str(Path(tempfile.gettempdir()) / "feastpack_duckdb")
    }
    if memory_limit is not None:
        settings["memory_limit"] = memory_limit
    if threads is not None:
        settings["threads"] = str(threads)
    try:
        connection = duckdb.connect(config=settings)
    except duckdb.Error as error:
        raise OfflineStoreError(
            f"DuckDB refused the settings {settings}: {error}; correct offline_store in "
            "feature_store.yaml"
        ) from error
    connection.execute("SET TimeZone = 'UTC'")
    # Sources on disk are read twice at most, and whole row groups of theirs fill the memory.
    connection.execute("SET enable_external_file_cache = false")
    connection.execute("SET disable_parquet_prefetching = true")
    if repo_path is not None:
        connection.execute(f"SET file_search_path = {literal(str(repo_path))}")
    return connection


def run(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Run a statement that returns nothing.

    Raises
    ------
    OfflineStoreError
        If DuckDB fails; the message carries its own.
    """
    with _translated(statement):
        connection.execute(statement)


def fetch_arrow(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Run a query and return its result as one Arrow table.

    Raises
    ------
    OfflineStoreError
        If DuckDB fails; the message carries its own.
    """
    with _translated(query):
        return connection.sql(query).to_arrow_table()


def stream_arrow(
    connection: duckdb.DuckDBPyConnection, query: str, batch_rows: int
) -> Iterator[pa.Table]:
    """Run a query and yield its result in tables of about `batch_rows` rows.

    Raises
    ------
    OfflineStoreError
        If DuckDB fails; the message carries its own.
    """
    with _translated(query):
        reader = connection.sql(query).to_arrow_reader(batch_rows)
        is_empty = True
        for batch in reader:
            is_empty = False
            yield pa.Table.from_batches([batch])
        if is_empty:
            yield reader.schema.empty_table()


@contextlib.contextmanager
def _translated(query: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise OfflineStoreError(f"DuckDB failed: {error}; the query was:\n{query}") from error


class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A lazy query over parquet sources; runs when a result is asked for, each time anew.

    Besides Feast's interface (`to_df`, `to_arrow`, `persist`, `to_sql`, ...) it streams:
    `to_record_batches`.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        tables: TableStream,
        statements: Sequence[str],
        *,
        batch_rows: int,
        repo_path: Path | str | None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        super().__init__()
        self._connection = connection
        self._tables = tables
        self._statements = tuple(statements)
        self._batch_rows = batch_rows
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata
        # One DuckDB connection runs one query at a time.
        self._lock = threading.Lock()

    @property
    def full_feature_names(self) -> bool:
        """Whether feature columns are named ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The on-demand views that Feast runs on the result."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for; None for plain scans."""
        return self._metadata

    def to_sql(self) -> str:
        """The statements that run, one per feature view, separated by semicolons."""
        return ";\n\n".join(self._statements)

    def count_rows(self) -> int:
        """How many rows the result has, without reading its columns."""
        with self._lock:
            return self._tables.count(self._connection)

    def to_record_batches(self, batch_rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """Stream the result, on-demand features included, in the order of `to_arrow`.

        Parameters
        ----------
        batch_rows
            About how many rows a batch has; the store's setting if None. A point-in-time join
            runs once per batch of entity rows, so memory is bounded by it.

        Raises
        ------
        OfflineStoreError
            If DuckDB fails.
        """
        with self._lock:
            for table in self._tables(self._connection, batch_rows or self._batch_rows):
                complete = _TableJob(table, self).to_arrow()
                batches = complete.combine_chunks().to_batches()
                # An empty result still has a schema, which a writer needs.
                yield from batches or [pa.RecordBatch.from_pylist([], schema=complete.schema)]

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Stream the result, on-demand features included, into a parquet file or folder.

        Raises
        ------
        SavedDatasetLocationAlreadyExists
            If something is there and `allow_overwrite` is false.
        """
        with self._interrupted_after(timeout):
            persist_batches(
                self.to_record_batches(), storage, self._repo_path, allow_overwrite=allow_overwrite
            )

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with self._lock, self._interrupted_after(timeout):
            return pa.concat_tables(self._tables(self._connection, None))

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    @contextlib.contextmanager
    def _interrupted_after(self, timeout: int | None) -> Iterator[None]:
        if timeout is None:
            yield
            return
        timer = threading.Timer(timeout, self._connection.interrupt)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _TableJob(RetrievalJob):  # type: ignore[misc]
    """A result that is already there; lets Feast run on-demand views on one batch."""

    def __init__(self, table: pa.Table, job: DuckDBRetrievalJob) -> None:
        self._table = table
        self._job = job

    @property
    def full_feature_names(self) -> bool:
        return self._job.full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._job.on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._job.metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> Any:
        return self._table

"""PackedRedisOnlineStore: one packed value per feature view and entity in Redis."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Self

import pyarrow as pa
import redis
from feast import Entity, FeatureService, FeatureView, RepoConfig
from feast.infra.infra_object import InfraObject
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, StrictStr, model_validator

from feastpack.cluster_writer import write_slots
from feastpack.columns import PackedRows, arrow_rows, message_rows
from feastpack.connection import (
    RedisType,
    close,
    close_async,
    connect,
    connect_async,
    resolve_redis,
)
from feastpack.errors import UnsupportedError
from feastpack.lookup import Question, SchemaBook, ask, ask_async, oldest_valid
from feastpack.materialized import write_materialized
from feastpack.requests import OnlineRequest, track, view_reads
from feastpack.responses import ReadRow, read_rows
from feastpack.views import ViewLayout, layout_of
from feastpack.writer import (
    Lifetime,
    delete_view,
    one_ahead,
    translated,
    write_async,
    write_blobs,
)

_ROWS_PER_PACK = 1 << 16

WriteRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings of the store, the ``online_store`` block of ``feature_store.yaml``."""

    type: StrictStr = "feastpack.PackedRedisOnlineStore"
    """The store's import path."""

    redis_type: RedisType = RedisType.redis
    """redis, redis_cluster or redis_sentinel."""

    sentinel_master: StrictStr = "mymaster"
    """Name of the master that the sentinels watch."""

    wait_for_replicas: int = Field(default=0, ge=0)
    """With redis_cluster: how many replicas must have what is written before it counts as written.
    With as many as every master has, what was acknowledged survives the loss of a master."""

    connection_string: StrictStr = "localhost:6379"
    """host:port,db=0,password=... or a redis:// URL, or embedded:FOLDER."""

    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*$")] = ""
    """Which of several sets of rows of the project is read and written: one can be filled
    while another one is served."""

    namespace_file: StrictStr | None = None
    """File that holds the namespace, so that one replaced file switches all who read it;
    relative to the feature repository. While there is no such file, `namespace` holds."""

    key_ttl_seconds: int | None = Field(default=None, gt=0)
    """Keys expire this long after they were last written; None for never."""

    honour_ttl: bool = True
    """Whether a row is missing once the view's ttl after its event time has passed.
    False serves it however old it is, as Feast's own stores do."""

    expire_after_ttl_seconds: int | None = Field(default=3600, ge=0)
    """With honour_ttl, keys expire in Redis this long after their rows became invalid;
    None keeps them."""

    full_scan_for_deletion: bool = True
    """Whether `feast apply` scans Redis to delete the rows of removed feature views."""

    write_batch_rows: int = Field(default=2000, ge=1, le=100_000)
    """Rows per write command. Redis serves nobody else while one runs (about 3 us a row)."""

    @model_validator(mode="after")
    def _only_a_cluster_waits(self) -> Self:
        if self.wait_for_replicas and self.redis_type is not RedisType.redis_cluster:
            raise ValueError("wait_for_replicas needs redis_type: redis_cluster")
        return self


class PackedRedisOnlineStore(OnlineStore):  # type: ignore[misc]
    """Feast's online store interface on packed rows.

    Safe to use from several threads. Its asyncio methods keep one connection pool per
    event loop.
    """

    _versioned_read_supported = True

    def __init__(self) -> None:
        self.book = SchemaBook()
        self._guard = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._async_client: tuple[Any, Any] | None = None

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Both reads and writes have an asyncio form."""
        return SupportedAsyncMethods(read=True, write=True)

    # Connections

    def client(self, config: RepoConfig) -> Any:
        """Return the redis-py client of the store's connection string.

        Raises
        ------
        OnlineStoreError
            If it is of a Redis Cluster that cannot be used.
        """
        settings = config.online_store
        with self._guard:
            client = self._clients.get(settings.connection_string)
            if client is None:
                address = resolve_redis(settings.connection_string, base_folder=config.repo_path)
                try:
                    client = connect(
                        address,
                        settings.redis_type,
                        settings.sentinel_master,
                        settings.wait_for_replicas,
                    )
                except redis.exceptions.RedisError as error:
                    raise translated(error, "connecting to the Redis Cluster") from error
                self._clients[settings.connection_string] = client
        return client

    def async_client(self, config: RepoConfig) -> Any:
        """Return the asyncio client of the running event loop; of a Cluster that of `client`."""
        loop = asyncio.get_running_loop()
        settings = config.online_store
        if settings.redis_type is RedisType.redis_cluster:
            return self.client(config)
        with self._guard:
            if self._async_client is None or self._async_client[0] is not loop:
                address = resolve_redis(settings.connection_string, base_folder=config.repo_path)
                client = connect_async(address, settings.redis_type, settings.sentinel_master)
                self._async_client = (loop, client)
            return self._async_client[1]

    # Writes

    def online_write_arrow(
        self,
        config: RepoConfig,
        feature_view: FeatureView,
        batch: pa.RecordBatch | pa.Table | Iterable[pa.RecordBatch],
        *,
        progress: Callable[[int], Any] | None = None,
    ) -> int:
        """Write the rows of Arrow tables without a Python object per value.

        Parameters
        ----------
        batch
            One table, or any number of record batches, each fetched and packed by another thread
            while the one before is being written. Join keys, every feature of the view under
            its name (field mapping done), the event time and, if the source has one, the
            created time. Any order of rows; of two rows of one entity the one with the later
            event time stays, at equal event times the one with the later created time, at equal
            both the later in order.
        progress
            Called with a number of rows whenever that many were written.

        Returns
        -------
        int
            Rows now stored as given; the others were older than what is stored.

        Raises
        ------
        SchemaError
            If a column is missing or does not fit, or a join key or event time is null.
        OnlineStoreError
            If Redis fails or is lost. Some rows may have been written; run it again.
        """
        layout = layout_of(config, feature_view)
        tables = [batch] if isinstance(batch, pa.RecordBatch | pa.Table) else batch
        slices = (
            arrow_rows(layout, feature_view, table.slice(first, _ROWS_PER_PACK))
            for table in tables
            for first in range(0, table.num_rows, _ROWS_PER_PACK)
        )
        return self._write(config, layout, one_ahead(slices), progress)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows given as Feast's messages; see :meth:`online_write_arrow`."""
        layout = layout_of(config, table)
        if data:
            self._write(config, layout, iter([message_rows(layout, data)]), progress)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As :meth:`online_write_batch`, on the running event loop; to a Cluster in a thread."""
        layout = layout_of(config, table)
        if not data:
            return
        settings = config.online_store
        if settings.redis_type is RedisType.redis_cluster:
            await asyncio.to_thread(self.online_write_batch, config, table, data, progress)
            return
        packed, lifetime = message_rows(layout, data), self._lifetime(settings, layout)
        client = self.async_client(config)
        try:
            await write_async(client, layout, packed, lifetime, progress, settings.write_batch_rows)
        except redis.exceptions.RedisError as error:
            raise translated(error, f"writing feature view {layout.keys.view}") from error

    def note_materialized(
        self, config: RepoConfig, table: FeatureView, until: datetime, newest: datetime | None
    ) -> None:
        """Keep beside the rows that a view is materialized; see `feastpack.materialized`.

        Parameters
        ----------
        until
            The end of what was materialized.
        newest
            The latest event time among the rows written; None without rows.
        """
        keys = layout_of(config, table).keys
        try:
            write_materialized(
                self.client(config), keys.project, keys.namespace, keys.view, until, newest
            )
        except redis.exceptions.RedisError as error:
            raise translated(error, f"noting that {keys.view} is materialized") from error

    def _write(
        self,
        config: RepoConfig,
        layout: ViewLayout,
        slices: Iterator[PackedRows],
        progress: Callable[[int], Any] | None,
    ) -> int:
        settings = config.online_store
        client = self.client(config)
        lifetime = self._lifetime(settings, layout)
        try:
            if settings.redis_type is RedisType.redis_cluster:
                size = settings.write_batch_rows
                return sum(
                    write_slots(client, layout, packed, lifetime, progress, size)
                    for packed in slices
                )
            return write_blobs(
                client, layout, slices, lifetime, progress, settings.write_batch_rows
            )
        except redis.exceptions.RedisError as error:
            raise translated(error, f"writing feature view {layout.keys.view}") from error

    @staticmethod
    def _lifetime(settings: Any, layout: ViewLayout) -> Lifetime:
        after_event = None
        if settings.honour_ttl and layout.ttl_us and settings.expire_after_ttl_seconds is not None:
            after_event = layout.ttl_us // 1000 + 1000 * settings.expire_after_ttl_seconds
        after_write = settings.key_ttl_seconds and 1000 * settings.key_ttl_seconds
        return Lifetime(after_event, after_write)

    # Reads

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Read rows: event time and values by feature, or ``(None, None)`` if missing."""
        question = self.question(config, table, entity_keys)
        (answer,) = ask(self.client(config), [question], self.book)
        return read_rows(answer, requested_features)

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """As :meth:`online_read`, on the running event loop."""
        question = self.question(config, table, entity_keys)
        (answer,) = await ask_async(self.async_client(config), [question], self.book)
        return read_rows(answer, requested_features)

    @staticmethod
    def question(config: RepoConfig, table: Any, entity_keys: Sequence[EntityKey]) -> Question:
        """Return what to ask Redis for some entities of a view."""
        layout = layout_of(config, table)
        keys = [layout.keys.of_entity(entity) for entity in entity_keys]
        oldest = oldest_valid(layout, config.online_store.honour_ttl)
        return Question(layout, pa.array(keys, pa.binary()), oldest)

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Read a request's features with one round trip; Feast calls this.

        Requests with on-demand views or precomputed vectors take Feast's own path, on top
        of the same single read.
        """
        request = OnlineRequest(
            registry, project, features, full_feature_names, include_feature_view_version_metadata
        )
        reads = request.prepare(config, entity_rows)
        if reads is None:
            return super().get_online_features(
                config, features, entity_rows, *request.rest_of_arguments()
            )
        start = time.perf_counter()
        answers = ask(self.client(config), [read.question for read in reads], self.book)
        track(reads, answers, time.perf_counter() - start)
        return request.respond(reads, answers)

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """As :meth:`get_online_features`, on the running event loop."""
        request = OnlineRequest(
            registry, project, features, full_feature_names, include_feature_view_version_metadata
        )
        reads = request.prepare(config, entity_rows)
        if reads is None:
            return await super().get_online_features_async(
                config, features, entity_rows, *request.rest_of_arguments()
            )
        start = time.perf_counter()
        questions = [read.question for read in reads]
        answers = await ask_async(self.async_client(config), questions, self.book)
        track(reads, answers, time.perf_counter() - start)
        return request.respond(reads, answers)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[Any],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        *response_and_names: Any,
    ) -> None:
        """Read all views with one round trip into Feast's message; Feast's path calls this."""
        reads = view_reads(config, grouped_refs, join_key_values, entity_name_to_join_key_map)
        answers = ask(self.client(config), [read.question for read in reads], self.book)
        for read, answer in zip(reads, answers, strict=True):
            read.fill(answer, *response_and_names)

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[Any],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        *response_and_names: Any,
    ) -> None:
        reads = view_reads(config, grouped_refs, join_key_values, entity_name_to_join_key_map)
        questions = [read.question for read in reads]
        answers = await ask_async(self.async_client(config), questions, self.book)
        for read, answer in zip(reads, answers, strict=True):
            read.fill(answer, *response_and_names)

    # Infrastructure

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Delete the rows of removed views (unless ``full_scan_for_deletion`` is off)."""
        if config.online_store.full_scan_for_deletion:
            self._delete(config, tables_to_delete)

    def plan(self, config: RepoConfig, desired_registry_proto: RegistryProto) -> list[InfraObject]:
        """Return nothing: keys appear when rows are written, there are no tables to make."""
        return []

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Delete the rows of the views given."""
        self._delete(config, tables)

    def _delete(self, config: RepoConfig, tables: Sequence[Any]) -> None:
        if not tables:
            return
        try:
            for table in tables:
                delete_view(self.client(config), layout_of(config, table).keys)
        except redis.exceptions.RedisError as error:
            names = ", ".join(table.name for table in tables)
            raise translated(error, f"deleting the rows of {names}") from error

    async def close(self) -> None:
        """Close the connections of the running event loop and of all threads."""
        with self._guard:
            clients, self._clients = self._clients, {}
            asynchronous, self._async_client = self._async_client, None
        for client in clients.values():
            close(client)
        if asynchronous is not None and asynchronous[0] is asyncio.get_running_loop():
            await close_async(asynchronous[1])

    # What a key-value layout cannot answer

    def retrieve_online_documents(self, *args: Any, **kwargs: Any) -> Any:
        """Raise UnsupportedError: there is no vector index."""
        raise UnsupportedError(_NO_SEARCH)

    def retrieve_online_documents_v2(self, *args: Any, **kwargs: Any) -> Any:
        """Raise UnsupportedError: there is no vector or text index."""
        raise UnsupportedError(_NO_SEARCH)


_NO_SEARCH = (
    "PackedRedisOnlineStore keeps packed rows and no vector or text index, so it cannot "
    "search documents; read the vectors by entity and search them in your own index, or use "
    "one of Feast's vector stores (for instance milvus or pgvector) for that view"
)

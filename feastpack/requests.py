"""A ``get_online_features`` request through Feast's own interface, up to the reads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from feast import FeatureService, RepoConfig, utils
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse
from feast.protos.feast.types.Value_pb2 import Value

from feastpack.lookup import Answer
from feastpack.responses import PackedOnlineResponse, ViewRead
from feastpack.views import layout_of


class OnlineRequest:
    """One request: its resolution is Feast's own, its reads and its response are ours."""

    def __init__(
        self,
        registry: BaseRegistry,
        project: str,
        features: list[str] | FeatureService,
        full_feature_names: bool,
        with_versions: bool,
    ) -> None:
        self._registry = registry
        self._project = project
        self._features = features
        self._full_feature_names = full_feature_names
        self._with_versions = with_versions
        self._grouped: list[Any] = []
        self._wanted: set[str] = set()
        self._message: Any = None

    def rest_of_arguments(self) -> tuple[Any, ...]:
        """Return what follows the entities in ``OnlineStore.get_online_features``."""
        return self._registry, self._project, self._full_feature_names, self._with_versions

    def prepare(self, config: RepoConfig, entity_rows: Any) -> list[ViewRead] | None:
        """Return what to read; None if the request needs Feast's own path."""
        if getattr(self._features, "precompute_online", False):
            return None
        (
            join_key_values,
            grouped,
            join_key_of_entity,
            on_demand_views,
            _,
            wanted,
            self._message,
        ) = utils._prepare_entities_to_read_from_online_store(
            registry=self._registry,
            project=self._project,
            features=self._features,
            entity_values=_columnar(entity_rows),
            full_feature_names=self._full_feature_names,
            native_entity_values=True,
        )
        if on_demand_views:
            return None
        self._grouped, self._wanted = grouped, wanted
        return view_reads(config, grouped, join_key_values, join_key_of_entity)

    def respond(self, reads: Sequence[ViewRead], answers: Sequence[Answer]) -> OnlineResponse:
        """Return Feast's response for the answers."""
        return PackedOnlineResponse(
            self._message,
            reads,
            answers,
            wanted=self._wanted,
            full_feature_names=self._full_feature_names,
            with_versions=self._with_versions,
            feature_types=OnlineStore._build_feature_types(self._grouped),
        )


def track(reads: Sequence[ViewRead], answers: Sequence[Answer], seconds: float) -> None:
    """Count what was read in Feast's own metrics, if its server has them switched on."""
    metrics = sys.modules.get("feast.metrics")
    if metrics is None or not metrics._config.online_features:
        return
    metrics.track_online_store_read(seconds)
    for read, answer in zip(reads, answers, strict=True):
        present = int(answer.rows.found[read.place_of].sum()) * len(read.features)
        missing = len(read.place_of) * len(read.features) - present
        metrics.track_feature_statuses(read.table.name, present, missing)


def view_reads(
    config: RepoConfig,
    grouped: Sequence[tuple[Any, list[str]]],
    join_key_values: Mapping[str, list[Value]],
    join_key_of_entity: Mapping[str, str],
) -> list[ViewRead]:
    """Return what to read of each view of a request."""
    honour_ttl: bool = config.online_store.honour_ttl
    return [
        ViewRead.of_request(
            layout_of(config, table),
            table,
            features,
            join_key_values,
            join_key_of_entity,
            honour_ttl,
        )
        for table, features in grouped
    ]


def _columnar(entity_rows: Any) -> Any:
    if not isinstance(entity_rows, list):
        return entity_rows
    names = entity_rows[0].keys()
    if any(row.keys() != names for row in entity_rows):
        raise ValueError("All entity_rows must have the same keys.")
    return {name: [row[name] for row in entity_rows] for name in names}

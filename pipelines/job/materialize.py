"""Step materialize: the feature tables into Redis, through Feast, for the next publication.

What is served is left alone: the rows are written under a namespace of their own, with a copy of
Feast's registry, and `publish` switches to both.
"""

from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import duckdb
from feast.protos.feast.core.Registry_pb2 import Registry

from feastpack.cluster import send
from feastpack.writer import delete_namespace
from pipelines.job.context import Context, Progresses, moment_of, open_store
from pipelines.job.published_gates import judge_online
from pipelines.steps import StepRecord, content_key
from serving.generation import staged_store
from serving.recommender import redis_of
from validation.columns import text_literal

NAME = "materialize"
# Keys that Redis looks at for one answer.
_SCANNED = 1000


def run(context: Context) -> StepRecord:
    """Write every view's latest row per entity, as of the job's moment, to the online store."""
    features, apply = context.record("features"), context.record("apply")
    store = open_store(context.workspace)
    last_event = datetime.fromisoformat(context.record("ingest").facts["last_time"])
    first_event = datetime.fromisoformat(context.record("ingest").facts["first_time"])
    begin = min(first_event, *_first_rows(context)) - timedelta(days=1)
    moment = moment_of(context.settings, last_event)
    # Live data is materialized afresh every run: windows move with the clock.
    live = moment != last_event and context.settings.as_of is None
    key = content_key(NAME, features.key, apply.key, moment.isoformat())
    namespace = key[:12]
    redis = redis_of(store)
    marker = marker_of(context.dataset.name, namespace)
    registry = context.workspace.staged_registry

    def work(bars: Progresses) -> Mapping[str, Any]:
        # Not before it is true: a killed run leaves no marker, and the next one writes again.
        send(redis, [(marker, ("SET", marker, ""))])
        delete_namespace(redis, context.dataset.name, namespace)
        registry.write_bytes(_never_materialized(context.workspace.registry.read_bytes()))
        staged = staged_store(store, registry, namespace)
        views = [view.name for view in staged.list_feature_views()]
        bar = bars.bar("views into Redis")
        for done, view in enumerate(views, 1):
            # Feast announces every view on standard output; the step has its own line.
            with redirect_stdout(StringIO()):
                staged.materialize(begin, moment, feature_views=[view])
            bar(done, len(views))
        judge_online(context, staged, staged.list_feature_views(), moment)
        send(redis, [(marker, ("SET", marker, key))])
        return {
            "as_of": None if live else moment.isoformat(),
            "moment": moment.isoformat(),
            "first": begin.isoformat(),
            "namespace": namespace,
            "summary": f"{len(views)} views into Redis, as of {moment:%Y-%m-%d %H:%M} UTC",
        }

    def is_there() -> bool:
        return is_complete(redis, context.dataset.name, namespace)

    return context.step(NAME, key, [registry], work, is_there=is_there)


def _first_rows(context: Context) -> Iterator[datetime]:
    """Yield each feature table's first time: users and posts may be older than every event."""
    for table in sorted(context.workspace.features.glob("*.parquet")):
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            query = f"SELECT min(event_timestamp) FROM read_parquet({text_literal(str(table))})"
            first = connection.sql(query).to_arrow_table().column(0)[0].as_py()
        if first is not None:
            yield first.astimezone(UTC)


def _never_materialized(registry: bytes) -> bytes:
    """Return a registry that knows of no materialization: a new namespace has had none."""
    parsed = Registry.FromString(registry)
    for view in parsed.feature_views:
        view.meta.ClearField("materialization_intervals")
    return bytes(parsed.SerializeToString())


def marker_of(project: str, namespace: str) -> str:
    """Return the key that is there while a namespace is; empty until all its rows are written."""
    return f"feastrank:{project}:materialized:{namespace}"


def is_complete(redis: Any, project: str, namespace: str) -> bool:
    """Return whether all rows of a namespace were written."""
    return bool(redis.get(marker_of(project, namespace)))


def namespaces(redis: Any, project: str) -> Iterator[str]:
    """Yield the namespaces of a project that were begun."""
    prefix = marker_of(project, "")
    for key in redis.scan_iter(match=f"{prefix}*", count=_SCANNED):
        yield key.decode().removeprefix(prefix)

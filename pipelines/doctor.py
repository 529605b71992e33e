"""``feastrank doctor``: what is installed, reachable, published and stale."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import redis
from feast import FeatureStore
from rich.console import Console
from rich.markup import escape

from feastpack.cluster import ClusterClient, nodes_of
from feastpack.embedded import find_redis_server
from feastpack.errors import FeastpackError
from feature_repo.contract import registered_contract
from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.errors import PipelineError, PublishedElsewhereError, StorageError
from pipelines.job.context import STEPS, description_path, open_store
from pipelines.settings import DatasetSettings
from pipelines.steps import Ledger
from pipelines.storage.mirror import Mirror
from serving.bundle import Manifest, current_generation, open_current
from serving.errors import ServingError
from serving.freshness import FreshnessMonitor, ViewAge
from serving.generation import generation_contract, generation_store
from serving.recommender import redis_of

LIBRARIES = (
    *("feast", "duckdb", "ibis-framework", "pyarrow", "pandas", "numpy", "redis"),
    *("great-expectations", "implicit", "lightgbm", "catboost", "torch", "sentence-transformers"),
)

MOST_APART_S = 5.0
"""By how much the clocks of this machine and of Redis may differ."""

_TIMES_ASKED = 3


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``advice`` is what to do, empty if nothing."""

    what: str
    found: str
    advice: str = ""


class DoctorError(PipelineError):
    """Something is missing or does not answer; the findings say what and what to do."""


def doctor(settings: DatasetSettings, console: Console) -> None:
    """Print the diagnosis.

    Raises
    ------
    DoctorError
        If any finding needs something to be done.
    """
    findings = list(diagnose(settings))
    for one in findings:
        mark = "[red]x [/]" if one.advice else "[green]ok[/]"
        console.print(f"{mark} {one.what:<22} {escape(one.found)}", highlight=False)
        if one.advice:
            console.print(f"     {escape(one.advice)}", highlight=False)
    wrong = [one for one in findings if one.advice]
    if wrong:
        raise DoctorError(f"{len(wrong)} of {len(findings)} findings need something done")


def diagnose(settings: DatasetSettings) -> Iterator[Finding]:
    """Yield everything that can be said of the installation and of the dataset's state."""
    for name in LIBRARIES:
        yield _library(name)
    yield _redis_server()
    dataset = Dataset.read(description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    yield Finding("dataset", f"{dataset.name} ({description_path(settings)})")
    yield from _steps(Ledger(workspace.steps))
    yield from _online(workspace)
    if (mirror := Mirror.of(workspace, settings.storage)) is not None:
        yield _storage(mirror)


def _library(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", "run `make install`")


def _redis_server() -> Finding:
    try:
        return Finding("redis-server", str(find_redis_server()))
    except FeastpackError as error:
        return Finding("redis-server", "none", str(error))


def _steps(ledger: Ledger) -> Iterator[Finding]:
    for name in STEPS:
        record = ledger.find(name)
        if record is None:
            yield Finding(name, "never run", f"run `feastrank {name}` or `feastrank run`")
            continue
        finished = datetime.fromisoformat(record.finished)
        age = datetime.now(UTC) - finished
        found = f"{record.finished}, {age.days} days ago; {record.facts.get('summary', '')}"
        gone = not ledger.is_current(name, record.key)
        yield Finding(name, found, "its files are gone; run `feastrank run`" if gone else "")


def _storage(mirror: Mirror) -> Finding:
    try:
        latest = mirror.check()
    except (StorageError, PublishedElsewhereError) as error:
        return Finding("object storage", mirror.url, str(error))
    if latest is None:
        return Finding("object storage", f"{mirror.url}: nothing published", "run `feastrank run`")
    found = f"{mirror.url}: publication {latest.number}, {latest.published}"
    whole = mirror.is_published(latest.generation)
    return Finding(
        "object storage",
        found,
        ""
        if whole
        else "files are missing or cut short there; run `feastrank publish` where it was published",
    )


def ages_of(workspace: Workspace) -> list[ViewAge]:
    """Return how old the views of the published generation are.

    Raises
    ------
    ServingError, MissingStepError
        If there is none, or it is damaged.
    """
    folder, manifest = open_current(workspace.bundles)
    return _ages(open_store(workspace), folder, manifest)


def _ages(store: FeatureStore, folder: Path, manifest: Manifest) -> list[ViewAge]:
    own = generation_store(store, folder, manifest)
    now = datetime.now(UTC)
    moment = now if manifest.as_of is None else datetime.fromisoformat(manifest.as_of)
    contract = generation_contract(own, manifest)
    return FreshnessMonitor(own, contract, redis_of(own), manifest.namespace, lambda: moment).ages()


def _view(age: ViewAge) -> Finding:
    limits = age.limits
    told = [
        f"{what} {moment:%Y-%m-%d %H:%M} UTC, {(seconds or 0) / 3600:.1f} h old"
        + ("" if limit is None else f" (at most {limit / 3600:g} h)")
        for what, moment, seconds, limit in (
            ("materialized until", age.materialized, age.age_s, limits.max_age_s),
            ("newest row", age.newest_event, age.event_age_s, limits.max_event_age_s),
        )
        if moment is not None
    ]
    found = "; ".join(told) or "not materialized"
    if age.is_stale:
        return Finding(age.view, found, f"stale ({limits.when_stale}); run `feastrank run`")
    return Finding(age.view, found, "" if told else "run `feastrank materialize`")


def _online_store(client: Any) -> Finding:
    nodes = nodes_of(client)
    servers = [node.info("server") for node in nodes]
    told = f"Redis {servers[0]['redis_version']}, port {servers[0]['tcp_port']}"
    if not isinstance(client, ClusterClient):
        return Finding("online store", told)
    replicas = min(node.info("replication")["connected_slaves"] for node in nodes)
    told = f"Redis {servers[0]['redis_version']}, Cluster of {len(nodes)} masters, each with "
    told += f"{replicas} or more replicas"
    if not client.is_whole():
        return Finding("online store", told, "slots have no master: `redis-cli --cluster check`")
    lacks = replicas < client.wait_for_replicas
    asked = f"wait_for_replicas is {client.wait_for_replicas}: writes are refused until they do"
    return Finding("online store", told, f"masters lack replicas; {asked}" if lacks else "")


def clocks(client: Any, clock: Callable[[], float] = time.time) -> Finding:
    """Compare this machine's clock (seconds since 1970) with that of every node of Redis."""
    most = max((_ahead_of(node, clock) for node in nodes_of(client)), key=abs)
    way = "ahead of" if most > 0 else "behind"
    found = f"this machine's is {abs(most):.1f} s {way} Redis'"
    advice = (
        "set the clocks of all machines by NTP: times of events and ages of features follow the "
        "clock of the machine that serves, and rows expire by that of Redis"
    )
    return Finding("clocks", found, advice if abs(most) > MOST_APART_S else "")


def _ahead_of(node: Any, clock: Callable[[], float]) -> float:
    """Return by how many seconds a clock is ahead of a node's, to half of a round trip."""
    found: list[tuple[float, float]] = []
    for _ in range(_TIMES_ASKED):
        before = clock()
        seconds, microseconds = node.time()
        after = clock()
        # The node looked at its own somewhere between the two.
        found.append((after - before, (before + after) / 2 - seconds - microseconds / 1e6))
    return min(found)[1]


def _online(workspace: Workspace) -> Iterator[Finding]:
    if not workspace.feature_store_yaml.exists():
        yield Finding("feature store", "not applied", "run `feastrank apply`")
        return
    store = open_store(workspace)
    try:
        client = redis_of(store)
        yield _online_store(client)
        yield clocks(client)
    except (redis.RedisError, FeastpackError) as error:
        yield Finding("online store", f"no answer: {error}", "start Redis, or check REDIS_URL")
    try:
        folder, manifest = open_current(workspace.bundles)
        yield from map(_view, _ages(store, folder, manifest))
        changed = manifest.contract_hash != registered_contract(store).hash
        yield Finding(
            "bundle",
            f"{manifest.generation}, published {manifest.created}",
            "made for other ranker inputs than are applied now; run `feastrank run`"
            if changed
            else "",
        )
    except (ServingError, FeastpackError) as error:
        generation = current_generation(workspace.bundles)
        yield Finding("bundle", generation or "none published", str(error))

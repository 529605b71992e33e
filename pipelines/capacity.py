"""``feastrank capacity``: what so many users and posts need, from what a published dataset has.

Bytes of a user and of a post are measured in the dataset's Redis, on keys drawn by chance; time
per request and per row are settings, whose defaults the repository's benchmarks measured. The
model is linear: bytes of a kind of key = (bytes of it now / entities now) * entities planned.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from feast import FeatureStore
from rich.console import Console
from rich.table import Table

from feastpack.cluster import nodes_of
from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace
from pipelines.errors import MissingStepError
from pipelines.job.context import description_path, open_store
from pipelines.settings import CapacitySettings
from pipelines.steps import Ledger
from serving.recommender import redis_of

USER, POST, NOBODY = "user", "post", "-"
BUCKET_BYTES = 16
"""Of a key in Redis' hash table, which ``MEMORY USAGE`` leaves out."""
HEADROOM = 1.4
"""Memory that a node has above its data: fragmentation, snapshots (copy on write), clients."""
BUSY = 0.6
"""Share of a core's time that may be used before queues grow."""
GB = 2**30


@dataclass
class Kind:
    """Keys of one kind: a feature view's rows, lists, histories.

    Parameters
    ----------
    entity
        Whose they are: `USER`, `POST` or `NOBODY`.
    keys
        How many there are, estimated.
    bytes_a_key
        Mean of those drawn, with the key and Redis' own overhead.
    """

    entity: str
    keys: float
    bytes_a_key: float

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.keys * self.bytes_a_key


@dataclass(frozen=True)
class Measured:
    """A dataset in Redis: its kinds of keys by name, and how many users and posts it has."""

    users: int
    posts: int
    kinds: Mapping[str, Kind]

    def bytes_of(self, entity: str) -> float:
        """Return the bytes of one user or post, all kinds together."""
        count = self.users if entity == USER else self.posts
        return sum(kind.bytes for kind in self.kinds.values() if kind.entity == entity) / count


@dataclass(frozen=True)
class Plan:
    """What is needed for the users and posts that are planned.

    Parameters
    ----------
    data_gb, memory_gb
        Redis: the keys alone, and with `HEADROOM`.
    nodes
        Of Redis, masters only: the larger of `nodes_for_memory` and `nodes_for_reads`.
    rows, refresh_minutes, writers
        A full materialization: rows, minutes with one writer, writers for the wished time.
    serving_cores
        For the requests, each used to `BUSY`.
    first
        What asks for more nodes or is used most: it saturates first.
    """

    data_gb: float
    memory_gb: float
    nodes_for_memory: int
    nodes_for_reads: int
    rows: int
    refresh_minutes: float
    writers: int
    serving_cores: int
    first: str = field(default="")

    @property
    def nodes(self) -> int:
        """Masters of Redis."""
        return max(self.nodes_for_memory, self.nodes_for_reads)


def capacity(settings: CapacitySettings, console: Console) -> None:
    """Measure the published dataset; print the plan."""
    dataset = Dataset.read(description_path(settings))
    workspace = Workspace(settings.home.resolve(), dataset.name)
    record = Ledger(workspace.steps).find("ingest")
    if record is None:
        raise MissingStepError(
            f"{dataset.name}: nothing is published to measure; run `feastrank run "
            f"--dataset {settings.dataset}` on a part of the data first"
        )
    store = open_store(workspace)
    users, posts = record.facts["users"], record.facts["posts"]
    measured = measure(redis_of(store), store, users, posts, settings.sample)
    found = plan(measured, settings)
    console.print(_table(dataset.name, measured, settings))
    for line in _lines(found, measured, settings):
        console.print(line, highlight=False, soft_wrap=True)


def measure(client: Any, store: FeatureStore, users: int, posts: int, sample: int) -> Measured:
    """Draw keys by chance and sort them into kinds.

    Parameters
    ----------
    sample
        How many are drawn, with replacement; the error falls with its root. All keys are looked
        at, each once, where there are no more than that.

    Raises
    ------
    MissingStepError
        If there is nothing in Redis.
    """
    nodes = nodes_of(client)
    held = [int(node.dbsize()) for node in nodes]
    total = sum(held)
    entities = {view.name: _entity_of(view) for view in store.list_feature_views()}
    drawn: dict[tuple[str, str], list[int]] = defaultdict(list)
    for node, count in zip(nodes, held, strict=True):
        share = None if total <= sample else math.ceil(sample * count / total)
        for key, size in _draw(node, share):
            drawn[_kind_of(key, store.project, entities)].append(size + BUCKET_BYTES)
    count = sum(map(len, drawn.values()))
    if count == 0:
        raise MissingStepError(
            f"{store.project}: Redis holds nothing to measure; run `feastrank run` first"
        )
    kinds = {
        name: Kind(entity, total * len(sizes) / count, sum(sizes) / len(sizes))
        for (name, entity), sizes in sorted(drawn.items())
    }
    return Measured(users, posts, kinds)


def _draw(node: Any, sample: int | None) -> Iterator[tuple[bytes, int]]:
    """Yield keys of a node drawn by chance (None: all of them, each once) with their bytes."""
    with node.pipeline(transaction=False) as pipe:
        if sample is None:
            # A scan may come by a key twice.
            keys = list(set(node.scan_iter(count=1000)))
        else:
            for _ in range(sample):
                pipe.randomkey()
            keys = [key for key in pipe.execute() if key is not None]
        for key in keys:
            pipe.memory_usage(key)
        for key, size in zip(keys, pipe.execute(), strict=True):
            # A key may have expired in between.
            if size is not None:
                yield key, size


def plan(measured: Measured, settings: CapacitySettings) -> Plan:
    """Scale what was measured to what is planned."""
    planned = {USER: settings.users, POST: settings.posts}
    data = sum(planned[entity] * measured.bytes_of(entity) for entity in planned)
    now = {USER: measured.users, POST: measured.posts}
    rows = sum(
        kind.keys / now[kind.entity] * planned[kind.entity]
        for kind in measured.kinds.values()
        if kind.entity in planned
    )
    reads = settings.requests_per_second * settings.redis_ms_per_request / 1000
    seconds = rows / settings.rows_per_second
    serving = settings.requests_per_second * settings.cpu_ms_per_request / 1000
    for_memory = math.ceil(data * HEADROOM / (settings.node_gb * GB))
    for_reads = math.ceil(reads / BUSY)
    share = {
        "memory of Redis": data * HEADROOM / (settings.node_gb * GB) / max(for_memory, for_reads),
        "reads from Redis": reads / BUSY / max(for_memory, for_reads),
        "the refresh by one writer": seconds / 60 / settings.refresh_minutes,
    }
    return Plan(
        data_gb=data / GB,
        memory_gb=data * HEADROOM / GB,
        nodes_for_memory=for_memory,
        nodes_for_reads=for_reads,
        rows=round(rows),
        refresh_minutes=seconds / 60,
        writers=math.ceil(seconds / 60 / settings.refresh_minutes),
        serving_cores=math.ceil(serving / BUSY),
        first=max(share, key=share.__getitem__),
    )


def _entity_of(view: Any) -> str:
    return {"user_id": USER, "post_id": POST}.get(view.join_keys[0], NOBODY)


def _kind_of(key: bytes, project: str, entities: Mapping[str, str]) -> tuple[str, str]:
    """Return a kind's name and whose it is."""
    head, _, rest = key.partition(b":")
    space, _, rest = rest.partition(b":")
    kind = rest.partition(b":")[0].decode(errors="replace")
    own = space.partition(b"@")[0].decode(errors="replace").strip("{}") == project
    if head == b"fp" and own and kind in entities:
        return f"rows of {kind}", entities[kind]
    if head == b"feastrank" and own and kind == "lists":
        return ("histories" if b":past:" in rest else "lists"), USER
    if head == b"feastrank" and own and kind == "recent":
        return "recent events", USER
    return "others", NOBODY


def _table(name: str, measured: Measured, settings: CapacitySettings) -> Table:
    table = Table(title=f"{name}: {measured.users:,} users, {measured.posts:,} posts in Redis now")
    for title in ("keys", "of a", "how many", "bytes a key", "planned GB"):
        table.add_column(title, justify="left" if title in ("keys", "of a") else "right")
    now = {USER: measured.users, POST: measured.posts}
    planned = {USER: settings.users, POST: settings.posts}
    for title, kind in measured.kinds.items():
        scaled = kind.bytes / now[kind.entity] * planned[kind.entity] if kind.entity in now else 0
        table.add_row(
            title,
            kind.entity,
            f"{kind.keys:,.0f}",
            f"{kind.bytes_a_key:,.0f}",
            f"{scaled / GB:.2f}",
        )
    return table


def _lines(found: Plan, measured: Measured, settings: CapacitySettings) -> list[str]:
    return [
        f"a user has {measured.bytes_of(USER):,.0f} bytes in Redis, a post "
        f"{measured.bytes_of(POST):,.0f}",
        f"{settings.users:,} users and {settings.posts:,} posts: {found.data_gb:,.1f} GB of keys, "
        f"{found.memory_gb:,.1f} GB with headroom ({HEADROOM}x): {found.nodes_for_memory} nodes of "
        f"{settings.node_gb:g} GB",
        f"{settings.requests_per_second:g} requests/s at {settings.redis_ms_per_request:g} ms of "
        f"Redis and {settings.cpu_ms_per_request:g} ms of a serving core each: "
        f"{found.nodes_for_reads} nodes, {found.serving_cores} serving cores (used to {BUSY:.0%})",
        f"a full refresh writes {found.rows:,} rows: {found.refresh_minutes:,.1f} minutes with one "
        f"writer of {settings.rows_per_second:,} rows/s; {found.writers} writers for "
        f"{settings.refresh_minutes:g} minutes",
        f"Redis: {found.nodes} masters, and as many replicas; first to saturate: {found.first}",
    ]

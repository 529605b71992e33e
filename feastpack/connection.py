"""From a connection string to a Redis client.

Three forms are understood:

- Feast's own, ``host:port,db=0,ssl=true,password=...``, with several ``host:port`` parts
  for Cluster and Sentinel; values are JSON where they parse as JSON, exactly as Feast's
  own Redis store reads them;
- a URL, ``redis://user:password@host:port/db`` or ``rediss://`` for TLS;
- ``embedded:FOLDER``: the server named by the environment variable ``REDIS_URL`` if that
  is set, else the embedded server of that folder, started when first needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from feastpack.cluster import ClusterClient
from feastpack.embedded import EmbeddedRedis, shared_embedded
from feastpack.errors import ConnectionStringError

# redis-py waits for seconds between its attempts; a request for features cannot.
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=0.5)
_RETRIES = 3
# A read of some hundred rows is an answer of 100 to 200 kB: taken at once where it can be.
_READ_BYTES = 1 << 18
# A node that hangs would be waited for for ever, while another one could take its place.
_CLUSTER_DEADLINES = {"socket_connect_timeout": 5.0, "socket_timeout": 10.0}
_EMBEDDED = "embedded:"
_URL_SCHEMES = ("redis://", "rediss://", "unix://")


class RedisType(StrEnum):
    """How the servers behind the connection string work together."""

    redis = "redis"
    redis_cluster = "redis_cluster"
    redis_sentinel = "redis_sentinel"


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is and how to talk to it.

    Attributes
    ----------
    nodes
        Host and port of every server named; empty when ``url`` is given.
    options
        Keyword arguments for redis-py: db, password, ssl, socket_timeout, ...
    url
        The URL, when the connection string was one (or came from ``REDIS_URL``).
    embedded
        This process's user of the embedded server, if the address is one.
    """

    nodes: tuple[tuple[str, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None
    embedded: EmbeddedRedis | None = None


def resolve_redis(
    connection_string: str, *, base_folder: str | os.PathLike[str] | None = None
) -> RedisAddress:
    """Read a connection string; for ``embedded:`` also make sure that the server runs.

    Parameters
    ----------
    connection_string
        One of the three forms that this module describes.
    base_folder
        What a relative FOLDER of ``embedded:FOLDER`` is relative to (the feature
        repository); the current folder if not given.

    Raises
    ------
    ConnectionStringError
        If the string names no server.
    EmbeddedRedisError
        If the embedded server cannot be started.
    """
    text = connection_string.strip()
    if text.startswith(_EMBEDDED):
        from_environment = os.environ.get("REDIS_URL")
        if from_environment:
            return resolve_redis(from_environment)
        folder = text.removeprefix(_EMBEDDED)
        if not folder:
            raise ConnectionStringError(
                f"connection string {connection_string!r} names no folder; "
                "write it as embedded:FOLDER, for instance embedded:.redis"
            )
        server = shared_embedded(Path(base_folder or ".") / Path(folder).expanduser())
        return RedisAddress(nodes=((server.host, server.port),), embedded=server)
    if text.startswith(_URL_SCHEMES):
        return RedisAddress(url=text)
    return _from_feast_form(text)


def _from_feast_form(text: str) -> RedisAddress:
    nodes: list[tuple[str, int]] = []
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, is_option, value = part.partition("=")
        if is_option:
            try:
                options[name] = json.loads(value)
            except json.JSONDecodeError:
                options[name] = value
            continue
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit():
            raise ConnectionStringError(
                f"connection string part {part!r} is not host:port; write for instance "
                "localhost:6379,db=0 or redis://localhost:6379/0 or embedded:.redis"
            )
        nodes.append((host.strip("[]"), int(port)))
    if not nodes:
        raise ConnectionStringError(
            f"connection string {text!r} names no server; "
            "write for instance localhost:6379 or embedded:.redis"
        )
    return RedisAddress(nodes=tuple(nodes), options=options)


def connect(
    address: RedisAddress,
    redis_type: RedisType,
    sentinel_master: str,
    wait_for_replicas: int = 0,
) -> Any:
    """Return a redis-py client for the address.

    It connects on first use; only that of a Cluster at once, to learn who has which slots. A
    client is safe to share between threads.

    Raises
    ------
    ConnectionStringError
        If another database of a Cluster is asked for than the one it has.
    redis.exceptions.RedisError
        If no node of a Cluster answers, or some slots have no master.
    """
    options = {"retry": Retry(_BACKOFF, _RETRIES), **address.options}
    if redis_type is RedisType.redis_cluster:
        if options.pop("db", 0):
            raise ConnectionStringError(
                "a Redis Cluster has one database only; leave db=... out of connection_string"
            )
        options = {**_CLUSTER_DEADLINES, **options, "wait_for_replicas": wait_for_replicas}
        if address.url is not None:
            return ClusterClient.from_url(address.url, **options)
        nodes = [ClusterNode(host, port) for host, port in address.nodes]  # type: ignore[no-untyped-call]
        return ClusterClient(startup_nodes=nodes, **options)
    if redis_type is RedisType.redis_sentinel:
        sentinel = Sentinel(_nodes_of(address), **options)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(sentinel_master)  # type: ignore[no-untyped-call]
    elif address.url is not None:
        client = redis.Redis.from_url(address.url, **options)
    else:
        host, port = address.nodes[0]
        client = redis.Redis(host=host, port=port, **options)
    client.connection_pool.connection_kwargs.setdefault("socket_read_size", _READ_BYTES)
    return client


def connect_async(address: RedisAddress, redis_type: RedisType, sentinel_master: str) -> Any:
    """Return a redis-py asyncio client for the address; it belongs to one event loop.

    Not of a Cluster.
    """
    options = {"retry": AsyncRetry(_BACKOFF, _RETRIES), **address.options}
    if redis_type is RedisType.redis_sentinel:
        sentinel = AsyncSentinel(_nodes_of(address), **options)  # type: ignore[no-untyped-call]
        return sentinel.master_for(sentinel_master)
    if address.url is not None:
        return redis.asyncio.Redis.from_url(address.url, **options)
    host, port = address.nodes[0]
    return redis.asyncio.Redis(host=host, port=port, **options)


def close(client: Any) -> None:
    """Close a client's connections, those to its Sentinels included."""
    for sentinel in _sentinels_of(client):
        sentinel.close()
    client.close()


async def close_async(client: Any) -> None:
    """Close an asyncio client's connections, those to its Sentinels included."""
    for sentinel in _sentinels_of(client):
        await sentinel.aclose()
    await client.aclose()


def _sentinels_of(client: Any) -> list[Any]:
    # A client of a Cluster has no pool of its own; only a Sentinel's pool has a manager.
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _nodes_of(address: RedisAddress) -> list[tuple[str, int]]:
    if address.url is not None:
        raise ConnectionStringError(
            "a URL names one server, but redis_type: redis_sentinel needs the sentinels; "
            "write connection_string as host:port,host:port,password=..."
        )
    return list(address.nodes)

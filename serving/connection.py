"""How long serving waits for Redis, and whether it is there."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feastpack.cluster import ClusterClient


def limit_waiting(client: Any, seconds: float) -> None:
    """Give every call of a client a deadline; call it before the client's first use.

    A connection that was lost is replaced once and at once, a server that does not answer in
    time is not asked again; of a Cluster, the keys of a node that fails or does not answer are
    asked for once more, where its slots are then said to be.

    Parameters
    ----------
    seconds
        For connecting, and again for each answer.
    """
    if isinstance(client, ClusterClient):
        client.limit_waiting(seconds)
    elif isinstance(client, redis.Redis):
        client.connection_pool.connection_kwargs.update(
            socket_timeout=seconds, socket_connect_timeout=seconds
        )
        client.set_retry(
            Retry(NoBackoff(), retries=1, supported_errors=(redis.exceptions.ConnectionError,))
        )


def is_reachable(client: Any) -> bool:
    """Whether Redis answers in time; of a Cluster: all masters, and all slots have one."""
    try:
        return client.is_whole() if isinstance(client, ClusterClient) else bool(client.ping())
    except redis.exceptions.RedisError:
        return False

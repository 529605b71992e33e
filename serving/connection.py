"""How long serving waits for Redis."""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def limit_waiting(client: Any, seconds: float) -> None:
    """Give every call of a client a deadline; call it before the client's first use.

    A connection that was lost is replaced once and at once, a server that does not answer in
    time is not asked again. With Redis Cluster the connection string's own ``socket_timeout``
    holds instead.

    Parameters
    ----------
    seconds
        For connecting, and again for each answer.
    """
    if isinstance(client, redis.Redis):
        client.connection_pool.connection_kwargs.update(
            socket_timeout=seconds, socket_connect_timeout=seconds
        )
        client.set_retry(
            Retry(NoBackoff(), retries=1, supported_errors=(redis.exceptions.ConnectionError,))
        )

"""Fixtures shared by all rooms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from feastpack.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A real Redis server on a free port, one per test process: .host, .port, .url, .pid."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: EmbeddedRedis) -> Iterator[Any]:
    """A client of the session's server, whose database is emptied before the test."""
    client = redis.Redis(host=redis_server.host, port=redis_server.port)
    client.flushall()
    yield client
    client.close()

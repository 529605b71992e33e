"""A Redis without memory left refuses events as a whole; it does not take them beyond its limit."""

from pathlib import Path

import pytest
import redis

import serving.events

SCRIPT = Path(serving.events.__file__).with_suffix(".lua").read_text(encoding="utf-8")
KEYS = ["{s}:stream", "{s}:ids", "{s}:name", "{s}:recent"]


def keep(client, event_id: str, now_ms: int = 10_000):
    arguments = [100, now_ms, 5_000, 1_600, 60, "name", event_id, b"r" * 16, "{}"]
    return client.register_script(SCRIPT)(keys=KEYS, args=arguments)


def test_without_memory_nothing_is_kept_and_with_it_all_is_well_again(redis_client):
    redis_client.config_set("maxmemory-policy", "noeviction")
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.ResponseError, match=r"OOM|maxmemory"):
            keep(redis_client, "a")
        assert redis_client.dbsize() == 0
    finally:
        redis_client.config_set("maxmemory", "0")
    assert keep(redis_client, "a") == [1]
    assert keep(redis_client, "a") == [0]
    # An id is known for as long as was asked, then forgotten.
    assert keep(redis_client, "a", now_ms=15_001) == [1]
    assert keep(redis_client, "b", now_ms=30_000) == [1]
    assert redis_client.zcard(KEYS[1]) == 1

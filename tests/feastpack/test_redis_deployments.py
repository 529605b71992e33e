"""TLS, ACL users and Sentinel, each against real servers that the test starts."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from feast import FeatureStore
from feast.types import Float64, Int64, String
from feast_values import feature_store, user_entity, user_view

from feastpack import FeatureReader
from feastpack.embedded import find_redis_server
from feastpack.errors import OnlineStoreError

USERS = [1, 2, 3]
FEATURES = ["v:x", "v:n", "v:s"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # The bus of a cluster's node listens 10,000 higher
        return int(probe.getsockname()[1]) % 40_000 + 10_000


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def server(folder: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A redis-server of the test's own, listening when this returns."""
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    command = [str(find_redis_server()), *arguments, "--dir", str(folder), "--bind", "127.0.0.1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def listens() -> bool:
        said = log.read_text(errors="replace")
        if "Bad directive" in said and "tls-" in said:
            pytest.skip(f"{command[0]} is built without TLS")
        assert process.poll() is None, said
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens)
        yield process
    finally:
        process.terminate()
        process.wait()


def plain(port: int, *arguments: str) -> list[str]:
    return ["--port", str(port), "--save", "", *arguments]


def store_on(folder: Path, connection_string: str, **settings: Any) -> FeatureStore:
    where = {
        "type": "feastpack.PackedRedisOnlineStore",
        "connection_string": connection_string,
        **settings,
    }
    view = user_view(folder, "v", {"x": Float64, "n": Int64, "s": String})
    return feature_store(folder, where, [user_entity(), view])


def frame_of(users: list[int]) -> Any:
    import pandas as pd

    values = {
        "user_id": users,
        "x": [u / 2 for u in users],
        "n": users,
        "s": [f"s{u}" for u in users],
    }
    return pd.DataFrame({**values, "event_timestamp": pd.Timestamp.now("UTC")})


def assert_works(store: FeatureStore) -> None:
    """Write, and read in all three ways."""
    store.write_to_online_store("v", frame_of(USERS))
    expected = {"user_id": [3, 9, 1], "x": [1.5, None, 0.5], "n": [3, None, 1]}
    expected["s"] = ["s3", None, "s1"]  # type: ignore[assignment]
    assert store.get_online_features(FEATURES, {"user_id": [3, 9, 1]}).to_dict() == expected
    reader = FeatureReader(store, registry_ttl_seconds=None)
    assert reader.read(FEATURES, {"user_id": [3, 9, 1]}).to_dict() == expected

    async def read() -> dict[str, list[Any]]:
        frame = await reader.read_async(FEATURES, {"user_id": [3, 9, 1]})
        await store._get_provider().online_store.close()
        return frame.to_dict()

    assert asyncio.run(read()) == expected


@pytest.fixture
def tls_port(tmp_path: Path, certificates: Path) -> Iterator[int]:
    """Port of a server that speaks TLS only and wants the user ranker with its password."""
    port = free_port()
    settings = tmp_path / "redis.conf"
    settings.write_text(
        f"port 0\ntls-port {port}\ntls-auth-clients no\nsave ''\n"
        f"tls-ca-cert-file {certificates}/ca.crt\ntls-cert-file {certificates}/redis.crt\n"
        f"tls-key-file {certificates}/redis.key\n"
        "user default off\nuser ranker on >p=w+1 ~fp* +@all\n"
    )
    with server(tmp_path / "redis", port, str(settings)):
        yield port


def test_tls_and_an_acl_user(tmp_path: Path, certificates: Path, tls_port: int) -> None:
    options = f"ssl=true,ssl_ca_certs={certificates / 'ca.crt'},username=ranker,password=p=w+1"
    assert_works(store_on(tmp_path, f"127.0.0.1:{tls_port},{options}"))
    url = f"rediss://ranker:p%3Dw%2B1@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificates}/ca.crt"
    assert_works(store_on(tmp_path, url))


def test_tls_refusals_are_said(tmp_path: Path, certificates: Path, tls_port: int) -> None:
    trusted = f"127.0.0.1:{tls_port},ssl=true,ssl_ca_certs={certificates / 'ca.crt'}"
    for connection_string, said in (
        (f"127.0.0.1:{tls_port},ssl=true,username=ranker,password=p=w+1", "CERTIFICATE_VERIFY"),
        (f"{trusted},username=ranker,password=wrong", "invalid username-password"),
        (trusted, "Authentication required"),
    ):
        reader = FeatureReader(store_on(tmp_path, connection_string), registry_ttl_seconds=None)
        with pytest.raises(OnlineStoreError, match=said):
            reader.read(FEATURES, {"user_id": USERS})


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Ports of a Sentinel and of its master, which has a replica and wants a password."""
    master, replica, watcher = free_port(), free_port(), free_port()
    secret = ["--requirepass", "secret", "--masterauth", "secret"]
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {watcher}\nsentinel monitor feast 127.0.0.1 {master} 1\n"
        "sentinel auth-pass feast secret\nsentinel down-after-milliseconds feast 500\n"
        "sentinel failover-timeout feast 3000\n"
    )
    follows = ["--replicaof", "127.0.0.1", str(master)]
    with ExitStack() as stack:
        stack.enter_context(server(tmp_path / "master", master, *plain(master, *secret)))
        stack.enter_context(
            server(tmp_path / "replica", replica, *plain(replica, *secret, *follows))
        )
        stack.enter_context(server(tmp_path / "watcher", watcher, str(settings), "--sentinel"))
        client: Any = redis.Redis(port=watcher)
        stack.callback(client.close)
        wait_for(lambda: len(client.sentinel_slaves("feast")) == 1)
        yield watcher, master


@pytest.mark.slow
def test_sentinel_and_a_failover(tmp_path: Path, sentinel: tuple[int, int]) -> None:
    watcher, master = sentinel
    store = store_on(
        tmp_path,
        f"127.0.0.1:{watcher},password=secret",
        redis_type="redis_sentinel",
        sentinel_master="feast",
    )
    assert_works(store)
    client: Any = redis.Redis(port=watcher)

    def failed_over() -> bool:
        return client.sentinel_get_master_addr_by_name("feast") != ("127.0.0.1", master)

    def ready() -> bool:
        replicas = client.sentinel_slaves("feast")
        return any(r["master-link-status"] == "ok" and not r["is_sdown"] for r in replicas)

    wait_for(ready)
    client.execute_command("SENTINEL", "FAILOVER", "feast")
    wait_for(failed_over)
    client.close()
    time.sleep(1)  # the old master becomes a replica and drops its clients
    reader = FeatureReader(store, registry_ttl_seconds=None)
    assert reader.read(FEATURES, {"user_id": USERS}).to_dict()["n"] == USERS
    store.write_to_online_store("v", frame_of([7]))
    assert reader.read(FEATURES, {"user_id": [7]}).to_dict()["s"] == ["s7"]

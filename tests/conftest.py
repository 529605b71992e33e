"""Fixtures shared by all rooms."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from s3_server import S3Server

from feastpack.embedded import EmbeddedRedis
from feastpack.local_cluster import LocalCluster


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


@pytest.fixture(scope="session")
def cluster_of_six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A Redis Cluster of three masters with a replica each, one per test process."""
    # Long enough that no master counts as lost because the machine is busy.
    with LocalCluster(tmp_path_factory.mktemp("cluster"), node_timeout_ms=5000) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(cluster_of_six: LocalCluster) -> LocalCluster:
    """The process's Redis Cluster, emptied before the test."""
    for port in cluster_of_six.masters:
        cluster_of_six.ask(port, "FLUSHALL")
    return cluster_of_six


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and a certificate for 127.0.0.1 signed by it: ca.crt, redis.crt, redis.key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl program to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    new_key = ["-newkey", "rsa:2048", "-nodes"]
    signer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    for arguments in (
        ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca"],
        ["req", *new_key, "-keyout", "redis.key", "-out", "redis.csr", "-subj", "/CN=redis"],
        ["x509", "-req", "-in", "redis.csr", "-out", "redis.crt", "-extfile", "names", *signer],
    ):
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket, to which the environment points."""
    pytest.importorskip("localbucket")
    folder = tmp_path / "s3"
    folder.mkdir()
    with S3Server(folder) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server

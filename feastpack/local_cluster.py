"""A Redis Cluster on this machine, to try one, for tests and benchmarks; ``redis-cli`` not needed.

``python -m feastpack.local_cluster FOLDER`` starts three masters with a replica each, prints the
store's ``connection_string`` and stops them with Ctrl-C. Nothing is kept: it has no persistence.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from feastpack.embedded import find_redis_server
from feastpack.errors import EmbeddedRedisError

SLOTS = 16_384
# The bus of a node listens so much higher than the node.
_BUS = 10_000
_START_S = 30.0


class LocalCluster:
    """Masters with all slots between them, and replicas; a process each.

    Use as a context manager.

    Parameters
    ----------
    folder
        Where the nodes keep their configuration and logs.
    masters, replicas
        How many masters, and how many replicas each of them has.
    node_timeout_ms
        After so long without an answer a master counts as failed, and a replica takes its place.

    Raises
    ------
    EmbeddedRedisError
        If a node does not start, or they do not form a Cluster in time.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        masters: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 2000,
    ) -> None:
        self._folder = Path(folder).resolve()
        self._counts = masters, replicas
        self._node_timeout_ms = node_timeout_ms
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def ports(self) -> list[int]:
        """Ports of all nodes, the first masters first."""
        return list(self._processes)

    @property
    def masters(self) -> list[int]:
        """Ports of the masters, as the first node alive sees it."""
        return list(dict.fromkeys(int(master[1]) for _, _, master, *_ in self._slots()))

    @property
    def connection_string(self) -> str:
        """What ``online_store.connection_string`` is to be, with ``redis_type: redis_cluster``."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def __enter__(self) -> Self:
        with ExitStack() as failed:
            failed.callback(self.stop)
            masters, replicas = self._counts
            while len(self._processes) < masters * (1 + replicas):
                self._launch(_free_port(self.ports))
            for port in self.ports:
                self._wait_for(port)
            self._join()
            failed.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, port: int) -> None:
        """Start a node again that was killed: it comes back empty, as a replica."""
        self._launch(port)
        self._wait_for(port)

    def _launch(self, port: int) -> None:
        folder = self._folder / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--save", "", "--appendonly", "no"),
            *("--cluster-enabled", "yes", "--logfile", str(folder / "redis.log")),
            *("--cluster-node-timeout", str(self._node_timeout_ms)),
            # A master without data of late may be replaced too.
            *("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"),
        ]
        self._processes[port] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def _wait_for(self, port: int) -> None:
        def answers() -> bool:
            if self._processes[port].poll() is not None:
                log = self._folder / str(port) / "redis.log"
                raise EmbeddedRedisError(f"node {port} ended at once; see {log}")
            try:
                return bool(self.ask(port, "PING"))
            except redis.exceptions.ConnectionError:
                return False

        self.wait_until(answers, f"node {port} answers")

    def kill(self, port: int) -> None:
        """Kill a node with SIGKILL."""
        self._processes[port].send_signal(signal.SIGKILL)
        self._processes[port].wait()

    def pause(self, port: int) -> None:
        """Let a node hang, until `resume`."""
        self._processes[port].send_signal(signal.SIGSTOP)

    def resume(self, port: int) -> None:
        """Let a node go on that hangs."""
        self._processes[port].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop all nodes."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def ask(self, port: int, *command: Any) -> Any:
        """Return a node's answer to a command."""
        with closing(_client(port)) as client:
            return client.execute_command(*command)

    def master_of(self, slot: int) -> int:
        """Return the port of a slot's master, as the first node alive sees it."""
        for first, last, master, *_ in self._slots():
            if first <= slot <= last:
                return int(master[1])
        raise EmbeddedRedisError(f"slot {slot} has no master")

    def begin_move(self, slot: int, to: int) -> None:
        """Mark a slot as being moved from its master to another; no key is moved yet."""
        source = self.master_of(slot)
        self.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))

    def move_keys(self, slot: int, to: int, count: int = 100) -> int:
        """Move some keys of a slot that is being moved; return how many there were to move."""
        source = self.master_of(slot)
        keys = self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            self.ask(source, "MIGRATE", "127.0.0.1", to, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def finish_move(self, slot: int, to: int) -> None:
        """Move the keys that are left, and give the slot to its new master."""
        while self.move_keys(slot, to):
            pass
        name = self.id_of(to)
        for port in dict.fromkeys([to, self.master_of(slot), *self.masters]):
            self.ask(port, "CLUSTER", "SETSLOT", slot, "NODE", name)

    def is_whole(self) -> bool:
        """Whether all nodes alive agree that every slot has a master, and replicas follow."""
        views = set()
        for port in self._alive:
            info = self.ask(port, "CLUSTER INFO")
            if info["cluster_state"] != "ok" or info["cluster_slots_ok"] != str(SLOTS):
                return False
            views.add(tuple(sorted((a, b, int(m[1])) for a, b, m, *_ in self._slots(port))))
            replication = self.ask(port, "INFO", "replication")
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return False
        return len(views) == 1

    def id_of(self, port: int) -> str:
        """Return the name by which the nodes know a node."""
        name: bytes = self.ask(port, "CLUSTER", "MYID")
        return name.decode()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; EmbeddedRedisError says which one did not come true."""
        deadline = time.monotonic() + _START_S
        while not condition():
            if time.monotonic() > deadline:
                raise EmbeddedRedisError(
                    f"Redis Cluster in {self._folder}: not within {_START_S:.0f} s: {what}"
                )
            time.sleep(0.02)

    @property
    def _alive(self) -> list[int]:
        return [port for port, process in self._processes.items() if process.poll() is None]

    def _slots(self, seen_by: int | None = None) -> list[Any]:
        with closing(_client(seen_by or self._alive[0])) as client:
            client.set_response_callback("CLUSTER SLOTS", lambda answer: answer)
            found: list[Any] = client.execute_command("CLUSTER SLOTS")
            return found

    def _join(self) -> None:
        count = self._counts[0]
        masters, replicas = self.ports[:count], self.ports[count:]
        bounds = [SLOTS * i // len(masters) for i in range(len(masters) + 1)]
        for number, port in enumerate(self.ports, 1):
            self.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number)
            if port != masters[0]:
                self.ask(masters[0], "CLUSTER", "MEET", "127.0.0.1", port)
        for port, first, end in zip(masters, bounds[:-1], bounds[1:], strict=True):
            self.ask(port, "CLUSTER", "ADDSLOTS", *range(first, end))
        names = {self.id_of(port) for port in self.ports}

        def all_known() -> bool:
            for port in self.ports:
                known = self.ask(port, "CLUSTER NODES")
                if {node["node_id"] for node in known.values()} != names:
                    return False
            return True

        self.wait_until(all_known, "all nodes know each other")
        for place, port in enumerate(replicas):
            self.ask(port, "CLUSTER", "REPLICATE", self.id_of(masters[place % len(masters)]))
        self.wait_until(self.is_whole, "all slots have a master, all replicas follow")


def _client(port: int) -> Any:
    return redis.Redis(host="127.0.0.1", port=port, socket_timeout=5)


def _free_port(taken: Sequence[int]) -> int:
    """Return a port that is free with its bus' one, both below those of outgoing connections."""
    while True:
        port = random.randrange(12_000, 22_000)
        if port in taken:
            continue
        with socket.socket() as node, socket.socket() as bus:
            try:
                node.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
            return port


def main() -> None:
    """Start a Cluster and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the nodes' configuration and logs")
    with LocalCluster(parser.parse_args().folder) as cluster:
        said = f"redis_type: redis_cluster\nconnection_string: {cluster.connection_string}\n"
        sys.stdout.write(said)
        sys.stdout.flush()
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()

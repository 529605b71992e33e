"""A master is killed, and slots are moved, while rows are written and read all the time."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from test_cluster import KEYS, client_of, expected, read_rows, store_on, write_rows
from under_load import running, wait_for

from feastpack.errors import OnlineStoreError
from feastpack.local_cluster import LocalCluster
from feastpack.slots import slots_of

USERS = 3000
PART = 150
SECONDS_OF_PEACE = 1.5


class Load:
    """Writers and readers, and what they may expect of each other.

    A writer writes a later version of some users' rows again and again. What it was told is
    written is a lower bound of what a reader that begins afterwards must find.
    """

    def __init__(self, folder: Path, cluster: LocalCluster) -> None:
        folder.mkdir()
        self.store = store_on(folder, cluster, wait_for_replicas=1)
        self.acknowledged = np.full(USERS, -1)
        self.tried = np.full(USERS, -1)
        self.faults: list[str] = []
        self.writes: list[float] = []
        self.refused: list[str] = []
        self.reads: list[float] = []
        self._stop = threading.Event()

    def write(self) -> None:
        rng = np.random.default_rng(1)
        for version in itertools.count():
            users = rng.choice(USERS, PART, replace=False)
            self.tried[users] = version
            try:
                write_rows(self.store, users, version)
            except OnlineStoreError as error:
                self.refused.append(str(error))
            else:
                self.acknowledged[users] = version
                self.writes.append(time.monotonic())
            if self._stop.is_set():
                return

    def read(self) -> None:
        rng = np.random.default_rng(2)
        while not self._stop.is_set():
            users = rng.choice(USERS, 2 * PART, replace=False)
            at_least = self.acknowledged[users].copy()
            try:
                found = read_rows(self.store, users)
            except OnlineStoreError as error:
                self.refused.append(str(error))
                continue
            self.reads.append(time.monotonic())
            self.judge(users, at_least, found["n"], found["s"])

    def judge(self, users: np.ndarray, at_least: np.ndarray, ns: list, texts: list) -> None:
        for user, least, n, text in zip(users.tolist(), at_least.tolist(), ns, texts, strict=True):
            version = -1 if n is None else n - 10 * user
            if n is not None and text != f"s{user}v{version}":
                self.faults.append(f"user {user}: parts of two rows, {n} and {text}")
            if not least <= version <= self.tried[user]:
                self.faults.append(f"user {user}: version {version}, {least} was acknowledged")

    def running(self) -> AbstractContextManager[None]:
        return running(self._stop, self.write, self.read, self.read)


def progress(load: Load) -> None:
    """Wait until both writers and readers succeed (again)."""
    now = time.monotonic()
    wait_for(lambda: max(load.writes, default=0) > now and max(load.reads, default=0) > now, 30)


def slots_in_use(cluster: LocalCluster, master: int) -> list[int]:
    slots = np.unique(slots_of(KEYS.laid_out({"user_id": np.arange(USERS)}, USERS))).tolist()
    return [slot for slot in slots if cluster.ask(master, "CLUSTER", "COUNTKEYSINSLOT", slot)]


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_to_a_failover_or_a_resharding(tmp_path: Path):
    with LocalCluster(tmp_path / "nodes", node_timeout_ms=1000) as cluster:
        load = Load(tmp_path / "repository", cluster)
        with load.running():
            progress(load)
            # Slots are moved from one master to another, key by key.
            source, target, third = cluster.masters
            moved = slots_in_use(cluster, source)[:30]
            for slot in moved:
                cluster.begin_move(slot, target)
                cluster.move_keys(slot, target, 1)
                time.sleep(0.01)
                cluster.finish_move(slot, target)
            progress(load)
            assert load.refused == []
            assert cluster.master_of(moved[0]) == target
            # A master is lost that none of the moves touched, and its replica takes its place.
            cluster.kill(third)
            killed = time.monotonic()
            wait_for(lambda: third not in cluster.masters, 30)
            wait_for(lambda: max(load.reads) > killed + 1, 30)
            assert time.monotonic() - killed < 15
            # Writes wait for a replica, so until the lost node is back.
            cluster.start(third)
            cluster.wait_until(cluster.is_whole, "the lost node follows")
            progress(load)
            time.sleep(SECONDS_OF_PEACE)
        assert load.refused, "nobody noticed that a master was lost"
        assert load.faults == []
        users = np.arange(USERS)
        found = read_rows(load.store, users)
        load.judge(users, load.acknowledged, found["n"], found["s"])
        assert load.faults == []
        assert (load.acknowledged >= 0).mean() > 0.9
        last = int(load.tried.max()) + 1
        assert write_rows(load.store, users, last) == USERS
        assert read_rows(load.store, users) == expected(users, last)
        client_of(load.store).close()

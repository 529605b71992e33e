"""The service while the master that holds the events is killed, and while their slot is moved."""

import itertools
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from job_runner import Job
from redis.crc import key_slot
from under_load import running, wait_for

from feastpack.local_cluster import LocalCluster
from pipelines.datasets.drain import EVENT_ID
from pipelines.job.context import open_store
from serving.errors import EventsRefusedError
from serving.events import Event, Status, StreamKeys
from serving.recommender import Recommender

ASKING = [f"u{number:03}" for number in range(20)]
ACTING = [f"u{number:03}" for number in range(20, 40)]
DONE = {Status.ACCEPTED, Status.DUPLICATE}


class Traffic:
    """Some users act and must see it in their next answer; the answers of others never change."""

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        self.expected = {user: self.posts(user) for user in ASKING}
        self.acknowledged: list[str] = []
        self.refused = 0
        self.degraded: Counter[str] = Counter()
        self.good: list[float] = []
        self.faults: list[str] = []
        self._stop = threading.Event()

    def posts(self, user: str) -> list[str] | None:
        """Return a user's posts, None if the answer says that it is less than it should be."""
        answer = self.recommender.recommend(user, 10)
        if answer.degraded:
            self.degraded.update(answer.degraded)
            return None
        return [one.post for one in answer.recommendations]

    def ask(self) -> None:
        for user in itertools.cycle(ASKING):
            found = self.posts(user)
            if found is not None:
                self.good.append(time.monotonic())
                if found != self.expected[user]:
                    self.faults.append(f"{user}: {found}")
            if self._stop.is_set():
                return

    def act(self) -> None:
        for number, user in enumerate(itertools.cycle(ACTING)):
            if self._stop.is_set():
                return
            post = f"p{number * 7 % 120:03}"
            batch = [Event(f"{number}-{i}", user, post, "view") for i in range(3)]
            if self.keep(batch):
                self.acknowledged += [event.event_id for event in batch]
                found = self.posts(user)
                if found is not None and post in found:
                    self.faults.append(f"{user} has seen {post}, and it is shown")

    def keep(self, batch: list[Event]) -> bool:
        while True:
            try:
                outcomes = self.recommender.record(batch)
            except EventsRefusedError:
                self.refused += 1
                time.sleep(0.05)
                if self._stop.is_set():
                    return False
            else:
                assert {one.status for one in outcomes} <= DONE
                return True

    def goes_on(self) -> bool:
        """Wait until events are kept and answers are whole (again)."""
        kept, now = len(self.acknowledged), time.monotonic()
        wait_for(lambda: len(self.acknowledged) > kept + 3 and self.good[-1] > now, 40)
        return True

    def running(self) -> AbstractContextManager[None]:
        return running(self._stop, self.act, self.ask)


@pytest.mark.slow
def test_acknowledged_events_and_answers_outlive_a_failover_and_a_move(job: Job, tmp_path: Path):
    with LocalCluster(tmp_path / "nodes", node_timeout_ms=1000) as cluster:
        flags = ("--redis-cluster", cluster.connection_string)
        for step in ("apply", "materialize", "publish"):
            outcome = job.do(step, *flags)
            assert outcome.code == 0, outcome.err
        recommender = Recommender(
            job.workspace.bundles, open_store(job.workspace), redis_timeout_s=0.3
        )
        traffic = Traffic(recommender)
        slot = key_slot(StreamKeys(job.name).stream.encode())
        with traffic.running():
            assert traffic.goes_on()
            assert (traffic.refused, traffic.degraded) == (0, Counter())
            lost = cluster.master_of(slot)
            cluster.kill(lost)
            wait_for(lambda: cluster.master_of(slot) != lost, 40)
            cluster.start(lost)
            cluster.wait_until(cluster.is_whole, "the lost node follows")
            assert traffic.goes_on()
            assert traffic.refused
            assert traffic.degraded
            assert job.do("drain").code == 0
            target = next(port for port in cluster.masters if port != cluster.master_of(slot))
            cluster.begin_move(slot, target)
            cluster.move_keys(slot, target, 5)
            time.sleep(0.3)
            cluster.finish_move(slot, target)
            assert traffic.goes_on()
            assert cluster.master_of(slot) == target
        assert traffic.faults == []
        assert job.do("drain").code == 0
        parts = sorted(map(str, job.workspace.drained.glob("*.parquet")))
        drained = ds.dataset(parts, format="parquet")
        found = Counter(drained.to_table(columns=[EVENT_ID])[EVENT_ID].to_pylist())
        assert set(traffic.acknowledged) <= set(found)
        assert set(found.values()) == {1}
        recommender._redis.close()

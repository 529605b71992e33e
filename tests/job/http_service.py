"""A service in this process on a published workspace, with its own Redis to kill and restart."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fastapi.testclient import TestClient
from job_runner import Job

from feastpack.embedded import EmbeddedRedis, shared_embedded
from pipelines.job.context import open_store
from serving.app import create_app
from serving.bundle import current_generation
from serving.impressions import ImpressionLog
from serving.published import PublishedRecommender
from serving.recommender import Recommender
from serving.settings import HttpSettings

REDIS_TIMEOUT_S = 0.3
MAX_BODY_KIB = 64
EVENT_ROOM = 40


@dataclass(frozen=True)
class Service:
    """A service in this process, and what is behind it."""

    job: Job
    client: TestClient
    published: PublishedRecommender
    log: ImpressionLog

    @property
    def redis(self) -> EmbeddedRedis:
        return shared_embedded(self.job.workspace.redis)

    def recommend(self, user: str = "u003", **body: Any) -> dict[str, Any]:
        response = self.client.post("/recommend", json={"user_id": user, **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def metric(self, line: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return float(dict(one.rsplit(" ", 1) for one in lines if one[0] != "#").get(line, 0))

    def popular(self) -> list[str]:
        """Return the bundle's popular list, read with nothing of the service's."""
        folder = self.job.workspace.bundles / str(current_generation(self.job.workspace.bundles))
        posts = pq.read_table(folder / "posts.parquet").to_pydict()
        external = dict(zip(posts["post_id"], posts["external_id"], strict=True))
        with np.load(folder / "popular.npz") as file:
            return [external[post] for post in file["post_ids"].tolist()]

    def kill_redis(self) -> None:
        # What is still only in memory would die with it; a service has nothing to save.
        self.job.redis().save()
        pid = self.redis.pid
        os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                time.sleep(0.01)


@contextmanager
def open_service(job: Job) -> Iterator[Service]:
    """Serve what a workspace has published, in this process."""

    log = ImpressionLog(job.workspace.impressions, rows_per_file=100_000, seconds_per_file=3600)

    def opened() -> Recommender:
        store = open_store(job.workspace)
        return Recommender(
            job.workspace.bundles,
            store,
            redis_timeout_s=REDIS_TIMEOUT_S,
            event_room=EVENT_ROOM,
            impressions=log,
        )

    published = PublishedRecommender(opened, lambda: current_generation(job.workspace.bundles), 60)
    app = create_app(published, HttpSettings(max_body_kib=MAX_BODY_KIB), log)
    with TestClient(app) as client:
        yield Service(job, client, published, log)


def ids(answer: dict[str, Any]) -> list[str]:
    return [post["post_id"] for post in answer["posts"]]

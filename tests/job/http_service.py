"""A service in this process on a published workspace, with its own Redis to kill and restart."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fastapi.testclient import TestClient
from job_runner import Job

from feastpack.embedded import EmbeddedRedis, shared_embedded
from serving.bundle import current_generation
from serving.impressions import ImpressionLog
from serving.published import PublishedRecommender

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


def ids(answer: dict[str, Any]) -> list[str]:
    return [post["post_id"] for post in answer["posts"]]

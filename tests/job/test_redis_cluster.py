"""The published feed on a Redis Cluster of three masters answers as it does on one server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from http_service import Service, ids, open_service
from job_runner import Job

from feastpack.local_cluster import LocalCluster
from pipelines.job.context import open_store
from serving.events import StreamKeys
from serving.recommender import Recommender, redis_of

USERS = [f"u{number:03}" for number in range(0, 40, 3)]
AS_OF = ("--as-of", "2024-05-25T00:00:00")


@contextmanager
def recommender(job: Job) -> Iterator[Recommender]:
    """What is published, opened anew; its connections are closed."""
    opened = Recommender(job.workspace.bundles, open_store(job.workspace))
    yield opened
    opened._redis.close()


def answers(job: Job) -> list[Any]:
    """Posts, scores and reasons for many users, and the inputs of some posts."""
    with recommender(job) as opened:
        told = [opened.recommend(user, 20, explain=True) for user in USERS]
        assert {one.degraded for one in told} == {()}
        posts = [
            [(post.post, post.score, post.reason) for post in one.recommendations] for one in told
        ]
        return [posts, opened.features("u003", ["p001", "p002", "p050"]).to_pylist()]


@pytest.fixture
def flags(redis_cluster: LocalCluster) -> tuple[str, str]:
    return "--redis-cluster", redis_cluster.connection_string


def do(job: Job, *command: str) -> str:
    outcome = job.do(*command)
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_the_job_moves_to_a_cluster_and_answers_the_same(
    job: Job, flags: tuple[str, str], redis_cluster: LocalCluster
):
    on_one_server = answers(job)
    said = job.do("run", *flags)
    assert said.code == 0, said.err
    assert {name for name, took in said.steps.items() if took != "unchanged"} >= {
        *("apply", "materialize", "publish")
    }
    assert answers(job) == on_one_server
    keys = [redis_cluster.ask(port, "DBSIZE") for port in redis_cluster.masters]
    assert min(keys) > sum(keys) / 5  # not all on one node
    assert "unchanged" in job.do("run", *flags).steps["publish"]
    found = " ".join(job.do("doctor").out.split())
    assert "Cluster of 3 masters, each with 1 or more replicas" in found
    planned = do(job, "capacity", "--users", "1000000", "--posts", "1000", "--sample", "2000")
    assert "rows of user_activity" in planned


def kept(job: Job) -> tuple[int, int]:
    """Return of how many generations there are lists in Redis, and feature rows."""
    client = redis_of(open_store(job.workspace))
    lists = {key.split(b":")[3] for key in client.scan_iter(f"feastrank:{job.name}:lists:*")}
    rows = {key.split(b":")[1] for key in client.scan_iter("fp:*")}
    client.close()
    return len(lists), len(rows)


def test_generations_on_a_cluster_are_switched_and_collected(job: Job, flags: tuple[str, str]):
    for step in ("apply", "materialize", "publish"):
        do(job, step, *flags)
    first = answers(job)
    for step in ("materialize", "publish"):
        do(job, step, *flags, *AS_OF)
    second = answers(job)
    assert second != first
    assert kept(job) == (2, 2)
    do(job, "rollback")
    assert answers(job) == first
    for step in ("materialize", "publish"):
        do(job, step, *flags, "--as-of", "2024-05-20T00:00:00")
    assert answers(job) not in (first, second)
    assert kept(job) == (2, 2)


def liked(service: Service, post: str) -> dict[str, Any]:
    body = {"event_id": "e1", "user_id": "u003", "post_id": post, "action": "like"}
    response = service.client.post("/events", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_events_on_a_cluster_are_in_effect_at_once_and_drained(job: Job, flags: tuple[str, str]):
    with open_service(job) as service:
        post = ids(service.recommend(k=3))[0]
        liked(service, post)
        on_one_server = service.recommend(k=50)["posts"]
        job.redis().flushall()
    for step in ("apply", "materialize", "publish"):
        do(job, step, *flags)
    with open_service(job) as service:
        assert liked(service, post)["accepted"] == 1
        assert liked(service, post)["results"][0]["status"] == "duplicate"
        assert service.recommend(k=50)["posts"] == on_one_server
        ready = service.client.get("/ready")
        assert (ready.status_code, ready.json()["degraded"]) == (200, [])
    assert "1 events into" in do(job, "drain")
    client = redis_of(open_store(job.workspace))
    assert client.xlen(StreamKeys(job.name).stream) == 0
    client.close()
    assert job.do("drain").code == 0


def test_a_cluster_that_cannot_be_used_is_said_before_anything_is_published(
    job: Job, flags: tuple[str, str]
):
    published = job.in_bundles()
    closed = "127.0.0.1:1,127.0.0.1:2"
    for step in ("apply", "materialize"):
        outcome = job.do(step, "--redis-cluster", closed)
    assert outcome.code == 1
    assert "check that Redis runs at the store's connection_string" in outcome.err
    assert job.in_bundles() == published
    outcome = job.do("apply", "--redis-cluster", "nonsense")
    assert outcome.code == 2
    assert "redis_cluster" in outcome.err.replace("-", "_")


@pytest.mark.slow
def test_a_slot_without_a_master_degrades_answers_and_is_named(job: Job, tmp_path: Path):
    with LocalCluster(tmp_path / "nodes", replicas=0) as cluster:
        flags = ("--redis-cluster", cluster.connection_string)
        for step in ("apply", "materialize", "publish"):
            do(job, step, *flags, "--wait-for-replicas", "0")
        with open_service(job) as service:
            before = service.recommend(k=10)
            assert before["degraded"] == []
            owner = cluster.master_of(9000)
            for port in cluster.ports:
                cluster.ask(port, "CLUSTER", "DELSLOTS", 9000, 9001)
            cluster.wait_until(lambda: states(cluster) == {"fail"}, "the nodes refuse to answer")
            assert service.recommend(k=10)["degraded"] == ["lists_unavailable"]
            assert "redis_unreachable" in str(service.client.get("/ready").json())
            body = {"event_id": "e1", "user_id": "u003", "post_id": "p001", "action": "like"}
            refused = service.client.post("/events", json=body)
            assert (refused.status_code, refused.json()["detail"][:18]) == (
                503,
                "events_unavailable",
            )
            for command in (("doctor",), ("recommend", "--user", "u003"), ("rollback",)):
                outcome = job.do(*command)
                assert outcome.code != 0
                said = " ".join((outcome.out + outcome.err).split())
                assert "no master has the slots 9000-9001" in said, command
                assert "cluster fix" in said
            cluster.ask(owner, "CLUSTER", "ADDSLOTS", 9000, 9001)
            cluster.wait_until(lambda: states(cluster) == {"ok"}, "all slots have a master")
            assert service.recommend(k=10)["posts"] == before["posts"]
            assert liked(service, "p001")["accepted"] == 1


def states(cluster: LocalCluster) -> set[str]:
    return {cluster.ask(port, "CLUSTER INFO")["cluster_state"] for port in cluster.ports}

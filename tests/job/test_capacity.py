"""The plan for more users and posts, held against what Redis really holds."""

import math
import re

import pytest
from job_runner import Job

from feature_repo.dataset import Dataset
from pipelines.capacity import POST, USER, Measured, measure, plan
from pipelines.job.context import open_store
from pipelines.settings import CapacitySettings


def _settings(users: int, posts: int, **changes: float) -> CapacitySettings:
    return CapacitySettings.model_validate({"users": users, "posts": posts, **changes})


@pytest.fixture
def measured(job: Job) -> Measured:
    facts = job.facts("ingest")
    store = open_store(job.workspace)
    return measure(job.redis(), store, facts["users"], facts["posts"], 20_000)


def test_the_bytes_of_the_same_users_and_posts_are_those_in_redis(
    job: Job, measured: Measured
) -> None:
    same = plan(measured, _settings(measured.users, measured.posts))
    client = job.redis()
    full = client.info("memory")["used_memory"]
    client.flushall()
    held = full - client.info("memory")["used_memory"]
    assert same.data_gb * 2**30 == pytest.approx(held, rel=0.15)


def test_every_kind_of_key_is_known_and_counted(job: Job, measured: Measured) -> None:
    dataset = Dataset.read(job.description)
    assert dataset.name == job.name
    kinds = {name: kind.entity for name, kind in measured.kinds.items() if name != "others"}
    assert kinds == {
        "histories": USER,
        "lists": USER,
        "rows of post_activity": POST,
        "rows of post_profile": POST,
        "rows of user_activity": USER,
        "rows of user_profile": USER,
        "rows of user_topic_affinity": USER,
    }
    assert measured.kinds["lists"].keys == pytest.approx(measured.users, rel=0.1)
    assert measured.kinds["rows of post_profile"].keys == pytest.approx(measured.posts, rel=0.1)


def test_ten_times_as_much_needs_ten_times_as_much(measured: Measured) -> None:
    once = plan(measured, _settings(10**6, 10**5, requests_per_second=500, node_gb=1))
    ten = plan(measured, _settings(10**7, 10**6, requests_per_second=5000, node_gb=1))
    assert ten.data_gb == pytest.approx(10 * once.data_gb)
    assert ten.refresh_minutes == pytest.approx(10 * once.refresh_minutes)
    assert ten.nodes_for_memory == math.ceil(ten.memory_gb)
    # 5,000 requests of 10 ms on cores used to 60 %.
    assert ten.serving_cores == math.ceil(5000 * 0.010 / 0.6)


def test_what_saturates_first_is_named(measured: Measured) -> None:
    few = {"requests_per_second": 1, "refresh_minutes": 10**6}
    assert plan(measured, _settings(10**8, 10**6, **few)).first == "memory of Redis"
    many = {"requests_per_second": 10**5, "refresh_minutes": 10**6}
    assert plan(measured, _settings(10**5, 10**4, **many)).first == "reads from Redis"


def test_the_command_prints_the_plan(job: Job) -> None:
    outcome = job.do("capacity", "--users", "1000000", "--posts", "100000")
    assert outcome.code == 0, outcome.err
    assert re.search(r"1,000,000 users and 100,000 posts: [\d.]+ GB of keys", outcome.out)
    job.redis().flushall()
    empty = job.do("capacity", "--users", "1000000", "--posts", "100000")
    assert empty.code == 1
    assert "Redis holds nothing to measure" in empty.err

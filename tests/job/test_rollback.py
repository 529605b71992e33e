"""`feastrank rollback`: what is served goes back one generation, or stays."""

import time

import pytest
from job_runner import Job

AS_OF = ("--as-of", "2024-05-25T00:00:00")


def published(job: Job) -> str:
    return (job.workspace.bundles / "current").read_text(encoding="utf-8")


@pytest.fixture
def two_generations(job: Job) -> tuple[Job, str, str]:
    """The published workspace with another generation published after it, of another moment."""
    first = published(job)
    for step in ("materialize", "publish"):
        assert job.do(step, *AS_OF).code == 0
    second = published(job)
    assert first != second
    return job, first, second


def test_rollback_serves_the_generation_before_with_its_own_lists(two_generations):
    job, first, second = two_generations
    lists = {key: value for key, value in job.in_redis().items() if b":lists:" in key}
    # Work, not waiting: other processes share the cores.
    start = time.process_time()
    outcome = job.do("rollback")
    assert time.process_time() - start < 1
    assert outcome.code == 0, outcome.err
    assert f"generation {first}" in outcome.out
    assert f"instead of {second}" in outcome.out
    assert published(job) == first
    assert {key: value for key, value in job.in_redis().items() if b":lists:" in key} == lists
    assert job.do("recommend", "--user", "u003").code == 0
    again = job.do("rollback")
    assert again.code == 1
    assert f"no generation older than {first} is kept" in again.err
    assert published(job) == first


def test_the_next_publication_is_what_its_inputs_make(two_generations):
    job, first, second = two_generations
    job.do("rollback")
    assert job.do("publish", *AS_OF).code == 0
    assert published(job) == second
    assert job.do("rollback").code == 0
    assert published(job) == first


def test_a_generation_without_its_lists_is_refused(two_generations):
    job, first, second = two_generations
    job.redis().delete(f"feastrank:{job.name}:lists:{first}:complete")
    outcome = job.do("rollback")
    assert outcome.code == 1
    assert f"bundle {first}: its candidate lists are not complete in Redis" in outcome.err
    assert f"{second} stays published" in outcome.err
    assert published(job) == second


def test_before_anything_ran_the_step_to_run_is_named(job: Job):
    job.forget()
    outcome = job.do("rollback")
    assert outcome.code == 1
    assert "no feature store yet; run `feastrank apply`" in outcome.err

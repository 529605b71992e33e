"""A run killed at any moment and started again ends where an uninterrupted one ends."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from final_state import final_state, finish
from job_runner import QUICK, REPOSITORY, Job, KilledRuns

# Before an announced change of the lake is carried out; after the training set is written but not
# its categories; before the pointer to the published generation is flipped.
POINTS = ("rename:ids/posts.parquet", "write:training/.categories", "rename:bundles/.current")
# Before features and the registry are put into place; before the report; while features go into
# Redis; before the lists there are said to be complete; before a bundle is put into place.
MORE_POINTS = (
    "rename:.features-staging",
    "rename:.registry.db.tmp",
    "write:reports/report.html",
    "redis:post_activity",
    "redis:complete",
    "rename:.staging-",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_within_steps_it_ends_in_the_same_state(job: Job, killed: KilledRuns):
    expected = final_state(job)
    job.forget()
    for point in POINTS:
        assert killed.run(job, point) == -signal.SIGKILL, point
    assert finish(job) == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_between_what_belongs_together_it_ends_in_the_same_state(
    job: Job, killed: KilledRuns
):
    expected = final_state(job)
    job.forget()
    for point in MORE_POINTS:
        assert killed.run(job, point) == -signal.SIGKILL, point
    assert finish(job) == expected


def test_redis_emptied_is_filled_again_and_nothing_else_is_done(job: Job):
    expected = final_state(job)
    job.redis().flushall()
    outcome = job.do("run")
    again = {name for name, duration in outcome.steps.items() if duration != "unchanged"}
    assert again == {"materialize", "publish"}
    assert final_state(job) == expected


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_every_kind_of_change_it_ends_in_the_same_state(
    job: Job, killed: KilledRuns, tmp_path: Path
):
    expected = final_state(job)
    job.forget()
    job.close()
    listing = tmp_path / "changes.txt"
    assert killed.run(job, f"list:{listing}") == 0
    assert final_state(job) == expected
    changes = listing.read_text(encoding="utf-8").splitlines()
    assert len(changes) > 100
    step = max(len(changes) // 16, 1)
    for number in range(step // 2, len(changes), step):
        job.forget()
        assert killed.run(job, str(number)) == -signal.SIGKILL
        assert finish(job) == expected, f"killed before change {number}: {changes[number - 1]}"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_moments_it_ends_in_the_same_state(job: Job):
    expected = final_state(job)
    rng = random.Random(5)
    for _ in range(3):
        job.forget()
        for _ in range(3):
            process = subprocess.Popen(
                job.command("run"),
                cwd=REPOSITORY,
                env=os.environ | QUICK,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(rng.uniform(3, 15))
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert finish(job) == expected

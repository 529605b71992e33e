"""A publication killed at any change: what was published goes on answering, the next run is clean.

Two generations are published and a third is ready, so that its publication also collects the first,
from the disk and from Redis. A service runs meanwhile.
"""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from final_state import final_state
from http_service import Service, open_service
from job_runner import Job, KilledRuns

from serving.bundle import open_current

USERS = ("u001", "u017", "u038", "nobody")
SECOND = ("--as-of", "2024-05-25T00:00:00")
THIRD = ("--as-of", "2024-05-20T00:00:00")
PUBLISH = ("publish", *THIRD)
# In the order in which they come: lists go into Redis; they are said to be complete; the manifest;
# the folder into place; the pointer; what Feast's commands read; the first generation's folder;
# its lists and rows; the record of the step.
POINTS = (
    "redis:lists",
    "redis:complete",
    "write:manifest.json",
    "rename:/.staging-",
    "rename:/.current.tmp",
    "rename:.online_namespace.tmp",
    "remove:/bundles/",
    "redis:UNLINK",
    "write:steps/.publish.json",
)


@dataclass(frozen=True)
class Ready:
    """A workspace with two generations published and a third that only has to be published."""

    job: Job
    copy: Path
    second: str
    kept: tuple[dict[str, str], dict[bytes, tuple[bytes, int]]]

    def put_back(self) -> None:
        self.job.close()
        shutil.rmtree(self.job.home)
        shutil.copytree(self.copy, self.job.home)

    def check_what_is_kept(self) -> str:
        """Check that nothing of the second generation changed; return the published one."""
        files, in_redis = self.job.published()
        assert self.kept[0].items() <= files.items()
        assert self.kept[1].items() <= in_redis.items()
        folder, _ = open_current(self.job.workspace.bundles)
        return folder.name


@pytest.fixture
def ready(job: Job, tmp_path: Path) -> Ready:
    first = job.generation()
    for step, moment in (("materialize", SECOND), ("publish", SECOND), ("materialize", THIRD)):
        outcome = job.do(step, *moment)
        assert outcome.code == 0, outcome.err
    files, in_redis = job.published()
    second = job.generation()
    manifests = [
        json.loads((job.workspace.bundles / g / "manifest.json").read_text("utf-8"))
        for g in (first, second)
    ]
    gone = (f":lists:{first}:".encode(), manifests[0]["namespace"].encode())
    kept = {k: v for k, v in in_redis.items() if not any(one in k for one in gone)}
    assert len(kept) < len(in_redis)
    job.close()
    copy = tmp_path / "copy"
    shutil.copytree(job.home, copy)
    kept_files = {name: what for name, what in files.items() if name.startswith(second)}
    return Ready(job, copy, second, (kept_files, kept))


def shown(service: Service) -> list[Any]:
    return [service.recommend(user, k=10)["posts"] for user in USERS]


@contextmanager
def asked(job: Job) -> Iterator[list[Any]]:
    """Answer with the service that is running now."""
    with open_service(job) as service:
        yield shown(service)


def published_whole(ready: Ready) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Return what an undisturbed publication leaves, and what is answered before and after it."""
    with asked(ready.job) as before:
        pass
    assert ready.job.do(*PUBLISH).code == 0
    with asked(ready.job) as after:
        pass
    assert before != after
    expected = final_state(ready.job)
    ready.put_back()
    return expected, before, after


def check_after_kill(ready: Ready, running: Service, before: list[Any], after: list[Any]) -> None:
    is_new = ready.check_what_is_kept() != ready.second
    # A service looks at the pointer once a minute.
    assert shown(running) in ([before, after] if is_new else [before])
    with asked(ready.job) as now:
        assert now == (after if is_new else before)


@pytest.mark.timeout(600)
def test_killed_at_one_change_after_the_other_it_ends_as_if_undisturbed(
    ready: Ready, killed: KilledRuns
):
    expected, before, after = published_whole(ready)
    with open_service(ready.job) as running:
        for point in POINTS:
            assert killed.run(ready.job, point, *PUBLISH) == -signal.SIGKILL, point
            check_after_kill(ready, running, before, after)
    outcome = ready.job.do(*PUBLISH)
    assert outcome.code == 0, outcome.err
    assert final_state(ready.job) == expected


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_every_change_the_next_run_is_clean(
    ready: Ready, killed: KilledRuns, tmp_path: Path
):
    expected, before, after = published_whole(ready)
    listing = tmp_path / "changes.txt"
    assert killed.run(ready.job, f"list:{listing}", *PUBLISH) == 0
    changes = listing.read_text(encoding="utf-8").splitlines()
    assert len(changes) > 50
    for number, change in enumerate(changes, 1):
        ready.put_back()
        with open_service(ready.job) as running:
            assert killed.run(ready.job, str(number), *PUBLISH) == -signal.SIGKILL
            check_after_kill(ready, running, before, after)
            assert killed.run(ready.job, "never", *PUBLISH) == 0, change
        assert final_state(ready.job) == expected, change


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_again_and_again_a_change_later_it_ends_as_if_undisturbed(
    ready: Ready, killed: KilledRuns
):
    expected, before, after = published_whole(ready)
    number = code = 0
    with open_service(ready.job) as running:
        while code == -signal.SIGKILL or not number:
            number += 1
            code = killed.run(ready.job, str(number), *PUBLISH)
            check_after_kill(ready, running, before, after)
    assert code == 0
    assert number > 50
    assert final_state(ready.job) == expected

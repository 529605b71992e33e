"""A run killed at any moment and started again ends where an uninterrupted one ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from feast.protos.feast.core.Registry_pb2 import Registry
from job_runner import QUICK, REPOSITORY, Job

KILLED_RUN = Path(__file__).with_name("killed_run.py")
TIMINGS = ("seconds", "training_seconds", "prediction_us_per_request")


def killed(job: Job, point: str) -> int:
    """Run the job until it is killed at ``point``; return the exit code."""
    environment = {"FEASTRANK_HOME": str(job.home), "PYTHONPATH": str(REPOSITORY)}
    arguments = ["run", "--dataset", str(job.description), "--home", str(job.home)]
    return subprocess.run(
        [sys.executable, str(KILLED_RUN), point, *arguments],
        cwd=REPOSITORY,
        env=os.environ | QUICK | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=300,
    ).returncode


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMINGS}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def registered(path: Path) -> dict[str, Any]:
    """Return what a Feast registry says, less its times, random version names and order."""
    registry = Registry.FromString(path.read_bytes())
    views = {
        view.spec.name: (
            sorted((feature.name, feature.value_type) for feature in view.spec.features),
            view.spec.batch_source.file_options.uri,
            [str(interval) for interval in view.meta.materialization_intervals],
        )
        for view in registry.feature_views
    }
    services = {
        service.spec.name: {
            view.feature_view_name: sorted(column.name for column in view.feature_columns)
            for view in service.spec.features
        }
        for service in registry.feature_services
    }
    assert views
    assert services
    return {"views": views, "services": services}


def final_state(job: Job) -> dict[str, Any]:
    """Return all that a run leaves and that does not tell the time."""
    bundles, in_redis = job.published()
    generation = (job.workspace.bundles / "current").read_text(encoding="utf-8")
    manifest = json.loads((job.workspace.bundles / generation / "manifest.json").read_text())
    manifest.pop("created")
    report = job.report()
    # How much of the source could be compared with the lake: a run after a killed one finds more.
    (changes,) = [gate for gate in report["gates"] if gate["name"] == "raw_changes"]
    assert changes.pop("expectations") > 0
    registry = f"{generation}/registry.db"
    assert manifest["files"].pop("registry.db") == bundles.pop(registry)
    return {
        "generation": generation,
        "bundles": {k: v for k, v in bundles.items() if not k.endswith("manifest.json")},
        "manifest": manifest,
        "registry": registered(job.workspace.bundles / registry),
        "redis": in_redis,
        "report": without_timings(report),
        "left": sorted(path.name for path in job.workspace.root.iterdir()),
    }


def finish(job: Job) -> dict[str, Any]:
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    return final_state(job)


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


@pytest.mark.timeout(900)
def test_killed_within_steps_it_ends_in_the_same_state(job: Job):
    expected = final_state(job)
    job.forget()
    for point in POINTS:
        assert killed(job, point) == -signal.SIGKILL, point
    assert finish(job) == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_between_what_belongs_together_it_ends_in_the_same_state(job: Job):
    expected = final_state(job)
    job.forget()
    for point in MORE_POINTS:
        assert killed(job, point) == -signal.SIGKILL, point
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
def test_killed_at_every_kind_of_change_it_ends_in_the_same_state(job: Job, tmp_path: Path):
    expected = final_state(job)
    job.forget()
    job.close()
    listing = tmp_path / "changes.txt"
    assert killed(job, f"list:{listing}") == 0
    assert final_state(job) == expected
    changes = listing.read_text(encoding="utf-8").splitlines()
    assert len(changes) > 100
    step = max(len(changes) // 16, 1)
    for number in range(step // 2, len(changes), step):
        job.forget()
        assert killed(job, str(number)) == -signal.SIGKILL
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

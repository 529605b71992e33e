"""Feast's own commands, as they are, inside ``feature_repo/``."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.types import from_feast_to_pyarrow_type
from job_runner import REPOSITORY, Job
from tiny_feed import Feed, make_feed

from feastpack.embedded import stop
from feature_repo.dataset import Dataset
from feature_repo.definitions.entities import key_of
from feature_repo.definitions.repository import DEFAULT_DATASET
from feature_repo.definitions.views import feature_views
from feature_repo.workspace import Workspace
from pipelines.job.context import open_store

FEAST = Path(sys.executable).with_name("feast")
VIEWS = {"user_profile", "user_activity", "post_profile", "post_activity", "user_topic_affinity"}
FIRST = datetime(2024, 2, 28, tzinfo=UTC)
NOW = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def feast(checkout: Path, *arguments: str, **environment: str) -> str:
    """Run ``feast`` inside a checkout's ``feature_repo/``; return its standard output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FEAST", "REDIS"))}
    done = subprocess.run(
        [str(FEAST), *arguments],
        cwd=checkout / "feature_repo",
        # The checkout at hand, wherever the environment's installation points to.
        env=kept | {"PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def served(job: Job) -> dict[bytes, bytes]:
    """Return the features in Redis without the job's own keys, and without when they came."""
    others = (b"feastrank:", b"fp-materialized:")
    return {key: value for key, (value, _) in job.in_redis().items() if not key.startswith(others)}


@pytest.mark.slow
def test_apply_list_and_materialize_incremental_work_without_the_pipeline(job: Job):
    before = served(job)
    job.close()
    environment = {"FEAST_FS_YAML_FILE_PATH": str(job.workspace.feature_store_yaml)}
    feast(REPOSITORY, "apply", **environment)
    listed = feast(REPOSITORY, "feature-views", "list", **environment)
    assert {line.split()[0] for line in listed.splitlines() if line.split()} >= VIEWS
    feast(REPOSITORY, "materialize-incremental", NOW, **environment)
    incremental = served(job)
    assert incremental.keys() == before.keys()
    # Windows have emptied since the feed's last event: the same as materializing it all.
    assert incremental != before
    job.redis().flushall()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        open_store(job.workspace).materialize(FIRST, datetime.now(UTC))
    assert served(job) == incremental


@pytest.mark.slow
def test_materialize_fills_an_empty_store_as_the_job_does(job: Job):
    before = served(job)
    job.redis().flushall()
    job.close()
    environment = {"FEAST_FS_YAML_FILE_PATH": str(job.workspace.feature_store_yaml)}
    last_event = job.facts("ingest")["last_time"].replace(" ", "T")
    feast(REPOSITORY, "materialize", FIRST.isoformat(), last_event, **environment)
    assert served(job) == before
    assert job.do("run").code == 0


@pytest.mark.slow
def test_feast_apply_needs_nothing_run_before_but_the_configuration(
    new_job: Callable[[Feed], Job],
):
    job = new_job(make_feed())
    assert job.do("apply").code == 0
    job.workspace.registry.unlink()
    environment = {"FEAST_FS_YAML_FILE_PATH": str(job.workspace.feature_store_yaml)}
    feast(REPOSITORY, "apply", **environment)
    assert open_store(job.workspace).list_feature_views()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tracked files of this checkout in a folder of their own, with no state."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():
            target = tmp_path / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, target)
    return tmp_path / "checkout"


def write_one_row_tables(home: Path) -> None:
    """Write the demo's feature tables with one row each, all of whose values are null."""
    dataset = Dataset.read(DEFAULT_DATASET)
    workspace = Workspace(home, dataset.name)
    workspace.features.mkdir(parents=True)
    for view in feature_views(dataset, workspace):
        columns = {
            key_of(view): pa.array([0], pa.int64()),
            "event_timestamp": pa.array([datetime(1998, 1, 1)], pa.timestamp("us", tz="UTC")),
        }
        for field in view.features:
            columns[field.name] = pa.nulls(1, from_feast_to_pyarrow_type(field.dtype))
        pq.write_table(pa.table(columns), workspace.feature_table(view.name))


def test_the_plain_form_is_about_the_demo_and_starts_from_nothing(checkout: Path):
    feast(checkout, "apply")
    assert (checkout / ".feastrank" / "movielens_100k" / "registry.db").exists()
    write_one_row_tables(checkout / ".feastrank")
    feast(checkout, "materialize-incremental", NOW)
    assert (checkout / ".feastrank" / "redis" / "dump.rdb").exists()
    assert not stop(checkout / ".feastrank" / "redis")

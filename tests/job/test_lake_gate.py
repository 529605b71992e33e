"""What lies in the lake is judged before features are made of it: files lost, doubled, damaged."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job_runner import Job


def doubled(lake: Path, parts: list[Path]) -> None:
    shutil.copy(parts[0], parts[0].with_name("part-000009.parquet"))


def lost(lake: Path, parts: list[Path]) -> None:
    parts[-1].unlink()


def truncated(lake: Path, parts: list[Path]) -> None:
    os.truncate(parts[0], parts[0].stat().st_size // 2)


def in_another_month(lake: Path, parts: list[Path]) -> None:
    parts[0].rename(parts[-1].with_name("part-000009.parquet"))


def of_another_lake(lake: Path, parts: list[Path]) -> None:
    path = lake / "posts" / "part-000000.parquet"
    posts = pq.read_table(path)
    pq.write_table(posts.slice(0, posts.num_rows // 2), path)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (doubled, "surplus must be at least 0 and at most 0"),
        (lost, "file=events surplus=-"),
        (truncated, "every file must be readable: 1 of"),
        (in_another_month, "misplaced must be"),
        (of_another_lake, "file=posts surplus=-"),
    ],
)
def test_a_damaged_lake_stops_before_features(
    job: Job, fault: Callable[[Path, list[Path]], None], said: str
):
    lake = job.workspace.lake
    parts = sorted((lake / "events").glob("*/*.parquet"))
    before = job.published()
    fault(lake, parts)
    # Nothing that features are made of was changed on purpose, so they are asked for anew.
    shutil.rmtree(job.workspace.features)
    outcome = job.do("features")
    assert outcome.code == 3, outcome.err
    assert "gate lake: " in outcome.err
    assert said in " ".join(outcome.err.split())
    assert "nothing was published" in outcome.err
    assert not job.workspace.features.exists()
    assert job.published() == before


def test_a_truncated_file_of_the_lake_is_named_by_the_next_run(job: Job):
    lake = job.workspace.lake
    before = job.published()
    truncated(lake, sorted((lake / "events").glob("*/*.parquet")))
    outcome = job.do("run")
    assert outcome.code == 1
    assert "part-000000.parquet: it is damaged" in " ".join(outcome.err.split())
    assert job.published() == before

"""Embedding in shards on Spark gives what one machine gives, and keeps what is finished."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feastpack.errors import SparkError
from pipelines.features.embedding import local_fingerprint
from pipelines.features.post_text import EmbedTexts
from pipelines.features.text_encoders import EMBEDDED
from pipelines.shards import ShardJob, run_here, run_on_spark

POSTS = 40


def job_of(folder, posts, shards: int) -> ShardJob:
    work = EmbedTexts(EMBEDDED, local_fingerprint(EMBEDDED), folder / "cache")
    return ShardJob.of(work, posts, "post_id", folder / "shards", shards)


@pytest.fixture
def posts(tmp_path):
    folder = tmp_path / "posts"
    folder.mkdir()
    table = pa.table(
        {
            "post_id": range(POSTS),
            "known_time": pa.array(range(POSTS), pa.timestamp("us", tz="UTC")),
            "text": [f"Number {i} of a few short texts" if i % 9 else None for i in range(POSTS)],
        }
    )
    pq.write_table(table, folder / "part-0.parquet")
    return folder


def test_spark_embeds_as_one_machine_does_and_keeps_what_is_finished(spark, posts, tmp_path):
    here, there = job_of(tmp_path / "here", posts, 1), job_of(tmp_path / "spark", posts, 3)
    told: list[tuple[int, int]] = []
    reports = run_on_spark(there, spark, lambda *counts: told.append(counts))
    assert told == sorted(told)
    # The first shards take seconds to import what they need.
    assert (told[0], told[-1]) == ((0, 3), (3, 3))
    assert [report.is_new for report in reports] == [True] * 3
    assert sum(report.facts["embedded"] for report in reports) == POSTS - 5
    one, other = (
        pa.concat_tables(pq.read_table(path) for path in job.paths(done))
        for job, done in ((here, run_here(here, 1)), (there, reports))
    )
    assert one.drop(["post_text_embedding"]) == other.drop(["post_text_embedding"])
    assert one.schema == other.schema
    # Texts that are encoded beside others differ in the last bits.
    vectors = (np.stack(side["post_text_embedding"].to_numpy()) for side in (one, other))
    np.testing.assert_allclose(*vectors, rtol=0, atol=1e-6)
    before = {path: path.stat().st_ino for path in there.folder.iterdir()}
    there.paths(reports)[1].unlink()
    again = run_on_spark(there, spark)
    assert [report.is_new for report in again] == [False, True, False]
    kept = {path: path.stat().st_ino for path in there.folder.iterdir()}
    assert {k: v for k, v in kept.items() if k != there.paths(again)[1]} == {
        k: v for k, v in before.items() if k != there.paths(reports)[1]
    }


def test_what_fails_on_an_executor_is_named(spark, posts, tmp_path):
    job = job_of(tmp_path, posts, 2)
    cache = tmp_path / "cache"
    run_here(job, 1)
    [part, *_] = cache.rglob("*.parquet")
    part.write_bytes(b"damaged")
    for path in job.folder.iterdir():
        path.unlink()
    with pytest.raises(SparkError, match=r"post_text: .*cache of embeddings .*delete"):
        run_on_spark(job, spark)

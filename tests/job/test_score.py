"""`feastrank score` and `feastrank embed`: what they write, in shards, and go on with."""

import signal
import subprocess
import time
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runner import REPOSITORY, Job
from tiny_feed import make_feed

from pipelines.job.context import open_store
from serving.recommender import Recommender


def lists_of(folder) -> list[dict]:
    files = sorted(folder.glob("*.parquet"))
    return pa.concat_tables(pq.read_table(path) for path in files).to_pylist()


def identities(folder) -> dict[str, tuple[int, int]]:
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_every_user_gets_the_list_that_is_answered_online(job: Job):
    outcome = job.do("score")
    assert outcome.code == 0, outcome.err
    assert "1 shards, 0 of them finished before; 40 users ranked" in outcome.out
    recommender = Recommender(job.workspace.bundles, open_store(job.workspace))
    rows, users = lists_of(job.workspace.root / "scores"), []
    for user, own in groupby(rows, key=lambda row: row["user_id"]):
        listed = list(own)
        users.append(user)
        answer = recommender.recommend(user, 100).recommendations
        assert [row["item_id"] for row in listed] == [one.post for one in answer]
        assert [row["name"] for row in listed] == [one.title for one in answer]
        assert [row["rank"] for row in listed] == list(range(1, len(listed) + 1))
        np.testing.assert_allclose(
            [row["score"] for row in listed], [one.score for one in answer], rtol=1e-5, atol=1e-6
        )
    assert sorted(users) == [f"u{i:03}" for i in range(40)]


def test_any_number_of_shards_gives_the_same_lists_and_finished_ones_stay(job: Job):
    flags = ("--users-per-batch", "10", "--workers", "1", "--top", "5", "--shards")
    folder = job.workspace.root / "scores"
    assert job.do("score", *flags, "1").code == 0
    whole = lists_of(folder)
    assert len(whole) == 5 * 40
    three = job.do("score", *flags, "3")
    assert "3 shards, 0 of them finished before; 40 users ranked" in three.out
    assert lists_of(folder) == whole
    before = identities(folder)
    again = job.do("score", *flags, "3")
    assert "3 shards, 3 of them finished before; 0 users ranked" in again.out
    assert identities(folder) == before
    assert len(before) == 3


def test_before_a_publication_the_missing_step_is_named(job: Job):
    job.workspace.steps.joinpath("publish.json").unlink()
    outcome = job.do("score")
    assert outcome.code == 1
    assert "the step publish has not been run; run `feastrank publish" in outcome.err


def test_without_texts_and_pictures_there_is_nothing_to_embed(job: Job):
    outcome = job.do("embed")
    assert outcome.code == 1
    assert "tiny_feed: its posts have neither texts nor pictures to embed" in outcome.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_embedding_and_scoring_go_on_after_a_kill(new_job):
    feed = make_feed("texts")
    described = feed.description.replace('title = "title"', 'title = "title"\ntext = ["title"]')
    job = new_job(feed.with_(description=described))
    assert job.spawn("ingest").returncode == 0
    of_both = ("--shards", "6", "--workers", "2")
    for command, name, more in (
        ("embed", "post_text", ()),
        ("score", "scores", ("--users-per-batch", "5")),
    ):
        shards = (*of_both, *more)
        folder = job.workspace.root / "shards" / name
        finished = killed_at(job, 2, folder, command, *shards)
        assert 2 <= len(finished) < 6
        done = job.spawn(command, *shards)
        assert done.returncode == 0, done.stderr
        assert f"6 shards, {len(finished)} of them finished before" in done.stdout
        after = identities(folder)
        assert {file: after[file] for file in finished} == finished
        assert len(after) == 6
        if command == "embed":
            steps = job.spawn("run", *of_both)
            assert steps.returncode == 0, steps.stderr
            assert "texts embedded" not in steps.stdout
            table = pq.read_table(job.workspace.feature_table("post_text"))
            assert table["post_id"].to_pylist() == list(range(120))
            assert identities(folder) == after
    rows = lists_of(job.workspace.root / "scores")
    assert job.spawn("score", "--users-per-batch", "5").returncode == 0
    assert lists_of(job.workspace.root / "scores") == rows


def killed_at(job: Job, count: int, folder, command: str, *flags: str) -> dict:
    """Kill a command once so many shards are finished; return their files."""
    with subprocess.Popen(job.command(command, *flags), cwd=REPOSITORY) as process:
        while len(list(folder.glob("*.parquet"))) < count:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    # Its workers end by themselves, within moments.
    time.sleep(2)
    return {name: at for name, at in identities(folder).items() if name.endswith(".parquet")}

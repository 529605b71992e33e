"""Embedding in shards: the same rows however they are cut, and nothing done twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoder_examples import WORDS, save_encoder

from pipelines.errors import ShardError
from pipelines.features.embedding import local_fingerprint
from pipelines.features.post_text import EmbedTexts
from pipelines.features.text_encoders import TextModel
from pipelines.shards import ShardJob, run_here

TIME = pa.timestamp("us", tz="UTC")
POSTS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextModel:
    return TextModel(str(save_encoder(tmp_path_factory.mktemp("models") / "small")))


def texts(posts: int = POSTS) -> list[str | None]:
    """Distinct texts of known words, every seventh empty."""
    rng = np.random.default_rng(3)
    return [
        None if i % 7 == 0 else " ".join(rng.choice(WORDS, 12)) for i in range(posts)
    ]  # fmt: skip


def write_posts(folder: Path, values: list[str | None]) -> Path:
    """Write a table of posts in no order of ids, in several files."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(1).permutation(len(values))
    table = pa.table(
        {
            "post_id": pa.array(order, pa.int64()),
            "known_time": pa.array(order, TIME),
            "text": [values[i] for i in order],
        }
    )
    for part in range(3):
        pq.write_table(table.slice(part * 20, 20), folder / f"part-{part}.parquet")
    return folder


def job_of(model: TextModel, posts: Path, folder: Path, shards: int) -> ShardJob:
    work = EmbedTexts(model, local_fingerprint(model), folder / "cache")
    return ShardJob.of(work, posts, "post_id", folder / "shards", shards)


def rows_of(job: ShardJob, reports) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in job.paths(reports))


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_any_number_of_shards_gives_the_same_rows(model, tmp_path):
    posts = write_posts(tmp_path / "posts", texts())
    whole, *others = (
        rows_of(job, run_here(job, 1))
        for job in (job_of(model, posts, tmp_path / str(n), n) for n in (1, 3, 1000))
    )
    assert whole["post_id"].to_pylist() == [i for i in range(POSTS) if i % 7]
    assert whole["event_timestamp"].cast(pa.int64()) == whole["post_id"]
    vectors = np.stack(whole["post_text_embedding"].to_numpy())
    for other in others:
        assert other.schema == whole.schema
        assert other.drop(["post_text_embedding"]) == whole.drop(["post_text_embedding"])
        # Texts that are encoded beside others differ in the last bits.
        found = np.stack(other["post_text_embedding"].to_numpy())
        np.testing.assert_allclose(found, vectors, rtol=0, atol=1e-6)


def test_a_changed_text_is_the_only_one_embedded_and_other_shards_stay(model, tmp_path):
    values = texts()
    posts = write_posts(tmp_path / "posts", values)
    job = job_of(model, posts, tmp_path, 4)
    first = run_here(job, 1)
    assert sum(report.facts["embedded"] for report in first) == POSTS - len(range(0, POSTS, 7))
    before = identities(job.folder)
    again = run_here(job, 1)
    assert not any(report.is_new for report in again)
    assert identities(job.folder) == before
    # The second of four shards has the posts 15 to 29.
    write_posts(posts, [*values[:20], "the cat won the election", *values[21:]])
    changed = run_here(job, 1)
    assert [report.shard for report in changed if report.is_new] == [1]
    assert [report.facts["embedded"] for report in changed if report.is_new] == [1]
    (job.folder / ".00001-killed.tmp").write_bytes(b"half of a file")
    job.tidy(changed)
    after = identities(job.folder)
    old, new = first[1].file, changed[1].file
    assert {name for name in after if name != new} == {name for name in before if name != old}
    assert all(after[name] == before[name] for name in after if name != new)


RUN = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from pipelines.features.text_encoders import TextModel
from pipelines.shards import run_here
from test_shards import job_of
job = job_of(TextModel(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 12)
if __name__ == "__main__":
    reports = run_here(job, 2, None, lambda *done: print(*done, flush=True))
    print(sum(report.is_new for report in reports), "new", flush=True)
"""


@pytest.mark.slow
def test_after_a_kill_finished_shards_are_not_done_again(model, tmp_path):
    posts = write_posts(tmp_path / "posts", texts())
    script = tmp_path / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    command = [sys.executable, str(script), model.name, str(posts), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        children = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    # They end by themselves, though nobody told them to.
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shards = tmp_path / "shards"
    finished = {name: at for name, at in identities(shards).items() if name.endswith(".parquet")}
    assert len(finished) >= 3
    done = subprocess.run(
        command, capture_output=True, env=environment, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{12 - len(finished)} new"
    after = identities(shards)
    assert {name: after[name] for name in finished} == finished
    job, other = job_of(model, posts, tmp_path, 12), job_of(model, posts, tmp_path / "other", 12)
    assert rows_of(job, run_here(job, 1)).equals(rows_of(other, run_here(other, 1)))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do(model, tmp_path):
    posts = write_posts(tmp_path / "posts", texts())
    job = job_of(model, posts, tmp_path, 12)

    def kill(*_: int) -> None:
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGKILL)

    with pytest.raises(ShardError, match=r"post_text: a process .* was killed.*--workers"):
        run_here(job, 2, None, kill)
    assert any(path.suffix == ".parquet" for path in job.folder.iterdir())


def children_of(pid: int) -> list[int]:
    import psutil

    return [
        child.pid for child in psutil.Process(pid).children() if "spawn" in str(child.cmdline())
    ]


def is_running(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

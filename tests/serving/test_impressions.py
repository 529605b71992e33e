"""The impression log alone: its bounds, its rotation, and what a kill leaves of it."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from impression_maker import impression

from serving.impressions import ImpressionLog, new_request_id, tidy, to_table


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.parquet"))


def wait_until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_by_hand():
    one = impression("a" * 32, posts=[3, 5, 9], shown=[2, 0], scores=[0.5, 0.25, 2.0])
    other = impression("b" * 32, posts=[4], shown=[0], scores=None)
    table = to_table([one, other])
    assert table["post"].to_pylist() == ["p3", "p5", "p9", "p4"]
    assert table["position"].to_pylist() == [2, None, 1, 1]
    assert table["ranker_score"].to_pylist() == [0.5, 0.25, 2.0, None]
    assert table["ranker_rank"].to_pylist() == [2, 3, 1, None]
    assert table["propensity"].to_pylist() == [0.5, None, 1.0, 1.0]
    assert table["popular_rank"].to_pylist() == [1.0, None, 2.0, None]
    assert table["user_city"].to_pylist() == ["Ulm", "Ulm", "Ulm", None]
    assert table["user_age"].to_pylist() == [30.0, 30.0, 30.0, None]
    assert table["request_unix_time_s"].to_pylist() == [1_700_000_000] * 4
    assert table["materialized_until"].to_pylist() == [datetime(2024, 6, 1, tzinfo=UTC)] * 4


def test_files_are_cut_by_rows_and_hold_whole_requests(tmp_path: Path):
    log = ImpressionLog(tmp_path, rows_per_file=5, seconds_per_file=3600)
    names = [new_request_id() for _ in range(4)]
    for name in names:
        log.add(impression(name, posts=[1, 2, 3], shown=[0], scores=[1, 2, 3]))
    log.close()
    tables = [pq.read_table(file) for file in files(tmp_path)]
    assert [table.num_rows for table in tables] == [6, 6]
    assert pa.concat_tables(tables)["request_id"].to_pylist() == [n for n in names for _ in "123"]
    assert log.counts == {"written": 4, "dropped_full": 0, "dropped_unwritable": 0}
    assert log.waiting_rows == 0


def test_a_lonely_impression_is_written_in_time(tmp_path: Path):
    log = ImpressionLog(tmp_path, rows_per_file=1000, seconds_per_file=0.1)
    log.add(impression(new_request_id(), posts=[1], shown=[0], scores=[1]))
    wait_until(lambda: files(tmp_path))
    log.close()


def test_a_full_buffer_drops_and_counts(tmp_path: Path):
    log = ImpressionLog(tmp_path, rows_per_file=1000, seconds_per_file=3600, buffer_rows=5)
    for _ in range(4):
        log.add(impression(new_request_id(), posts=[1, 2], shown=[0], scores=[1, 2]))
    assert (log.waiting_rows, log.counts["dropped_full"]) == (4, 2)
    log.close()
    assert log.counts == {"written": 2, "dropped_full": 2, "dropped_unwritable": 0}


def test_what_cannot_be_written_is_counted_and_makes_room(tmp_path: Path):
    (tmp_path / "file").touch()
    log = ImpressionLog(tmp_path / "file", rows_per_file=2, seconds_per_file=3600)
    for _ in range(3):
        log.add(impression(new_request_id(), posts=[1, 2], shown=[0], scores=[1, 2]))
    log.close()
    assert log.counts == {"written": 0, "dropped_full": 0, "dropped_unwritable": 3}
    assert log.waiting_rows == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_request_is_sampled_by_its_id(tmp_path: Path, share: float):
    log = ImpressionLog(tmp_path, share=share)
    rng = np.random.default_rng(1)
    names = [rng.bytes(16).hex() for _ in range(5000)]
    chosen = [name for name in names if log.wants(name)]
    assert abs(len(chosen) / len(names) - share) <= (0 if share in (0, 1) else 0.02)
    assert chosen == [name for name in names if log.wants(name)]
    log.close()


def test_two_generations_get_files_of_their_own(tmp_path: Path):
    log = ImpressionLog(tmp_path, rows_per_file=1000, seconds_per_file=3600)
    for contract in ("c" * 64, "d" * 64, "c" * 64):
        one = impression(new_request_id(), posts=[1], shown=[0], scores=[1], contract=contract)
        log.add(one)
    log.close()
    assert {file.parent.name for file in files(tmp_path)} == {"c" * 12, "d" * 12}


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from impression_maker import impression
from serving.impressions import ImpressionLog, new_request_id
log = ImpressionLog(Path(sys.argv[1]), rows_per_file=50, seconds_per_file=0.02, buffer_rows=100_000)
while True:
    name = new_request_id()
    log.add(impression(name, posts=range(40), shown=range(5), scores=range(40)))
    print(name, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_process_loses_only_what_waited(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            # Files are read while they are written, and are always whole.
            wait_until(lambda: len(files(tmp_path)) >= 5, 240)
            for file in files(tmp_path):
                assert pq.read_table(file).num_rows % 40 == 0
            os.kill(process.pid, signal.SIGKILL)
            added = str(process.communicate()[0]).split()
        finally:
            process.kill()
    kept = pa.concat_tables([pq.read_table(file) for file in files(tmp_path)])
    written = list(dict.fromkeys(kept["request_id"].to_pylist()))
    assert kept.num_rows == 40 * len(written)
    # What was written is the beginning of what was added: only the end is lost.
    assert written == added[: len(written)]


def test_old_files_and_what_killed_processes_left_are_removed(tmp_path: Path):
    log = ImpressionLog(tmp_path)
    log.add(impression("a" * 32, posts=[1], shown=[0], scores=[1]))
    log.close()
    (written,) = files(tmp_path)
    moment, rest = written.name.split("-", 1)
    now = datetime.strptime(moment, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    old = now - timedelta(days=30)
    unfinished = [written.with_name(f".{t:%Y%m%dT%H%M%S.%fZ}-{rest}.partial") for t in (now, old)]
    foreign = written.with_name("notes.parquet")
    for path in (*unfinished, foreign):
        path.touch()
    assert tidy(tmp_path, now + timedelta(minutes=59), None) == (0, 1)
    assert [path.exists() for path in unfinished] == [True, False]
    assert tidy(tmp_path, now + timedelta(days=6.9), 7) == (0, 1)
    assert written.exists()
    assert tidy(tmp_path, now + timedelta(days=7.1), 7) == (1, 0)
    assert files(tmp_path) == [foreign]
    assert tidy(tmp_path / "nothing", now, 7) == (0, 0)

"""The service under load while Redis is killed and restarted, and the judge of what it said."""

import json
import subprocess
import sys

import pytest

from benchmarks.serving_faults import Outage, judged

OUTAGES = [Outage(10.0, 11.9, 12.0), Outage(20.0, 21.9, 22.0)]


def outcome(due: float, said: str, took: float = 0.01) -> tuple[float, float, str]:
    return due, due + took, said


def test_answers_are_judged_by_when_redis_was_away():
    whole, degraded = "200", "200 lists_unavailable"
    right = [outcome(5, whole), outcome(11, degraded), outcome(12.5, degraded), outcome(15, whole)]
    # Due before an outage and asked within it, due within it and asked after it.
    right += [outcome(19.99, degraded, 0.5), outcome(21.8, whole, 0.5)]
    found = judged(right, OUTAGES)
    assert (found["whole_while_away"], found["degraded_while_there"]) == (0, 0)
    assert (found["status_5xx"], found["other_failures"]) == (0, 0)
    assert found["recovery_s"] == [0.51, 0.0]
    assert found["degraded_share"] == found["outage_share"] + 1 / 6 == 3 / 6
    wrong = [outcome(11, whole), outcome(5, degraded), outcome(13.5, degraded)]
    wrong += [outcome(6, "503"), outcome(7, "404"), outcome(8, "ConnectionResetError")]
    found = judged(wrong, OUTAGES)
    assert (found["whole_while_away"], found["degraded_while_there"]) == (1, 2)
    assert (found["status_5xx"], found["other_failures"]) == (1, 2)


@pytest.mark.slow
def test_redis_killed_three_times_brings_no_error_and_full_recovery():
    command = ["-W", "ignore", "-m", "benchmarks.serving_faults", "--minutes", "0.3"]
    command += ["--users", "200", "--posts", "1000"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    # Memory still settles in so short a time: its bound is for ten minutes.
    assert result["status_5xx"] == result["other_failures"] == 0, done.stdout
    assert result["whole_while_away"] == result["degraded_while_there"] == 0
    assert result["degraded_share"] == pytest.approx(result["outage_share"], abs=0.03)
    assert len(result["recovery_s"]) == 3
    assert max(result["recovery_s"]) < 1

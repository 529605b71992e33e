"""Load on the service while Redis is killed and restarted three times.

``python -m benchmarks.serving_faults`` prints the service's memory over time and the outages, then
one line of JSON. A real Redis holds a made-up workspace (`benchmarks.serving_bundle`); the service
is ``feastrank serve`` in a process of its own. Of ten requests nine are ``/recommend`` and one is
``/rank``, due at random moments (open loop). Redis is ended with SIGKILL at a quarter, a half and
three quarters of the time, and started again from its last save after each outage.

It ends with status 1 unless

- every answer has status 200, and no connection is lost;
- every answer that was due while Redis was away says that it is degraded, and none that was due a
  second after its return, or before it left, does;
- the service's memory (RSS) at the end is at most 10 % above that at the first outage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import rounded
from benchmarks.serving_bundle import candidates_of, written_once
from benchmarks.serving_load import Load, command_of, free_port, post, recommend_request, server
from feastpack.embedded import EmbeddedRedis

OUTAGES = (0.25, 0.5, 0.75)
"""When Redis is killed, as shares of the time."""
OUTAGE_SHARE = 0.05
"""How long it is away each time, as a share of the time."""
RECOVERY_S = 1.0
MAX_GROWTH = 1.1


@dataclass
class Outage:
    """One time without Redis, in seconds of `time.perf_counter`.

    Attributes
    ----------
    killed, started
        When it was killed and when it was started again.
    back
        When it was seen to answer; it did so some moments before.
    """

    killed: float
    started: float = float("inf")
    back: float = float("inf")


class Faults(threading.Thread):
    """Kills and restarts Redis, and notes the service's memory meanwhile."""

    def __init__(self, kept: EmbeddedRedis, service_pid: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._kept, self._service, self._seconds = kept, psutil.Process(service_pid), seconds
        self._start = time.perf_counter()
        self.outages: list[Outage] = []
        self.memory: list[tuple[float, float]] = []

    def run(self) -> None:
        """Follow the plan until the time is over."""
        for share in OUTAGES:
            self._note_until(share)
            os.kill(self._kept.pid, signal.SIGKILL)
            self.outages.append(Outage(time.perf_counter()))
            self._note_until(share + OUTAGE_SHARE)
            self.outages[-1].started = time.perf_counter()
            self._kept.ensure_running()
            self.outages[-1].back = time.perf_counter()
        self._note_until(1.0)

    def _note_until(self, share: float) -> None:
        while (now := time.perf_counter() - self._start) < share * self._seconds:
            megabytes = self._service.memory_info().rss / 1e6
            self.memory.append((now, megabytes))
            print(f"{now:7.1f} s  {megabytes:8.1f} MB", flush=True)
            left = share * self._seconds - now
            time.sleep(min(left, self._seconds / 20))


def mixed_request(posts: int) -> Any:
    """Return what makes requests: nine of `/recommend`, then one of `/rank`."""

    def request(number: int, user: int) -> bytes:
        if number % 10:
            return recommend_request(number, user)
        wanted = [f"p{one}" for one in candidates_of(user, posts)[:50].tolist()]
        return post(b"/rank", json.dumps({"user_id": f"u{user}", "post_ids": wanted}).encode())

    return request


def judged(log: Sequence[tuple[float, float, str]], outages: Sequence[Outage]) -> dict[str, Any]:
    """Compare what the answers said with when Redis was away.

    Parameters
    ----------
    log
        As of `benchmarks.serving_load.Load`.

    Returns
    -------
    dict
        ``status_5xx``, ``other_failures`` (neither status 200 nor 5xx, or no answer);
        ``degraded_share``, ``outage_share`` (of the requests: degraded; due while Redis was away);
        ``whole_while_away``, ``degraded_while_there`` (answers that say the wrong thing; those due
        within `RECOVERY_S` of its return count as neither); ``recovery_s`` (from its return until
        the last degraded answer, of each outage); quantiles of the time to answer.
    """
    outcomes = Counter(outcome.split()[0] for _, _, outcome in log)
    away, wrong_away, wrong_there, degraded = 0, 0, 0, 0
    last = [one.back for one in outages]
    for due, at, outcome in log:
        is_degraded = " " in outcome
        degraded += is_degraded
        # What was due just before an outage may have been asked within it.
        is_cut = any(due < one.killed < at for one in outages)
        place = int(np.searchsorted([one.killed for one in outages], due)) - 1
        outage = outages[place] if place >= 0 else None
        if outage is not None and due < outage.back:
            away += 1
            # What comes after the start may have been asked of a Redis that answers.
            wrong_away += not is_degraded and at < outage.started
        elif outage is None or due > outage.back + RECOVERY_S:
            wrong_there += is_degraded and not is_cut
        if is_degraded and outage is not None and not is_cut:
            last[place] = max(last[place], at)
    times = np.array([1000 * (at - due) for due, at, _ in log])
    return {
        "requests": len(log),
        "status_5xx": sum(count for name, count in outcomes.items() if name[0] == "5"),
        "other_failures": sum(
            count for name, count in outcomes.items() if name != "200" and name[0] != "5"
        ),
        "degraded_share": degraded / len(log),
        "outage_share": away / len(log),
        "whole_while_away": wrong_away,
        "degraded_while_there": wrong_there,
        "recovery_s": [round(end - one.back, 3) for end, one in zip(last, outages, strict=True)],
        "p50_ms": float(np.quantile(times, 0.5)),
        "p99_ms": float(np.quantile(times, 0.99)),
        "max_ms": float(times.max()),
    }


def main() -> int:
    """Write, serve, load, kill, judge; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--posts", type=int, default=2_000)
    parser.add_argument("--impression-share", type=float, default=0.1)
    options = parser.parse_args()
    seconds = 60 * options.minutes
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(Path(folder) / "redis") as kept,
    ):
        written_once(folder, kept.port, {"users": options.users, "posts": options.posts})
        port, share = free_port(), str(options.impression_share)
        command = command_of(folder, port, "--impression-share", share)
        with server(command, port, 0, kept.port) as service_pid:
            load = Load(port, options.users, request_of=mixed_request(options.posts))
            faults = Faults(kept, service_pid, seconds)
            faults.start()
            asyncio.run(load.run(options.rate, seconds))
            faults.join()
    found = judged(load.log, faults.outages)
    before = [size for at, size in faults.memory if at < OUTAGES[0] * seconds]
    memory = {
        "rss_before_outages_mb": before[-1],
        "rss_max_mb": max(size for _, size in faults.memory),
        "rss_end_mb": faults.memory[-1][1],
    }
    is_good = (
        found["status_5xx"] == found["other_failures"] == 0
        and found["whole_while_away"] == found["degraded_while_there"] == 0
        and found["degraded_share"] > 0
        and memory["rss_end_mb"] <= MAX_GROWTH * memory["rss_before_outages_mb"]
    )
    for number, (one, took) in enumerate(zip(faults.outages, found["recovery_s"], strict=True), 1):
        print(f"outage {number}: {one.back - one.killed:.1f} s, all well {took:.2f} s after it")
    size = {"minutes": options.minutes, "rate": options.rate}
    result = {"benchmark": "serving_faults", **size, **found, **memory, "is_good": is_good}
    print(json.dumps(rounded(result)))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())

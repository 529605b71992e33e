"""How far one machine goes: ``python -m benchmarks.scale --events 1000000 10000000``.

Simulates a feed of each size (users, posts and views in proportion), then runs every step of the
job on it, each as the command that a user would run, in a process of its own. Printed for each:
wall and processor time, peak memory, bytes on disk afterwards, cost of an event; and the growth
exponent between sizes, log(time ratio) / log(size ratio): 1 is linear. Beside the features, the
naive way at the sizes where it still runs: pandas, sliding windows by groupby of every user-day.
Texts are left out: they cost by the post, see ``benchmarks.text_embedding``.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from benchmarks.common import isolated, peak_mb
from pipelines.cli import EXIT_GATE

STEPS = ("ingest", "features", "apply", "materialize", "train", "evaluate", "publish")
#: Of the largest size, 100M events: a million users, 100,000 posts.
EVENTS_A_USER, EVENTS_A_POST = 100, 1000
DAYS, TEST_DAYS = 75, 7
WINDOWS = (1, 7, 28)
COLUMNS = f"{'step':<14}{'wall s':>10}{'cpu s':>10}{'peak MB':>10}{'disk MB':>10}{'us/event':>10}"


def command(name: str, *flags: str, home: Path) -> dict[str, Any]:
    """Run one command of feastrank; return its wall and processor time and its peak memory.

    ``stopped`` tells whether a gate stopped it.

    Raises
    ------
    RuntimeError
        If it fails otherwise, with what it said.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "pipelines.cli", name, *flags],
            env=os.environ | {"FEASTRANK_HOME": str(home)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, EXIT_GATE):
            said.seek(0)
            raise RuntimeError(f"feastrank {name}: {said.read()[-2000:]}")
    return {
        "s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "stopped": code == EXIT_GATE,
    }


def disk_mb(folder: Path) -> float:
    """Return the size of all files below a folder, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def naive_features(lake: str) -> dict[str, Any]:
    """Time likes and events of each user in sliding windows, by day, as pandas notebooks do it."""
    import pandas as pd

    events = ds.dataset(Path(lake) / "events").to_table(
        columns=["user_id", "event_time", "is_positive"]
    )
    frame = events.to_pandas()
    start = time.perf_counter()
    frame["day"] = frame["event_time"].dt.floor("D").dt.tz_localize(None)
    daily = frame.groupby(["user_id", "day"])["is_positive"].agg(["size", "sum"]).reset_index()
    days = pd.date_range(daily["day"].min(), daily["day"].max(), freq="D")
    index = pd.MultiIndex.from_product([daily["user_id"].unique(), days], names=["user_id", "day"])
    full = daily.set_index(["user_id", "day"]).reindex(index, fill_value=0)
    columns = {}
    for window in WINDOWS:
        sums = full.groupby(level="user_id").rolling(window, min_periods=1).sum()
        columns[window] = np.asarray(sums)
    seconds = time.perf_counter() - start
    return {"s": seconds, "peak_mb": peak_mb(), "rows": len(full)}


def run(events: int, folder: Path, *, naive: bool) -> dict[str, Any]:
    """Simulate one size and run the job on it."""
    feed, home = folder / "feed", folder / "home"
    users, posts = max(events // EVENTS_A_USER, 1000), max(events // EVENTS_A_POST, 1000)
    # Likes come on top of views: about one in ten.
    sizes = {"users": users, "posts": posts, "views": int(events / 1.1), "days": DAYS}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    steps = {
        "simulate": command(
            "simulate", f"--output={feed}", "--name=scale", f"--test-days={TEST_DAYS}", *flags,
            home=home,
        )
    }  # fmt: skip
    steps["simulate"]["disk_mb"] = disk_mb(feed)
    description = feed / "feed.toml"
    text = description.read_text(encoding="utf-8")
    description.write_text(re.sub(r'(?m)^text = "text"\n', "", text), encoding="utf-8")
    for step in STEPS:
        flags = [f"--dataset={description}", *(["--no-ablation"] if step == "evaluate" else [])]
        steps[step] = command(step, *flags, home=home) | {"disk_mb": disk_mb(home)}
        _print(step, steps[step], events)
        if steps[step]["stopped"]:
            # Without texts a small feed's ranker may not be better than popularity.
            print(f"a gate stopped {step}; what would follow is left out", flush=True)
            break
    record = json.loads((home / "scale" / "steps" / "ingest.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "case": f"{events:,} events",
        "events": record["facts"]["events"],
        "users": users,
        "posts": posts,
        "steps": steps,
        "largest_peak_mb": max(one["peak_mb"] for one in steps.values()),
    }
    if naive:
        lake = home / "scale" / "lake"
        result["naive_features"] = isolated("benchmarks.scale:naive_features", lake=str(lake))
        print(f"features by pandas: {result['naive_features']}", flush=True)
    command("stop", home=home)
    return result


def _print(step: str, one: dict[str, Any], events: int) -> None:
    cost = one["s"] / events * 1e6
    print(
        f"{step:<14}{one['s']:>10.1f}{one['cpu_s']:>10.1f}{one['peak_mb']:>10.0f}"
        f"{one['disk_mb']:>10.0f}{cost:>10.2f}",
        flush=True,
    )


def exponents(cases: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return each step's growth of processor time from one size to the next."""
    grown: dict[str, list[float]] = {}
    for small, large in pairwise(cases):
        size = math.log(large["events"] / small["events"])
        for step in (one for one in STEPS if one in small["steps"] and one in large["steps"]):
            ratio = large["steps"][step]["cpu_s"] / small["steps"][step]["cpu_s"]
            grown.setdefault(step, []).append(round(math.log(ratio) / size, 3))
    return grown


def main() -> None:
    """Run the sizes one after another, each in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument(
        "--naive-up-to", type=int, default=10_000_000, help="events up to which pandas runs too"
    )
    parser.add_argument("--folder", type=Path, help="where the feeds lie meanwhile: much room")
    chosen = parser.parse_args()
    cases = []
    for events in sorted(chosen.events):
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            print(f"\n{events:,} events\n{COLUMNS}", flush=True)
            cases.append(run(events, Path(folder), naive=events <= chosen.naive_up_to))
    grown = exponents(cases)
    for step, values in grown.items():
        print(f"{step:<14} grows with the power {', '.join(f'{value:.2f}' for value in values)}")
    print(json.dumps({"benchmark": "scale", "cases": cases, "exponents": grown}))


if __name__ == "__main__":
    main()

"""How far one machine goes: ``python -m benchmarks.scale --events 1000000 10000000 100000000``.

Simulates a feed of each size (users, posts and views in proportion), then runs every step of the
job on it, each in a process of its own: the commands that a user would run, and beside them a
training set of a tenth as many rows as events, joined as of random events, and the candidates of
all users, written to parquet. Printed for each: wall and processor time, peak memory, bytes on
disk afterwards, cost of an event; and the growth exponent between sizes, log(time ratio) /
log(size ratio), of processor time: 1 is linear. Beside the features, the naive way at the sizes
where it still runs: pandas, sliding windows by groupby of every user-day. Texts are left out: they
cost by the post, see ``benchmarks.text_embedding``. With ``--folder`` what is measured is kept
there, step by step, and a later run goes on after it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.common import isolated, peak_mb
from feature_repo.contract import registered_contract
from feature_repo.definitions.columns import REQUEST_TIME, source_rank, source_score
from pipelines.cli import EXIT_GATE
from pipelines.job.context import Context, open_context, open_store
from pipelines.job.lake_events import LakeEvents
from pipelines.job.sources import generators, recommend_with
from pipelines.ranking.training_set import ROWS_AT_ONCE
from pipelines.settings import JobSettings

COMMANDS = ("ingest", "features", "apply", "materialize", "train", "evaluate", "publish")
STEPS = (
    *("simulate", "ingest", "features", "naive_features", "apply", "training_set"),
    *("materialize", "train", "candidates", "evaluate", "publish"),
)
#: Of the largest size, 100M events: a million users, 100,000 posts.
EVENTS_A_USER, EVENTS_A_POST = 100, 1000
DAYS, TEST_DAYS = 75, 7
EVENTS_A_TRAINING_ROW = 10
USERS_AT_ONCE = 20_000
SEED = 42
WINDOWS = (1, 7, 28)
COLUMNS = f"{'step':<16}{'wall s':>10}{'cpu s':>10}{'peak MB':>10}{'disk MB':>10}{'us/event':>10}"


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
    return {"s": seconds, "cpu_s": seconds, "peak_mb": peak_mb(), "rows": len(full)}


def training_set(description: str, home: str) -> dict[str, Any]:
    """Join the ranker's inputs to users and posts of random events, as of them; write parquet."""
    context = _context(description, home)
    store = open_store(context.workspace)
    contract = registered_contract(store)
    files = context.workspace.lake / "events" / "*" / "*.parquet"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        asked = connection.sql(
            f"SELECT user_id, post_id, event_time AS event_timestamp FROM '{files}' "
            f"USING SAMPLE {100 / EVENTS_A_TRAINING_ROW} PERCENT (bernoulli, {SEED})"
        ).to_arrow_table()
    seconds = asked["event_timestamp"].cast(pa.timestamp("s", "UTC"), safe=False)
    asked = asked.append_column(REQUEST_TIME, seconds.cast(pa.int64()))
    # What the candidate sources would have said is not asked here: it is no matter of the lake.
    for source in context.sources:
        for column in (source_score(source), source_rank(source)):
            asked = asked.append_column(column, pa.nulls(len(asked), pa.float32()))
    job = store.get_historical_features(
        entity_df=asked.to_pandas(), features=store.get_feature_service(contract.service)
    )
    target, written = Path(home) / "training_set.parquet", 0
    with ExitStack() as closing:
        writer = None
        for batch in job.to_record_batches(ROWS_AT_ONCE):
            if writer is None:
                opened = pq.ParquetWriter(target, batch.schema, compression="zstd")
                writer = closing.enter_context(opened)
            writer.write_batch(batch)
            written += batch.num_rows
    return {"rows": written, "inputs": len(contract.names)}


def candidates(description: str, home: str) -> dict[str, Any]:
    """Fit the candidate sources on all events and write the lists of all users as parquet."""
    context = _context(description, home)
    with LakeEvents(context.workspace.lake) as events:
        interactions = events.interactions()
    fitted = [one.fit(interactions) for one in generators(context)]
    folder, rows = Path(home) / "candidates", 0
    folder.mkdir(exist_ok=True)
    users = interactions.user_ids
    for start in range(0, len(users), USERS_AT_ONCE):
        for one in fitted:
            some = users[start : start + USERS_AT_ONCE]
            table = recommend_with(one, some, context.settings)
            pq.write_table(table, folder / f"{one.name}-{start:09}.parquet")
            rows += table.num_rows
    return {"rows": rows, "users": len(users)}


def _context(description: str, home: str) -> Context:
    settings = JobSettings(dataset=description, home=Path(home))
    return open_context(settings, Console(stderr=True))


FUNCTIONS = {"training_set": training_set, "candidates": candidates}
"""Steps that are no command."""


def run(events: int, folder: Path, *, naive: bool) -> dict[str, Any]:
    """Simulate one size and run the job on it, but for what is measured in the folder already."""
    feed, home = folder / "feed", folder / "home"
    kept = folder / "measured.json"
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for step in STEPS:
        if step == "naive_features" and not naive:
            continue
        if step not in steps:
            steps[step] = _measure(step, events, feed, home)
            kept.write_text(json.dumps(steps, indent=2), encoding="utf-8")
        _print(step, steps[step], events)
        if steps[step].get("stopped"):
            # Without texts a small feed's ranker may not be better than popularity.
            print(f"a gate stopped {step}; what would follow is left out", flush=True)
            break
    command("stop", home=home)
    record = json.loads((home / "scale" / "steps" / "ingest.json").read_text(encoding="utf-8"))
    return {
        "case": f"{events:,} events",
        "events": record["facts"]["events"],
        "users": record["facts"]["users"],
        "posts": record["facts"]["posts"],
        "steps": steps,
        "largest_peak_mb": max(one["peak_mb"] for one in steps.values()),
    }


def _measure(step: str, events: int, feed: Path, home: Path) -> dict[str, Any]:
    """Run one step; return what it took."""
    description = feed / "feed.toml"
    if step == "simulate":
        # Likes come on top of views: about one in ten.
        sizes = {
            "users": max(events // EVENTS_A_USER, 1000),
            "posts": max(events // EVENTS_A_POST, 1000),
            "views": int(events / 1.1),
            "days": DAYS,
        }
        flags = [f"--{name}={value}" for name, value in sizes.items()]
        flags += [f"--output={feed}", "--name=scale", f"--test-days={TEST_DAYS}"]
        found = command(step, *flags, home=home) | {"disk_mb": disk_mb(feed)}
        text = description.read_text(encoding="utf-8")
        description.write_text(re.sub(r'(?m)^text = "text"\n', "", text), encoding="utf-8")
        return found
    if step in COMMANDS:
        flags = [f"--dataset={description}", *(["--no-ablation"] if step == "evaluate" else [])]
        found = command(step, *flags, home=home)
    elif step == "naive_features":
        found = isolated("benchmarks.scale:naive_features", lake=str(home / "scale" / "lake"))
    else:
        given = {"description": str(description), "home": str(home)}
        found = isolated("benchmarks.scale:timed", step=step, **given)
    return found | {"disk_mb": disk_mb(home)}


def timed(step: str, **given: Any) -> dict[str, Any]:
    """Run a step that is no command, in this process; return what it took and made."""
    start = time.perf_counter()
    made = FUNCTIONS[step](**given)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return made | {
        "s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": peak_mb(),
    }


def _print(step: str, one: dict[str, Any], events: int) -> None:
    cost = one["s"] / events * 1e6
    print(
        f"{step:<16}{one['s']:>10.1f}{one['cpu_s']:>10.1f}{one['peak_mb']:>10.0f}"
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
    """Run the sizes one after another, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument(
        "--naive-up-to", type=int, default=10_000_000, help="events up to which pandas runs too"
    )
    parser.add_argument(
        "--folder", type=Path, help="keep feeds and measurements here, and go on from them"
    )
    chosen = parser.parse_args()
    cases = []
    with nullcontext(chosen.folder) if chosen.folder else TemporaryDirectory() as folder:
        for events in sorted(chosen.events):
            print(f"\n{events:,} events\n{COLUMNS}", flush=True)
            naive = events <= chosen.naive_up_to
            cases.append(run(events, Path(folder) / str(events), naive=naive))
    grown = exponents(cases)
    for step, values in grown.items():
        print(f"{step:<16} grows with the power {', '.join(f'{value:.2f}' for value in values)}")
    print(json.dumps({"benchmark": "scale", "cases": cases, "exponents": grown}))


if __name__ == "__main__":
    main()

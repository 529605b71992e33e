"""What the impression log costs a request: the same requests with and without it, in turns.

    python -m benchmarks.impression_log --home .feastrank --dataset movielens_100k

needs a published workspace (`feastrank run`). Files are written meanwhile, as in the service.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import rounded
from feature_repo.workspace import Workspace, home
from pipelines.job.context import open_store
from serving.bundle import open_current
from serving.impressions import ImpressionLog
from serving.recommender import Recommender


def main() -> None:
    """Ask, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=home())
    parser.add_argument("--dataset", default="movielens_100k")
    parser.add_argument("--requests", type=int, default=1000, help="of each kind")
    arguments = parser.parse_args()
    workspace = Workspace(arguments.home.resolve(), arguments.dataset)
    with tempfile.TemporaryDirectory() as folder:
        log = ImpressionLog(Path(folder), buffer_rows=1_000_000)
        measured, beside = _measure(workspace, log, arguments.requests)
        files = list(Path(folder).glob("*/*.parquet"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        size = sum(file.stat().st_size for file in files)
        counts = log.counts
    off, on = measured["off"], measured["on"]
    result = {
        "benchmark": "impression_log",
        "requests": arguments.requests,
        "off_p50_ms": float(np.percentile(off, 50)),
        "on_p50_ms": float(np.percentile(on, 50)),
        "off_p99_ms": float(np.percentile(off, 99)),
        "on_p99_ms": float(np.percentile(on, 99)),
        "on_minus_off_mean_ms": float(np.mean(on) - np.mean(off)),
        "writer_cpu_ms_per_request": beside,
        "rows_per_request": rows / arguments.requests,
        "bytes_per_row": size / max(rows, 1),
        "files": len(files),
        "outcomes": counts,
    }
    print(json.dumps(rounded(result)))


def _measure(
    workspace: Workspace, log: ImpressionLog, requests: int
) -> tuple[dict[str, list[float]], float]:
    """Return milliseconds of each request, by whether it was logged, and the writer's of each.

    The writer's are of the processor: what the process took beyond the thread that asks.
    """
    store = open_store(workspace)
    sides = {
        "off": Recommender(workspace.bundles, store),
        "on": Recommender(workspace.bundles, store, impressions=log),
    }
    folder, _ = open_current(workspace.bundles)
    users = pq.read_table(folder / "users.parquet")["external_id"].to_pylist()
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(20):
        sides["off"].recommend(users[0], 10)
    process, thread = time.process_time(), time.thread_time()
    for number in range(requests):
        # Who goes first changes, so that neither finds caches warmer.
        for name in ("off", "on") if number % 2 else ("on", "off"):
            start = time.perf_counter()
            sides[name].recommend(users[number % len(users)], 10)
            took[name].append(1000 * (time.perf_counter() - start))
    log.close()
    beside = (time.process_time() - process) - (time.thread_time() - thread)
    return took, 1000 * beside / requests


if __name__ == "__main__":
    main()

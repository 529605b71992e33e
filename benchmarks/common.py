"""What every benchmark here does alike: isolate, time, and print one JSON line at the end.

Each side of a comparison runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

COLUMNS = ("stock_s", "ours_s", "floor_s", "ratio_stock", "ratio_floor")


def median_seconds(action: Callable[[], Any], repeats: int, warm_up: int = 1) -> float:
    """Return the median wall time of an action in seconds."""
    for _ in range(warm_up):
        action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mb() -> float:
    """Return the most memory that this process ever held, in MB."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_kb / 1024


def isolated(function: str, **arguments: Any) -> Any:
    """Call ``package.module:function`` in a process of its own; return what it returns.

    Arguments and result are passed as JSON.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.common", function]
    done = subprocess.run(
        [*command, json.dumps(arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(benchmark: str, cases: Sequence[dict[str, Any]], **more: Any) -> None:
    """Print a table of the cases, then everything as one line of JSON."""
    width = max(len(case["case"]) for case in cases)
    print(f"{'':{width}}  " + "  ".join(f"{name:>12}" for name in COLUMNS))
    for case in cases:
        cells = (f"{case[name]:12.5f}" if name in case else f"{'':12}" for name in COLUMNS)
        print(f"{case['case']:{width}}  " + "  ".join(cells))
    print(json.dumps({"benchmark": benchmark, "cases": list(cases), **more}))


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Round floating-point values for printing."""
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(result))

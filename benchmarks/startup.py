"""What a process pays before it works: ``python -m benchmarks.startup``.

Wall time of whole processes, medians of some that take turns. Feast is imported as it is, and
without the type checks that it compiles (`pipelines.startup`); the floor is torch alone, which
Feast imports wherever it is installed. Help of ``feastrank run`` stands beside that of Feast's own
``feast apply``, and a Python that does nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.common import report, rounded

PREPARED = "from pipelines.startup import prepare_for_feast; prepare_for_feast(); import feast"
CASES = {
    "import Feast": {
        "stock_s": ["-c", "import feast"],
        "ours_s": ["-c", PREPARED],
        "floor_s": ["-c", "import torch"],
    },
    "help of a command": {
        "stock_s": ["-c", "from feast.cli.cli import cli; cli(['apply', '--help'])"],
        "ours_s": ["-m", "pipelines.cli", "run", "--help"],
        "floor_s": ["-c", "pass"],
    },
}


def seconds(arguments: list[str]) -> float:
    """Run Python with some arguments; return its wall time."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Run every side in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    cases = []
    for name, sides in CASES.items():
        # The first turn compiles what was never imported, and reads the disk.
        turns = [{side: seconds(sides[side]) for side in sides} for _ in range(repeats + 1)][1:]
        case = {side: statistics.median(turn[side] for turn in turns) for side in sides}
        case |= {
            "ratio_stock": case["stock_s"] / case["ours_s"],
            "ratio_floor": case["ours_s"] / case["floor_s"],
        }
        cases.append({"case": name, **rounded(case)})
    report("startup", cases)


if __name__ == "__main__":
    main()

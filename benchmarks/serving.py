"""`/recommend` under load: ours, the same service written in the usual way, and the floor.

``python -m benchmarks.serving`` prints tables, then one line of JSON. A real Redis holds made-up
features, lists and histories (`benchmarks.serving_bundle`), 500 candidates a user; one worker is
pinned to one core, load and Redis to another one.

- ``ours``: ``feastrank serve`` as it is, with a CatBoost ranker of 300 trees
- ``usual``: FastAPI, stock Feast's ``get_online_features`` on its own Redis store, LightGBM
  (`benchmarks.serving_usual`); its candidates cost nothing
- ``floor``: in one process, without HTTP: one MGET of the same rows, the least code that makes a
  matrix of them, the same ranker, JSON

``p50_ms``, ``p99_ms`` and ``floor_p99_ms`` are at the lowest rate. Arrivals are open-loop: Poisson;
a request counts from the moment it was due, whether or not the service had time for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import redis

from benchmarks.common import isolated, rounded
from benchmarks.serving_bundle import candidates_of, workspace_of, written_once
from benchmarks.serving_load import Load, arrivals, command_of, free_port, one_by_one, pin, server
from feastpack.embedded import EmbeddedRedis
from feastpack.wire import mget_command

HERE = "benchmarks.serving"
LIMIT_MS = 20.0


def at_rate(port: int, users: int, rate: float, seconds: float, core: int) -> dict[str, Any]:
    """Load a service at one rate; quantiles of the time to answer."""
    pin(core)
    load = Load(port, users)
    asyncio.run(load.run(rate, seconds))
    times = np.array(load.times)
    return {
        "rate": rate,
        "p50_ms": float(np.quantile(times, 0.5)),
        "p99_ms": float(np.quantile(times, 0.99)),
        "requests": len(times),
        "outcomes": load.outcomes,
    }


def floor(
    folder: str,
    redis_port: int,
    posts: int,
    users: list[int],
    core: int,
    rate: float,
    seconds: float,
) -> dict[str, Any]:
    """Time one MGET, matrix, predict and JSON; and ours without HTTP, stage by stage.

    The floor also at a rate, as the service is asked: what the machine itself adds by then.
    """
    pin(core)
    from serving.recommender import Recommender

    os.environ["REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
    from pipelines.job.context import open_store

    workspace = workspace_of(folder)
    ours = Recommender(workspace.bundles, open_store(workspace))
    actions = [_floor_of(ours, redis_port, user, posts) for user in users]
    own = [lambda user=user: ours.recommend(f"u{user}", 10) for user in users]
    return {
        "floor_ms": _median_ms(actions),
        "floor_at_rate": _paced(actions, rate, seconds),
        "in_process_ms": _median_ms(own),
        "stages": stages(ours, users),
    }


def _paced(actions: Sequence[Callable[[], Any]], rate: float, seconds: float) -> dict[str, float]:
    """Do one thing after another at moments drawn by chance; ms from when each was due."""
    due = arrivals(rate, seconds)
    times, start = [], time.perf_counter()
    for number, at in enumerate(due.tolist()):
        time.sleep(max(0.0, start + at - time.perf_counter()))
        actions[number % len(actions)]()
        times.append(1000 * (time.perf_counter() - start - at))
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.quantile(times, 0.99))}


def _median_ms(actions: Sequence[Callable[[], Any]], repeats: int = 12) -> float:
    times = []
    for action in list(actions) * repeats:
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[len(actions) :]))


def _floor_of(ours: Any, redis_port: int, user: int, posts: int) -> Callable[[], bytes]:
    assembler = ours._assembler
    plan = ours._reader.prepare(assembler.features)
    ids = np.sort(candidates_of(user, posts)).astype(np.int64)
    asked, sizes = [], []
    for view in plan.views:
        values = ids if "post_id" in view.join_keys else np.array([user])
        name = next(iter(view.join_keys))
        asked.append(view.layout.keys.laid_out({name: values}, len(values)))
        sizes.append((len(values), view))
    connection: Any = redis.Redis(port=redis_port).connection_pool.get_connection()
    command, width = [mget_command(asked)], len(ours._encoder.contract.names)

    def answer() -> bytes:
        connection.send_packed_command(command)
        rows = connection.read_response(disable_decoding=True)
        matrix, at = np.zeros((len(ids), width), np.float32), 0
        for count, view in sizes:
            own, at = rows[at : at + count], at + count
            if count == 1:
                continue
            cells = np.frombuffer(b"".join(own), np.uint8).reshape(count, -1)
            for block in view.blocks:
                column = view.layout.schema.columns[block.first]
                dtype = np.dtype(column.storage.dtype)
                end = column.place + dtype.itemsize * block.width
                values = cells[:, column.place : end].view(dtype)
                room = matrix[:, block.target : block.target + block.width]
                room[:] = values[:, : room.shape[1]]
        scores = ours._ranker.predict(matrix)
        best = np.argsort(-scores)[:10]
        return orjson.dumps(
            [{"post_id": f"p{ids[i]}", "score": float(scores[i])} for i in best.tolist()]
        )

    return answer


def stages(ours: Any, users: Sequence[int]) -> dict[str, float]:
    """Return our processor time by stage in ms a request, the parts of each other left out."""
    import feastpack.lookup
    import serving.assembly
    import serving.recommender
    from serving.messages import RankedAnswer

    spent: dict[str, float] = {}
    inner = [0.0]

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            before, inner[0] = inner[0], 0.0
            start = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                took = time.thread_time() - start
                spent[stage] = spent.get(stage, 0.0) + took - inner[0]
                inner[0] = before + took

        return call

    places: list[tuple[Any, str, str]] = [
        (feastpack.lookup, "mget", "redis"),
        (feastpack.lookup.SchemaBook, "decode", "decode"),
        (serving.recommender, "read_user_state", "user"),
        (serving.assembly, "request_features", "features"),
        (serving.assembly.Assembler, "read", "matrix"),
        (type(ours._ranker), "predict", "predict"),
        (serving.recommender.Recommender, "recommend", "rest"),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, stage in places:
        setattr(owner, name, timed(stage, getattr(owner, name)))
    to_json = timed("json", lambda answer: RankedAnswer.of(answer, ()).model_dump_json())
    try:
        for _ in range(10):
            for user in users:
                to_json(ours.recommend(f"u{user}", 10))
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    return {stage: 1000 * took / (10 * len(users)) for stage, took in spent.items()}


@contextmanager
def kept_folder(options: argparse.Namespace) -> Iterator[str]:
    """Yield the folder of the workspace: a temporary one, or one that is kept for its size."""
    if options.workspace is None:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    else:
        folder = options.workspace.resolve() / f"{options.users}x{options.posts}"
        folder.mkdir(parents=True, exist_ok=True)
        yield str(folder)


def main() -> None:
    """Write, serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--posts", type=int, default=100_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[20, 50, 100, 150, 200, 300, 400])
    parser.add_argument("--seconds", type=float, default=6, help="of load at each rate")
    parser.add_argument("--usual-requests", type=int, default=15)
    parser.add_argument("--impression-share", type=float, default=0.0)
    parser.add_argument(
        "--workspace", type=Path, help="keep what is written here, and use it if it is there"
    )
    options = parser.parse_args()
    sample = [int(user) for user in np.random.default_rng(5).integers(0, options.users, 8)]
    with kept_folder(options) as folder, EmbeddedRedis(Path(folder) / "redis") as kept:
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(kept.pid, {1})
        size = {"users": options.users, "posts": options.posts}
        facts = written_once(folder, kept.port, size)
        print(f"{facts['rows']:,} rows, {facts['inputs']} inputs, 500 candidates", flush=True)
        port, share = free_port(), str(options.impression_share)
        rates = []
        with server(command_of(folder, port, "--impression-share", share), port, 0, kept.port):
            single = one_by_one(port, sample, 200)
            for rate in options.rates:
                arguments = {"port": port, "users": options.users, "rate": rate, "core": 1}
                rates.append(isolated(f"{HERE}:at_rate", seconds=options.seconds, **arguments))
                print(json.dumps(rounded(rates[-1])), flush=True)
                if rates[-1]["p99_ms"] > 5 * LIMIT_MS:
                    break
        common = {"folder": folder, "redis_port": kept.port, "posts": options.posts}
        pace = {"rate": options.rates[0], "seconds": options.seconds}
        least = isolated(f"{HERE}:floor", users=sample, core=0, **common, **pace)
        usual = measure_usual(folder, kept.port, sample, options)
    report(facts, single, rates, least, usual, size)


def measure_usual(
    folder: str, redis_port: int, sample: list[int], options: argparse.Namespace
) -> dict[str, float]:
    """Write the sample's features through stock Feast and time the usual service."""
    address = f"127.0.0.1:{redis_port},db=1"
    isolated(
        "benchmarks.serving_bundle:write_stock",
        folder=folder,
        address=address,
        users=sample,
        posts=options.posts,
    )
    port = free_port()
    arguments = [folder, str(redis_port), str(port), str(options.posts)]
    with server(["-m", "benchmarks.serving_usual", *arguments], port, 0, redis_port):
        return one_by_one(port, sample, options.usual_requests)


def report(
    facts: dict[str, Any],
    single: dict[str, float],
    rates: list[dict[str, Any]],
    least: dict[str, Any],
    usual: dict[str, float],
    size: dict[str, int],
) -> None:
    """Print what was measured."""
    print(
        f"one request after the other: p50 {single['p50_ms']:.2f} ms; usual "
        f"{usual['p50_ms']:.1f} ms; floor {least['floor_ms']:.2f} ms, ours without HTTP "
        f"{least['in_process_ms']:.2f} ms"
    )
    print(
        f"the floor at {rates[0]['rate']:g} requests/s: p50 "
        f"{least['floor_at_rate']['p50_ms']:.2f} ms, p99 {least['floor_at_rate']['p99_ms']:.2f} ms"
    )
    for stage, took in sorted(least["stages"].items(), key=lambda pair: -pair[1]):
        print(f"  {stage:10} {took:7.3f} ms of processor time")
    good = [one["rate"] for one in rates if one["p99_ms"] <= LIMIT_MS]
    result = {
        "benchmark": "serving",
        **size,
        "inputs": facts["inputs"],
        "p50_ms": rates[0]["p50_ms"],
        "p99_ms": rates[0]["p99_ms"],
        "low_rate_per_s": rates[0]["rate"],
        "floor_p99_ms": least["floor_at_rate"]["p99_ms"],
        "single_p50_ms": single["p50_ms"],
        "single_p99_ms": single["p99_ms"],
        "in_process_p50_ms": least["in_process_ms"],
        "usual_p50_ms": usual["p50_ms"],
        "floor_p50_ms": least["floor_ms"],
        "ratio_usual": usual["p50_ms"] / single["p50_ms"],
        "ratio_floor": single["p50_ms"] / least["floor_ms"],
        "max_rps_p99_20ms": max(good, default=0),
        "stages_cpu_ms": rounded(least["stages"]),
    }
    print(json.dumps(rounded(result)))


if __name__ == "__main__":
    main()

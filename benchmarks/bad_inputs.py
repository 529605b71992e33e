"""Bad inputs after a good publication: which gate catches each, and is anything of it published?

MovieLens-100k (250 users, all films), published up to a moment; then the month after it arrives,
once as it is and once with each mutation of `benchmarks.bad_inputs_cases`, through `feastrank run`.

    python -m benchmarks.bad_inputs

Prints one line a mutation (caught by which gate, or by the reader or a later step; the message's
first line) and last one JSON object: ``tried``; ``caught`` (before publication, with everything in
Redis and in the bundles as it was); ``repaired`` (passed, and what was published is what the good
rows give); ``allowed`` (passed on purpose, see `ALLOWED`); ``published`` (neither of these, so
something bad was published); and the reasons of what was not caught.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import redis
from rich.console import Console

from benchmarks.bad_inputs_cases import MUTATIONS, Feed
from feastpack.embedded import close_shared, shared_embedded
from feature_repo.dataset import Dataset
from feature_repo.definitions.repository import DEFAULT_DATASET
from feature_repo.workspace import Workspace
from feature_repo.workspace import home as state_folder
from pipelines.cli import main as feastrank
from pipelines.datasets.fetch import fetch
from serving.bundle import REGISTRY, open_current
from serving.lists import key_prefix

NAME = "bad_inputs"
GOOD = "(none: the next month)"
USERS, FIRST_SHARE = 250, 0.9
QUICK = {"FEASTRANK_LABEL_SLICES": "2", "FEASTRANK_CANDIDATES_PER_SOURCE": "20"}
ALLOWED = {
    "string: markup and SQL in titles": "a title may be any text: it is stored as a value and "
    "escaped wherever it is shown; a gate would let any author stop all publication",
}
DESCRIPTION = f"""
name = "{NAME}"
[users]
path = "users.csv"
format = "csv"
id = "user"
attributes = [
    {{ name = "age", column = "age", type = "numeric" }},
    {{ name = "gender", column = "gender", type = "categorical" }},
    {{ name = "occupation", column = "occupation", type = "categorical" }},
]
[posts]
path = "posts.csv"
format = "csv"
id = "post"
title = "title"
topics = {{ column = "topics", separator = " " }}
[events]
path = "events.csv"
format = "csv"
user = "user"
post = "post"
value = "rating"
time = {{ column = "time", format = "epoch_s" }}
action = "rating"
impressions = {{ every = true }}
positive = {{ column = "rating", at_least = 4 }}
"""


def movielens() -> Feed:
    """Return the ratings of some users, in order of time, with the users and all films."""
    folder = fetch(Dataset.read(DEFAULT_DATASET), state_folder() / "downloads", print)

    def rows(name: str, *columns: str) -> list[dict[str, str]]:
        with (folder / f"ml-100k.{name}").open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            next(reader)
            return [dict(zip(columns, line, strict=False)) for line in reader]

    users = [
        {k: v for k, v in row.items() if k != "zip"}
        for row in rows("user", "user", "age", "gender", "occupation", "zip")
        if int(row["user"]) <= USERS
    ]
    posts = [
        {k: v for k, v in row.items() if k != "year"}
        for row in rows("item", "post", "title", "year", "topics")
    ]
    ratings = rows("inter", "user", "post", "rating", "time")
    events = [row for row in ratings if int(row["user"]) <= USERS]
    return Feed(users, posts, sorted(events, key=lambda row: float(row["time"])))


def write(feed: Feed, folder: Path) -> Path:
    """Write the files and the description; return the description."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("users", "posts", "events"):
        rows = getattr(feed, name)
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    for name, content in feed.files.items():
        (folder / name).write_bytes(content)
    path = folder / "feed.toml"
    path.write_text(DESCRIPTION, encoding="utf-8")
    return path


class Published:
    """A workspace in a folder of its own, with something published."""

    def __init__(self, home: Path) -> None:
        self.home, self.workspace = home, Workspace(home, NAME)
        self.description = home / "source" / "feed.toml"

    def run(self) -> tuple[int, str]:
        """Run all steps; return the exit code and what was said in standard error."""
        errors = StringIO()
        flags = ["--dataset", str(self.description), "--home", str(self.home)]
        with redirect_stdout(StringIO()), redirect_stderr(errors):
            code = feastrank(["run", *flags])
        return code, errors.getvalue()

    def state(self) -> str:
        """Return a checksum of all that answers depend on: bundles and everything in Redis."""
        digest = hashlib.sha256()
        for path in sorted(self.workspace.bundles.rglob("*")):
            if path.is_file():
                digest.update(str(path).encode() + path.read_bytes())
        server = shared_embedded(self.workspace.redis)
        client = redis.Redis(host=server.host, port=server.port)
        for key in sorted(client.scan_iter(count=1000)):
            digest.update(key + (client.dump(key) or b""))
        return digest.hexdigest()

    def content(self) -> str:
        """Return a checksum of lists, feature tables and files, but not of their names."""
        manifest = open_current(self.workspace.bundles)[1]
        digest = hashlib.sha256(json.dumps(manifest.feature_tables, sort_keys=True).encode())
        for name, checksum in sorted(manifest.files.items()):
            if name != REGISTRY:
                digest.update(f"{name} {checksum}".encode())
        lists = key_prefix(manifest.project, manifest.generation).encode()
        server = shared_embedded(self.workspace.redis)
        client = redis.Redis(host=server.host, port=server.port)
        for key in sorted(client.scan_iter(match=lists + b"*", count=1000)):
            digest.update(key.removeprefix(lists) + (client.dump(key) or b""))
        return digest.hexdigest()

    def restore(self, copy: Path) -> None:
        """Put everything back as it was copied."""
        close_shared(self.workspace.redis)
        shutil.rmtree(self.home)
        shutil.copytree(copy, self.home)


def caught_by(code: int, errors: str) -> str:
    """Return the gate's name, or who else refused; empty if nobody did."""
    if code == 0:
        return ""
    gate = re.search(r"gate (\w+):", errors)
    if gate is not None:
        return f"gate {gate[1]}"
    return "a gate" if code == 3 else "reader"


def first_line(errors: str) -> str:
    """Return the message's first line without what every message begins with."""
    lines = [line for line in errors.splitlines() if "stopped by a gate" not in line]
    return re.sub(r"^feastrank: ", "", lines[0]) if lines else ""


def try_all(console: Console) -> dict[str, object]:
    """Try every mutation; return what the last line says."""
    os.environ |= QUICK
    everything = movielens()
    before = everything.each(
        "events", lambda row, i: row if i < len(everything.events) * FIRST_SHARE else None
    )
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as folder:
        job, copy = Published(Path(folder) / "home"), Path(folder) / "copy"
        write(before, job.home / "source")
        code, errors = job.run()
        if code:
            raise SystemExit(f"the good data were refused: {errors}")
        close_shared(job.workspace.redis)
        shutil.copytree(job.home, copy)
        state = job.state()
        outcomes: dict[str, dict[str, str]] = {}
        good = ""
        for name, mutation in {GOOD: lambda f: f, **MUTATIONS}.items():
            write(mutation(everything), job.home / "source")
            start = time.perf_counter()
            code, errors = job.run()
            by, changed = caught_by(code, errors), job.state() != state
            if name == GOOD:
                if by:
                    raise SystemExit(f"the good rows of the next month were refused: {errors}")
                good = job.content()
            kind = "caught" if by and not changed else "published"
            if not by:
                kind = "repaired" if job.content() == good else kind
                kind = "allowed" if name in ALLOWED else kind
            outcomes.setdefault(kind, {})[name] = by
            console.print(
                f"{name:<45} {by or 'passed':<18} {kind if name != GOOD else '':<10} "
                f"{'changed' if changed else 'same':<8} "
                f"{time.perf_counter() - start:5.1f} s  {first_line(errors)[:150]}",
                markup=False,
            )
            if changed or not by:
                job.restore(copy)
        close_shared(job.workspace.redis)
    del outcomes["repaired"][GOOD]
    reasons = {**ALLOWED, **dict.fromkeys(outcomes["repaired"], "the reader mends it")}
    missed = [name for kind, names in outcomes.items() if kind != "caught" for name in names]
    return {
        "benchmark": "bad_inputs",
        "tried": len(MUTATIONS),
        **{k: len(outcomes.get(k, ())) for k in ("caught", "repaired", "allowed", "published")},
        "caught_by": dict(Counter(outcomes["caught"].values())),
        "not_caught": {name: reasons.get(name, "no gate measures it") for name in missed},
    }


if __name__ == "__main__":
    result = try_all(Console(width=300, highlight=False, soft_wrap=True))
    print(json.dumps(result))
    sys.exit(0)

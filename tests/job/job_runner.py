"""Run the real command line on a tiny feed, and look at what it published."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import redis
from tiny_feed import Feed

from feastpack.embedded import close_shared, shared_embedded
from feature_repo.workspace import Workspace
from pipelines.cli import main
from pipelines.steps import read_json

REPOSITORY = Path(__file__).parents[2]
# Fewer slices and candidates than a real feed deserves: training is most of a run's time.
QUICK = {"FEASTRANK_LABEL_SLICES": "2", "FEASTRANK_CANDIDATES_PER_SOURCE": "20"}
OWN_PACKAGES = r"(feastpack|feature_repo|validation|serving|pipelines)(\.|$)"


@contextmanager
def _own_warnings_are_errors() -> Iterator[None]:
    """Let the warnings of other libraries pass: a whole job meets dozens of theirs."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=OWN_PACKAGES)
        yield


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def steps(self) -> dict[str, str]:
        """Return each step's name and duration, or "unchanged"."""
        return dict(re.findall(r"(?m)^(\w+) +(unchanged|[\d.]+ s) {2}", self.out))


@dataclass(frozen=True)
class Job:
    """One dataset in a state folder of its own; its files lie beside the state."""

    home: Path
    name: str

    @classmethod
    def of(cls, feed: Feed, home: Path) -> "Job":
        """Write a feed's files into a state folder."""
        feed.write(home / "source")
        return cls(home, feed.name)

    @property
    def description(self) -> Path:
        return self.home / "source" / "feed.toml"

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.home, self.name)

    def do(self, command: str, *arguments: str) -> Outcome:
        """Run one command in this process."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), _own_warnings_are_errors():
            code = main([command, *self.flags(), *arguments])
        return Outcome(code, out.getvalue(), err.getvalue())

    def command(self, command: str, *arguments: str) -> list[str]:
        """Return the command line of one command, for a process of its own."""
        return [sys.executable, "-m", "pipelines.cli", command, *self.flags(), *arguments]

    def spawn(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command in a process of its own."""
        return subprocess.run(
            self.command(command, *arguments),
            cwd=REPOSITORY,
            env=os.environ | QUICK,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def facts(self, step: str) -> dict[str, Any]:
        """Return what a finished step reported."""
        return dict(read_json(self.workspace.steps / f"{step}.json")["facts"])

    def report(self) -> dict[str, Any]:
        return dict(read_json(self.workspace.reports / "report.json"))

    def redis(self) -> redis.Redis:
        server = shared_embedded(self.workspace.redis)
        return redis.Redis(host=server.host, port=server.port)

    def in_redis(self) -> dict[bytes, tuple[bytes, int]]:
        """Return every key with its value as DUMP gives it, and its time to live."""
        client = self.redis()
        keys = sorted(client.scan_iter(count=1000))
        return {key: (client.dump(key), client.pttl(key)) for key in keys}

    def in_bundles(self) -> dict[str, str]:
        """Return every file of the published generations, the pointer too, with its checksum."""
        folder = self.workspace.bundles
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def published(self) -> tuple[dict[str, str], dict[bytes, tuple[bytes, int]]]:
        """Return all that answers depend on."""
        return self.in_bundles(), self.in_redis()

    def forget(self) -> None:
        """Remove all state, but not the source's files."""
        self.close()
        shutil.rmtree(self.workspace.root, ignore_errors=True)
        shutil.rmtree(self.workspace.redis, ignore_errors=True)

    def generation(self) -> str:
        """Return the id of the published generation."""
        return (self.workspace.bundles / "current").read_text(encoding="utf-8")

    def close(self) -> None:
        """Stop this process's use of the embedded Redis; its data are saved."""
        close_shared(self.workspace.redis)

    def flags(self) -> list[str]:
        return ["--dataset", str(self.description), "--home", str(self.home)]


class KilledRuns:
    """Runs commands that are killed before they make some change, see `killed_run`.

    Use as a context manager.
    """

    def __enter__(self) -> "KilledRuns":
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killed_run.py"))],
            cwd=REPOSITORY,
            env=os.environ | QUICK | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, job: Job, point: str, command: str = "run", *arguments: str) -> int:
        """Run one command until it is killed at ``point``; return the exit code."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write(json.dumps([point, [command, *job.flags(), *arguments]]) + "\n")
        asked.flush()
        return int(answers.readline())

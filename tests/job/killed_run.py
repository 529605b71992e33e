"""Run commands, each killed (SIGKILL) before it makes some change on disk or in Redis.

Reads lines of JSON from standard input, ``[POINT, ARGUMENTS]``, and answers each with the exit
code (negative: the signal) of the command line with these arguments. Each runs in a fork of this
process, which has imported all that is needed and used none of it, so that a run costs no start.

POINT is a number (before the nth change), or "EVENT:TEXT" (before the first such change whose
path or command holds TEXT), or "list:FILE" (write all changes to FILE). Changes are seen through
audit events, so nothing of the program is replaced; commands that change something in Redis are
counted where redis-py sends them. What libraries write without Python's knowledge (parquet) falls
between two of these changes.
"""

import importlib
import json
import os
import pkgutil
import re
import signal
import sys
from pathlib import Path
from typing import Any

from redis.connection import AbstractConnection

import pipelines
import validation
from pipelines.cli import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
READS = {b"CLIENT", b"INFO", b"CONFIG", b"SCAN", b"MGET", b"GET", b"EXISTS", b"HGETALL", b"PING"}
# Imported where they are used, as they take seconds.
LATE = ("lightgbm", "implicit.als", "sentence_transformers", "faiss", "matplotlib.figure")
NEEDS_DAGSTER = "pipelines.orchestration"  # an optional extra, which no command of these uses


class Watched:
    """One run in this very process."""

    def __init__(self, point: str, home: str) -> None:
        self.point, self.home = point, home
        self.seen: list[str] = []

    def note(self, event: str, what: str) -> None:
        self.seen.append(f"{event}:{what}")
        number = str(len(self.seen))
        kind, _, text = self.point.partition(":")
        if number == self.point or (kind == event and text in what):
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in CHANGES:
            return
        path = str(arguments[0])
        folder = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
        if folder >= 0:
            path = f"{Path(f'/proc/self/fd/{folder}').readlink()}/{path}"
        if not path.startswith(self.home):
            return
        if event == "open":
            _, mode, flags = arguments
            if (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                self.note("write", path)
            return
        target = f" -> {arguments[1]}" if event == "os.rename" else ""
        self.note(event.removeprefix("os."), f"{path}{target}")

    def run(self, arguments: list[str]) -> int:
        """Run a command, watched."""
        send = AbstractConnection.send_packed_command

        def counted(connection: Any, command: Any, check_health: bool = True) -> None:
            packed = b"".join(command) if isinstance(command, list) else command
            name = re.match(rb"\*\d+\r\n\$\d+\r\n(\w+)", packed)
            if name is None or name[1] not in READS:
                self.note("redis", f"{packed[:80]!r}")
            send(connection, command, check_health)

        AbstractConnection.send_packed_command = counted  # type: ignore[method-assign]
        sys.addaudithook(self.audit)
        code = main(arguments)
        if self.point.startswith("list:"):
            Path(self.point.removeprefix("list:")).write_text("\n".join(self.seen), "utf-8")
        return code


if __name__ == "__main__":
    for package in (pipelines, validation):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name != NEEDS_DAGSTER:
                importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        point, given = json.loads(line)
        child = os.fork()
        if not child:
            sys.exit(Watched(point, given[given.index("--home") + 1]).run(given))
        _, ended = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(ended)}\n".encode())

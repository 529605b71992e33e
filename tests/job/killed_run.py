"""Run the command line, and kill this very process (SIGKILL) before it makes some change.

    python killed_run.py POINT ARGUMENTS...

POINT is a number (before the nth change on disk or command to Redis), or "EVENT:TEXT" (before the
first such change whose path or command holds TEXT), or "list:FILE" (write all changes to FILE).
Changes are seen through audit events, so nothing of the program is replaced; commands to Redis
are counted where redis-py sends them.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from redis.connection import AbstractConnection

from pipelines.cli import main

HOME = os.environ["FEASTRANK_HOME"]
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
seen: list[str] = []


def note(event: str, what: str) -> None:
    seen.append(f"{event}:{what}")
    number = str(len(seen))
    kind, _, text = point.partition(":")
    if number == point or (text and kind == event and text in what):
        os.kill(os.getpid(), signal.SIGKILL)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    path = str(arguments[0]) if arguments else ""
    if not path.startswith(HOME):
        return
    if event == "open":
        _, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            note("write", path)
    elif event in CHANGES:
        target = f" -> {arguments[1]}" if event == "os.rename" else ""
        note(event.removeprefix("os."), f"{path}{target}")


if __name__ == "__main__":
    point, arguments = sys.argv[1], sys.argv[2:]
    send = AbstractConnection.send_packed_command

    def counted(self: Any, command: Any, check_health: bool = True) -> None:
        note("redis", f"{b''.join(command)[:80]!r}" if isinstance(command, list) else "")
        send(self, command, check_health)

    AbstractConnection.send_packed_command = counted
    sys.addaudithook(audit)
    code = main(arguments)
    if point.startswith("list:"):
        Path(point.removeprefix("list:")).write_text("\n".join(seen), encoding="utf-8")
    sys.exit(code)

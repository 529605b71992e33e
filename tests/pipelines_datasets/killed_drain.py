"""Drain a stream, and kill this very process (SIGKILL) before its nth change.

    python killed_drain.py NUMBER REDIS_URL FOLDER

Changes are those on disk, seen through audit events, and the commands to Redis, counted where
redis-py sends them; so nothing of the program is replaced. Number 0 kills nothing and prints what
was changed.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import redis
from dataset_examples import events_dataset
from redis.connection import AbstractConnection

from pipelines.datasets.drain import drain

NUMBER, URL, FOLDER = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
seen: list[str] = []


def note(what: str) -> None:
    seen.append(what)
    if len(seen) == NUMBER:
        os.kill(os.getpid(), signal.SIGKILL)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not arguments or not str(arguments[0]).startswith(str(FOLDER)):
        return
    if event == "open":
        _, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            note(f"write {arguments[0]}")
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        note(f"{event} {arguments[0]}")


if __name__ == "__main__":
    client = redis.Redis.from_url(URL)
    client.ping()
    send = AbstractConnection.send_packed_command

    def counted(self: Any, command: Any, check_health: bool = True) -> None:
        note(f"redis {b''.join(command)[:30]!r}")
        send(self, command, check_health)

    AbstractConnection.send_packed_command = counted
    sys.addaudithook(audit)
    drain(client, "drained", events_dataset().events, FOLDER, batch_events=3)
    sys.stdout.write("\n".join(seen))

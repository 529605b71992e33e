"""Locks that one process holds: the kernel releases them with it, however it ends."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import BusyError

RUN_LOCK = "run.lock"


@contextmanager
def held(path: Path, busy: Callable[[str], Exception], note: str = "") -> Iterator[None]:
    """Hold the lock file ``path``, which is made if there is none, and write a note into it.

    Parameters
    ----------
    busy
        Is given the note of the process that holds the lock; what it returns is raised.
    note
        For whoever finds the lock held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise busy(lock.read().strip()) from error
        lock.truncate(0)
        lock.write(note)
        lock.flush()
        yield


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which is made if there is none; wait while another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def only_run(dataset: str, root: Path, command: str) -> Iterator[None]:
    """Be the only run that changes a dataset's state.

    Parameters
    ----------
    root
        The dataset's state folder.
    command
        What is about to run, for whoever finds it running.

    Raises
    ------
    BusyError
        If another process runs a command that changes it.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    note = f"`feastrank {command}`, process {os.getpid()}, since {since}"
    with held(root / RUN_LOCK, lambda other: _busy(dataset, other), note):
        yield


def _busy(dataset: str, other: str) -> BusyError:
    return BusyError(
        f"{dataset}: another run changes its state ({other or 'just started'}); wait for it to "
        "end, then run the same command again"
    )

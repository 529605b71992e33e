"""Change many files of a folder as one: all of them after a crash, or none.

A change is written to a staging folder, then announced in one file that is renamed into place.
From then on it will happen: whoever comes next finishes what a killed process began.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import LakeError
from pipelines.lock import held

_STAGING = ".staging"
_ANNOUNCEMENT = "commit.json"
_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one writer; the lock goes with the process.

    Raises
    ------
    LakeError
        If another process holds it.
    """
    busy = LakeError(
        f"{folder}: another process is writing to it; wait for it to end and run again"
    )
    with held(folder / _LOCK, lambda _: busy):
        yield


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Finish an announced change, then give an empty staging folder; forget it without `commit`."""
    finish(folder)
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        if not is_pending(folder):
            shutil.rmtree(staging, ignore_errors=True)


def commit(folder: Path, removed: list[Path]) -> None:
    """Put every staged file into its place and delete `removed`, as one change.

    Parameters
    ----------
    folder
        The folder whose staging folder holds the new files, at the same relative paths.
    removed
        Files below `folder` that go. One that is staged as well is replaced.
    """
    staging = folder / _STAGING
    staged = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
    gone = sorted({str(path.relative_to(folder)) for path in removed} - set(staged))
    announcement = staging / f"{_ANNOUNCEMENT}.tmp"
    with announcement.open("w", encoding="utf-8") as stream:
        json.dump({"put": staged, "remove": gone}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    announcement.replace(staging / _ANNOUNCEMENT)
    finish(folder)


def is_pending(folder: Path) -> bool:
    """Whether a change was announced and not finished."""
    return (folder / _STAGING / _ANNOUNCEMENT).exists()


def finish(folder: Path) -> None:
    """Carry out an announced change, if there is one; harmless to repeat."""
    staging = folder / _STAGING
    if is_pending(folder):
        change = json.loads((staging / _ANNOUNCEMENT).read_text(encoding="utf-8"))
        for name in change["remove"]:
            (folder / name).unlink(missing_ok=True)
        for name in change["put"]:
            if (staging / name).exists():  # else it was moved before the process was killed
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).replace(folder / name)
        (staging / _ANNOUNCEMENT).unlink()
        shutil.rmtree(staging, ignore_errors=True)

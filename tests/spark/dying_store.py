"""An online store whose process, or whole executor, is killed half way through first writes."""

import os
import signal
from pathlib import Path

import psutil
from pyspark import TaskContext

from feastpack.online import PackedRedisOnlineStore, PackedRedisOnlineStoreConfig


class DyingOnlineStoreConfig(PackedRedisOnlineStoreConfig):
    type: str = "dying_store.DyingOnlineStore"
    deaths: int = 1
    """Attempts of a task that are killed."""
    executor: str = ""
    """Folder in which each view leaves a mark once it has killed an executor, of which the writing
    process is one of the children; empty: none is killed. Attempts do not tell: what the executor
    held for others is lost with it, so that Spark begins the stage anew, and counts from 0."""


def _executor():
    [java] = [one.pid for one in psutil.Process().parents() if one.name() == "java"][:1]
    return java


def _dies(settings, view):
    if not settings.executor:
        return TaskContext.get().attemptNumber() < settings.deaths
    try:
        (Path(settings.executor) / view).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class DyingOnlineStore(PackedRedisOnlineStore):
    def online_write_arrow(self, config, feature_view, batch, *, progress=None):
        settings = config.online_store
        if _dies(settings, feature_view.name):
            first = next(iter(batch))
            half = first.slice(0, first.num_rows // 2)
            super().online_write_arrow(config, feature_view, half, progress=progress)
            # As the kernel does to a process that takes too much memory.
            os.kill(_executor() if settings.executor else os.getpid(), signal.SIGKILL)
            # Until the executor takes this process with it.
            signal.pause()
        return super().online_write_arrow(config, feature_view, batch, progress=progress)

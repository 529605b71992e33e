"""An online store whose process, or whole executor, is killed half way through first writes."""

import os
import signal

import psutil
from pyspark import TaskContext

from feastpack.online import PackedRedisOnlineStore, PackedRedisOnlineStoreConfig


class DyingOnlineStoreConfig(PackedRedisOnlineStoreConfig):
    type: str = "dying_store.DyingOnlineStore"
    deaths: int = 1
    """Attempts of a task that are killed."""
    executor: bool = False
    """Whether the executor is killed, of which the writing process is one of the children."""


def _executor():
    [java] = [one.pid for one in psutil.Process().parents() if one.name() == "java"][:1]
    return java


class DyingOnlineStore(PackedRedisOnlineStore):
    def online_write_arrow(self, config, feature_view, batch, *, progress=None):
        if TaskContext.get().attemptNumber() < config.online_store.deaths:
            half = batch.slice(0, batch.num_rows // 2)
            super().online_write_arrow(config, feature_view, half, progress=progress)
            # As the kernel does to a process that takes too much memory.
            os.kill(_executor() if config.online_store.executor else os.getpid(), signal.SIGKILL)
            # Until the executor takes this process with it.
            signal.pause()
        return super().online_write_arrow(config, feature_view, batch, progress=progress)

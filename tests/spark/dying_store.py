"""An online store whose process is killed half way through its first writes."""

import os
import signal

from pyspark import TaskContext

from feastpack.online import PackedRedisOnlineStore, PackedRedisOnlineStoreConfig


class DyingOnlineStoreConfig(PackedRedisOnlineStoreConfig):
    type: str = "dying_store.DyingOnlineStore"
    deaths: int = 1
    """Attempts of a task that are killed."""


class DyingOnlineStore(PackedRedisOnlineStore):
    def online_write_arrow(self, config, feature_view, batch, *, progress=None):
        if TaskContext.get().attemptNumber() < config.online_store.deaths:
            half = batch.slice(0, batch.num_rows // 2)
            super().online_write_arrow(config, feature_view, half, progress=progress)
            # As the kernel does to a process that takes too much memory.
            os.kill(os.getpid(), signal.SIGKILL)
        return super().online_write_arrow(config, feature_view, batch, progress=progress)

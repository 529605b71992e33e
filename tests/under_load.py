"""What is asked all the time while something happens to the servers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def running(stop: threading.Event, *actions: Callable[[], object]) -> Iterator[None]:
    """Run each action in a thread of its own; they end when ``stop`` is set, after the block."""
    threads = [threading.Thread(target=one) for one in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)

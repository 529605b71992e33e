"""Bulk writes: many rows per command, decided in Redis, packed while Redis works.

The rows of a write are cut into parts of a few thousand rows. Each is one call of a script
(``write.lua``) that compares event and created times inside Redis, so that concurrent
writers cannot overwrite newer rows. The next parts are on their way while one is being
written.

As long as none of a view's rows is there, a part is sent as ``MSETNX`` instead, which takes Redis
a third of the script's time: it sets all of the part or, if a single key exists, nothing, and
then the script writes this part and all that follow. Keys that expire are the script's as well.

Redis Cluster is written by `feastpack.cluster_writer`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis

from feastpack.cluster import NotAcknowledgedError, UncoveredSlotsError, send
from feastpack.columns import PackedRows
from feastpack.errors import OnlineStoreError
from feastpack.keys import KeySpace, pattern_of, rows_prefix, schemas_prefix
from feastpack.materialized import materialized_key
from feastpack.rows import uniform_binary
from feastpack.views import ViewLayout
from feastpack.wire import arguments_of

Progress = Callable[[int], Any]
Item = TypeVar("Item")
_IN_FLIGHT = 2
_SCAN_STEP = 2000


@dataclass(frozen=True)
class Lifetime:
    """How long keys live in Redis, in milliseconds; None for ever."""

    after_event_ms: int | None = None
    after_write_ms: int | None = None

    def arguments(self) -> tuple[str, str, str]:
        """Return what the script wants to know: now and both durations."""
        after_event = "" if self.after_event_ms is None else str(self.after_event_ms)
        after_write = "" if self.after_write_ms is None else str(self.after_write_ms)
        return str(time.time_ns() // 1_000_000), after_event, after_write


@dataclass(frozen=True)
class Blob:
    """Rows with their keys as ``write.lua`` reads them."""

    rows: int
    data: memoryview


@cache
def write_script() -> str:
    """Return the script's text."""
    return files("feastpack").joinpath("write.lua").read_text(encoding="utf-8")


def blobs_of(keys: pa.BinaryArray, rows: pa.BinaryArray, rows_per_blob: int) -> Iterator[Blob]:
    """Join keys and rows into blobs of at most ``rows_per_blob`` rows.

    Parameters
    ----------
    keys, rows
        Binary arrays of the same length, without nulls.
    """
    return blobs_between(keys, rows, _every(rows_per_blob, len(keys)))


def blobs_between(
    keys: pa.BinaryArray, rows: pa.BinaryArray, bounds: Sequence[int]
) -> Iterator[Blob]:
    """As `blobs_of`; a blob has the rows between each two bounds."""
    nothing = pa.scalar(b"", pa.binary())
    joined = pc.binary_join_element_wise(_lengths(keys), keys, _lengths(rows), rows, nothing)
    for (first, last), data in zip(pairwise(bounds), _views(joined, bounds), strict=True):
        yield Blob(last - first, data)


def _every(step: int, end: int) -> list[int]:
    return [*range(0, end, step), end]


def _views(joined: pa.BinaryArray, bounds: Sequence[int]) -> Iterator[memoryview]:
    """Cut an array that was just made into the bytes of the values between each two bounds."""
    _, offset_buffer, data = joined.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)
    view = memoryview(data) if data is not None else memoryview(b"")
    for first, last in pairwise(bounds):
        yield view[offsets[first] : offsets[last]]


def _lengths(values: pa.BinaryArray) -> pa.BinaryArray:
    """Return the length of each value as four bytes."""
    lengths = pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<u4")
    return uniform_binary(lengths[:, None].view(np.uint8))


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield all items; a thread of its own fetches the next one meanwhile."""
    with ThreadPoolExecutor(1, "one-ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def write_blobs(
    client: Any,
    layout: ViewLayout,
    slices: Iterator[PackedRows],
    lifetime: Lifetime,
    progress: Progress | None,
    rows_per_command: int,
) -> int:
    """Write rows over one connection; return how many of them are now stored as given.

    Raises
    ------
    OnlineStoreError
        If Redis fails or is lost. Rows that were reported may then be lost as well (when it
        was restarted from older data), so the write is to be run again as a whole.
    """
    client.hset(layout.keys.schemas_key, *schema_entry(layout))
    pool = client.connection_pool
    connection = pool.get_connection()
    done = False
    try:
        stream = _Stream(connection, lifetime, progress, rows_per_command)
        for packed in slices:
            stream.write(packed)
        stream.end()
        done = True
    finally:
        # Replies may still be under way on a connection that failed: it cannot be reused.
        if not done:
            connection.disconnect()
        pool.release(connection)
    return stream.written


class _Stream:
    """Commands on their way over one connection, in order."""

    def __init__(
        self, connection: Any, lifetime: Lifetime, progress: Progress | None, rows_per_command: int
    ) -> None:
        self.written = 0
        self._connection = connection
        self._lifetime = lifetime
        self._progress = progress
        self._size = rows_per_command
        # Whether no key was met that exists; then rows are inserted.
        self._is_new = lifetime == Lifetime()
        self._waiting: deque[tuple[PackedRows, bool]] = deque()
        connection.send_command("SCRIPT", "LOAD", write_script())
        self._script = connection.read_response()

    def write(self, packed: PackedRows) -> None:
        rows = len(packed.keys)
        parts = [
            PackedRows(
                packed.keys[first : first + self._size], packed.rows[first : first + self._size]
            )
            for first in range(0, rows, self._size)
        ]
        # A few rows are mostly an update. Of two rows of a key MSETNX takes the second.
        if self._is_new and rows >= self._size and pc.count_distinct(packed.keys).as_py() == rows:
            inserts = _views(arguments_of(*packed), _every(self._size, rows))
            for part, arguments in zip(parts, inserts, strict=True):
                self._insert(part, arguments) if self._is_new else self._decide(part)
        else:
            for part in parts:
                self._decide(part)

    def _insert(self, part: PackedRows, arguments: memoryview) -> None:
        head = b"*%d\r\n$6\r\nMSETNX\r\n" % (2 * len(part.keys) + 1)
        self._connection.send_packed_command([head, arguments])
        self._sent(part, True)

    def _decide(self, part: PackedRows) -> None:
        for blob in blobs_of(part.keys, part.rows, self._size):
            arguments = self._lifetime.arguments()
            self._connection.send_command(
                "EVALSHA", self._script, 0, blob.data, blob.rows, *arguments
            )
            self._sent(part, False)

    def _sent(self, part: PackedRows, inserts: bool) -> None:
        self._waiting.append((part, inserts))
        while len(self._waiting) > _IN_FLIGHT:
            self._receive()

    def end(self) -> None:
        """Wait for all that is under way."""
        while self._waiting:
            self._receive()

    def _receive(self) -> None:
        part, inserts = self._waiting.popleft()
        answer = int(self._connection.read_response())
        if inserts and not answer:
            self._repeat(part)
            return
        self.written += len(part.keys) if inserts else answer
        if self._progress is not None:
            self._progress(len(part.keys))

    def _repeat(self, part: PackedRows) -> None:
        """Let the script write a part, and those sent after it again, in their order."""
        self._is_new = False
        parts = [part, *(later for later, _ in self._waiting)]
        for _ in self._waiting:
            self._connection.read_response()
        self._waiting.clear()
        for one in parts:
            self._decide(one)


def schema_entry(layout: ViewLayout) -> tuple[str, str]:
    """Return field and value under which the view's schema is kept in Redis."""
    return f"{layout.schema.fingerprint:08x}", layout.schema.to_json()


def translated(error: Exception, doing: str) -> OnlineStoreError:
    """Return our error for one of redis-py's."""
    if isinstance(error, NotAcknowledgedError):
        advice = "run it again once the master has its replicas"
    elif isinstance(error, UncoveredSlotsError | redis.exceptions.ClusterDownError):
        advice = (
            "start the node that had the missing slots or a replica of it; if it is gone for good, "
            "`redis-cli --cluster fix HOST:PORT` gives its slots to others, without their keys: "
            "then materialize and publish again"
        )
    elif isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
        advice = "check that Redis runs at the store's connection_string, then run it again"
    elif isinstance(error, redis.exceptions.OutOfMemoryError):
        advice = "raise Redis' maxmemory, or set key_ttl_seconds or a ttl on the view"
    else:
        advice = "see the Redis log"
    return OnlineStoreError(f"{doing}: {type(error).__name__}: {error}; {advice}")


async def write_async(
    client: Any,
    layout: ViewLayout,
    packed: PackedRows,
    lifetime: Lifetime,
    progress: Progress | None,
    rows_per_blob: int,
) -> None:
    """Write through an asyncio client of one server."""
    await client.hset(layout.keys.schemas_key, *schema_entry(layout))
    sha = await client.script_load(write_script())
    for blob in blobs_of(packed.keys, packed.rows, rows_per_blob):
        await client.evalsha(sha, 0, blob.data, blob.rows, *lifetime.arguments())
        if progress is not None:
            progress(blob.rows)


def delete_view(client: Any, keys: KeySpace) -> int:
    """Delete all rows and schemas of a view; return how many rows there were.

    Scans the whole key space in steps, without holding up Redis.
    """
    deleted = _delete_matching(client, keys.pattern)
    client.delete(keys.schemas_key)
    client.hdel(materialized_key(keys.project, keys.namespace), keys.view)
    return deleted


def delete_namespace(client: Any, project: str, namespace: str) -> int:
    """Delete all rows and schemas of a project's namespace; return how many rows there were.

    Scans the whole key space in steps, without holding up Redis. The empty namespace is the one
    that has no name.
    """
    deleted = _delete_matching(client, pattern_of(rows_prefix(project, namespace).encode()))
    _delete_matching(client, pattern_of(schemas_prefix(project, namespace).encode()))
    client.delete(materialized_key(project, namespace))
    return deleted


def _delete_matching(client: Any, pattern: bytes) -> int:
    deleted = 0
    batch: list[bytes] = []
    for key in client.scan_iter(match=pattern, count=_SCAN_STEP):
        batch.append(key)
        if len(batch) == _SCAN_STEP:
            deleted += unlink(client, batch)
            batch = []
    return deleted + unlink(client, batch)


def unlink(client: Any, keys: Sequence[bytes]) -> int:
    """Delete keys with one round trip; return how many there were."""
    return sum(send(client, [(key, ("UNLINK", key)) for key in keys]))

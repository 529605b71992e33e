"""Bulk writes: many rows per command, decided in Redis, packed while Redis works.

The rows of a write are cut into blobs of a few thousand rows. Each is one call of a script
(``write.lua``) that compares event and created times inside Redis, so that concurrent
writers cannot overwrite newer rows. A second blob is on its way while the first is being
written. On Redis Cluster, where a script may touch one slot only, the script is called
once per row, pipelined.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis

from feastpack.columns import PackedRows
from feastpack.errors import OnlineStoreError
from feastpack.keys import KeySpace, pattern_of, rows_prefix, schemas_prefix
from feastpack.materialized import materialized_key
from feastpack.rows import uniform_binary
from feastpack.views import ViewLayout

Progress = Callable[[int], Any]
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
    nothing = pa.scalar(b"", pa.binary())
    joined = pc.binary_join_element_wise(_lengths(keys), keys, _lengths(rows), rows, nothing)
    _, offset_buffer, data = joined.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)
    view = memoryview(data) if data is not None else memoryview(b"")
    for first in range(0, len(keys), rows_per_blob):
        last = min(first + rows_per_blob, len(keys))
        yield Blob(last - first, view[offsets[first] : offsets[last]])


def _lengths(values: pa.BinaryArray) -> pa.BinaryArray:
    """Return the length of each value as four bytes."""
    lengths = pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<u4")
    return uniform_binary(lengths[:, None].view(np.uint8))


def write_blobs(
    client: Any,
    layout: ViewLayout,
    blobs: Iterator[Blob],
    lifetime: Lifetime,
    progress: Progress | None,
) -> int:
    """Write blobs over one connection; return how many rows are now stored as given.

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
        written = _stream(connection, blobs, lifetime, progress)
        done = True
    finally:
        # Replies may still be under way on a connection that failed: it cannot be reused.
        if not done:
            connection.disconnect()
        pool.release(connection)
    return written


def _stream(
    connection: Any, blobs: Iterator[Blob], lifetime: Lifetime, progress: Progress | None
) -> int:
    connection.send_command("SCRIPT", "LOAD", write_script())
    sha = connection.read_response()
    waiting: deque[int] = deque()
    written = 0
    for blob in blobs:
        connection.send_command("EVALSHA", sha, 0, blob.data, blob.rows, *lifetime.arguments())
        waiting.append(blob.rows)
        if len(waiting) > _IN_FLIGHT:
            written += _receive(connection, waiting, progress)
    while waiting:
        written += _receive(connection, waiting, progress)
    return written


def _receive(connection: Any, waiting: deque[int], progress: Progress | None) -> int:
    written = int(connection.read_response())
    rows = waiting.popleft()
    if progress is not None:
        progress(rows)
    return written


def write_each(
    client: Any,
    layout: ViewLayout,
    packed: PackedRows,
    lifetime: Lifetime,
    progress: Progress | None,
    rows_per_batch: int,
) -> int:
    """Write on Redis Cluster: one script call per row, pipelined by node."""
    client.hset(layout.keys.schemas_key, *schema_entry(layout))
    sha = client.script_load(write_script())
    written = 0
    for first in range(0, len(packed.keys), rows_per_batch):
        keys = packed.keys[first : first + rows_per_batch]
        singles = blobs_of(keys, packed.rows[first : first + rows_per_batch], 1)
        with client.pipeline() as pipe:
            for key, blob in zip(keys.to_pylist(), singles, strict=True):
                pipe.execute_command("EVALSHA", sha, 1, key, blob.data, 1, *lifetime.arguments())
            replies = pipe.execute()
        written += sum(replies)
        if progress is not None:
            progress(len(replies))
    return written


def schema_entry(layout: ViewLayout) -> tuple[str, str]:
    """Return field and value under which the view's schema is kept in Redis."""
    return f"{layout.schema.fingerprint:08x}", layout.schema.to_json()


def translated(error: redis.exceptions.RedisError, doing: str) -> OnlineStoreError:
    """Return our error for one of redis-py's."""
    if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
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
    """Write through an asyncio client; one row per blob makes it fit for Redis Cluster."""
    await client.hset(layout.keys.schemas_key, *schema_entry(layout))
    sha = await client.script_load(write_script())
    first = 0
    for blob in blobs_of(packed.keys, packed.rows, rows_per_blob):
        keys = [packed.keys[first].as_py()] if rows_per_blob == 1 else []
        await client.evalsha(sha, len(keys), *keys, blob.data, blob.rows, *lifetime.arguments())
        first += blob.rows
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
            deleted += _unlink(client, batch)
            batch = []
    return deleted + _unlink(client, batch)


def _unlink(client: Any, keys: list[bytes]) -> int:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.unlink(key)
        return sum(pipe.execute())

"""MGET without a Python object per key: the command is laid out by numpy and Arrow.

redis-py's own ``mget`` takes a list of keys and packs them one by one; with several hundred
keys that costs as much as Redis takes to answer. The connection, its pool, retries and the
parser of the reply stay redis-py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feastpack.keys import Keys
from feastpack.rows import BytesArray

_DOLLAR, _END, _NOTHING = (pa.scalar(text, pa.binary()) for text in (b"$", b"\r\n", b""))
# Calls of Arrow take longer than so many keys one by one.
_FEW = 16
_GET = b"*2\r\n$3\r\nGET\r\n"


def mget(client: Any, keys: Sequence[Keys]) -> list[bytes | None]:
    """Return the values of all keys, None where there is none; one round trip.

    Parameters
    ----------
    client
        A ``redis.Redis``, also one for a Sentinel's master; not a Cluster.
    keys
        Keys without nulls, at least one in all.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails, after the retries that the client is set to.
    """
    command = [mget_command(keys)]

    def exchange() -> Any:
        connection.send_packed_command(command)
        return connection.read_response(disable_decoding=True)

    connection = client.connection_pool.get_connection()
    done = False
    try:
        values: list[bytes | None] = connection.retry.call_with_retry(
            exchange, lambda error: connection.disconnect()
        )
        done = True
    finally:
        # A reply may still be under way on a connection that failed: it cannot be reused.
        if not done:
            connection.disconnect()
        client.connection_pool.release(connection)
    return values


def mget_command(keys: Sequence[Keys]) -> bytes:
    """Return ``MGET`` of all keys in Redis' protocol: ``$length``, the key, for each of them."""
    count = sum(map(len, keys))
    return b"".join([b"*%d\r\n$4\r\nMGET\r\n" % (count + 1), *map(_arguments, keys)])


def get_commands(keys: Keys) -> Callable[[npt.NDArray[np.int64]], bytes]:
    """Lay out one ``GET`` a key; return what returns those of the keys at some places."""
    if isinstance(keys, np.ndarray):
        commands = _uniform_arguments(keys, _GET)
        return lambda places: commands[places].tobytes()
    parts = [b"%b$%d\r\n%b\r\n" % (_GET, len(key), key) for key in keys.to_pylist()]
    return lambda places: b"".join([parts[place] for place in places.tolist()])


def arguments_of(*columns: pa.BinaryArray) -> pa.BinaryArray:
    """Return the values of each row as arguments in Redis' protocol: ``$length`` and the value."""
    parts: list[Any] = []
    for values in columns:
        lengths = pc.binary_length(values).cast(pa.string()).cast(pa.binary())
        parts += [_DOLLAR, lengths, _END, values, _END]
    return pc.binary_join_element_wise(*parts, _NOTHING)


def _arguments(keys: Keys) -> bytes:
    if isinstance(keys, np.ndarray):
        return _uniform_arguments(keys).tobytes()
    n = len(keys)
    if n <= _FEW:
        return b"".join(b"$%d\r\n%b\r\n" % (len(key), key) for key in keys.to_pylist())
    _, offset_buffer, data = arguments_of(keys).buffers()
    return bytes(data)[: int(np.frombuffer(offset_buffer, dtype=np.int32)[n])]


def _uniform_arguments(keys: BytesArray, before: bytes = b"") -> BytesArray:
    """Return ``before`` and each key as an argument, a row each."""
    n, width = keys.shape
    head, end = b"%b$%d\r\n" % (before, width), _END.as_py()
    arguments = np.empty((n, len(head) + width + len(end)), dtype=np.uint8)
    arguments[:] = np.frombuffer(head + bytes(width) + end, dtype=np.uint8)
    arguments[:, len(head) : len(head) + width] = keys
    return arguments

"""Bulk writes to Redis Cluster: one call of ``write.lua`` a slot, to all nodes at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from feastpack.cluster import ClusterClient, laid_out, pack
from feastpack.columns import PackedRows
from feastpack.slots import slots_of
from feastpack.views import ViewLayout
from feastpack.writer import Lifetime, Progress, blobs_between, schema_entry, write_script

# Neighbouring slots lie on one node: in this order each round of a write goes to all of them.
_SPREAD = 6367


def write_slots(
    client: ClusterClient,
    layout: ViewLayout,
    packed: PackedRows,
    lifetime: Lifetime,
    progress: Progress | None,
    rows_per_round: int,
) -> int:
    """Write on Redis Cluster; return how many rows are now stored as given.

    Rows of one slot go into one call of the script. While their slot is being moved, some of its
    keys may be on either side, so that no node can take the call: those rows then go one by one.

    Parameters
    ----------
    rows_per_round
        About how many rows are sent before the answers are read.
    """
    key = layout.keys.schemas_key
    client.send([(key, ("HSET", key, *schema_entry(layout)))])
    slots = slots_of(packed.keys)
    order = np.argsort(slots * _SPREAD % REDIS_CLUSTER_HASH_SLOTS, kind="stable")
    slots, keys, rows = slots[order], packed.keys.take(order), packed.rows.take(order)
    written = 0
    begins = np.concatenate([[0], np.flatnonzero(np.diff(slots)) + 1, [len(slots)]])
    for some in _rounds(begins, rows_per_round):
        first, last = int(some[0]), int(some[-1])
        part = keys[first:last], rows[first:last]
        calls = _calls(*part, (some - first).tolist(), lifetime)
        for place, stored in enumerate(_call(client, slots[some[:-1]], calls)):
            if stored is None:
                a, b = int(some[place]), int(some[place + 1])
                single = _calls(keys[a:b], rows[a:b], list(range(b - a + 1)), lifetime)
                written += sum(one or 0 for one in _call(client, slots[a:b], single))
            else:
                written += stored
        if progress is not None:
            progress(last - first)
    return written


def _rounds(bounds: NDArray[np.int64], rows: int) -> Iterator[NDArray[np.int64]]:
    """Yield consecutive bounds that span about so many rows, each beginning where one ended."""
    place = 0
    while place < len(bounds) - 1:
        end = max(place + 1, int(bounds.searchsorted(bounds[place] + rows, "right")) - 1)
        yield bounds[place : end + 1]
        place = end


def _calls(
    keys: pa.BinaryArray, rows: pa.BinaryArray, bounds: Sequence[int], lifetime: Lifetime
) -> list[bytes]:
    """Return one call of the script for the rows between each two bounds, packed."""
    names, arguments = keys.to_pylist(), lifetime.arguments()
    calls = []
    for (first, last), blob in zip(
        pairwise(bounds), blobs_between(keys, rows, bounds), strict=True
    ):
        head = ("EVALSHA", _script_name(), last - first, *names[first:last])
        calls.append(pack(*head, bytes(blob.data), blob.rows, *arguments))
    return calls


def _call(client: ClusterClient, slots: NDArray[np.int64], calls: list[bytes]) -> list[int | None]:
    """Make calls of the script; None for those that no node can take while their slot moves."""
    replies = client.exchange(
        slots,
        laid_out(calls),
        ahead=pack("SCRIPT", "LOAD", write_script()),
        is_write=True,
        keep_try_again=True,
    )
    return [reply if isinstance(reply, int) else None for reply in replies]


@cache
def _script_name() -> str:
    return hashlib.sha1(write_script().encode(), usedforsecurity=False).hexdigest()

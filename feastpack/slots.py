"""Slots of a Redis Cluster: which one a key lies in, and which ones nobody has."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from feastpack.keys import Keys

Slots: TypeAlias = NDArray[np.int64]

_CRC_OF_BYTE = np.array([crc_hqx(bytes([i]), 0) for i in range(256)], dtype=np.uint16)
_TAG_BEGINS = ord("{")


def slots_of(keys: Keys) -> Slots:
    """Return the slot of each key: CRC16 of the key, or of what stands in its first braces."""
    if not isinstance(keys, np.ndarray):
        return np.fromiter(map(key_slot, keys.to_pylist()), np.int64, len(keys))
    if not len(keys):
        return np.empty(0, np.int64)
    differs = np.flatnonzero((keys != keys[0]).any(axis=0))
    same = int(differs[0]) if len(differs) else keys.shape[1]
    crc = np.full(len(keys), crc_hqx(keys[0, :same].tobytes(), 0), dtype=np.uint16)
    for column in keys.T[same:]:
        crc = _CRC_OF_BYTE[(crc >> 8) ^ column] ^ (crc << 8)
    slots: Slots = crc.astype(np.int64) % REDIS_CLUSTER_HASH_SLOTS
    # Ids are bytes like any others: 123 looks like a brace.
    braces = keys == _TAG_BEGINS
    if braces.any():
        for row in np.flatnonzero(braces.any(axis=1)):
            slots[row] = key_slot(keys[row].tobytes())
    return slots


def uncovered(ranges: Iterable[tuple[int, int]]) -> str:
    """Return the slots in none of some ranges (first, last), as text; empty if there are none."""
    held = np.zeros(REDIS_CLUSTER_HASH_SLOTS + 2, dtype=np.int8)
    held[0] = held[-1] = 1
    for first, last in ranges:
        held[first + 1 : last + 2] = 1
    edges = np.flatnonzero(np.diff(held))
    pairs = zip(edges[::2], edges[1::2] - 1, strict=True)
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in pairs)

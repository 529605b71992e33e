"""Which row of a source was valid for each entity row, found while the source streams by.

A row of the source begins to count at the first entity row of its key that is not earlier: its
slot. One pass keeps the best row per slot, and a running maximum along the slots of a key then
gives every entity row the best of all rows that count by its time. So the history is neither
sorted nor held, and memory follows the entity rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IntArray: TypeAlias = npt.NDArray[np.int64]

#: Where there is no row.
NO_ROW = -1
_LOWEST = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Slots:
    """The entity rows that have all of some join keys and a time, by key, then by time.

    Attributes
    ----------
    keys
        Grain: one row per combination of join keys. ``code`` (position of the combination),
        ``latest`` (its last time), then the join keys.
    rows
        int64 (m,): number of the entity row.
    times
        int64 (m,): its time.
    starts
        int64 (combinations + 1,): where the slots of each combination begin.
    """

    keys: pa.Table
    rows: IntArray
    times: IntArray
    starts: IntArray

    def first_not_before(self, codes: IntArray, times: IntArray) -> IntArray:
        """Slot of the first entity row of a combination at or after a time; all have one."""
        place, end = self.starts[codes], self.starts[codes + 1]
        longest = int(np.diff(self.starts).max(initial=0))
        last = len(self.times) - 1
        for bit in reversed(range(longest.bit_length())):
            probe = place + ((1 << bit) - 1)
            earlier = self.times.take(np.minimum(probe, last)) < times
            earlier &= probe < end
            place += earlier.astype(np.int64) << bit
        return place


def slots_of(times: pa.ChunkedArray, keys: Sequence[pa.ChunkedArray]) -> Slots:
    """Order entity rows by their join keys and times; rows that lack one of them are left out.

    Parameters
    ----------
    times
        int64, null where unknown.
    keys
        The columns of join keys; none if the view has no entity.
    """
    codes, count = _codes_of(keys, len(times))
    codes[pc.is_null(times).to_numpy()] = NO_ROW
    rows: IntArray = np.flatnonzero(codes >= 0)
    codes = codes[rows]
    ticks: IntArray = pc.fill_null(times, 0).to_numpy()[rows]
    order = _by_code_and_time(codes, ticks, count)
    sizes = np.bincount(codes, minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    example = np.zeros(count, dtype=np.int64)
    example[codes] = rows
    ticks = ticks[order]
    present: IntArray = np.flatnonzero(sizes)
    known: dict[str, Any] = {"code": present, "latest": ticks[starts[present + 1] - 1]}
    known |= {f"k{n}": key.take(pa.array(example[present])) for n, key in enumerate(keys)}
    return Slots(pa.table(known), rows[order], ticks, starts)


def _codes_of(keys: Sequence[pa.ChunkedArray], n: int) -> tuple[IntArray, int]:
    """A number per combination of keys, NO_ROW where one is null, and how many there are."""
    codes: IntArray = np.zeros(n, dtype=np.int64)
    count = 1
    for key in keys:
        part, size = _numbered(key)
        codes = np.where((codes < 0) | (part < 0), NO_ROW, codes * size + part)
        count *= size
        if key is not keys[0]:
            codes, count = _numbered(pa.chunked_array([pa.array(codes, mask=codes < 0)]))
    return codes, count


def _numbered(values: pa.ChunkedArray) -> tuple[IntArray, int]:
    encoded = values.dictionary_encode().unify_dictionaries()
    indices = pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32())
    size = len(encoded.chunk(0).dictionary) if encoded.num_chunks else 0
    numbers: IntArray = pc.fill_null(indices, NO_ROW).to_numpy().astype(np.int64)
    return numbers, size


def _by_code_and_time(codes: IntArray, times: IntArray, count: int) -> IntArray:
    if not len(times):
        return np.zeros(0, dtype=np.int64)
    earliest = int(times.min())
    length = int(times.max()) - earliest + 1
    if length * count > np.iinfo(np.int64).max:
        return np.lexsort((times, codes))
    # Both fit into one number, which is sorted in half the time.
    return np.argsort(codes * length + (times - earliest))


class ValidRows:
    """Collects rows of a source, then says which was valid for each entity row.

    Parameters
    ----------
    slots
        The entity rows.
    levels
        By how many numbers a row is preferred to another, the weightiest first; the last one
        is the row's id, which is never negative.
    """

    def __init__(self, slots: Slots, levels: int) -> None:
        self._slots = slots
        self._best = [np.full(len(slots.rows), _LOWEST) for _ in range(levels)]

    def add(self, codes: IntArray, counts_from: IntArray, preference: Sequence[IntArray]) -> None:
        """Take in some rows of the source, in any order.

        Parameters
        ----------
        codes
            The combinations of join keys, as `Slots.keys` numbers them.
        counts_from
            From when each row counts; not after the combination's latest time.
        preference
            The numbers by which rows are preferred, one array per level.
        """
        slot = self._slots.first_not_before(codes, counts_from)
        values = list(preference)
        for level, best in enumerate(self._best):
            before = best[slot]
            np.maximum.at(best, slot, values[level])
            improved = slot[values[level] > before]
            for lower in self._best[level + 1 :]:
                lower[improved] = _LOWEST
            stays = values[level] == best[slot]
            slot = slot[stays]
            values = [one[stays] for one in values]

    def result(self, total: int, ttl: int | None, *, in_order: bool) -> IntArray:
        """Id of the row that was valid for each of `total` entity rows, or NO_ROW.

        Parameters
        ----------
        ttl
            A row is valid until this long after its event time, the first level of the
            preference; None: for ever.
        in_order
            Whether rows that count from later on are always preferred.
        """
        times, ids = self._best[0], self._best[-1]
        filled: IntArray = np.flatnonzero(ids != _LOWEST)
        # Places in `filled` from the least preferred to the most preferred.
        ranking = np.arange(len(filled))
        rank = ranking
        if not in_order:
            ranking = np.lexsort([best[filled] for best in reversed(self._best)])
            rank = np.empty_like(ranking)
            rank[ranking] = np.arange(len(filled))
        winner = self._best_so_far(filled, rank)
        found = np.full(total, NO_ROW, dtype=np.int64)
        place: IntArray = np.flatnonzero(winner >= 0)
        chosen = filled[ranking[winner[place]]]
        if ttl is not None:
            # The true difference is not negative, and unsigned numbers hold it without overflow.
            age = self._slots.times[place].view(np.uint64) - times[chosen].view(np.uint64)
            is_young = age <= min(ttl, np.iinfo(np.int64).max)
            place, chosen = place[is_young], chosen[is_young]
        found[self._slots.rows[place]] = ids[chosen]
        return found

    def _best_so_far(self, filled: IntArray, rank: IntArray) -> IntArray:
        """Per slot the highest rank at or before it among the slots of its combination, or -1."""
        starts = self._slots.starts
        # Ranks of later combinations lie above all of earlier ones.
        step = len(filled) + 1
        code = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        running = code * step
        running[filled] += rank + 1
        np.maximum.accumulate(running, out=running)
        best: IntArray = running - code * step - 1
        return best

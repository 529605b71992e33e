"""Putting rows of a source, as they stream by, where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feastpack.valid_rows import NO_ROW, IntArray

#: Rows gathered at once: keeps a chunk of a text column below Arrow's 2 GB of 32 bit offsets.
_GATHER_ROWS = 1 << 18


class Wanted:
    """Which row of the source goes where: n places, each with the id of a row or `NO_ROW`."""

    def __init__(self, ids: IntArray) -> None:
        self.count = len(ids)
        order = np.argsort(ids)
        ordered = ids[order]
        none = int(ordered.searchsorted(NO_ROW, "right"))
        self._places, self._ids = order[none:], ordered[none:]

    @property
    def count_of_rows(self) -> int:
        """At how many places a row is wanted."""
        return len(self._ids)

    @cached_property
    def is_row(self) -> npt.NDArray[np.bool_]:
        """Truth values (n,): whether a row is wanted there."""
        wanted = np.zeros(self.count, dtype=np.bool_)
        wanted[self._places] = True
        return wanted

    @property
    def unique_ids(self) -> IntArray:
        """The ids that are wanted, each once, ascending."""
        if not len(self._ids):
            return self._ids
        unique: IntArray = self._ids[np.concatenate([[True], self._ids[1:] != self._ids[:-1]])]
        return unique

    def of(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        """Places for some rows of the source, and the positions of those rows in `ids`."""
        if not (ids[1:] > ids[:-1]).all():
            order = np.argsort(ids)
            places, positions = self.of(ids[order])
            return places, order[positions]
        first = int(self._ids.searchsorted(ids[0])) if len(ids) else 0
        end = int(self._ids.searchsorted(ids[-1], "right")) if len(ids) else 0
        wanted = self._ids[first:end]
        positions = ids.searchsorted(wanted)
        is_here = ids[positions] == wanted
        return self._places[first:end][is_here], positions[is_here]


class Gathering:
    """Columns of n values, filled from batches of the source in any order.

    Numbers and times go straight to their places; of other types the batches are kept and put
    in order at the end.
    """

    def __init__(self, wanted: Wanted, types: Sequence[pa.DataType]) -> None:
        self._wanted = wanted
        self._columns: list[_Scattered | _Kept] = [
            _Scattered(wanted, kind) if _is_plain(kind) else _Kept(kind) for kind in types
        ]
        self._source = np.full(wanted.count, NO_ROW) if self._keeps else np.zeros(0, np.int64)
        self._taken = 0
        self.filled = 0

    @property
    def _keeps(self) -> bool:
        return any(isinstance(column, _Kept) for column in self._columns)

    def add(self, ids: IntArray, columns: Sequence[pa.Array]) -> None:
        """Take in rows of the source: their ids and their columns."""
        places, positions = self._wanted.of(ids)
        for column, values in zip(self._columns, columns, strict=True):
            column.add(values, places, positions)
        if self._keeps:
            self._source[places] = self._taken + positions
        self._taken += len(ids)
        self.filled += len(places)

    def results(self) -> list[pa.ChunkedArray]:
        """The columns; null where no row was wanted."""
        parts = []
        if self._keeps:
            source = pa.array(self._source, mask=self._source < 0)
            starts = range(0, max(len(source), 1), _GATHER_ROWS)
            parts = [source.slice(start, _GATHER_ROWS) for start in starts]
        return [column.result(parts) for column in self._columns]


class _Scattered:
    """A column whose values are all of one width."""

    def __init__(self, wanted: Wanted, kind: pa.DataType) -> None:
        self._wanted = wanted
        self._kind = kind
        self._cells = np.zeros(wanted.count, dtype=f"u{kind.bit_width // 8}")
        self._valid: npt.NDArray[np.bool_] | None = None

    def add(self, values: pa.Array, places: IntArray, positions: IntArray) -> None:
        dtype = self._cells.dtype
        start = values.offset * dtype.itemsize
        cells = np.frombuffer(values.buffers()[1], dtype, len(values), start)
        self._cells[places] = cells[positions]
        if values.null_count:
            if self._valid is None:
                self._valid = self._wanted.is_row.copy()
            self._valid[places] = values.is_valid().to_numpy(zero_copy_only=False)[positions]

    def result(self, parts: Sequence[pa.Array]) -> pa.ChunkedArray:
        valid = self._wanted.is_row if self._valid is None else self._valid
        bits = None
        if not valid.all():
            bits = pa.py_buffer(np.packbits(valid, bitorder="little"))
        buffers = [bits, pa.py_buffer(self._cells)]
        return pa.chunked_array([pa.Array.from_buffers(self._kind, len(valid), buffers)])


class _Kept:
    """A column of any other type."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._batches: list[pa.Array] = []

    def add(self, values: pa.Array, places: IntArray, positions: IntArray) -> None:
        self._batches.append(values)

    def result(self, parts: Sequence[pa.Array]) -> pa.ChunkedArray:
        batches, self._batches = self._batches, []
        whole = pa.concat_arrays(batches) if batches else pa.nulls(0, self._kind)
        del batches
        return pa.chunked_array([whole.take(part) for part in parts], self._kind)


def _is_plain(kind: pa.DataType) -> bool:
    is_plain: bool = pa.types.is_primitive(kind) and not pa.types.is_boolean(kind)
    return is_plain and kind.bit_width in (8, 16, 32, 64)

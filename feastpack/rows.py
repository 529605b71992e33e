"""The packed row: one feature view's values of one entity as bytes, and back.

Layout of a row, little-endian, without padding::

    0   int64    event time, microseconds since 1970 UTC
    8   int64    created time, same unit; NO_TIME if unknown
    16  uint32   fingerprint of the schema that the row was written under
    20  uint32   end of each variable-width value, counted from the end of the fixed part
    ..           fixed-width values, one cell per column, in the schema's order
    ..  bytes    null bits, one per column, least significant first
    ..  bytes    variable-width values, one after the other

Fixed-width columns therefore sit at the same place of every row, and a batch of rows is
decoded by viewing the joined bytes as a matrix. A null cell of a floating-point column
holds NaN, so that numeric readers need not look at the null bits. Variable-width values
are reached through one Arrow array that points into the joined bytes; no Python object is
made per value in either case.

Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feastpack.errors import RowFormatError, SchemaError

NO_TIME = int(np.iinfo(np.int64).min)
HEADER_BYTES = 20
_FINGERPRINT_AT = 16

BytesArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Kind(StrEnum):
    """How a column is stored."""

    FIXED = "fixed"
    TEXT = "text"
    BYTES = "bytes"
    NUMBERS = "numbers"
    TEXTS = "texts"
    PROTO = "proto"


class Storage(NamedTuple):
    """How one of Feast's value types is stored.

    ``attribute`` is the field of Feast's ``Value`` message, ``dtype`` the numpy dtype of
    the cell (FIXED) or of an element (NUMBERS).
    """

    kind: Kind
    attribute: str
    dtype: str = ""


# Feast's value types by name; what is not listed is stored as a serialised Value message.
STORAGE: Mapping[str, Storage] = {
    "INT32": Storage(Kind.FIXED, "int32_val", "<i4"),
    "INT64": Storage(Kind.FIXED, "int64_val", "<i8"),
    "DOUBLE": Storage(Kind.FIXED, "double_val", "<f8"),
    "FLOAT": Storage(Kind.FIXED, "float_val", "<f4"),
    "BOOL": Storage(Kind.FIXED, "bool_val", "|u1"),
    "UNIX_TIMESTAMP": Storage(Kind.FIXED, "unix_timestamp_val", "<i8"),
    "STRING": Storage(Kind.TEXT, "string_val"),
    "JSON": Storage(Kind.TEXT, "json_val"),
    "UUID": Storage(Kind.TEXT, "uuid_val"),
    "TIME_UUID": Storage(Kind.TEXT, "time_uuid_val"),
    "DECIMAL": Storage(Kind.TEXT, "decimal_val"),
    "BYTES": Storage(Kind.BYTES, "bytes_val"),
    "PDF_BYTES": Storage(Kind.BYTES, "bytes_val"),
    "IMAGE_BYTES": Storage(Kind.BYTES, "bytes_val"),
    "INT32_LIST": Storage(Kind.NUMBERS, "int32_list_val", "<i4"),
    "INT64_LIST": Storage(Kind.NUMBERS, "int64_list_val", "<i8"),
    "DOUBLE_LIST": Storage(Kind.NUMBERS, "double_list_val", "<f8"),
    "FLOAT_LIST": Storage(Kind.NUMBERS, "float_list_val", "<f4"),
    "BOOL_LIST": Storage(Kind.NUMBERS, "bool_list_val", "|u1"),
    "UNIX_TIMESTAMP_LIST": Storage(Kind.NUMBERS, "unix_timestamp_list_val", "<i8"),
    "STRING_LIST": Storage(Kind.TEXTS, "string_list_val"),
}
_PROTO = Storage(Kind.PROTO, "")


def storage_of(value_type: str) -> Storage:
    """Return how a value type, given by its name in ``feast.ValueType``, is stored."""
    return STORAGE.get(value_type, _PROTO)


@dataclass(frozen=True)
class Column:
    """One feature's place in a row.

    Attributes
    ----------
    name
        The feature's name.
    value_type
        Name of its ``feast.ValueType``.
    storage
        How the value is stored.
    place
        FIXED: byte offset of the cell in the row. Others: which variable-width value.
    bit
        Index of its null bit.
    """

    name: str
    value_type: str
    storage: Storage
    place: int
    bit: int


@dataclass(frozen=True)
class EncodedColumn:
    """Values of one column, ready to be laid out.

    ``cells`` is a numpy array of the storage's dtype (FIXED) or an Arrow binary array
    without nulls; ``nulls`` marks the null ones, None if there are none.
    """

    cells: Any
    nulls: BoolArray | None = None


@dataclass(frozen=True)
class RowSchema:
    """The order and place of a feature view's columns.

    Parameters
    ----------
    features
        Pairs of feature name and name of its ``feast.ValueType``.

    Raises
    ------
    SchemaError
        If a name occurs twice.
    """

    features: tuple[tuple[str, str], ...]
    columns: Mapping[str, Column] = field(init=False, repr=False, compare=False)
    fixed_bytes: int = field(init=False, repr=False, compare=False)
    variable_count: int = field(init=False, repr=False, compare=False)
    bits_at: int = field(init=False, repr=False, compare=False)
    fingerprint: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        names = [name for name, _ in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SchemaError(f"features named twice in one view: {', '.join(twice)}")
        variable = [f for f in self.features if storage_of(f[1]).kind is not Kind.FIXED]
        fixed = [f for f in self.features if storage_of(f[1]).kind is Kind.FIXED]
        # Wide cells first; the sort is stable, so that neighbours of one type stay in the
        # view's order and a reader can copy them as one block.
        fixed.sort(key=lambda f: (-_width(f[1]), storage_of(f[1]).dtype))
        columns: dict[str, Column] = {}
        place = HEADER_BYTES + 4 * len(variable)
        for bit, (name, value_type) in enumerate(fixed):
            columns[name] = Column(name, value_type, storage_of(value_type), place, bit)
            place += _width(value_type)
        for slot, (name, value_type) in enumerate(variable):
            bit = len(fixed) + slot
            columns[name] = Column(name, value_type, storage_of(value_type), slot, bit)
        put = object.__setattr__
        put(self, "columns", columns)
        put(self, "bits_at", place)
        put(self, "fixed_bytes", place + (len(columns) + 7) // 8)
        put(self, "variable_count", len(variable))
        digest = hashlib.blake2s(self.to_json().encode(), digest_size=4).digest()
        put(self, "fingerprint", int.from_bytes(digest, "little"))

    def to_json(self) -> str:
        """Return the schema as JSON: what is kept in Redis under its fingerprint."""
        return json.dumps({"features": self.features}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> RowSchema:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        RowFormatError
            If the text is not a schema.
        """
        try:
            pairs = json.loads(text)["features"]
            return cls(tuple((str(name), str(kind)) for name, kind in pairs))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise RowFormatError(f"not a stored row schema: {text[:80]!r}") from error

    @cached_property
    def blank(self) -> bytes:
        """A row that stands for "no such row": all null, its event time NO_TIME."""
        empty = {
            name: EncodedColumn(blank_cells(column, 1), np.ones(1, dtype=np.bool_))
            for name, column in self.columns.items()
        }
        times = np.array([NO_TIME])
        row: bytes = self.pack(empty, times, times)[0].as_py()
        return row

    def pack(
        self, columns: Mapping[str, EncodedColumn], event_us: IntArray, created_us: IntArray
    ) -> pa.BinaryArray:
        """Lay out rows.

        Parameters
        ----------
        columns
            One encoded column per feature, each of n values.
        event_us, created_us
            int64 (n,), microseconds since 1970 UTC; NO_TIME for an unknown created time.

        Returns
        -------
        pyarrow.BinaryArray
            n rows, none null.
        """
        n = len(event_us)
        head: BytesArray = np.zeros((n, self.fixed_bytes), dtype=np.uint8)
        _put(head, 0, event_us.astype("<i8", copy=False))
        _put(head, 8, created_us.astype("<i8", copy=False))
        head[:, _FINGERPRINT_AT : _FINGERPRINT_AT + 4] = np.frombuffer(
            self.fingerprint.to_bytes(4, "little"), dtype=np.uint8
        )
        variable: list[pa.Array] = []
        ends = np.zeros(n, dtype=np.int64)
        for column in self.columns.values():
            encoded = columns[column.name]
            if column.storage.kind is Kind.FIXED:
                _put(head, column.place, encoded.cells)
            else:
                ends = ends + _lengths(encoded.cells)
                _put(head, HEADER_BYTES + 4 * column.place, ends.astype("<u4"))
                variable.append(encoded.cells)
            if encoded.nulls is not None:
                bits = encoded.nulls.view(np.uint8) << (column.bit % 8)
                head[:, self.bits_at + column.bit // 8] |= bits
        fixed = uniform_binary(head)
        if not variable:
            return fixed
        return pc.binary_join_element_wise(fixed, *variable, pa.scalar(b"", pa.binary()))

    def unpack(
        self, rows: Sequence[bytes | None], schemas: Mapping[int, RowSchema] | None = None
    ) -> Rows:
        """Decode rows; ``None`` stands for a row that does not exist.

        Parameters
        ----------
        rows
            n stored rows.
        schemas
            Older schemas by fingerprint, for rows that were written under them.

        Raises
        ------
        RowFormatError
            If a row was written under a schema that is not among those given, or is
            shorter than its schema says.
        """
        present: Sequence[Any] = rows
        if None in rows:
            blank = self.blank
            present = [blank if row is None else row for row in rows]
        decoded = self._decode(present)
        if decoded is None:
            from feastpack.evolution import translate  # it decodes rows with this class

            decoded = self._decode(translate(self, present, schemas or {}))
        if decoded is None:
            raise RowFormatError(_truncated(self))
        return decoded

    def _decode(self, rows: Sequence[bytes]) -> Rows | None:
        """Decode rows; None unless all of them are of this schema."""
        n, size = len(rows), self.fixed_bytes
        joined = b"".join(rows)
        if not self.variable_count:
            # All rows are of this length if they are of this schema, and they are if their
            # fingerprints say so: the first is where we look in any row, and if it is ours
            # the row has our length, so the second is where we look for it too, and so on.
            if len(joined) != size * n:
                return None
            head = np.frombuffer(joined, dtype=np.uint8).reshape(n, size)
            return Rows(self, head, None) if self._is_mine(head) else None
        lengths: IntArray = np.fromiter(map(len, rows), dtype=np.int64, count=n)
        if n and lengths.min() < size:
            return None
        starts = lengths.cumsum() - lengths
        # Every place that a fixed part could begin at, without a copy; then those of the rows.
        places = np.ndarray((max(len(joined) - size + 1, 0), size), np.uint8, joined, 0, (1, 1))
        head = places[starts]
        if not self._is_mine(head):
            return None
        return Rows(self, head, _boundaries(self, head, starts, lengths, joined))

    def _is_mine(self, head: BytesArray) -> bool:
        return bool((_cells(head, _FINGERPRINT_AT, "<u4") == self.fingerprint).all())


class Rows:
    """Decoded rows: columns are cut out on demand.

    Attributes
    ----------
    schema
        The schema that the rows are seen through.
    """

    def __init__(self, schema: RowSchema, head: BytesArray, tail: pa.Buffer | None) -> None:
        self.schema = schema
        self._head = head
        self._tail: Any = tail

    def __len__(self) -> int:
        return len(self._head)

    @cached_property
    def event_us(self) -> IntArray:
        """int64 (n,): event time in microseconds; NO_TIME where there is no row."""
        return _cells(self._head, 0, "<i8")

    @property
    def created_us(self) -> IntArray:
        """int64 (n,): created time in microseconds; NO_TIME where unknown."""
        return _cells(self._head, 8, "<i8")

    @property
    def found(self) -> BoolArray:
        """Truth values (n,): whether there is a row."""
        found: BoolArray = self.event_us != NO_TIME
        return found

    def nulls(self, name: str) -> BoolArray:
        """Truth values (n,): where the column is null, which includes rows that do not exist."""
        column = self.schema.columns[name]
        bits = self._head[:, self.schema.bits_at + column.bit // 8]
        nulls: BoolArray = (bits >> (column.bit % 8)) & 1 == 1
        return nulls

    def any_null(self) -> bool:
        """Whether any cell of any column is null."""
        return bool(self._head[:, self.schema.bits_at : self.schema.fixed_bytes].any())

    def cells(self, name: str) -> npt.NDArray[Any]:
        """(n,) cells of a fixed-width column, in its storage's dtype.

        Where the column is null, NaN (floating point) or 0.
        """
        column = self.schema.columns[name]
        return _cells(self._head, column.place, column.storage.dtype)

    def block(self, first: str, count: int) -> npt.NDArray[Any]:
        """(n, count) cells of neighbouring fixed-width columns of one type."""
        column = self.schema.columns[first]
        dtype = np.dtype(column.storage.dtype)
        end = column.place + dtype.itemsize * count
        return self._head[:, column.place : end].view(dtype)

    def variable(self, name: str) -> pa.BinaryArray:
        """Arrow array (n,) of a variable-width column's stored bytes, null where null."""
        return self._cut([name], pa.binary())

    def texts(self, names: Sequence[str]) -> pa.StringArray:
        """Arrow string array (len(names) * n,) of text columns one after the other.

        Null where null. All columns are cut out at once; a slice of n values is a column.
        """
        # Text columns were text when they were packed: they need not be looked at again.
        return self._cut(names, pa.string())

    def _cut(self, names: Sequence[str], kind: pa.DataType) -> pa.Array:
        n, stride = len(self), self.schema.variable_count + 1
        pieces = pa.Array.from_buffers(kind, n * stride, [None, *self._tail])
        first = np.array([self.schema.columns[name].place + 1 for name in names])
        rows = np.arange(0, n * stride, stride)
        index = (first[:, None] + rows).ravel()
        if not self.any_null():
            return pieces.take(pa.array(index))
        nulls = np.concatenate([self.nulls(name) for name in names])
        return pieces.take(pa.array(index, mask=nulls))


def uniform_binary(matrix: BytesArray) -> pa.BinaryArray:
    """Return a (n, width) uint8 matrix as an Arrow binary array of n values, no copy."""
    n, width = matrix.shape
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int32) if width else _zeros(n + 1)
    data = np.ascontiguousarray(matrix)
    return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _zeros(n: int) -> npt.NDArray[np.int32]:
    return np.zeros(n, dtype=np.int32)


def _width(value_type: str) -> int:
    return np.dtype(storage_of(value_type).dtype).itemsize


def _put(head: BytesArray, place: int, cells: npt.NDArray[Any]) -> None:
    width = cells.dtype.itemsize
    head[:, place : place + width] = np.ascontiguousarray(cells).view(np.uint8).reshape(-1, width)


def _cells(head: BytesArray, place: int, dtype: str) -> npt.NDArray[Any]:
    width = np.dtype(dtype).itemsize
    return head[:, place : place + width].view(dtype)[:, 0]


def _lengths(array: pa.Array) -> IntArray:
    lengths: IntArray = pc.binary_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def fingerprint_of(row: bytes) -> int:
    """Return the fingerprint of the schema that a stored row was written under.

    Raises
    ------
    RowFormatError
        If the bytes are too short to be a packed row.
    """
    if len(row) < HEADER_BYTES:
        raise RowFormatError(
            f"a stored value of {len(row)} bytes is no packed row (at least {HEADER_BYTES}); "
            "the key was written by something else: delete it and materialize again"
        )
    return int.from_bytes(row[_FINGERPRINT_AT : _FINGERPRINT_AT + 4], "little")


def blank_cells(column: Column, n: int) -> Any:
    """Return what a column holds where it is null: NaN, 0 or no bytes."""
    if column.storage.kind is not Kind.FIXED:
        return pa.array([b""] * n, pa.binary())
    dtype = np.dtype(column.storage.dtype)
    return np.full(n, np.nan if dtype.kind == "f" else 0, dtype=dtype)


def _boundaries(
    schema: RowSchema, head: BytesArray, starts: IntArray, lengths: IntArray, joined: bytes
) -> Any:
    """Return offsets and bytes of an Arrow array that holds all pieces of all rows.

    A row's pieces are its fixed part and its variable-width values in order. They follow
    each other without gaps, over all rows, which is just what Arrow's binary layout is: so
    column j is the elements j + 1, j + 1 + stride, ... and is cut out by one ``take``.
    """
    n, count = len(head), schema.variable_count
    table = head[:, HEADER_BYTES : HEADER_BYTES + 4 * count].view("<u4").astype(np.int64)
    if (table[:, -1] + schema.fixed_bytes != lengths).any():
        raise RowFormatError(_truncated(schema))
    offsets = np.empty(n * (count + 1) + 1, dtype=np.int32)
    grid = offsets[:-1].reshape(n, count + 1)
    grid[:, 0] = starts
    grid[:, 1] = starts + schema.fixed_bytes
    grid[:, 2:] = grid[:, 1:2] + table[:, :-1]
    offsets[-1] = len(joined)
    return pa.py_buffer(offsets), pa.py_buffer(joined)


def _truncated(schema: RowSchema) -> str:
    return (
        f"a stored row is not as long as its schema {schema.fingerprint:08x} says "
        f"({schema.fixed_bytes} bytes and its variable-width values); "
        "the key was written by something else: delete it and materialize again"
    )

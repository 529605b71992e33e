"""Feature values between Arrow, Feast's protobuf messages and the packed row's columns.

Arrow columns of a type that fits the feature's declared type are converted as whole
columns. Everything else goes through Feast's own conversion value by value, so that what
Feast accepts, refuses and rounds stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import (
    NULL_TIMESTAMP_INT_VALUE,
    python_values_to_proto_values,
)
from feast.type_map import feast_value_type_to_python_type as to_value
from feast.value_type import ValueType

from feastpack.errors import SchemaError
from feastpack.rows import Column, EncodedColumn, Kind, Rows, Storage, blank_cells

# Text that Feast hands out as something else than a string.
_PARSED = {"JSON", "DECIMAL"}
_IDENTIFIERS = {"UUID", "TIME_UUID"}
_EMPTY = pa.scalar(b"", pa.binary())
_MICROSECONDS = pa.timestamp("us")
_WIDER = {"int64_val": "int32_val", "double_val": "float_val"}
# Lists that Feast reads from a timestamp column keep its own mark for a null element.
_NULL_ELEMENT = {"UNIX_TIMESTAMP_LIST": NULL_TIMESTAMP_INT_VALUE}


def encode_arrow(values: pa.Array | pa.ChunkedArray, column: Column) -> EncodedColumn:
    """Encode an Arrow column of n values for one column of the row.

    NaN in a floating-point column is null, as it is for Feast.

    Raises
    ------
    SchemaError
        If the values do not fit the feature's declared type.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return EncodedColumn(blank_cells(column, len(array)), np.ones(len(array), dtype=np.bool_))
    try:
        encoded = _ENCODERS[column.storage.kind](array, column)
        if encoded is None:
            encoded = encode_protos(_as_feast_would(array, column), column)
    except (pa.ArrowInvalid, TypeError, ValueError, AssertionError, OverflowError) as error:
        raise SchemaError(
            f"feature {column.name} is declared {column.value_type}, but its column of "
            f"{array.type} does not fit: {error}; cast it in the source or change the field's dtype"
        ) from error
    return encoded


def encode_protos(values: Sequence[Value | None], column: Column) -> EncodedColumn:
    """Encode n of Feast's ``Value`` messages; ``None`` or an unset one is null.

    Raises
    ------
    SchemaError
        If a message holds another type than the feature's declared one.
    """
    fields: list[str | None] = [v if v is None else v.WhichOneof("val") for v in values]
    nulls = np.array([f is None or f == "null_val" for f in fields], dtype=np.bool_)
    storage = column.storage
    if storage.kind is not Kind.PROTO:
        allowed = {storage.attribute, _WIDER.get(storage.attribute), None, "null_val"}
        for field in fields:
            if field not in allowed:
                raise SchemaError(
                    f"feature {column.name} is declared {column.value_type} "
                    f"({storage.attribute}), but a value of {field} was to be written; "
                    "convert it or change the field's dtype"
                )
    picked = [
        None if null else _proto_cell(value, field, storage)
        for value, field, null in zip(values, fields, nulls.tolist(), strict=True)
    ]
    if storage.kind is Kind.FIXED:
        fill = blank_cells(column, 1)[0]
        cells = np.array([fill if cell is None else cell for cell in picked], dtype=fill.dtype)
        return EncodedColumn(cells, nulls)
    return EncodedColumn(pa.array([cell or b"" for cell in picked], pa.binary()), nulls)


def _proto_cell(value: Any, field: Any, storage: Storage) -> Any:
    if storage.kind is Kind.PROTO:
        return value.SerializeToString(deterministic=True)
    content = getattr(value, field)
    if storage.kind is Kind.TEXT:
        return content.encode()
    if storage.kind is Kind.NUMBERS:
        return np.array(content.val, dtype=storage.dtype).tobytes()
    if storage.kind is Kind.TEXTS:
        return _pack_texts([text.encode() for text in content.val])
    return content


def _as_feast_would(array: pa.Array, column: Column) -> list[Value]:
    converted: list[Value] = python_values_to_proto_values(
        array.to_numpy(zero_copy_only=False), ValueType[column.value_type]
    )
    return converted


def _fixed(array: pa.Array, column: Column) -> EncodedColumn | None:
    kind, dtype = array.type, np.dtype(column.storage.dtype)
    if column.value_type == "UNIX_TIMESTAMP":
        seconds = _seconds(array)
        if seconds is None:
            return None
        array = seconds
    elif column.value_type == "BOOL":
        if pa.types.is_boolean(kind):
            array = array.cast(pa.uint8())
        elif pa.types.is_integer(kind):
            array = pc.not_equal(array, 0).cast(pa.uint8())
        else:
            return None
    elif not _is_number(kind):
        return None
    elif dtype.kind == "f":
        array = array.cast(pa.from_numpy_dtype(dtype), safe=False)
    elif pa.types.is_integer(kind):
        array = array.cast(pa.from_numpy_dtype(dtype))
    else:
        # Integers that became floating point because of their nulls: Feast truncates.
        array = pc.trunc(_nan_to_null(array.cast(pa.float64()))).cast(pa.from_numpy_dtype(dtype))
    return _fixed_cells(array, column)


def _fixed_cells(array: pa.Array, column: Column) -> EncodedColumn:
    fill = blank_cells(column, 1)[0]
    nulls: npt.NDArray[np.bool_] | None = None
    if array.null_count:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        array = array.fill_null(pa.scalar(fill, array.type))
    cells = array.to_numpy(zero_copy_only=False)
    if fill.dtype.kind == "f":
        nans = np.isnan(cells)
        nulls = nans if nans.any() else None
    return EncodedColumn(cells.astype(fill.dtype, copy=False), nulls)


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _nan_to_null(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)


def _seconds(array: pa.Array) -> pa.Array | None:
    """Return timestamps, dates or integers as whole seconds since 1970, rounded down."""
    kind = array.type
    if pa.types.is_integer(kind):
        return array.cast(pa.int64())
    if pa.types.is_date(kind):
        array = array.cast(pa.timestamp("s"))
    elif not pa.types.is_timestamp(kind):
        return None
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[array.type.unit]
    ticks = array.cast(pa.int64())
    whole = ticks.fill_null(0).to_numpy(zero_copy_only=False) // per_second
    return pa.array(whole, mask=ticks.is_null().to_numpy(zero_copy_only=False))


def _binary(array: pa.Array, column: Column) -> EncodedColumn | None:
    kind = array.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
    raw = (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or kind == pa.binary_view()
    )
    # Feast checks that JSON text parses, so JSON takes its path.
    fits = (text and column.value_type != "JSON") if column.storage.kind is Kind.TEXT else raw
    if not fits:
        return None
    return _without_nulls(array.cast(pa.binary()))


def _without_nulls(array: pa.Array) -> EncodedColumn:
    if not array.null_count:
        return EncodedColumn(array)
    return EncodedColumn(array.fill_null(_EMPTY), array.is_null().to_numpy(zero_copy_only=False))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _list_parts(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64], Any]:
    """Return a list array's elements, the lengths of its lists and where it is null."""
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    # flatten leaves out what lies under null lists and outside a slice
    return array.flatten(), lengths.astype(np.int64), nulls


def _numbers(array: pa.Array, column: Column) -> EncodedColumn | None:
    if not _is_list(array.type):
        return None
    elements, lengths, nulls = _list_parts(array)
    dtype = np.dtype(column.storage.dtype)
    if column.value_type == "UNIX_TIMESTAMP_LIST":
        seconds = _seconds(elements)
        if seconds is None:
            return None
        elements = seconds
    elif column.value_type == "BOOL_LIST":
        if not pa.types.is_boolean(elements.type):
            return None
        elements = elements.cast(pa.uint8())
    elif dtype.kind == "f" and pa.types.is_floating(elements.type):
        elements = elements.cast(pa.from_numpy_dtype(dtype), safe=False)
    elif dtype.kind == "i" and pa.types.is_integer(elements.type):
        elements = elements.cast(pa.from_numpy_dtype(dtype))
    else:
        return None
    if elements.null_count:
        fill = _NULL_ELEMENT.get(column.value_type, 0)
        elements = elements.fill_null(pa.scalar(fill, elements.type))
    flat = np.ascontiguousarray(elements.to_numpy(zero_copy_only=False).astype(dtype, copy=False))
    return EncodedColumn(binary_array(flat.view(np.uint8), lengths * dtype.itemsize), nulls)


def _texts(array: pa.Array, column: Column) -> EncodedColumn | None:
    """Lay out lists of strings: uint32 count, uint32 end of each string, the strings."""
    if not _is_list(array.type):
        return None
    elements, counts, nulls = _list_parts(array)
    if not (pa.types.is_string(elements.type) or pa.types.is_large_string(elements.type)):
        return None
    elements = elements.cast(pa.binary()).fill_null(_EMPTY)
    lengths = pc.binary_length(elements).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    firsts = np.cumsum(counts) - counts
    list_bytes = ends[firsts + counts] - ends[firsts]
    words = np.empty(len(lengths) + len(counts), dtype="<u4")
    heads = firsts + np.arange(len(counts))
    words[heads] = counts
    is_end = np.ones(len(words), dtype=np.bool_)
    is_end[heads] = False
    words[is_end] = ends[1:] - np.repeat(ends[firsts], counts)
    header = binary_array(words.view(np.uint8), 4 * (counts + 1))
    body = binary_array(_data_of(elements), list_bytes)
    return EncodedColumn(pc.binary_join_element_wise(header, body, _EMPTY), nulls)


def _no_encoder(array: pa.Array, column: Column) -> EncodedColumn | None:
    return None


_ENCODERS: dict[Kind, Callable[[pa.Array, Column], EncodedColumn | None]] = {
    Kind.FIXED: _fixed,
    Kind.TEXT: _binary,
    Kind.BYTES: _binary,
    Kind.NUMBERS: _numbers,
    Kind.TEXTS: _texts,
    Kind.PROTO: _no_encoder,
}


def binary_array(data: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """Return consecutive pieces of ``data`` as an Arrow binary array, no copy."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.binary(), len(lengths), buffers)


def _data_of(array: pa.BinaryArray) -> npt.NDArray[np.uint8]:
    """Return the bytes of all values of a binary array, one after the other."""
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[
        array.offset : array.offset + 1 + len(array)
    ]
    if data is None or not len(array):
        return np.zeros(0, dtype=np.uint8)
    return np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]


def _pack_texts(texts: Sequence[bytes]) -> bytes:
    ends = np.cumsum([len(text) for text in texts], dtype="<u4")
    return len(texts).to_bytes(4, "little") + ends.astype("<u4").tobytes() + b"".join(texts)


def _unpack_texts(stored: bytes) -> list[str]:
    count = int.from_bytes(stored[:4], "little")
    ends = np.frombuffer(stored, dtype="<u4", count=count, offset=4).tolist()
    body = stored[4 + 4 * count :]
    starts = [0, *ends][:count]
    return [body[start:end].decode() for start, end in zip(starts, ends, strict=True)]


def to_protos(rows: Rows, name: str) -> list[Value]:
    """Return a column as n of Feast's ``Value`` messages; null is an unset one."""
    column = rows.schema.columns[name]
    storage = column.storage
    attribute = storage.attribute
    if storage.kind is Kind.FIXED:
        nulls = rows.nulls(name)
        cells = rows.cells(name)
        if column.value_type == "BOOL":
            cells = cells.astype(np.bool_)
        pairs = zip(cells.tolist(), nulls.tolist(), strict=True)
        return [Value() if null else Value(**{attribute: cell}) for cell, null in pairs]
    stored = rows.variable(name).to_pylist()
    return [Value() if cell is None else _as_proto(cell, storage) for cell in stored]


def _as_proto(stored: Any, storage: Storage) -> Value:
    if storage.kind is Kind.PROTO:
        message: Value = Value.FromString(stored)
        return message
    if storage.kind in (Kind.TEXT, Kind.BYTES):
        text = storage.kind is Kind.TEXT
        return Value(**{storage.attribute: stored.decode() if text else stored})
    value = Value()
    repeated = getattr(value, storage.attribute)
    repeated.SetInParent()
    if storage.kind is Kind.TEXTS:
        repeated.val.extend(_unpack_texts(stored))
    else:
        elements = np.frombuffer(stored, dtype=storage.dtype)
        if storage.attribute == "bool_list_val":
            elements = elements.astype(np.bool_)
        repeated.val.extend(elements.tolist())
    return value


_ARROW_ELEMENT = {
    "<i4": pa.int32(),
    "<i8": pa.int64(),
    "<f4": pa.float32(),
    "<f8": pa.float64(),
    "|u1": pa.uint8(),
}


def to_arrow(rows: Rows, name: str) -> pa.Array:
    """Return a column as an Arrow array (n,) of the type nearest to the feature's.

    Timestamps are timestamp[us, UTC], strings string, lists list. Types that Arrow has no
    match for (sets, maps, structs, decimals, ...) come as Feast's Python values do in
    ``OnlineResponse.to_arrow``.
    """
    column = rows.schema.columns[name]
    if column.storage.kind is Kind.FIXED:
        return _cells_to_arrow(rows.cells(name), rows.nulls(name), column)
    if is_text(column):
        return rows.texts([name])
    return _stored_to_arrow(rows.variable(name), column)


def is_text(column: Column) -> bool:
    """Whether a column's stored bytes are, as they are, what its Arrow string array holds."""
    return column.storage.kind is Kind.TEXT and column.value_type not in _PARSED


def as_declared(values: pa.Array | pa.ChunkedArray, column: Column) -> pa.Array:
    """Return Arrow values in the type that :func:`to_arrow` gives for the declared type.

    Raises
    ------
    SchemaError
        If the values do not fit the declared type.
    """
    encoded = encode_arrow(values, column)
    if column.storage.kind is Kind.FIXED:
        return _cells_to_arrow(encoded.cells, encoded.nulls, column)
    stored = encoded.cells
    if encoded.nulls is not None:
        stored = pc.if_else(pa.array(encoded.nulls), pa.scalar(None, pa.binary()), stored)
    return _stored_to_arrow(stored, column)


def _cells_to_arrow(
    cells: npt.NDArray[Any], nulls: npt.NDArray[np.bool_] | None, column: Column
) -> pa.Array:
    mask = nulls if nulls is not None and nulls.any() else None
    return _finish(pa.array(np.ascontiguousarray(cells), mask=mask), column.value_type)


def _stored_to_arrow(stored: pa.BinaryArray, column: Column) -> pa.Array:
    storage = column.storage
    if storage.kind is Kind.NUMBERS:
        return _numbers_to_arrow(stored, column)
    if storage.kind is Kind.TEXTS:
        return _texts_to_arrow(stored)
    if storage.kind is Kind.BYTES:
        return stored
    if storage.kind is Kind.TEXT and column.value_type not in _PARSED:
        return stored.cast(pa.string())
    values = _stored_to_python(stored.to_pylist(), column)
    return pa.array([_for_arrow(value) for value in values])


def _for_arrow(value: Any) -> Any:
    """Return a value of Feast's in a form that Arrow takes: sets as lists, UUIDs as text."""
    if isinstance(value, UUID):
        return str(value)
    return [_for_arrow(element) for element in value] if isinstance(value, set | list) else value


def _finish(array: pa.Array, value_type: str) -> pa.Array:
    if value_type.startswith("BOOL"):
        return array.cast(pa.bool_())
    if value_type.startswith("UNIX_TIMESTAMP"):
        return array.cast(pa.timestamp("s")).cast(pa.timestamp("us", "UTC"))
    return array


def _numbers_to_arrow(stored: pa.BinaryArray, column: Column) -> pa.ListArray:
    dtype = np.dtype(column.storage.dtype)
    lengths = pc.binary_length(stored).fill_null(0).to_numpy(zero_copy_only=False)
    data = _data_of(stored)
    elements = pa.array(np.frombuffer(data.tobytes(), dtype=dtype))
    if column.value_type == "UNIX_TIMESTAMP_LIST":
        nulls = pc.equal(elements, NULL_TIMESTAMP_INT_VALUE)
        elements = pc.if_else(nulls, pa.scalar(None, pa.int64()), elements)
    return _list_array(_finish(elements, column.value_type), lengths // dtype.itemsize, stored)


def _texts_to_arrow(stored: pa.BinaryArray) -> pa.ListArray:
    texts = [None if cell is None else _unpack_texts(cell) for cell in stored.to_pylist()]
    return pa.array(texts, pa.list_(pa.string()))


def _list_array(elements: pa.Array, counts: npt.NDArray[np.int64], like: pa.Array) -> pa.ListArray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    mask = like.is_null() if like.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=mask)


def to_python(rows: Rows, name: str) -> list[Any]:
    """Return a column as n Python values, as ``OnlineResponse.to_dict`` gives them."""
    column = rows.schema.columns[name]
    if column.storage.kind in (Kind.FIXED, Kind.NUMBERS, Kind.TEXTS, Kind.BYTES):
        values: list[Any] = to_arrow(rows, name).to_pylist()
        return values
    return _stored_to_python(rows.variable(name).to_pylist(), column)


def _stored_to_python(stored: Sequence[bytes | None], column: Column) -> list[Any]:
    storage, value_type = column.storage, ValueType[column.value_type]
    if storage.kind is Kind.TEXT and column.value_type not in _PARSED | _IDENTIFIERS:
        return [None if cell is None else cell.decode() for cell in stored]
    return [
        None if cell is None else to_value(_as_proto(cell, storage), value_type) for cell in stored
    ]

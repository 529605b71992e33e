"""Feast's response messages, serialised as whole columns and parsed by protobuf's C code.

A fixed-width column becomes a matrix of bytes with one ``Value`` message per row, which is
what the wire format of ``FeatureVector.values`` is. Integers are written as varints of full
length, which the format allows, so that all rows are equally long. Where a value is null,
the message is empty and the rest of its row is left out.

The wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value

from feastpack.rows import BoolArray, BytesArray, IntArray, Kind, Rows
from feastpack.values import to_protos

_VARINT_BYTES = 10
_LENGTH_DELIMITED, _VARINT, _EIGHT_BYTES, _FOUR_BYTES = 2, 0, 1, 5
_VECTOR = GetOnlineFeaturesResponse.FeatureVector
_MICROSECONDS = 1_000_000


def add_vector(
    response: Any, rows: Rows, name: str | None, place_of: IntArray, common: bytes
) -> None:
    """Append a column to a ``GetOnlineFeaturesResponse``.

    Parameters
    ----------
    name
        The column; None for one that the rows do not have, which is null throughout.
    place_of
        int64 (n,): which row belongs to each of the response's n rows.
    common
        What :func:`statuses_and_times` returned.
    """
    vector = response.results.add()
    if name is None:
        vector.values.extend([Value()] * len(place_of))
    elif rows.schema.columns[name].storage.kind is Kind.FIXED:
        vector.MergeFromString(_fixed_values(rows, name, place_of))
    else:
        values = to_protos(rows, name)
        vector.values.extend([values[place] for place in place_of.tolist()])
    vector.MergeFromString(common)


def statuses_and_times(rows: Rows, place_of: IntArray, known: bool = True) -> bytes:
    """Return statuses and event times of a view's columns, which all of them share."""
    found = rows.found[place_of]
    present = found if known else np.zeros(len(found), dtype=np.bool_)
    statuses = np.where(present, FieldStatus.PRESENT, FieldStatus.NOT_FOUND)
    head = _VECTOR(statuses=statuses.tolist()).SerializeToString()
    times = np.where(found, rows.event_us[place_of], 0)
    body = np.concatenate(
        [
            _tag(1, _VARINT, len(times)),
            _varints(times // _MICROSECONDS),
            _tag(2, _VARINT, len(times)),
            _varints(times % _MICROSECONDS * 1000),
        ],
        axis=1,
    )
    return bytes(head) + _messages(_VECTOR.EVENT_TIMESTAMPS_FIELD_NUMBER, body, ~found)


def _fixed_values(rows: Rows, name: str, place_of: IntArray) -> bytes:
    column = rows.schema.columns[name]
    cells = rows.cells(name)[place_of]
    number = Value.DESCRIPTOR.fields_by_name[column.storage.attribute].number
    if cells.dtype.kind == "f":
        width = cells.dtype.itemsize
        wire = _FOUR_BYTES if width == 4 else _EIGHT_BYTES
        content: BytesArray = np.ascontiguousarray(cells).view(np.uint8).reshape(-1, width)
    else:
        wire, content = _VARINT, _varints(cells)
    body = np.concatenate([_tag(number, wire, len(cells)), content], axis=1)
    return _messages(_VECTOR.VALUES_FIELD_NUMBER, body, rows.nulls(name)[place_of])


def _messages(number: int, body: BytesArray, empty: BoolArray) -> bytes:
    """Serialise n messages of a repeated field; those marked are empty."""
    n, width = body.shape
    lengths = np.where(empty, 0, width).astype(np.uint8)[:, None]
    whole = np.concatenate([_tag(number, _LENGTH_DELIMITED, n), lengths, body], axis=1)
    if not empty.any():
        return whole.tobytes()
    kept = np.ones(whole.shape, dtype=np.bool_)
    kept[empty, 2:] = False
    return whole[kept].tobytes()


def _tag(number: int, wire: int, n: int) -> BytesArray:
    return np.full((n, 1), number << 3 | wire, dtype=np.uint8)


def _varints(values: npt.NDArray[Any]) -> BytesArray:
    """Return (n, 10) bytes: 64-bit two's complement in groups of seven bits, lowest first."""
    bits = values.astype(np.int64).view(np.uint64)
    shifts = np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
    groups = ((bits[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    groups[:, :-1] |= 0x80
    return groups

"""Rows that were written under an older schema, seen through the current one.

A feature that the old schema lacked, or kept under a type that does not convert without
loss, is null until the row is written again. INT32 widens to INT64 and FLOAT to DOUBLE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from feastpack.errors import UnknownSchemaError
from feastpack.rows import (
    Column,
    EncodedColumn,
    Kind,
    Rows,
    RowSchema,
    blank_cells,
    fingerprint_of,
)

_WIDENS = {("INT32", "INT64"), ("FLOAT", "DOUBLE")}


def translate(
    schema: RowSchema, rows: Sequence[bytes], schemas: Mapping[int, RowSchema]
) -> list[bytes]:
    """Return the rows as if they had been written under ``schema``.

    Raises
    ------
    RowFormatError
        If a row is no packed row; UnknownSchemaError if its schema is not among ``schemas``.
    """
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(fingerprint_of(row), []).append(index)
    result = list(rows)
    for fingerprint, indices in groups.items():
        if fingerprint == schema.fingerprint:
            continue
        old = schemas.get(fingerprint)
        if old is None:
            raise UnknownSchemaError(
                f"{len(indices)} stored rows have the schema {fingerprint:08x}, which Redis "
                "does not know (known: "
                f"{', '.join(f'{known:08x}' for known in sorted(schemas)) or 'none'}); "
                "delete the view's keys and materialize again"
            )
        decoded = old.unpack([rows[index] for index in indices])
        columns = {c.name: _carried(c, old, decoded) for c in schema.columns.values()}
        packed = schema.pack(columns, decoded.event_us, decoded.created_us)
        for index, row in zip(indices, packed.to_pylist(), strict=True):
            result[index] = row
    return result


def _carried(column: Column, old: RowSchema, rows: Rows) -> EncodedColumn:
    before = old.columns.get(column.name)
    same = before is not None and before.value_type == column.value_type
    if before is None or not (same or (before.value_type, column.value_type) in _WIDENS):
        return EncodedColumn(blank_cells(column, len(rows)), np.ones(len(rows), dtype=np.bool_))
    nulls = rows.nulls(column.name)
    if column.storage.kind is Kind.FIXED:
        return EncodedColumn(rows.cells(column.name).astype(column.storage.dtype), nulls)
    return EncodedColumn(rows.variable(column.name).fill_null(pa.scalar(b"", pa.binary())), nulls)

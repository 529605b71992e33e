"""Rows to write, from Arrow tables and from Feast's messages, as keys and packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feastpack.errors import SchemaError
from feastpack.rows import NO_TIME, IntArray
from feastpack.values import encode_arrow, encode_protos
from feastpack.views import ViewLayout

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class PackedRows(NamedTuple):
    """Keys and rows of the same length, Arrow binary arrays without nulls."""

    keys: pa.BinaryArray
    rows: pa.BinaryArray


def time_columns(view: Any, names: Sequence[str]) -> tuple[str, str | None]:
    """Return which columns of a table hold the event time and the created time.

    Raises
    ------
    SchemaError
        If there is no event time.
    """
    source = view.batch_source
    mapping = dict(source.field_mapping or {}) if source is not None else {}

    def pick(declared: str | None, usual: str) -> str | None:
        choices = [mapping.get(declared or "", declared), declared, usual]
        return next((name for name in choices if name and name in names), None)

    event = pick(source.timestamp_field if source is not None else None, "event_timestamp")
    if event is None:
        raise SchemaError(
            f"no event time for feature view {view.name}: the table has the columns "
            f"{', '.join(names)}; expected the source's timestamp_field or event_timestamp"
        )
    created = pick(source.created_timestamp_column if source is not None else None, "")
    return event, created


def arrow_rows(layout: ViewLayout, view: Any, table: pa.RecordBatch | pa.Table) -> PackedRows:
    """Pack the rows of an Arrow table, no Python object per value.

    Parameters
    ----------
    table
        Join keys, every feature of the view under its name, the event time and, if the
        source has one, the created time.

    Raises
    ------
    SchemaError
        If a column is missing, a join key or event time is null, or a type does not fit.
    """
    names = table.column_names
    event, created = time_columns(view, names)
    missing = [name for name in layout.schema.columns if name not in names]
    if missing:
        raise SchemaError(
            f"the table for feature view {layout.keys.view} lacks the features "
            f"{', '.join(missing)}; it has {', '.join(names)}"
        )
    join_keys: dict[str, Any] = {
        name: table.column(name) for name, _ in layout.keys.join_keys if name in names
    }
    if layout.keys.join_keys[0][0] == DUMMY_ENTITY_ID and not join_keys:
        join_keys[DUMMY_ENTITY_ID] = pa.repeat(DUMMY_ENTITY_VAL, table.num_rows)
    event_us = _microseconds(table.column(event))
    if (event_us == NO_TIME).any():
        first = int(np.flatnonzero(event_us == NO_TIME)[0])
        raise SchemaError(
            f"feature view {layout.keys.view}: {int((event_us == NO_TIME).sum())} of "
            f"{table.num_rows} rows have no {event} (first: row {first}); a feature value "
            "without a time cannot be ordered: filter these rows out of the source"
        )
    created_us = (
        _microseconds(table.column(created)) if created else np.full(table.num_rows, NO_TIME)
    )
    encoded = {
        name: encode_arrow(table.column(name), column)
        for name, column in layout.schema.columns.items()
    }
    return PackedRows(
        layout.keys.of_columns(join_keys, table.num_rows),
        layout.schema.pack(encoded, event_us, created_us),
    )


def message_rows(
    layout: ViewLayout,
    data: Sequence[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
) -> PackedRows:
    """Pack rows given as Feast's messages; a feature that a row lacks is null.

    Raises
    ------
    SchemaError
        If a value is of another type than its feature, or an entity has other join keys.
    """
    keys = pa.array([layout.keys.of_entity(entity) for entity, _, _, _ in data], pa.binary())
    encoded = {
        name: encode_protos([values.get(name) for _, values, _, _ in data], column)
        for name, column in layout.schema.columns.items()
    }
    event_us = np.array([_instant(event) for _, _, event, _ in data], dtype=np.int64)
    created_us = np.array(
        [NO_TIME if created is None else _instant(created) for _, _, _, created in data],
        dtype=np.int64,
    )
    return PackedRows(keys, layout.schema.pack(encoded, event_us, created_us))


def _instant(moment: datetime) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // _MICROSECOND


def _microseconds(values: Any) -> IntArray:
    """Return timestamps as int64 microseconds UTC; NO_TIME where null."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not pa.types.is_timestamp(array.type):
        raise SchemaError(f"expected a timestamp column for a row's time, found {array.type}")
    ticks = array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(pa.int64())
    filled: IntArray = pc.fill_null(ticks, NO_TIME).to_numpy(zero_copy_only=False)
    return filled

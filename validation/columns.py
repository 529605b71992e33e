"""The columns of a table as DuckDB SQL: identifiers, literals, kinds and missing values."""

import datetime as dt
import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SOURCE = "source"
ROW = "row_position"
"""Name of the column that holds a row's position in the table, from 0."""


class MisfitError(Exception):
    """An expectation that this table cannot meet at all: no such column, or of the wrong kind."""


def quote(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def reference_view(name: str) -> str:
    """Return the name under which a reference table is known to DuckDB."""
    return f"reference {name}"


def type_name(data_type: pa.DataType) -> str:
    """Return an Arrow type's name as suites write it: encodings and layouts do not count."""
    if pa.types.is_dictionary(data_type):
        return type_name(data_type.value_type)
    if pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type):
        return "string"
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        return f"list<{type_name(data_type.value_type)}>"
    return str(data_type)


def kind_of(data_type: pa.DataType) -> str:
    """Return 'number', 'boolean', 'text', 'time', 'list' or 'other'."""
    name = type_name(data_type)
    if name == "string":
        return "text"
    if name == "bool":
        return "boolean"
    if name.startswith("list<"):
        return "list"
    if pa.types.is_timestamp(data_type) or pa.types.is_date(data_type):
        return "time"
    numeric = pa.types.is_integer(data_type) or pa.types.is_floating(data_type)
    return "number" if numeric or pa.types.is_decimal(data_type) else "other"


@dataclass(frozen=True)
class Columns:
    """The columns of a table as SQL, refusing those that are missing or of the wrong kind."""

    schema: pa.Schema

    def type(self, column: str) -> pa.DataType:
        """Return a column's Arrow type."""
        if column not in self.schema.names:
            raise MisfitError(f"no such column; found {', '.join(self.schema.names) or 'none'}")
        return self.schema.field(column).type

    def value(self, column: str) -> str:
        """Return SQL for a column's value, null where it is missing."""
        data_type = self.type(column)
        value = f"t.{quote(column)}"
        if pa.types.is_floating(data_type):
            return f"(CASE WHEN isnan({value}) THEN NULL ELSE {value} END)"
        return value

    def require(self, column: str, *kinds: str) -> str:
        """Return the column's kind if it is one of `kinds`."""
        data_type = self.type(column)
        kind = kind_of(data_type)
        if kind not in kinds:
            raise MisfitError(f"expected {' or '.join(kinds)}, found type {type_name(data_type)}")
        return kind


def literal(value: Any, kind: str) -> str:
    """Return a value as SQL, to be compared with a column of this kind."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value!r}::DOUBLE" if math.isfinite(value) else f"'{value!r}'::DOUBLE"
    if kind == "time":
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        zoned = isinstance(moment, dt.datetime) and moment.tzinfo is not None
        return f"TIMESTAMP{'TZ' if zoned else ''} '{moment.isoformat()}'"
    return text_literal(str(value))


def text_literal(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"

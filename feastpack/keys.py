"""Redis keys of packed rows.

A row's key is ``fp:{project}:{view}:`` (``fp:{project}@{namespace}:{view}:`` where the store has a
namespace) followed by the entity's values in Feast's own
serialisation (version 3), ordered by join key. The names of the join keys, which Feast's
serialisation begins with, are the same for all rows of a view, so they are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.key_encoding_utils import (
    deserialize_entity_key,
    serialize_entity_key,
    serialize_entity_key_prefix,
)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import ValueType as ValueTypeProto

from feastpack.errors import SchemaError
from feastpack.rows import BytesArray, uniform_binary

# An Arrow binary array, or a (n, width) matrix if all keys are of one width.
Keys: TypeAlias = pa.BinaryArray | BytesArray

_EMPTY = pa.scalar(b"", pa.binary())
_INTEGERS = {"INT64": "<i8", "INT32": "<i4", "UNIX_TIMESTAMP": "<i8"}
_STRINGS = ("STRING", "BYTES")


def rows_prefix(project: str, namespace: str) -> str:
    """Return what the keys of all rows of a namespace begin with."""
    return f"fp:{project}@{namespace}:" if namespace else f"fp:{project}:"


def schemas_prefix(project: str, namespace: str) -> str:
    """Return what the keys of all schemas of a namespace begin with."""
    return f"fp-schemas:{project}@{namespace}:" if namespace else f"fp-schemas:{project}:"


def pattern_of(prefix: bytes) -> bytes:
    """Return the pattern for SCAN that matches exactly the keys with a prefix."""
    escaped = b"".join(b"\\" + bytes([c]) if chr(c) in "*?[]\\^" else bytes([c]) for c in prefix)
    return escaped + b"*"


@dataclass(frozen=True)
class KeySpace:
    """The keys of one feature view.

    Attributes
    ----------
    project, view
        Names; the view's includes its version, if the view is versioned.
    join_keys
        Pairs of join key and name of its ``feast.ValueType``, ordered by join key.
    namespace
        Which of several sets of rows of the project; empty for the one that has no name.
    """

    project: str
    view: str
    join_keys: tuple[tuple[str, str], ...]
    namespace: str = ""

    @cached_property
    def prefix(self) -> bytes:
        """What all keys of the view begin with."""
        return f"{rows_prefix(self.project, self.namespace)}{self.view}:".encode()

    @property
    def schemas_key(self) -> bytes:
        """Key of the hash that holds every schema the view's rows were written under."""
        return f"{schemas_prefix(self.project, self.namespace)}{self.view}".encode()

    @property
    def pattern(self) -> bytes:
        """Pattern for SCAN that matches exactly the view's keys."""
        return pattern_of(self.prefix)

    @cached_property
    def _names(self) -> bytes:
        names: bytes = serialize_entity_key_prefix([name for name, _ in self.join_keys])
        return names

    def of_entity(self, entity_key: EntityKey) -> bytes:
        """Return the key of one of Feast's entity keys.

        Raises
        ------
        SchemaError
            If the entity has other join keys than the view.
        """
        serialised: bytes = serialize_entity_key(entity_key, entity_key_serialization_version=3)
        if not serialised.startswith(self._names):
            raise SchemaError(
                f"feature view {self.view} has the join keys "
                f"{', '.join(name for name, _ in self.join_keys)}, but the entity has "
                f"{', '.join(entity_key.join_keys) or 'none'}"
            )
        key: bytes = self.prefix + serialised[len(self._names) :]
        return key

    def entity_of(self, key: bytes) -> EntityKey:
        """Return Feast's entity key of one of the view's keys."""
        entity: EntityKey = deserialize_entity_key(
            self._names + key[len(self.prefix) :], entity_key_serialization_version=3
        )
        return entity

    def of_columns(self, columns: Mapping[str, Any], n: int) -> pa.BinaryArray:
        """Return the keys of n entities given as columns, no Python object per value.

        As :meth:`laid_out`, always as an Arrow array.
        """
        keys = self.laid_out(columns, n)
        return uniform_binary(keys) if isinstance(keys, np.ndarray) else keys

    def laid_out(self, columns: Mapping[str, Any], n: int) -> Keys:
        """Return the keys of n entities given as columns, in the form that takes least work.

        Parameters
        ----------
        columns
            By join key: an Arrow array or a numpy array of n values.
        n
            Number of entities.

        Raises
        ------
        SchemaError
            If a join key is missing, null somewhere, or of a type that does not fit.
        """
        parts: list[pa.Array | pa.Scalar] = []
        fixed: list[bytes | BytesArray] = [self.prefix]
        for name, value_type in self.join_keys:
            if name not in columns:
                raise SchemaError(
                    f"feature view {self.view} needs the join key {name}; "
                    f"found {', '.join(columns) or 'none'}"
                )
            values = columns[name]
            tag = struct.pack("<I", getattr(ValueTypeProto, value_type))
            if value_type in _INTEGERS:
                cells = values
                if not isinstance(values, np.ndarray) or values.dtype != _INTEGERS[value_type]:
                    array = _as_arrow(values, name, value_type, self.view)
                    cells = array.to_numpy(zero_copy_only=False).astype(_INTEGERS[value_type])
                width = cells.dtype.itemsize
                fixed.append(tag + struct.pack("<I", width))
                fixed.append(np.ascontiguousarray(cells).view(np.uint8).reshape(n, width))
                continue
            array = _as_arrow(values, name, value_type, self.view)
            lengths = pc.binary_length(array).to_numpy(zero_copy_only=False).astype("<u4")
            fixed += [tag, lengths.view(np.uint8).reshape(n, 4)]
            parts += [uniform_binary(_side_by_side(fixed, n)), array]
            fixed = []
        if fixed:
            last = _side_by_side(fixed, n)
            if not parts:
                return last
            parts.append(uniform_binary(last))
        return pc.binary_join_element_wise(*parts, _EMPTY)


def _side_by_side(parts: Sequence[bytes | BytesArray], n: int) -> BytesArray:
    """Return (n, width) bytes: of some parts the same in all rows, of others (n, w) columns."""
    widths = [len(part) if isinstance(part, bytes) else part.shape[1] for part in parts]
    matrix = np.empty((n, sum(widths)), dtype=np.uint8)
    start = 0
    for part, width in zip(parts, widths, strict=True):
        cells = np.frombuffer(part, dtype=np.uint8) if isinstance(part, bytes) else part
        matrix[:, start : start + width] = cells
        start += width
    return matrix


def _as_arrow(values: Any, name: str, value_type: str, view: str) -> pa.Array:
    """Return a join key's values as int64 or binary, without nulls."""
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        first = pc.index(array.is_null(), True).as_py()
        raise SchemaError(
            f"join key {name} of feature view {view} is null in {array.null_count} of "
            f"{len(array)} rows (first: row {first}); an entity without a key has no place "
            "in the online store: filter these rows out of the source"
        )
    kind = array.type
    try:
        if value_type == "UNIX_TIMESTAMP" and pa.types.is_timestamp(kind):
            return array.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
        if value_type in _INTEGERS and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            wanted = pa.int32() if value_type == "INT32" else pa.int64()
            return array if kind == wanted else array.cast(wanted)
        if value_type == "STRING" and not (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
            return array.cast(pa.string()).cast(pa.binary())
        if value_type == "BYTES" and not (pa.types.is_nested(kind) or pa.types.is_integer(kind)):
            return array.cast(pa.binary())
    except pa.ArrowInvalid as error:
        raise SchemaError(f"join key {name} of feature view {view}: {error}") from error
    raise SchemaError(
        f"join key {name} of feature view {view} is declared {value_type}, found {kind}; "
        f"Feast serialises the types {', '.join([*_INTEGERS, *_STRINGS])} as keys"
    )

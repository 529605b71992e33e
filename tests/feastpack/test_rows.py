"""The packed row: its layout, and that what goes in comes out."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from feast_values import VALUES, value_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from feastpack.errors import RowFormatError, SchemaError, UnknownSchemaError
from feastpack.rows import NO_TIME, EncodedColumn, RowSchema
from feastpack.values import (
    as_declared,
    encode_arrow,
    encode_protos,
    to_arrow,
    to_protos,
    to_python,
)


def pack_protos(schema: RowSchema, table: list[dict[str, Value]], event_us: int = 5) -> list[bytes]:
    columns = {
        name: encode_protos([row.get(name) for row in table], column)
        for name, column in schema.columns.items()
    }
    times = np.full(len(table), event_us)
    packed = schema.pack(columns, times, np.full(len(table), NO_TIME))
    return list(packed.to_pylist())


def test_layout_byte_by_byte() -> None:
    schema = RowSchema((("s", "STRING"), ("f", "FLOAT"), ("i", "INT64"), ("t", "STRING")))
    row = {"s": Value(string_val="ab"), "f": Value(float_val=1.5), "i": Value()}
    (stored,) = pack_protos(schema, [{**row, "t": Value(string_val="xyz")}], event_us=7)
    header = struct.pack("<qqI", 7, NO_TIME, schema.fingerprint)
    ends = struct.pack("<II", 2, 5)
    cells = struct.pack("<qf", 0, 1.5)  # wide cells first
    null_bits = bytes([0b0001])  # bit 0 is i, the first of the fixed-width columns
    assert stored == header + ends + cells + null_bits + b"ab" + b"xyz"


def test_null_float_cell_is_nan_and_integers_keep_64_bits() -> None:
    schema = RowSchema((("f", "DOUBLE"), ("i", "INT64")))
    big = 2**63 - 1
    rows = schema.unpack(
        pack_protos(schema, [{"f": Value(), "i": Value(int64_val=big)}, {"f": Value(double_val=2)}])
    )
    np.testing.assert_array_equal(rows.cells("f"), [np.nan, 2.0])
    assert rows.cells("i")[0] == big
    assert rows.nulls("i").tolist() == [False, True]


@st.composite
def _tables(draw: st.DrawFn) -> tuple[RowSchema, list[dict[str, Value]]]:
    types = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=12))
    features = tuple((f"f{index}", value_type) for index, value_type in enumerate(types))
    row = st.fixed_dictionaries({name: value_of(value_type) for name, value_type in features})
    return RowSchema(features), draw(st.lists(row, min_size=1, max_size=6))


@given(_tables(), st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_what_goes_in_comes_out(
    case: tuple[RowSchema, list[dict[str, Value]]], missing: list[bool]
) -> None:
    schema, table = case
    stored: list[bytes | None] = list(pack_protos(schema, table))
    for index, gone in enumerate(missing[: len(stored)]):
        stored[index] = None if gone else stored[index]
    rows = schema.unpack(stored)
    assert rows.found.tolist() == [row is not None for row in stored]
    for name in schema.columns:
        expected = [
            Value() if row is None else values[name]
            for row, values in zip(stored, table, strict=True)
        ]
        assert to_protos(rows, name) == expected
        assert len(to_python(rows, name)) == len(table)
        if "JSON" not in schema.columns[name].value_type:  # may be of several Arrow types
            assert len(to_arrow(rows, name)) == len(table)


def test_old_rows_seen_through_a_new_schema() -> None:
    old = RowSchema((("kept", "INT32"), ("gone", "STRING"), ("changed", "STRING")))
    new = RowSchema((("added", "STRING"), ("changed", "INT64"), ("kept", "INT64")))
    old_row = {"kept": Value(int32_val=4), "gone": Value(string_val="x")}
    new_row = {"kept": Value(int64_val=5), "added": Value(string_val="y")}
    stored = pack_protos(old, [old_row]) + pack_protos(new, [new_row])
    with pytest.raises(UnknownSchemaError, match=f"{old.fingerprint:08x}, which Redis does not"):
        new.unpack(stored)
    rows = new.unpack(stored, {old.fingerprint: RowSchema.from_json(old.to_json())})
    assert to_python(rows, "kept") == [4, 5]  # int32 widens to int64
    assert to_python(rows, "added") == [None, "y"]
    assert to_python(rows, "changed") == [None, None]  # a string is no integer
    assert rows.event_us.tolist() == [5, 5]


@pytest.mark.parametrize("stored", [b"", b"short", b"x" * 19])
def test_foreign_bytes_are_refused(stored: bytes) -> None:
    with pytest.raises(RowFormatError, match="is no packed row"):
        RowSchema((("a", "INT64"),)).unpack([stored])


def test_truncated_row_is_refused() -> None:
    schema = RowSchema((("a", "STRING"),))
    (stored,) = pack_protos(schema, [{"a": Value(string_val="hello")}])
    with pytest.raises(RowFormatError, match="not as long as its schema"):
        schema.unpack([stored[:-1]])


def test_wrong_type_is_refused_and_named() -> None:
    column = RowSchema((("age", "INT64"),)).columns["age"]
    with pytest.raises(SchemaError, match=r"age is declared INT64 .* value of string_val"):
        encode_protos([Value(string_val="x")], column)
    with pytest.raises(SchemaError, match="age is declared INT64, but its column of string"):
        encode_arrow(pa.array(["x"]), column)
    with pytest.raises(SchemaError, match="named twice in one view: a"):
        RowSchema((("a", "INT64"), ("a", "FLOAT")))


def cells_of(encoded: EncodedColumn) -> list[object]:
    return list(encoded.cells.tolist())


def test_arrow_columns_follow_feasts_conversions() -> None:
    def declared(values: pa.Array, value_type: str) -> list[object]:
        column = RowSchema((("x", value_type),)).columns["x"]
        return list(as_declared(values, column).to_pylist())

    assert declared(pa.array([1.0, None, float("nan")]), "INT64") == [1, None, None]
    assert declared(pa.array([1.0, float("nan")]), "FLOAT") == [1.0, None]
    assert declared(pa.array([0, 2, None]), "BOOL") == [False, True, None]
    assert declared(pa.array(["a", None]).dictionary_encode(), "STRING") == ["a", None]
    assert declared(pa.array([None, None]), "INT32") == [None, None]
    assert declared(pa.array([[1.5, None], None, []]), "FLOAT_LIST") == [[1.5, 0.0], None, []]
    assert declared(pa.array([["a", None], None, [], ["bc"]]), "STRING_LIST") == [
        ["a", ""],
        None,
        [],
        ["bc"],
    ]
    # before 1970 a timestamp is rounded down, not towards zero
    early = pa.array([-1_500_000, 1_500_000], pa.timestamp("us"))
    column = RowSchema((("x", "UNIX_TIMESTAMP"),)).columns["x"]
    assert cells_of(encode_arrow(early, column)) == [-2, 1]


def test_sliced_lists_are_read_from_their_own_place() -> None:
    whole = pa.array([[1.0], [2.0, 3.0], None, [4.0]])
    column = RowSchema((("x", "DOUBLE_LIST"),)).columns["x"]
    assert as_declared(whole.slice(1), column).to_pylist() == [[2.0, 3.0], None, [4.0]]
    texts = pa.array([["a"], ["b", "cd"], None, []])
    column = RowSchema((("x", "STRING_LIST"),)).columns["x"]
    assert as_declared(texts.slice(1), column).to_pylist() == [["b", "cd"], None, []]

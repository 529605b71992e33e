"""Are two tables equal: exactly, but for the last digits of floats?"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.types import from_feast_to_pyarrow_type

RELATIVE = 1e-9


def assert_declared(table: pa.Table, view: FeatureView) -> None:
    """Compare the types of a view's table with those that it declares."""
    for field in view.features:
        found, declared = table[field.name].type, from_feast_to_pyarrow_type(field.dtype)
        # What a list calls its items is the engine's affair.
        if pa.types.is_list(declared):
            found, declared = found.value_type, declared.value_type
        assert found == declared, field.name


def assert_equal(one: pa.Table, other: pa.Table, keys: list[str]) -> None:
    """Compare columns by name and rows by keys; floats to 1e-9, relative."""
    assert one.column_names == other.column_names
    assert one.num_rows == other.num_rows > 0
    order = [(key, "ascending") for key in keys]
    one, other = one.sort_by(order), other.sort_by(order)
    for name in one.column_names:
        left, right = one[name].combine_chunks(), other[name].combine_chunks()
        _assert_same(name, left, right)


def _assert_same(name: str, left: pa.Array, right: pa.Array) -> None:
    if pa.types.is_list(left.type):
        assert left.is_null().equals(right.is_null()), name
        assert pc.list_value_length(left).equals(pc.list_value_length(right)), name
        _assert_same(name, left.flatten(), right.flatten())
        return
    assert left.type == right.type, name
    if pa.types.is_floating(left.type):
        assert left.is_null().equals(right.is_null()), name
        values = (side.drop_null().to_numpy(zero_copy_only=False) for side in (left, right))
        np.testing.assert_allclose(*values, rtol=RELATIVE, atol=0, err_msg=name)
    else:
        assert left.equals(right), name

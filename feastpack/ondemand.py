"""On-demand views, run with Feast's own functions on the columns that were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from feastpack.errors import SchemaError, UnsupportedError
from feastpack.plan import OnDemandPlan
from feastpack.values import as_declared


def run(
    plan: OnDemandPlan,
    columns: Mapping[str, pa.Array],
    request: Mapping[str, pa.Array],
    full_feature_names: bool,
) -> dict[str, pa.Array]:
    """Run an on-demand view.

    Parameters
    ----------
    columns
        Features that were read, by name in the result.
    request
        Join keys and request data.

    Returns
    -------
    dict
        The requested outputs by name in the result, in their declared types.

    Raises
    ------
    UnsupportedError
        If the view has a mode that Feast does not run online.
    SchemaError
        If an output is missing or does not fit its declared type.
    """
    inputs = {**request, **{name: _widened(columns[name]) for name in plan.inputs}}
    view = plan.view
    if view.mode in ("pandas", "substrait"):
        table = view.transform_arrow(pa.table(inputs), full_feature_names)
        produced: Mapping[str, Any] = {name: table.column(name) for name in table.column_names}
    elif view.mode == "python":
        produced = {
            name: pa.array(values if isinstance(values, list) else [values])
            for name, values in view.transform_dict(
                {name: array.to_pylist() for name, array in inputs.items()}
            ).items()
        }
    else:
        raise UnsupportedError(
            f"on-demand view {view.name} has the mode {view.mode}; "
            "online, Feast runs pandas, python and substrait"
        )
    outputs: dict[str, pa.Array] = {}
    for name, column in plan.outputs.items():
        # Python functions always answer in short names; Feast loses them under full names.
        values = produced.get(name, produced.get(column.name))
        if values is None:
            raise SchemaError(
                f"on-demand view {view.name} declares {column.name} but did not return it; "
                f"it returned {', '.join(produced) or 'nothing'}"
            )
        outputs[name] = as_declared(values, column)
    return outputs


def _widened(array: pa.Array) -> pa.Array:
    """Return what Feast would hand to the function: Python's numbers, so 64 bits."""
    kind = array.type
    if pa.types.is_float32(kind):
        return array.cast(pa.float64())
    if pa.types.is_int32(kind):
        return array.cast(pa.int64())
    if pa.types.is_list(kind) and pa.types.is_float32(kind.value_type):
        return array.cast(pa.list_(pa.float64()))
    if pa.types.is_list(kind) and pa.types.is_int32(kind.value_type):
        return array.cast(pa.list_(pa.int64()))
    return array

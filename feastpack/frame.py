"""The result of a read: columns of n entities, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from feastpack.errors import RequestError
from feastpack.lookup import Answer
from feastpack.plan import FeatureRead, Plan, ViewPlan
from feastpack.rows import Column, Kind, Rows
from feastpack.values import is_text, to_arrow, to_python

PRESENT: int = FieldStatus.PRESENT
NOT_FOUND: int = FieldStatus.NOT_FOUND
OUTSIDE_MAX_AGE: int = FieldStatus.OUTSIDE_MAX_AGE


@dataclass(frozen=True)
class ViewRows:
    """A view's rows in a result of n entities: n of them, or one that all share."""

    plan: ViewPlan
    answer: Answer

    @property
    def rows(self) -> Rows:
        """The rows."""
        return self.answer.rows

    def arrow(self, column: Column) -> pa.Array:
        """Return a column as an Arrow array of as many values as there are rows."""
        return self._texts[column.name] if is_text(column) else to_arrow(self.rows, column.name)

    @cached_property
    def _texts(self) -> dict[str, pa.StringArray]:
        # Cutting all out at once costs about as much as cutting out two of them.
        names, count = self.plan.texts, len(self.rows)
        joined = self.rows.texts(names)
        return {name: joined.slice(at * count, count) for at, name in enumerate(names)}


class Frame:
    """Features of n entities, in the order in which the entities were given.

    Attributes
    ----------
    names
        The features, in the order of the request or of the feature service.
    numeric_names
        The features that are columns of :attr:`matrix`: integers, floating point, bool.

    Notes
    -----
    A frame is immutable; arrays that it returns are read-only or copies.
    """

    def __init__(
        self,
        plan: Plan,
        views: tuple[ViewRows, ...],
        entity: Callable[[str], pa.Array],
        computed: Mapping[str, pa.Array],
        count: int,
        dtype: npt.DTypeLike,
    ) -> None:
        self.names = plan.names
        self.numeric_names = plan.numeric_names
        self._plan = plan
        self._entity = entity
        self._views = views
        self._computed = computed
        self._count = count
        self._dtype = dtype
        self._sources: dict[str, tuple[ViewRows, FeatureRead]] = {
            read.output: (view, read) for view in views for read in view.plan.features
        }

    def __len__(self) -> int:
        return self._count

    @cached_property
    def entities(self) -> Mapping[str, pa.Array]:
        """What was asked for, by join key: Arrow arrays (n,)."""
        return {name: self._entity(name) for name in self._plan.entity_names}

    @cached_property
    def matrix(self) -> npt.NDArray[Any]:
        """(n, len(numeric_names)) numbers, NaN where null or missing; bool as 0 and 1.

        The dtype is the reader's. Integers beyond 2**53 are rounded in float64, beyond
        2**24 in float32.
        """
        matrix = self.as_matrix(self._dtype)
        matrix.flags.writeable = False
        return matrix

    def as_matrix(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a copy of :attr:`matrix` in another dtype, from what is stored."""
        matrix = np.empty((self._count, len(self.numeric_names)), dtype=dtype)
        for view in self._views:
            for block in view.plan.blocks:
                target = matrix[:, block.target : block.target + block.width]
                target[:] = view.rows.block(block.first, block.width)
            if view.rows.any_null():
                _blank_integers(matrix, view, self.numeric_names)
        for name in self._computed:
            if name in self.numeric_names:
                matrix[:, self.numeric_names.index(name)] = self.column(name)
        return matrix

    def arrow(self, name: str) -> pa.Array:
        """Return a feature as an Arrow array (n,); null where null or missing.

        Raises
        ------
        RequestError
            If the feature was not read.
        """
        if name in self._computed:
            return self._computed[name]
        array = self.arrow_distinct(name)
        return array if len(array) == self._count else array.take(self._shared)

    def arrow_distinct(self, name: str) -> pa.Array:
        """As :meth:`arrow`, but one value where all entities share one row.

        Raises
        ------
        RequestError
            If the feature was not read, or is computed at the request.
        """
        view, read = self._source(name)
        return view.arrow(read.column)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a feature as a numpy array.

        Returns
        -------
        numpy.ndarray
            - floating point: (n,), NaN where null
            - integers, bool: (n,) in their own dtype, or float64 with NaN if some are null
            - strings, bytes and everything Arrow has no type for: (n,) objects, None where
              null
            - timestamps: (n,) datetime64[us] UTC, NaT where null
            - lists of numbers: (n, d) if all lists have d elements, floating point with NaN
              for null ones; otherwise (n,) objects

        Raises
        ------
        RequestError
            If the feature was not read.
        """
        if name in self._sources:
            view, read = self._source(name)
            if _is_plain(read.column):
                cells = _plain_cells(view.rows, read.column)
                return cells if len(cells) == self._count else np.broadcast_to(cells, self._count)
        return _to_numpy(self.arrow(name))

    def column_distinct(self, name: str) -> npt.NDArray[Any]:
        """As :meth:`column`, but one value where all entities share one row.

        Raises
        ------
        RequestError
            If the feature was not read, or is computed at the request.
        """
        view, read = self._source(name)
        if _is_plain(read.column):
            return _plain_cells(view.rows, read.column)
        return _to_numpy(view.arrow(read.column))

    def statuses(self, name: str) -> npt.NDArray[np.uint8]:
        """Return Feast's ``FieldStatus`` of a feature for each entity, uint8 (n,).

        PRESENT if the entity has a row (the value may still be null), NOT_FOUND if not,
        OUTSIDE_MAX_AGE if it has one that is older than the view's ttl and Redis has not
        dropped it yet. Outputs of on-demand views are always PRESENT, as in Feast.
        """
        if name in self._computed:
            return np.full(self._count, PRESENT, dtype=np.uint8)
        view, _ = self._source(name)
        status = np.where(view.rows.found, PRESENT, NOT_FOUND).astype(np.uint8)
        if view.answer.expired is not None:
            status[view.answer.expired] = OUTSIDE_MAX_AGE
        return status if len(status) == self._count else np.repeat(status, self._count)

    def event_times(self, name: str) -> npt.NDArray[np.datetime64]:
        """Return when a feature's values became known: datetime64[us] UTC (n,), NaT if never."""
        if name in self._computed:
            return np.full(self._count, np.datetime64("NaT"), dtype="datetime64[us]")
        view, _ = self._source(name)
        # NO_TIME is what numpy takes for NaT
        times = np.ascontiguousarray(view.rows.event_us).view("datetime64[us]")
        return times if len(times) == self._count else np.repeat(times, self._count)

    def to_arrow(self) -> pa.Table:
        """Return join keys and features as an Arrow table of n rows."""
        columns = dict(self.entities)
        columns.update({name: self.arrow(name) for name in self.names})
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """Return join keys and features as a pandas frame of n rows."""
        columns: dict[str, Any] = {name: _to_numpy(a) for name, a in self.entities.items()}
        for name in self.names:
            values = self.column(name)
            columns[name] = values if values.ndim == 1 else _to_objects(self.arrow(name))
        return pd.DataFrame(columns, copy=False)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return join keys and features as lists of Python values, as Feast's to_dict does."""
        result: dict[str, list[Any]] = {n: a.to_pylist() for n, a in self.entities.items()}
        for name in self.names:
            if name in self._computed:
                result[name] = self._computed[name].to_pylist()
                continue
            view, read = self._source(name)
            values = to_python(view.rows, read.column.name)
            result[name] = values if len(values) == self._count else values * self._count
        return result

    @cached_property
    def _shared(self) -> pa.Array:
        return pa.array(np.zeros(self._count, dtype=np.int32))

    def _source(self, name: str) -> tuple[ViewRows, FeatureRead]:
        found = self._sources.get(name)
        if found is None:
            raise RequestError(f"no feature {name} in this result; it has {', '.join(self.names)}")
        return found


def _is_plain(column: Column) -> bool:
    return column.storage.kind is Kind.FIXED and column.value_type != "UNIX_TIMESTAMP"


def _plain_cells(rows: Rows, column: Column) -> npt.NDArray[Any]:
    cells = rows.cells(column.name)
    cells = cells.view(np.bool_) if column.value_type == "BOOL" else cells
    if cells.dtype.kind != "f":
        nulls = rows.nulls(column.name)
        cells = np.where(nulls, np.nan, cells) if nulls.any() else cells
    return cells


def _blank_integers(
    matrix: npt.NDArray[Any], view: ViewRows, numeric_names: tuple[str, ...]
) -> None:
    """Put NaN where integer and bool cells are null; floating-point cells hold it already."""
    for column, output in view.plan.features:
        is_integer = column.storage.kind is Kind.FIXED and "f" not in column.storage.dtype
        if is_integer and output in numeric_names:
            nulls = view.rows.nulls(column.name)
            where = nulls if len(nulls) == len(matrix) else np.repeat(nulls, len(matrix))
            matrix[where, numeric_names.index(output)] = np.nan


def _to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    kind = array.type
    if pa.types.is_string(kind):
        texts: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return texts
    if pa.types.is_timestamp(kind):
        naive = array.cast(pa.timestamp("us"))
        return np.asarray(naive.to_numpy(zero_copy_only=False), dtype="datetime64[us]")
    if pa.types.is_list(kind) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        return _lists_to_numpy(array)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _to_objects(array: pa.Array) -> npt.NDArray[np.object_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=object)


def _lists_to_numpy(array: pa.ListArray) -> npt.NDArray[Any]:
    lengths = pc.list_value_length(array)
    widths = pc.unique(lengths.drop_null()).to_pylist()
    elements = array.flatten().to_numpy(zero_copy_only=False)
    if array.null_count == 0 and len(widths) == 1:
        return np.asarray(elements.reshape(len(array), widths[0]))
    width = widths[0] if widths else 0
    if len(widths) <= 1 and pa.types.is_floating(array.type.value_type):
        result = np.full((len(array), width), np.nan, dtype=elements.dtype)
        if widths:
            valid = array.is_valid().to_numpy(zero_copy_only=False)
            result[valid] = elements.reshape(-1, width)
        return result
    return _to_objects(array)

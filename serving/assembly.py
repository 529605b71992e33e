"""From what Redis holds to the ranker's matrix, without a table and without pandas in between.

`serving.inputs` makes the same matrix from a table of Feast's feature service, for training and
for everything that wants to look at columns. A request cannot wait for that: its rows go from
packed bytes to the matrix in blocks, and request-time features are computed from numpy arrays by
the very function that Feast's on-demand view calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feastpack import FeatureReader
from feastpack.frame import Frame
from feastpack.plan import Plan
from feastpack.reader import Begun
from feature_repo.definitions import views
from feature_repo.transforms import STORED_INPUTS, request_features
from serving.errors import NotAssembledError
from serving.inputs import InputEncoder

Matrix = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Values:
    """The inputs of n posts, not rounded.

    Attributes
    ----------
    numbers
        float64 (n, inputs) in the contract's order, NaN for null and for texts.
    texts
        Arrow strings (n,) of the inputs that are texts, null for null.
    """

    numbers: NDArray[np.float64]
    texts: Mapping[str, pa.Array]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The ranker's inputs of n posts.

    Attributes
    ----------
    matrix
        float32 (n, inputs), NaN for null and for categories never seen.
    make_table
        Makes `table`.
    event_times
        Returns since when an input's values hold: datetime64[us] (n,), NaT for computed ones.
    make_values
        Makes `values` without a table.
    """

    matrix: Matrix
    make_table: Callable[[], pa.Table]
    event_times: Callable[[str], NDArray[np.datetime64]]
    make_values: Callable[[], Values] | None = None

    @cached_property
    def table(self) -> pa.Table:
        """The same as columns with their own types, made when first asked for."""
        return self.make_table()

    def values(self, names: Sequence[str]) -> Values:
        """Return the same unrounded, as it is logged: cheaper than columns.

        Parameters
        ----------
        names
            The contract's inputs, in its order.
        """
        if self.make_values is not None:
            return self.make_values()
        numbers = np.full((len(self.matrix), len(names)), np.nan)
        texts = {}
        for place, name in enumerate(names):
            column = self.table[name]
            if pa.types.is_string(column.type):
                texts[name] = column.combine_chunks()
            else:
                numbers[:, place] = column.cast(pa.float64()).to_numpy()
        return Values(numbers, texts)


class Assembler:
    """Reads the ranker's inputs of requests.

    Parameters
    ----------
    reader
        With dtype float32.
    encoder
        The contract and its categories.

    Attributes
    ----------
    features
        What is read, for `feastpack.FeatureReader.begin`.

    Raises
    ------
    NotAssembledError
        If the inputs cannot be assembled here, so that `serving.inputs` has to do it.
    """

    def __init__(self, reader: FeatureReader, encoder: InputEncoder) -> None:
        self._reader = reader
        names = encoder.contract.names
        plan = reader.prepare(encoder.contract.service)
        self._check(plan)
        self._computed = tuple(n for one in plan.on_demand for n in one.outputs if n in names)
        needed = {n for one in plan.on_demand for n in one.inputs} & STORED_INPUTS
        self._request_inputs = sorted(needed)
        # In the order of the rows, so that neighbours are copied as blocks.
        self.features = [
            f"{view.name}:{read.column.name}" for view in plan.views for read in view.features
        ]
        stored = reader.prepare(self.features)
        self._categories = {
            name: _Category(encoder.categories[name])
            for name in names
            if name in encoder.categories
        }
        assembled = [*stored.numeric_names, *self._computed, *self._categories]
        missing = [name for name in names if name not in assembled]
        if missing:
            raise NotAssembledError(f"{missing[0]} is neither a number nor a text")
        self._order = np.array([assembled.index(name) for name in names])
        self._names = names

    def _check(self, plan: Plan) -> None:
        expected = inspect.getsource(views.request_features).strip()
        for one in plan.on_demand:
            if str(one.view.feature_transformation.udf_string).strip() != expected:
                raise NotAssembledError(f"on-demand view {one.view.name} is not our own")

    def read(
        self, entities: Mapping[str, Any], request: Mapping[str, Any], begun: Begun | None
    ) -> Inputs:
        """Return the inputs.

        Parameters
        ----------
        entities
            By join key, one value or an array of n.
        request
            ``request_unix_time_s`` and each source's scores and ranks: arrays of n.
        begun
            What `feastpack.FeatureReader.begin` returned for `features`.

        Raises
        ------
        feastpack.errors.FeastpackError
            As of `feastpack.FeatureReader.read`.
        """
        frame = self._reader.read(self.features, entities, begun=begun)
        known = {name: frame.column_distinct(name) for name in self._request_inputs}
        computed = request_features({**request, **known})
        codes = {
            name: category.codes(frame.arrow_distinct(name))
            for name, category in self._categories.items()
        }
        count = len(frame)

        def event_times(name: str) -> NDArray[np.datetime64]:
            if name in self._computed:
                return np.full(count, np.datetime64("NaT"), "datetime64[us]")
            times: NDArray[np.datetime64] = frame.event_times(name)
            return times

        return Inputs(
            self._laid_out(frame.matrix, computed, codes),
            lambda: self._table(frame, computed),
            event_times,
            lambda: self._values(frame, computed),
        )

    def _laid_out(
        self,
        stored: NDArray[Any],
        computed: Mapping[str, NDArray[np.float64]],
        codes: Mapping[str, NDArray[np.float32]],
    ) -> NDArray[Any]:
        """Return all inputs in the contract's order; categories without codes are NaN."""
        count, width = stored.shape
        columns = width + len(self._computed) + len(self._categories)
        matrix = np.empty((count, columns), stored.dtype)
        matrix[:, :width] = stored
        for place, name in enumerate(self._computed, width):
            matrix[:, place] = computed[name]
        for place, name in enumerate(self._categories, width + len(self._computed)):
            matrix[:, place] = codes.get(name, np.nan)
        return np.take(matrix, self._order, axis=1)

    def _values(self, frame: Frame, computed: Mapping[str, NDArray[np.float64]]) -> Values:
        numbers = self._laid_out(frame.as_matrix(np.float64), computed, {})
        return Values(numbers, {name: frame.arrow(name) for name in self._categories})

    def _table(self, frame: Frame, computed: Mapping[str, NDArray[np.float64]]) -> pa.Table:
        columns = dict(frame.entities)
        for name in self._names:
            if name in self._computed:
                values = np.broadcast_to(computed[name], len(frame))
                columns[name] = pa.array(values, from_pandas=True)
            else:
                columns[name] = frame.arrow(name)
        return pa.table(columns)


class _Category:
    """Texts to codes."""

    def __init__(self, values: Sequence[str]) -> None:
        self._codes = {value: float(code) for code, value in enumerate(values)}
        self._values = pa.array(values, pa.string())

    def codes(self, texts: pa.Array) -> NDArray[np.float32]:
        """Return float32 of as many values as there are texts; NaN for unknown ones and null."""
        if len(texts) == 1:
            return np.array([self._codes.get(texts[0].as_py(), np.nan)], np.float32)
        found = pc.index_in(texts, self._values).cast(pa.float32(), safe=False)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.float32)

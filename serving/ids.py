"""The source's ids and the dense ids that everything inside works with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray


class IdMap:
    """The source's ids to dense ids, by binary search in Arrow memory.

    Parameters
    ----------
    external
        Distinct strings in ascending order of their UTF-8 bytes.
    dense
        int64, aligned.
    """

    def __init__(self, external: pa.StringArray, dense: NDArray[np.int64]) -> None:
        self._external = external
        self._dense = dense

    @classmethod
    def read(cls, path: Path, column: str) -> "IdMap":
        """Read the columns ``external_id`` and ``column`` of a parquet file."""
        table = pq.read_table(path, columns=["external_id", column]).sort_by("external_id")
        return cls(table["external_id"].combine_chunks(), table[column].to_numpy())

    def first(self, count: int) -> list[str]:
        """Return up to ``count`` of the source's ids, those that sort first."""
        ids: list[str] = self._external[:count].to_pylist()
        return ids

    def find(self, external: str) -> int | None:
        """Return the dense id; None if there is none."""
        position = pc.search_sorted(self._external, external).as_py()
        if position == len(self._external) or self._external[position].as_py() != external:
            return None
        return int(self._dense[position])

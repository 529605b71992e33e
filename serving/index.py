"""An approximate index over post vectors: nearest by dot product or by direction.

The graph is faiss' HNSW (docs/decisions/0005-index-of-posts.md). It is opened memory-mapped:
several workers share one copy, and opening takes no time however many posts there are.
"""

from pathlib import Path
from typing import Any, Literal, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.errors import IndexUnavailableError

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Metric = Literal["ip", "cos"]

_LINKS, _BUILD_EFFORT, _SEARCH_EFFORT = 16, 128, 256
# Several threads link a graph in no fixed order, so small ones, which are fast enough, are built
# by one: their files are the same whenever their vectors are.
_THREADED_FROM = 100_000


class VectorIndex:
    """An opened index; answers with rows of the matrix that it was built from.

    Safe to use from several threads.
    """

    def __init__(self, index: Any, metric: Metric) -> None:
        self._index = index
        self._metric = metric
        self._effort = faiss.SearchParametersHNSW(efSearch=_SEARCH_EFFORT)  # type: ignore[attr-defined]

    @classmethod
    def open(cls, path: Path, vectors: tuple[int, int], metric: Metric) -> Self:
        """Map a file that `write_index` wrote; whether it is whole must be known before.

        Parameters
        ----------
        vectors
            Shape of the matrix that it was built from.

        Raises
        ------
        IndexUnavailableError
            If there is no such file, or it holds something else.
        """
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise IndexUnavailableError(f"{path}: cannot be opened ({error})") from error
        if (index.ntotal, index.d) != vectors:
            raise IndexUnavailableError(
                f"{path}: holds {index.ntotal} vectors of {index.d} dimensions, expected "
                f"{vectors[0]} of {vectors[1]}; publish again"
            )
        return cls(index, metric)

    def search(self, vector: Floats, k: int) -> Rows:
        """Return the rows of up to `k` nearest vectors, int64, nearest first."""
        query = _unit(vector[None]) if self._metric == "cos" else vector[None]
        # One query is answered by one thread.
        _, rows = self._index.search(np.ascontiguousarray(query), k, params=self._effort)
        found: Rows = rows[0][rows[0] >= 0]
        return found


def write_index(path: Path, vectors: Floats, metric: Metric) -> None:
    """Build an index and write it to one file.

    Parameters
    ----------
    vectors
        float32 (n, dimensions).
    metric
        ``ip``: the largest dot product is nearest; ``cos``: the smallest angle.
    """
    index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_EFFORT
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads if len(vectors) >= _THREADED_FROM else 1)
    try:
        index.add(np.ascontiguousarray(_unit(vectors) if metric == "cos" else vectors))
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(path))


def _unit(vectors: Floats) -> Floats:
    """Return vectors of length 1; those without a direction stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def exact_search(vectors: Floats, vector: Floats, k: int, metric: Metric) -> Rows:
    """Return what `VectorIndex.search` approximates; ties are settled by row."""
    scores = vectors @ vector
    if metric == "cos":
        lengths = np.linalg.norm(vectors, axis=1)
        scores = np.divide(scores, lengths, out=np.full_like(scores, -np.inf), where=lengths > 0)
    kept = min(k, int(np.isfinite(scores).sum()))
    if kept < len(scores):
        # All that tie with the last one kept, so that the row can settle it.
        least = np.partition(scores, len(scores) - kept)[len(scores) - kept] if kept else np.inf
        rows = np.flatnonzero(scores >= least)
    else:
        rows = np.arange(len(scores))
    return rows[np.lexsort((rows, -scores[rows]))][:kept]


def recall(
    index: VectorIndex, vectors: Floats, queries: Floats, metric: Metric, k: int = 10
) -> float:
    """Return which share of the exact `k` nearest vectors the index finds, on average."""
    shares = []
    for query in queries:
        exact = exact_search(vectors, query, k, metric)
        shares.append(np.isin(exact, index.search(query, k)).mean() if len(exact) else 1.0)
    return float(np.mean(shares))

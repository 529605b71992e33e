"""Exact top-k of a score matrix too large to hold: batched, memory-bounded, tie-stable.

`top_k` takes dense scores and looks at every column; `sparse_top_k` takes the entries that there
are, so what a row costs does not grow with the columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.errors import GeneratorError

Scorer = Callable[[slice], NDArray[np.float32]]
SparseScorer = Callable[[slice], csr_matrix]
DEFAULT_BLOCK_BYTES = 64 * 2**20
DEFAULT_BLOCK_ROWS = 1024
_NOT_A_NUMBER = (
    "top-k: found NaN among the scores, expected numbers; the model did not converge "
    "or its weights overflowed: raise its regularization or check the events' weights"
)


@dataclass(frozen=True, eq=False)
class TopK:
    """The best columns of each row, ordered by row, then rank.

    Attributes
    ----------
    rows : int64[n]
    columns : int64[n]
    scores : float32[n]
    ranks : int32[n]
        From 1; ordered by score descending, then column ascending.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int32]


def top_k(
    score: Scorer,
    shape: tuple[int, int],
    k: int,
    *,
    masked: csr_matrix | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    threads: int | None = None,
) -> TopK:
    """Return the `k` best columns of each row, exactly.

    Ties go to the lower column, so the answer depends neither on the batches nor on threads.

    Parameters
    ----------
    score
        Given a slice of rows, returns their scores as a float32 array (rows, columns) that may
        be overwritten. ``-inf`` means the column is not proposed. Called from several threads.
    shape
        Rows and columns of the whole score matrix.
    k
        At least 1; a row with fewer proposed columns gets fewer.
    masked
        Rows by columns; stored entries are never returned.
    block_bytes
        Bound on one block of scores; with many ties a thread holds about eight times as much.
    threads
        Blocks worked on at once; None: the cores this process may use.

    Raises
    ------
    GeneratorError
        `k` below 1, or a score that is NaN.
    """
    _require_positive(k)
    n_rows, n_columns = shape
    if n_rows == 0 or n_columns == 0:
        return _concatenate([])
    block_rows = max(1, block_bytes // (4 * n_columns))

    def select(start: int) -> TopK:
        rows = slice(start, min(start + block_rows, n_rows))
        scores = score(rows)
        if masked is not None:
            part = masked[rows]
            scores[
                np.repeat(np.arange(part.shape[0]), np.diff(part.indptr)), part.indices
            ] = -np.inf
        return _select_block(scores, min(k, n_columns), start)

    return _of_all_blocks(select, range(0, n_rows, block_rows), threads)


def sparse_top_k(
    score: SparseScorer,
    n_rows: int,
    k: int,
    *,
    masked: csr_matrix | None = None,
    block_rows: int = DEFAULT_BLOCK_ROWS,
    threads: int | None = None,
) -> TopK:
    """Return the `k` largest entries above 0 of each row, as `top_k` orders them.

    Parameters
    ----------
    score
        Given a slice of rows, returns their scores as a float32 csr matrix without repeated
        places. Called from several threads.
    masked, threads
        As of `top_k`.
    block_rows
        Rows whose entries are held at once.

    Raises
    ------
    GeneratorError
        `k` below 1, or a score that is NaN.
    """
    _require_positive(k)

    def select(start: int) -> TopK:
        rows = slice(start, min(start + block_rows, n_rows))
        scores = score(rows)
        if masked is not None:
            # What is taken from itself leaves no entry.
            scores = scores - scores.multiply(masked[rows])
        return _select_entries(scores, k, start)

    return _of_all_blocks(select, range(0, n_rows, block_rows), threads)


def _require_positive(k: int) -> None:
    if k < 1:
        raise GeneratorError(f"top-k: found k = {k}, expected at least 1")


def _of_all_blocks(select: Callable[[int], TopK], starts: range, threads: int | None) -> TopK:
    """Select from the blocks that begin at some rows, side by side."""
    workers = min(len(starts), threads or len(os.sched_getaffinity(0)))
    # One BLAS thread: the pool already fills the cores, and a product split differently
    # would round differently.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        if workers <= 1:
            return _concatenate(list(map(select, starts)))
        with ThreadPoolExecutor(workers) as pool:
            return _concatenate(list(pool.map(select, starts)))


def _select_entries(scores: csr_matrix, k: int, first_row: int) -> TopK:
    """Select from the entries of one block."""
    if np.isnan(scores.data).any():
        raise GeneratorError(_NOT_A_NUMBER)
    counts = np.diff(scores.indptr)
    kept = scores.data > 0
    if counts.max(initial=0) > k:
        # The entries of a row side by side: among them is its k-th largest.
        is_entry = np.arange(counts.max()) < counts[:, None]
        compact = np.full(is_entry.shape, -np.inf, dtype=np.float32)
        compact[is_entry] = scores.data
        kept &= (compact >= _kth_largest(compact, k))[is_entry]
    rows = np.repeat(np.arange(len(counts)), counts)[kept]
    columns, found = scores.indices[kept].astype(np.int64), scores.data[kept]
    order = np.lexsort((columns, -found, rows))
    return _first_k(rows[order], columns[order], found[order], k, first_row)


def _select_block(scores: NDArray[np.float32], k: int, first_row: int) -> TopK:
    """Select from one block; `k` is at most its number of columns."""
    rows, columns = _reaching_kth(scores, k)
    found = scores[rows, columns]
    # Stable, and columns ascend within a row already: ties stay in column order.
    order = np.lexsort((-found, rows))
    return _first_k(rows[order], columns[order], found[order], k, first_row)


def _first_k(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    found: NDArray[np.float32],
    k: int,
    first_row: int,
) -> TopK:
    """Keep the first `k` of each row; rows ascend, and the best comes first in each."""
    counts = np.bincount(rows)
    starts = np.cumsum(counts) - counts
    ranks = np.arange(len(rows)) - starts[rows] + 1
    kept = ranks <= k
    return TopK(rows[kept] + first_row, columns[kept], found[kept], ranks[kept].astype(np.int32))


def _reaching_kth(
    scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places, in row-major order, of the `k` best of each row and of a few others."""
    n_columns = scores.shape[1]
    bound = _lower_bound(scores, k)
    kept: NDArray[np.bool_] = scores >= bound
    if (bound == -np.inf).any():
        kept &= scores > -np.inf
    # One-dimensional, because numpy finds those several times faster.
    places = np.flatnonzero(kept)
    counts = np.diff(np.searchsorted(places, np.arange(len(scores) + 1) * n_columns))
    crowded = np.flatnonzero(counts > 4 * k)
    if len(crowded):
        kept[crowded] = _exactly_k(scores[crowded], k)
        places = np.flatnonzero(kept)
    return np.divmod(places, n_columns)


def _exactly_k(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Mark the `k` best of each row, ties at the end of the list in the lowest columns."""
    kth = _kth_largest(scores, k)
    above = scores > kth
    tied = (scores == kth) & (kth > -np.inf)
    room = k - above.sum(axis=1, keepdims=True)
    kept: NDArray[np.bool_] = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= room))
    return kept


def _lower_bound(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return a value a row, (rows, 1), that at least `k` of its scores reach.

    The k-th largest of the maxima of slices of the row is one, and takes one pass, where
    selecting among all columns takes several.
    """
    n_rows, n_columns = scores.shape
    width = n_columns // (8 * k)
    if width < 16:
        maxima = scores
    else:
        whole = n_columns // width * width
        maxima = scores[:, :whole].reshape(n_rows, -1, width).max(axis=2)
        if whole < n_columns:
            maxima = np.column_stack([maxima, scores[:, whole:].max(axis=1)])
    # Maxima carry a NaN on.
    if np.isnan(maxima.max(axis=1)).any():
        raise GeneratorError(_NOT_A_NUMBER)
    return _kth_largest(maxima, k)


def _kth_largest(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    place = values.shape[1] - k
    return np.partition(values, place, axis=1)[:, place, None]


def _concatenate(parts: list[TopK]) -> TopK:
    if not parts:
        empty = np.empty(0, dtype=np.int64)
        return TopK(empty, empty, empty.astype(np.float32), empty.astype(np.int32))
    return TopK(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.ranks for part in parts]),
    )

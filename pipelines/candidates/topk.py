"""Exact top-k of a score matrix too large to hold: batched, memory-bounded, tie-stable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.errors import GeneratorError

Scorer = Callable[[slice], NDArray[np.float32]]
DEFAULT_BLOCK_BYTES = 32 * 2**20


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
        Bound on one block of scores. A thread holds about four times as much while it selects.
    threads
        Blocks worked on at once; None: the cores this process may use.

    Raises
    ------
    GeneratorError
        `k` below 1, or a score that is NaN.
    """
    if k < 1:
        raise GeneratorError(f"top-k: found k = {k}, expected at least 1")
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

    starts = range(0, n_rows, block_rows)
    workers = min(len(starts), threads or len(os.sched_getaffinity(0)))
    # One BLAS thread: the pool already fills the cores, and a product split differently
    # would round differently.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        if workers == 1:
            return _concatenate(list(map(select, starts)))
        with ThreadPoolExecutor(workers) as pool:
            return _concatenate(list(pool.map(select, starts)))


def _select_block(scores: NDArray[np.float32], k: int, first_row: int) -> TopK:
    """Select from one block; `k` is at most its number of columns."""
    kept = _at_least_kth(scores, k)
    kept &= scores > -np.inf
    rows, columns = np.nonzero(kept)
    found = scores[rows, columns]
    # Stable, and columns ascend within a row already: ties stay in column order.
    order = np.lexsort((-found, rows))
    rows = rows[order]
    counts = np.bincount(rows, minlength=len(scores))
    starts = np.cumsum(counts) - counts
    ranks = np.arange(len(rows)) - starts[rows] + 1
    return TopK(rows + first_row, columns[order], found[order], ranks.astype(np.int32))


def _at_least_kth(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Return exactly `k` True a row: the best, ties at the boundary to the lowest columns."""
    n_columns = scores.shape[1]
    kth = np.partition(scores, n_columns - k, axis=1)[:, n_columns - k, None]
    # NaN sorts last, as the largest, so a NaN anywhere shows in the row's maximum.
    if np.isnan(scores.max(axis=1)).any():
        raise GeneratorError(
            "top-k: found NaN among the scores, expected numbers; the model did not converge "
            "or its weights overflowed: raise its regularization or check the events' weights"
        )
    kept: NDArray[np.bool_] = scores >= kth
    crowded = np.nonzero(kept.sum(axis=1) > k)[0]
    for part in _pieces(crowded, 256):
        above = scores[part] > kth[part]
        tied = scores[part] == kth[part]
        room = k - above.sum(axis=1, keepdims=True)
        kept[part] = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= room))
    return kept


def _pieces(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


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

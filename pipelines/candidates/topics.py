"""Posts by topics as a sparse matrix, and the few distinct rows that it has."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Ids, positions
from pipelines.errors import GeneratorError


def topic_matrix(posts: pa.Table | None, post_ids: Ids) -> tuple[csr_matrix, list[str]]:
    """Return which topics each post has.

    Parameters
    ----------
    posts
        ``post_id`` int64 and ``topics`` list<string>, any order, one row a post.
    post_ids
        int64[n_posts], ascending; posts not in the table have no topic.

    Returns
    -------
    matrix : float64 csr (n_posts, n_topics)
        1 where the post has the topic.
    names : list of str
        The topics, sorted: the matrix's columns.

    Raises
    ------
    GeneratorError
        There is no such table, or it lacks one of the columns.
    """
    if posts is None or not {"post_id", "topics"} <= set(posts.column_names):
        raise GeneratorError(
            "topics: expected a table of posts with the columns post_id and topics, found "
            f"{'none' if posts is None else posts.column_names}; pass it as posts="
        )
    lists = posts["topics"].combine_chunks()
    ids = np.asarray(posts["post_id"])
    owner = positions(ids, post_ids)[np.asarray(pc.list_parent_indices(lists))]
    flat = pc.list_flatten(lists)
    names = sorted(set(flat.to_pylist()) - {None})
    column = np.asarray(pc.index_in(flat, pa.array(names, pa.string())).fill_null(-1))
    known = (owner >= 0) & (column >= 0)
    matrix = csr_matrix(
        (np.ones(int(known.sum())), (owner[known], column[known])),
        shape=(len(post_ids), len(names)),
    )
    matrix.data[:] = 1.0  # a topic named twice counts once
    return matrix, names


def distinct_rows(matrix: csr_matrix) -> tuple[csr_matrix, NDArray[np.int64]]:
    """Return the distinct rows, and for each row of `matrix` which of them it is."""
    canonical = matrix.copy()
    canonical.sum_duplicates()
    keys = [
        canonical.indices[start:end].tobytes() + canonical.data[start:end].tobytes()
        for start, end in zip(canonical.indptr[:-1], canonical.indptr[1:], strict=True)
    ]
    place: dict[bytes, int] = {}
    which = np.asarray([place.setdefault(key, len(place)) for key in keys], dtype=np.int64)
    _, first = np.unique(which, return_index=True)
    return canonical[first], which

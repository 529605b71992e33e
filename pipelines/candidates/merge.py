"""One table of candidates out of many generators' lists; nothing proposed is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.candidates.groups import Groups
from pipelines.candidates.protocol import CANDIDATES
from pipelines.errors import GeneratorError

RRF_OFFSET = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""


def merge_candidates(tables: Sequence[pa.Table], k_per_user: int | None = None) -> pa.Table:
    """Join the lists of several generators side by side.

    Parameters
    ----------
    tables
        `CANDIDATES` of each source, one source a table. One without rows still gets its
        columns: generators name themselves in the schema's metadata too.
    k_per_user
        Keep this many posts of each user, by fused score; None: all.

    Returns
    -------
    pyarrow.Table
        Grain: one row per (user, post) that any source proposed, ordered by ``user_id``, then
        ``rrf_score`` descending, then ``post_id``. Columns: ``user_id``, ``post_id`` int64; for
        each source ``<source>_score`` float32 and ``<source>_rank`` int32, null where that
        source did not propose the post; ``rrf_score`` float32, never null: the sum over sources
        of 1 / (60 + rank).

    Raises
    ------
    GeneratorError
        No tables, two of one source, a (user, post) twice in one table, or `k_per_user` below 1.
    """
    names = [_source(table) for table in tables]
    if not names or len(set(names)) < len(names):
        raise GeneratorError(
            f"merge: found sources {names}, expected at least one and each once; "
            "concatenate a source's parts first"
        )
    users = np.concatenate([np.asarray(table["user_id"]) for table in tables])
    posts = np.concatenate([np.asarray(table["post_id"]) for table in tables])
    order = np.lexsort((posts, users))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(users[order]) != 0) | (np.diff(posts[order]) != 0)
    pair = np.empty(len(order), dtype=np.int64)
    pair[order] = np.cumsum(new) - 1
    pair_users, pair_posts = users[order[new]], posts[order[new]]

    columns: dict[str, pa.Array] = {}
    fused = np.zeros(len(pair_users))
    bounds = np.cumsum([0, *(table.num_rows for table in tables)])
    for name, table, start, end in zip(names, tables, bounds[:-1], bounds[1:], strict=True):
        mine = pair[start:end]
        ranks = np.asarray(table["rank"])
        _check_once(mine, name, pair_users, pair_posts)
        columns[f"{name}_score"] = _spread(np.asarray(table["score"]), mine, len(pair_users))
        columns[f"{name}_rank"] = _spread(ranks, mine, len(pair_users))
        fused[mine] += 1.0 / (RRF_OFFSET + ranks)
    # Rounded before it orders anything, so that the order of the tables cannot matter.
    columns["rrf_score"] = pa.array(fused.astype(np.float32))
    merged = pa.table({"user_id": pair_users, "post_id": pair_posts, **columns})
    return _best_first(merged, k_per_user)


def reciprocal_rank_fusion(merged: pa.Table, k: int) -> pa.Table:
    """Return each user's `k` best of `merge_candidates`'s output as `CANDIDATES`, source ``rrf``.

    The baseline that a learnt ranker has to beat.
    """
    best = _best_first(merged, k)
    users = np.asarray(best["user_id"])
    return pa.table(
        {
            "user_id": users,
            "post_id": best["post_id"],
            "score": best["rrf_score"],
            "rank": (Groups.of(users).places() + 1).astype(np.int32),
            "source": pa.repeat("rrf", len(users)),
        },
        schema=CANDIDATES,
    )


def _source(table: pa.Table) -> str:
    missing = [name for name in CANDIDATES.names if name not in table.column_names]
    if missing:
        raise GeneratorError(
            f"merge: found columns {table.column_names}, expected also {missing}; "
            "pass what a generator's recommend returns"
        )
    named = (table.schema.metadata or {}).get(b"source")
    sources = pc.unique(table["source"]).to_pylist() or ([named.decode()] if named else [])
    if len(sources) != 1:
        raise GeneratorError(
            f"merge: found sources {sources} in one table of {table.num_rows:,} rows, expected "
            "exactly one; split the table, or keep an empty one's schema metadata"
        )
    return str(sources[0])


def _check_once(
    pairs: NDArray[np.int64], name: str, users: NDArray[np.int64], posts: NDArray[np.int64]
) -> None:
    counts = np.bincount(pairs, minlength=1)
    if counts.max() > 1:
        first = int(np.argmax(counts > 1))
        raise GeneratorError(
            f"merge: {int((counts > 1).sum()):,} pairs occur more than once in source {name!r} "
            f"(first: user {users[first]}, post {posts[first]}); a generator proposes a post once"
        )


def _spread(values: NDArray[np.generic], places: NDArray[np.int64], length: int) -> pa.Array:
    """Put values at their places in a column of `length`, null elsewhere."""
    full = np.zeros(length, dtype=values.dtype)
    absent = np.ones(length, dtype=bool)
    full[places] = values
    absent[places] = False
    return pa.array(full, mask=absent)


def _best_first(merged: pa.Table, k: int | None) -> pa.Table:
    if k is not None and k < 1:
        raise GeneratorError(f"merge: found k = {k}, expected at least 1")
    users, posts = np.asarray(merged["user_id"]), np.asarray(merged["post_id"])
    order = np.lexsort((posts, -np.asarray(merged["rrf_score"]), users))
    if k is not None:
        order = order[Groups.of(users[order]).places() < k]
    return merged.take(pa.array(order))

"""Rows of one user side by side: where groups begin, which pairs are hits, who is listed where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.candidates.interactions import Ids
from pipelines.candidates.protocol import CANDIDATES

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Groups:
    """Runs of rows with equal keys.

    Attributes
    ----------
    starts, sizes : int64[n_groups]
        First row and number of rows of each run, in order.
    """

    starts: Ids
    sizes: Ids

    @classmethod
    def of(cls, *keys: NDArray[Any]) -> Groups:
        """Find the runs; `keys` are columns of n rows, and rows of a group lie side by side."""
        rows = len(keys[0])
        begins = np.zeros(rows, dtype=bool)
        begins[:1] = True
        for key in keys:
            begins[1:] |= key[1:] != key[:-1]
        starts = np.flatnonzero(begins)
        return cls(starts, np.diff(np.append(starts, rows)))

    def spread(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """Repeat one value a group for each of its rows."""
        return np.repeat(per_group, self.sizes)

    def places(self) -> Ids:
        """Return each row's place in its group, from 0."""
        places: Ids = np.arange(int(self.sizes.sum())) - self.spread(self.starts)
        return places

    def having(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return for each group whether any of its rows is marked."""
        if not len(self.starts):
            return np.zeros(0, dtype=bool)
        found: NDArray[np.bool_] = np.logical_or.reduceat(marked, self.starts)
        return found


def are_among(users: Ids, posts: Ids, pairs: pa.Table) -> NDArray[np.bool_]:
    """Mark the (user, post) rows that are among `pairs` (``user_id``, ``post_id``)."""
    their_users, their_posts = np.asarray(pairs["user_id"]), np.asarray(pairs["post_id"])
    width = int(max(posts.max(initial=0), their_posts.max(initial=0))) + 1
    marked: NDArray[np.bool_] = np.isin(users * width + posts, their_users * width + their_posts)
    return marked


def ranked(
    users: Ids, posts: Ids, scores: NDArray[Any], *, source: str, k: int | None = None
) -> pa.Table:
    """Order each user's posts by score, best first, as `CANDIDATES`.

    Ties are settled by post id, so that the order is the same everywhere.

    Parameters
    ----------
    users, posts, scores
        n rows in any order.
    source
        What the list is called.
    k
        Keep so many posts of each user; None: all.
    """
    order = np.lexsort((posts, -scores, users))
    rank = Groups.of(users[order]).places() + 1
    if k is not None:
        order, rank = order[rank <= k], rank[rank <= k]
    return pa.table(
        {
            "user_id": users[order],
            "post_id": posts[order],
            "score": scores[order].astype(np.float32),
            "rank": rank.astype(np.int32),
            "source": pa.repeat(source, len(order)),
        },
        schema=CANDIDATES,
    )


def standard_scores(groups: Groups, scores: Floats) -> Floats:
    """Return scores as z-scores within each group, so that several models can be averaged."""
    mean = np.add.reduceat(scores, groups.starts) / groups.sizes
    away = scores - groups.spread(mean)
    spread = np.sqrt(np.add.reduceat(away**2, groups.starts) / groups.sizes)
    scaled: Floats = away / groups.spread(np.maximum(spread, 1e-9))
    return scaled

"""Posts liked by the same people: neighbours of a post, and of a user's latest posts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.protocol import (
    SIMILAR_POSTS,
    Audience,
    Progress,
    csr_arrays,
    csr_from,
    fitted,
    load_state,
    save_state,
)
from pipelines.candidates.topk import sparse_top_k
from pipelines.errors import GeneratorError
from serving.openmp import ensure_openmp


@dataclass(frozen=True)
class ItemToItemSettings:
    """Settings of `ItemToItem`.

    Attributes
    ----------
    similarity
        ``cosine`` of the posts' columns of weights, or ``bm25``, which discounts active users.
    neighbours
        Kept for each post; at least 1.
    latest_posts
        How many of a user's last distinct positive posts are looked at; at least 1.
    half_life_posts
        After how many posts back a post counts half; above 0. None: all count the same.
    """

    similarity: Literal["cosine", "bm25"] = "cosine"
    neighbours: int = 300
    latest_posts: int = 20
    half_life_posts: float | None = 3.0

    def __post_init__(self) -> None:
        if self.similarity not in ("cosine", "bm25"):
            raise GeneratorError(
                f"item_to_item: found similarity {self.similarity!r}, expected 'cosine' or 'bm25'"
            )
        half_life = self.half_life_posts
        if (
            self.neighbours < 1
            or self.latest_posts < 1
            or (half_life is not None and half_life <= 0)
        ):
            raise GeneratorError(
                f"item_to_item: found {self}, expected neighbours and latest_posts of at least 1 "
                "and half_life_posts above 0 (or None)"
            )


class ItemToItem:
    """A user's score of a post is the decayed sum of its similarity to his latest posts."""

    name: ClassVar[str] = "item_to_item"
    serves_cold_users: ClassVar[bool] = False

    def __init__(self, settings: ItemToItemSettings | None = None) -> None:
        self.settings = settings or ItemToItemSettings()
        self._audience: Audience | None = None
        self._neighbours: csr_matrix | None = None
        self._latest: csr_matrix | None = None

    @property
    def post_ids(self) -> Ids:
        """The posts of `neighbours`, int64, ascending."""
        return fitted(self._audience, self.name).post_ids

    @property
    def neighbours(self) -> csr_matrix:
        """Similarities, float32 csr (n_posts, n_posts), at most ``neighbours`` in a row."""
        return fitted(self._neighbours, self.name)

    def fit(self, interactions: Interactions, *, progress: Progress | None = None) -> Self:
        """Find each post's neighbours and each user's latest posts."""
        self._neighbours = self._similarities(interactions.matrix)
        if progress:
            progress(0.9)
        self._latest = _latest_posts(
            interactions, self.settings.latest_posts, self.settings.half_life_posts
        )
        self._audience = Audience.of(interactions)
        if progress:
            progress(1.0)
        return self

    def _similarities(self, matrix: csr_matrix) -> csr_matrix:
        """Return posts x posts, float32, at most ``neighbours`` a row, none of itself."""
        ensure_openmp()
        from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize

        weigh = {"cosine": normalize, "bm25": bm25_weight}[self.settings.similarity]
        weighted = weigh(matrix.T.astype(np.float64)).T.tocsr()
        # One more: a post is, as a rule, its own nearest neighbour.
        model = ItemItemRecommender(K=self.settings.neighbours + 1)
        model.fit(weighted, show_progress=False)
        return _strongest(model.similarity, self.settings.neighbours)

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return the posts most similar to the latest ones; a post similar to none is left out."""
        audience = fitted(self._audience, self.name)
        neighbours = fitted(self._neighbours, self.name)
        users, rows = audience.asked_warm(user_ids, k)
        latest = fitted(self._latest, self.name)[rows]
        seen = audience.seen_by(rows) if exclude_seen else None
        top = sparse_top_k(lambda block: latest[block] @ neighbours, len(users), k, masked=seen)
        return audience.candidates(users, top, self.name)

    def similar(self, post_ids: ArrayLike, k: int) -> pa.Table:
        """Return up to `k` (at most ``neighbours``) similar posts of each, as `SIMILAR_POSTS`.

        Posts unknown at fit time, and posts that share no user with another, have no row.
        """
        audience = fitted(self._audience, self.name)
        neighbours = fitted(self._neighbours, self.name)
        posts = np.atleast_1d(np.asarray(post_ids)).astype(np.int64)
        _, first = np.unique(posts, return_index=True)
        posts = posts[np.sort(first)]
        rows = positions(posts, audience.post_ids)
        posts, rows = posts[rows >= 0], rows[rows >= 0]
        asked = neighbours[rows]
        top = sparse_top_k(lambda block: asked[block], len(posts), k)
        return pa.table(
            {
                "post_id": posts[top.rows],
                "similar_post_id": audience.post_ids[top.columns],
                "score": top.scores,
                "rank": top.ranks,
            },
            schema=SIMILAR_POSTS,
        )

    def save(self, folder: Path) -> None:
        """Write ``generator.json`` and ``state.npz`` into `folder`."""
        arrays = {
            **fitted(self._audience, self.name).arrays(),
            **csr_arrays("neighbours", fitted(self._neighbours, self.name)),
            **csr_arrays("latest", fitted(self._latest, self.name)),
        }
        save_state(folder, self.name, self.settings, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        settings, arrays = load_state(folder, cls.name, ItemToItemSettings)
        generator = cls(settings)
        generator._audience = Audience.from_arrays(arrays)
        generator._neighbours = csr_from("neighbours", arrays)
        generator._latest = csr_from("latest", arrays)
        return generator


def _latest_posts(interactions: Interactions, count: int, half_life: float | None) -> csr_matrix:
    """Return users x posts, float32: 1 for the last distinct post, decaying with each one back."""
    n_posts = len(interactions.post_ids)
    # Newest first; of repeated pairs the newest stays.
    users = interactions.event_users[::-1].astype(np.int64)
    posts = interactions.event_posts[::-1].astype(np.int64)
    _, newest = np.unique(users * n_posts + posts, return_index=True)
    newest.sort()
    users, posts = users[newest], posts[newest]
    # Users descend here; their rows are contiguous, so a post's age is its place in the run.
    starts = np.concatenate([[0], np.nonzero(np.diff(users))[0] + 1])
    runs = np.diff(np.append(starts, len(users)))
    back = np.arange(len(users)) - np.repeat(starts, runs)
    kept = back < count
    decay = np.ones(len(users)) if half_life is None else np.exp2(-back / half_life)
    return csr_matrix(
        (decay[kept].astype(np.float32), (users[kept], posts[kept])),
        shape=(len(interactions.user_ids), n_posts),
    )


def _strongest(similarity: csr_matrix, count: int) -> csr_matrix:
    """Return the `count` largest of each row, float32, without the diagonal."""
    pairs = similarity.tocoo()
    other = (pairs.row != pairs.col) & (pairs.data > 0)
    rows, columns, values = pairs.row[other], pairs.col[other], pairs.data[other]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=similarity.shape[0]))])
    kept = np.arange(len(rows)) - bounds[rows] < count
    return csr_matrix(
        (values[kept].astype(np.float32), (rows[kept], columns[kept])), shape=similarity.shape
    )

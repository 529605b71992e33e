"""The users and posts that a bundle knows, under the source's ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.answer import Reason, Recommendation
from serving.errors import UnknownIdError
from serving.ids import IdMap
from serving.lists import SourceList


class Catalogue:
    """What a published generation knows of ids, titles and popularity.

    Attributes
    ----------
    users, posts
        The source's ids to dense ones.
    popular
        What unknown users get, best first.
    popular_ids
        Its posts as int64.
    """

    def __init__(self, folder: Path) -> None:
        self._generation = folder.name
        self.users = IdMap.read(folder / "users.parquet", "user_id")
        self.posts = IdMap.read(folder / "posts.parquet", "post_id")
        table = pq.read_table(folder / "posts.parquet").sort_by("post_id")
        self._post_ids = table["post_id"].to_numpy()
        self._external = table["external_id"].combine_chunks()
        self._titles = table["title"]
        with np.load(folder / "popular.npz", allow_pickle=False) as popular:
            self.popular = SourceList(popular["post_ids"], popular["scores"])
        self.popular_ids = self.popular.post_ids.astype(np.int64)

    def known(self, posts: Sequence[str]) -> NDArray[np.int64]:
        """Return the dense ids of those posts that the bundle knows."""
        found = [self.posts.find(post) for post in posts]
        return np.array([post_id for post_id in found if post_id is not None], dtype=np.int64)

    def post(self, post: str) -> int:
        """Return a post's dense id.

        Raises
        ------
        UnknownIdError
            If the bundle does not know it.
        """
        post_id = self.posts.find(post)
        if post_id is None:
            raise UnknownIdError(
                f"post {post!r}: not among the {len(self._post_ids):,} posts of bundle "
                f"{self._generation}; publish again if it is new"
            )
        return post_id

    def external(self, post_ids: NDArray[np.int64]) -> pa.Array:
        """Return the source's ids of posts, as strings in the given order."""
        return self._external.take(pa.array(np.searchsorted(self._post_ids, post_ids)))

    def recommendation(
        self, post_id: int, score: float | None, reason: Reason | None
    ) -> Recommendation:
        """Return a post under its own id, with its title."""
        row = int(np.searchsorted(self._post_ids, post_id))
        return Recommendation(self._external[row].as_py(), self._titles[row].as_py(), score, reason)

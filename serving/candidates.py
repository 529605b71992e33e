"""Assembly of candidates: pure functions of the lists that the sources propose."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.lists import SourceList


@dataclass(frozen=True)
class Candidates:
    """One user's candidates from all sources.

    Parameters
    ----------
    post_ids
        int64, shape (n,), each post once.
    scores, ranks
        Per source: float64, shape (n,); NaN where the source did not propose the post.
    """

    post_ids: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.float64]]
    ranks: Mapping[str, NDArray[np.float64]]

    def about(self, post_ids: NDArray[np.int64]) -> "Candidates":
        """Return what the sources say of given posts (ascending, distinct), proposed or not."""
        if np.array_equal(post_ids, self.post_ids):
            return self
        at = np.minimum(np.searchsorted(self.post_ids, post_ids), max(len(self.post_ids) - 1, 0))
        listed = self.post_ids[at] == post_ids if len(self.post_ids) else post_ids < post_ids

        def of(values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
            taken = {}
            for name, column in values.items():
                taken[name] = np.full(len(post_ids), np.nan)
                taken[name][listed] = column[at[listed]]
            return taken

        return Candidates(post_ids, of(self.scores), of(self.ranks))


def union(lists: Mapping[str, SourceList]) -> Candidates:
    """Join the sources' lists into one set of posts; nothing proposed is dropped."""
    post_ids = np.unique(np.concatenate([source.post_ids for source in lists.values()])).astype(
        np.int64
    )
    scores, ranks = np.full((2, len(lists), len(post_ids)), np.nan)
    for place, source in enumerate(lists.values()):
        at = np.searchsorted(post_ids, source.post_ids)
        scores[place, at] = source.scores
        ranks[place, at] = np.arange(1, len(at) + 1)
    return Candidates(
        post_ids, dict(zip(lists, scores, strict=True)), dict(zip(lists, ranks, strict=True))
    )

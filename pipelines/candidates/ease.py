"""EASE: a closed-form linear model of posts from posts, with topics as extra evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import threadpoolctl
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import Progress, csr_arrays, csr_from
from pipelines.candidates.scored import Arrays, ScoredGenerator
from pipelines.candidates.topics import topic_matrix
from pipelines.errors import GeneratorError


@dataclass(frozen=True)
class EASESettings:
    """Settings of `EASE`.

    Attributes
    ----------
    regularization
        L2 penalty on the weights; above 0.
    topic_weight
        How much a topic counts as evidence that its posts go together: each topic is a row
        beside the users' rows, of this value in its posts' columns. 0: topics are not used.
    popularity_exponent
        The penalty of a post is scaled by (its likes / the mean) to this power; 0: all alike.
    memory_limit_gib
        Refuse a catalogue whose two dense matrices need more; above 0.
    """

    regularization: float = 300.0
    topic_weight: float = 0.0
    popularity_exponent: float = 0.0
    memory_limit_gib: float = 8.0

    def __post_init__(self) -> None:
        if self.regularization <= 0 or self.topic_weight < 0 or self.memory_limit_gib <= 0:
            raise GeneratorError(
                f"ease: found {self}, expected regularization and memory_limit_gib above 0 and "
                "topic_weight of at least 0"
            )


class EASE(ScoredGenerator[EASESettings]):
    """A user's score of a post is the sum of the weights from the posts he liked to it.

    The method is Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (2019); rows of
    side information as in Jeunen, Van Balen and Goethals, "Closed-Form Models for
    Collaborative Filtering with Side-Information" (2020).

    Parameters
    ----------
    settings
        See `EASESettings`.
    posts
        ``post_id`` int64 and ``topics`` list<string>; needed if ``topic_weight`` is above 0.
    """

    name: ClassVar[str] = "ease"
    settings_kind: ClassVar[type[Any]] = EASESettings

    def __init__(
        self, settings: EASESettings | None = None, *, posts: pa.Table | None = None
    ) -> None:
        super().__init__(settings)
        self._posts = posts

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        """Solve for the weights; limit: n_posts squared doubles, twice."""
        self._check_memory(len(interactions.post_ids))
        liked = (interactions.matrix > 0).astype(np.float64)
        gram = (liked.T @ liked).toarray()
        likes = np.diagonal(gram).copy()
        if self.settings.topic_weight > 0:
            topics, _ = topic_matrix(self._posts, interactions.post_ids)
            gram += self.settings.topic_weight**2 * (topics @ topics.T).toarray()
        progress(0.2)
        penalty = self.settings.regularization * (likes / likes.mean()) ** (
            self.settings.popularity_exponent
        )
        gram[np.diag_indices_from(gram)] += penalty
        inverse = _inverse(gram)
        progress(0.9)
        weights = inverse / -np.diagonal(inverse)
        np.fill_diagonal(weights, 0.0)
        return {"weights": weights.astype(np.float32), **csr_arrays("liked", liked)}

    def _check_memory(self, n_posts: int) -> None:
        needed = 2 * 8 * n_posts**2 / 2**30
        if needed > self.settings.memory_limit_gib:
            largest = int(np.sqrt(self.settings.memory_limit_gib * 2**30 / 16))
            raise GeneratorError(
                f"ease: {n_posts:,} posts need {needed:.1f} GiB, the limit is "
                f"{self.settings.memory_limit_gib:g} GiB ({largest:,} posts); take only the "
                "posts with most likes, raise memory_limit_gib, or use als"
            )

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        liked: csr_matrix = csr_from("liked", arrays)[rows].astype(np.float32)
        scores: NDArray[np.float32] = liked @ arrays["weights"]
        return scores


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert a symmetric positive definite matrix in half the time of a general one."""
    # One thread: sums must not depend on how many there are.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        factor, failed = dpotrf(matrix, lower=True, overwrite_a=True)
        if not failed:
            inverse, failed = dpotri(factor, lower=True, overwrite_c=True)
    if failed:
        raise GeneratorError(
            "ease: the matrix of common likes cannot be inverted; raise regularization"
        )
    lower = np.tril(inverse)
    symmetric: NDArray[np.float64] = lower + np.tril(lower, -1).T
    return symmetric

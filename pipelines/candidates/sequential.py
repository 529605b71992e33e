"""What tends to follow a user's latest posts: a linear model from past to future posts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import Progress, csr_arrays, csr_from
from pipelines.candidates.scored import Arrays, ScoredGenerator
from pipelines.errors import GeneratorError


@dataclass(frozen=True)
class SequentialSettings:
    """Settings of `Sequential`.

    Attributes
    ----------
    regularization
        L2 penalty on the weights; above 0.
    past_posts, past_half_life
        How many posts before a moment are looked at, and after how many posts back one counts
        half; at least 1, above 0.
    future_posts, future_half_life
        The same for the posts after it that are to be foretold.
    popularity_exponent
        What follows is divided by (its posts' likes) to this power: 0 foretells popular posts.
    memory_limit_gib
        Refuse a catalogue whose dense matrices need more; above 0.
    """

    regularization: float = 100.0
    past_posts: int = 20
    past_half_life: float = 3.0
    future_posts: int = 3
    future_half_life: float = 1.0
    popularity_exponent: float = 0.0
    memory_limit_gib: float = 8.0

    def __post_init__(self) -> None:
        positive = (
            self.regularization,
            self.past_half_life,
            self.future_half_life,
            self.memory_limit_gib,
        )
        if min(positive) <= 0 or min(self.past_posts, self.future_posts) < 1:
            raise GeneratorError(
                f"sequential: found {self}, expected past_posts and future_posts of at least 1, "
                "and regularization, half lives and memory_limit_gib above 0"
            )


class Sequential(ScoredGenerator[SequentialSettings]):
    """Scores are the decayed latest posts times the weights.

    The method is the transition part (SLIT) of Choi et al., "Session-aware Linear Item-Item
    Models for Session-based Recommendation" (2021): every moment of every history is an
    example, its decayed past the input and its decayed future the answer, and ridge regression
    gives the weights in closed form.
    """

    name: ClassVar[str] = "sequential"
    settings_kind: ClassVar[type[Any]] = SequentialSettings

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        settings = self.settings
        n_posts = len(interactions.post_ids)
        self._check_memory(n_posts)
        past = _window(interactions, settings.past_posts, settings.past_half_life, ahead=False)
        future = _window(interactions, settings.future_posts, settings.future_half_life, ahead=True)
        progress(0.2)
        gram = (past.T @ past).toarray()
        gram[np.diag_indices_from(gram)] += settings.regularization
        follows = (past.T @ future).toarray()
        likes = np.bincount(interactions.event_posts, minlength=n_posts)
        follows /= likes.astype(np.float64) ** settings.popularity_exponent
        progress(0.4)
        # One thread: sums must not depend on how many there are.
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            weights = cho_solve(cho_factor(gram, lower=True), follows)
        return {
            "weights": weights.astype(np.float32),
            **csr_arrays("latest", self._latest(interactions)),
        }

    def _latest(self, interactions: Interactions) -> csr_matrix:
        """Return each user's decayed latest posts, float32 csr (n_users, n_posts)."""
        bounds = interactions.history_bounds
        back = np.repeat(bounds[1:], np.diff(bounds)) - np.arange(bounds[-1]) - 1
        kept = back < self.settings.past_posts
        decay = np.exp2(-back[kept] / self.settings.past_half_life)
        latest = csr_matrix(
            (decay, (interactions.event_users[kept], interactions.event_posts[kept])),
            shape=(len(interactions.user_ids), len(interactions.post_ids)),
        )
        return latest.astype(np.float32)

    def _check_memory(self, n_posts: int) -> None:
        needed = 3 * 8 * n_posts**2 / 2**30
        if needed > self.settings.memory_limit_gib:
            raise GeneratorError(
                f"sequential: {n_posts:,} posts need {needed:.1f} GiB, the limit is "
                f"{self.settings.memory_limit_gib:g} GiB; take only the posts with most likes, "
                "raise memory_limit_gib, or use item_to_item"
            )

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = csr_from("latest", arrays)[rows] @ arrays["weights"]
        return scores


def _window(
    interactions: Interactions, length: int, half_life: float, *, ahead: bool
) -> csr_matrix:
    """Return the decayed neighbours of each moment, csr (n_events, n_posts).

    Row i stands between events i - 1 and i of a history: its past is event i - 1 and before,
    its future is event i and after. The first moment of a history has no past.
    """
    n_events = len(interactions.event_posts)
    users = interactions.event_users
    rows, columns, values = [], [], []
    for distance in range(length):
        offset = distance if ahead else -distance - 1
        moment = np.arange(max(0, -offset), n_events - max(0, offset))
        moment = moment[users[moment] == users[moment + offset]]
        rows.append(moment)
        columns.append(interactions.event_posts[moment + offset])
        values.append(np.full(len(moment), np.exp2(-distance / half_life)))
    return csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(n_events, len(interactions.post_ids)),
    )

"""What a request is answered with."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from serving.assembly import Inputs
from serving.candidates import Candidates
from serving.rules import by_popularity


@dataclass(frozen=True)
class Moved:
    """How one input moved the score of one post.

    Parameters
    ----------
    name
        The input.
    contribution
        Its SHAP value.
    value
        As served: number or string; None: there is none.
    event_time
        Since when the stored value holds, in UTC; None: computed at the request, or no value.
    age_s
        Seconds from then to the request's moment.
    """

    name: str
    contribution: float
    value: float | str | None
    event_time: datetime | None
    age_s: float | None


@dataclass(frozen=True)
class Reason:
    """Why a post stands where it stands.

    Parameters
    ----------
    sources
        Rank (1 is best) of the post in each candidate source that proposed it.
    source_scores
        The score that each of them gave it.
    moved
        The inputs that moved the ranker's score most, largest first; empty if it was not asked.
    rules
        The rules that gave it this place, see `serving.arrangement`; empty: its score did.
    """

    sources: dict[str, int]
    source_scores: dict[str, float]
    moved: list[Moved]
    rules: tuple[str, ...]

    @property
    def contributions(self) -> list[tuple[str, float]]:
        """The names and SHAP values of ``moved``."""
        return [(one.name, one.contribution) for one in self.moved]


@dataclass(frozen=True)
class Recommendation:
    """One recommended post.

    Parameters
    ----------
    post
        The source's id.
    title
        Its title; None if the source has none.
    score
        The ranker's score, comparable within one answer only; None where posts stand in the
        order of popularity because the ranker could not be asked.
    reason
        Why; None unless asked for.
    """

    post: str
    title: str | None
    score: float | None
    reason: Reason | None


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Parameters
    ----------
    user
        The source's id.
    is_known
        Whether the bundle knows the user; an unknown one gets the popular list, ranked.
    generation
        The bundle that answered.
    recommendations
        Best first.
    milliseconds
        Wall time.
    degraded
        Why the answer is worse than it should be: ``lists_missing`` (the user's lists are not in
        Redis, so the popular list is ranked); ``lists_unavailable``, ``features_unavailable``
        (Redis failed) or ``lists_damaged``, where the order is the bundle's popularity;
        ``stale_<view>`` (a view is older than allowed, see `serving.freshness`). Empty
        when all is well.
    request_id
        Names the request in the impression log.
    """

    user: str
    is_known: bool
    generation: str
    recommendations: list[Recommendation]
    milliseconds: float
    degraded: tuple[str, ...] = ()
    request_id: str = ""


@dataclass(frozen=True)
class Request:
    """One request under way.

    Parameters
    ----------
    id, endpoint, user, user_id, moment
        As in the impression log.
    start
        Seconds of `time.perf_counter`.
    """

    id: str
    endpoint: str
    user: str
    user_id: int | None
    moment: datetime
    start: float


@dataclass(frozen=True)
class Scored:
    """Candidates, and what the ranker says of them.

    Parameters
    ----------
    candidates
        n posts, ascending.
    scores
        float32 (n,); None if the ranker could not be asked.
    inputs
        What the ranker saw; None as `scores`.
    """

    candidates: Candidates
    scores: NDArray[np.float32] | None = None
    inputs: Inputs | None = None

    def preference(self, popular: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the scores, or without a ranker what orders the posts as a popular list does."""
        if self.scores is not None:
            return self.scores
        post_ids = self.candidates.post_ids
        preference = np.empty(len(post_ids))
        ordered = np.searchsorted(post_ids, by_popularity(post_ids, popular))
        preference[ordered] = -np.arange(len(post_ids))
        return preference


@dataclass(frozen=True)
class Choice:
    """What is shown, out of what.

    Parameters
    ----------
    shown
        int64 (k,): rows of the candidates, in the order of the answer.
    propensities
        float64 (k,), and for each place the rules that decided: see `serving.arrangement`.
    """

    scored: Scored
    shown: NDArray[np.int64]
    propensities: NDArray[np.float64]
    rules: list[tuple[str, ...]]

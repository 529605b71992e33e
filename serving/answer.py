"""What a request is answered with."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from serving.assembly import Inputs
from serving.candidates import Candidates


@dataclass(frozen=True)
class Reason:
    """Why a post stands where it stands.

    Parameters
    ----------
    sources
        Rank (1 is best) of the post in each candidate source that proposed it.
    contributions
        The inputs that moved the score most, with their SHAP values; largest first.
    """

    sources: dict[str, int]
    contributions: list[tuple[str, float]]


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
class Choice:
    """What is shown, out of what.

    Parameters
    ----------
    candidates
        n posts, ascending.
    shown
        int64 (k,): rows of the candidates, in the order of the answer.
    propensities
        float64 (k,): how probable it was that the post stands there.
    scores
        float32 (n,), the ranker's; None if it could not be asked.
    inputs
        What the ranker saw; None as `scores`.
    """

    candidates: Candidates
    shown: NDArray[np.int64]
    propensities: NDArray[np.float64]
    scores: NDArray[np.float32] | None = None
    inputs: Inputs | None = None

    @property
    def matrix(self) -> NDArray[np.float32] | None:
        """float32 (n, inputs); None if the ranker could not be asked."""
        return None if self.inputs is None else self.inputs.matrix

"""From scored candidates to the posts of an answer: pins, caps, diversity, exploration; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.rule_settings import Diversity, Exploration

Rows = NDArray[np.int64]
PINNED, EXPLORED, DIVERSIFIED, CAPPED = "pinned", "exploration", "diversity", "cap"


@dataclass(frozen=True)
class Groups:
    """Which of n candidates share a value; at most ``limit`` of one group may be shown.

    Parameters
    ----------
    rows, codes
        int64 (m,): one entry for each value of each candidate; codes count from 0.
    """

    limit: int
    rows: Rows
    codes: Rows


@dataclass(frozen=True)
class Arrangement:
    """The posts of an answer.

    Parameters
    ----------
    rows
        int64 (k,): rows of the candidates, first place first.
    propensities
        float64 (k,): probability that the place went to this post, given the candidates and the
        places before it. Over all posts that a place could have gone to they sum to 1.
    rules
        For each place the rules that decided: ``pinned``; ``exploration`` (drawn by chance);
        ``diversity`` (not the best score that was allowed); ``cap`` (better ones were not).
    """

    rows: Rows
    propensities: NDArray[np.float64]
    rules: list[tuple[str, ...]]


@dataclass(frozen=True)
class Arranger:
    """What an arrangement follows, beside scores.

    Parameters
    ----------
    caps
        Groups of the candidates that share a value.
    pins
        Row of a candidate by its place, 1 is first; places beyond ``k`` are left out. Pins count
        towards caps but are not subject to them. If candidates run out, pins move up.
    diversity, vectors
        float32 (n, d) with rows of length 1, or of zeros, which are like no other.
    exploration
        Chance decides about places that are not pinned.
    """

    caps: Sequence[Groups] = ()
    pins: Mapping[int, int] = field(default_factory=dict)
    diversity: Diversity | None = None
    vectors: NDArray[np.float32] | None = None
    exploration: Exploration | None = None

    def arrange(
        self, scores: NDArray[np.floating], k: int, rng: np.random.Generator
    ) -> Arrangement:
        """Fill up to k places, one after the other.

        Parameters
        ----------
        scores
            (n,), higher is better; equal ones in the order of the rows.
        """
        if not (self.caps or self.pins or self.diversity or self.exploration):
            best = np.argsort(-scores, kind="stable")[:k]
            return Arrangement(best, np.ones(len(best)), [()] * len(best))
        filling = _Filling(self, scores, k)
        # Those whose places lie beyond the candidates follow in their order.
        for place in range(1, k + 1):
            if place in self.pins:
                filling.put(self.pins[place], 1.0, (PINNED,))
            else:
                filling.fill(rng)
        return Arrangement(
            np.array(filling.shown, np.int64), np.array(filling.propensities), filling.rules
        )


class _Filling:
    """One arrangement under way."""

    def __init__(self, arranger: Arranger, scores: NDArray[np.floating], k: int) -> None:
        self.arranger = arranger
        self.order = np.argsort(-scores, kind="stable")
        self.shown: list[int] = []
        self.propensities: list[float] = []
        self.rules: list[tuple[str, ...]] = []
        count = len(scores)
        self.is_free = np.ones(count, bool)
        self.is_blocked = np.zeros(count, bool)
        self.counts = [np.bincount(cap.codes, minlength=1) * 0 for cap in arranger.caps]
        self.relevance, self.nearest = self._relevance(scores), np.zeros(count)
        for place, row in arranger.pins.items():
            self.is_free[row] = False
            if place <= k:
                self._count(row)

    def fill(self, rng: np.random.Generator) -> None:
        """Give the next place to one of the allowed posts; to none if there is none."""
        allowed = self.order[(self.is_free & ~self.is_blocked)[self.order]]
        if not len(allowed):
            return
        best = self._best(allowed)
        chosen, exploration = best, self.arranger.exploration
        propensity, share = 1.0, 0.0
        if exploration is not None and exploration.share:
            pool, share = allowed[: exploration.among], exploration.share
            if rng.random() < share:
                chosen = int(rng.choice(pool))
            propensity = (1 - share) * (chosen == best) + share / len(pool) * (chosen in pool)
        rules: tuple[str, ...] = ()
        if chosen != best:
            rules = (EXPLORED,)
        elif best != allowed[0]:
            rules = (DIVERSIFIED,)
        if self.is_blocked[self.order[self.is_free[self.order]][0]]:
            rules = (*rules, CAPPED)
        self.is_free[chosen] = False
        self._count(chosen)
        self.put(chosen, propensity, rules)

    def put(self, row: int, propensity: float, rules: tuple[str, ...]) -> None:
        """Append a post to the answer."""
        self.shown.append(int(row))
        self.propensities.append(float(propensity))
        self.rules.append(rules)
        vectors = self.arranger.vectors
        if self.arranger.diversity is not None and vectors is not None:
            likeness = vectors @ vectors[row]
            self.nearest = likeness if len(self.shown) == 1 else np.maximum(self.nearest, likeness)

    def _best(self, allowed: Rows) -> int:
        """Return the post of the largest marginal relevance; the first one of equals."""
        diversity = self.arranger.diversity
        if diversity is None or not diversity.strength:
            return int(allowed[0])
        pool = allowed[: diversity.among]
        value = (1 - diversity.strength) * self.relevance[pool]
        return int(pool[np.argmax(value - diversity.strength * self.nearest[pool])])

    def _relevance(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return scores scaled so that those of the posts weighed at first lie in [0, 1]."""
        diversity = self.arranger.diversity
        if diversity is None or not len(scores):
            return np.zeros(len(scores))
        weighed = scores[self.order[: diversity.among]].astype(np.float64)
        width = weighed.max() - weighed.min()
        relevance: NDArray[np.float64] = (scores - weighed.min()) / (width if width > 0 else 1.0)
        return relevance

    def _count(self, row: int) -> None:
        """Count a shown post in its groups; block the others of those that are full."""
        for cap, counts in zip(self.arranger.caps, self.counts, strict=True):
            own = cap.codes[cap.rows == row]
            counts[own] += 1
            full = own[counts[own] >= cap.limit]
            if len(full):
                self.is_blocked[cap.rows[np.isin(cap.codes, full)]] = True

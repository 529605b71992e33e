"""The declared rules, opened for one bundle."""

import logging
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.arrangement import Arrangement
from serving.catalogue import Catalogue
from serving.fresh import FoldIn
from serving.post_facts import PostFacts
from serving.rule_settings import Rules

logger = logging.getLogger(__name__)
Posts = NDArray[np.int64]


class RuleBook:
    """Which posts may be in an answer, and in what order they stand there.

    Raises
    ------
    RulesError
        If the bundle does not have what a rule needs.
    """

    def __init__(
        self, rules: Rules, folder: Path, catalogue: Catalogue, fold_in: FoldIn | None
    ) -> None:
        self._rules = rules
        self._facts = PostFacts(folder, rules, fold_in)
        known = {pin.position: catalogue.posts.find(pin.post) for pin in rules.pin}
        self._pins = {place: post_id for place, post_id in known.items() if post_id is not None}
        if missing := [pin.post for pin in rules.pin if pin.position not in self._pins]:
            logger.warning("pinned posts that the bundle does not know: %s", ", ".join(missing))
        self._pinned = np.array(sorted(self._pins.values()), np.int64)

    def candidates(self, proposed: Posts, moment: datetime, seen: Posts) -> Posts:
        """Return the proposed posts that are fresh and the pinned ones not seen, ascending."""
        freshness = self._rules.freshness
        if freshness is not None:
            proposed = self._facts.fresh(proposed, freshness, moment)
        if not len(self._pinned):
            return np.unique(proposed)
        return np.union1d(proposed, np.setdiff1d(self._pinned, seen))

    def arrange(
        self, post_ids: Posts, scores: NDArray[np.floating], k: int, request_id: str
    ) -> Arrangement:
        """Arrange candidates (ascending); chance follows from the request's id alone."""
        pins: dict[int, int] = {}
        if self._pins:
            rows = {post_id: row for row, post_id in enumerate(post_ids.tolist())}
            pins = {place: rows[one] for place, one in self._pins.items() if one in rows}
        rng = np.random.default_rng(int(request_id, 16))
        return self._facts.arranger(post_ids, pins).arrange(scores, k, rng)

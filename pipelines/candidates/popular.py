"""The most liked posts, recent likes counting more: everybody's list, and cold users' only one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pipelines.candidates.interactions import Interactions
from pipelines.candidates.protocol import Audience, Progress, fitted, load_state, save_state
from pipelines.candidates.topk import top_k
from pipelines.errors import GeneratorError

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class PopularSettings:
    """Settings of `Popular`.

    Attributes
    ----------
    half_life_days
        Age at which a like counts half; above 0. None: all likes count the same, which is the
        only sound choice for events without a clock.
    """

    half_life_days: float | None = 7.0

    def __post_init__(self) -> None:
        if self.half_life_days is not None and not self.half_life_days > 0:
            raise GeneratorError(
                f"popular: found half_life_days = {self.half_life_days}, expected above 0, or "
                "None to count all likes the same"
            )


class Popular:
    """Sum of weights, each halved with every half-life before the last event."""

    name: ClassVar[str] = "popular"
    serves_cold_users: ClassVar[bool] = True

    def __init__(self, settings: PopularSettings | None = None) -> None:
        self.settings = settings or PopularSettings()
        self._audience: Audience | None = None
        self._scores: NDArray[np.float32] | None = None

    def fit(self, interactions: Interactions, *, progress: Progress | None = None) -> Self:
        """Score every post; ages are taken from the last positive event."""
        weights = interactions.event_weights
        if self.settings.half_life_days is not None:
            age_days = (interactions.latest_time - interactions.event_times) / _DAY_US
            weights = weights * np.exp2(-age_days / self.settings.half_life_days)
        self._scores = np.bincount(
            interactions.event_posts, weights=weights, minlength=len(interactions.post_ids)
        ).astype(np.float32)
        self._audience = Audience.of(interactions)
        if progress:
            progress(1.0)
        return self

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return the same list for everybody, without what each has seen.

        Users unknown at fit time are served.
        """
        audience = fitted(self._audience, self.name)
        scores = fitted(self._scores, self.name)
        users, rows = audience.asked(user_ids, k)
        by_score = np.lexsort((np.arange(len(scores)), -scores))
        seen = audience.seen_by(rows) if exclude_seen else None
        # Nobody needs to look further down the list than k posts beyond those he has seen.
        longest = int(np.diff(seen.indptr).max(initial=0)) if seen is not None else 0
        head = np.sort(by_score[: k + longest])
        shown = scores[head]
        top = top_k(
            lambda block: np.tile(shown, (block.stop - block.start, 1)),
            (len(users), len(head)),
            k,
            masked=None if seen is None else seen[:, head],
        )
        reduced = Audience(audience.user_ids, audience.post_ids[head], audience.seen, audience.warm)
        return reduced.candidates(users, top, self.name)

    def save(self, folder: Path) -> None:
        """Write ``generator.json`` and ``state.npz`` into `folder`."""
        audience = fitted(self._audience, self.name)
        scores = fitted(self._scores, self.name)
        save_state(folder, self.name, self.settings, {**audience.arrays(), "scores": scores})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        settings, arrays = load_state(folder, cls.name, PopularSettings)
        generator = cls(settings)
        generator._audience = Audience.from_arrays(arrays)
        generator._scores = arrays["scores"]
        return generator

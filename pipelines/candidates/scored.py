"""What generators share that score the whole catalogue for a block of users at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import Audience, Progress, fitted, load_state, save_state
from pipelines.candidates.topk import top_k

Arrays = Mapping[str, NDArray[Any]]
SettingsType = TypeVar("SettingsType")


class ScoredGenerator(ABC, Generic[SettingsType]):
    """A generator whose state is arrays: a subclass says how to learn them and how to score.

    The recommended posts are the exact top k of the scores; users without a positive get none.
    """

    name: ClassVar[str]
    serves_cold_users: ClassVar[bool] = False
    settings_kind: ClassVar[type[Any]]

    def __init__(self, settings: SettingsType | None = None) -> None:
        self.settings: SettingsType = settings or self.settings_kind()
        self._audience: Audience | None = None
        self._arrays: Arrays | None = None

    @abstractmethod
    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        """Return the fitted arrays; what is needed to score and nothing else."""

    @abstractmethod
    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        """Return float32 (len(rows), n_posts), a new array; ``-inf`` is not proposed."""

    def fit(self, interactions: Interactions, *, progress: Progress | None = None) -> Self:
        """Learn from everything in `interactions`."""
        self._arrays = dict(self._learn(interactions, progress or _silent))
        self._audience = Audience.of(interactions)
        if progress:
            progress(1.0)
        return self

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return the posts with the highest scores; users without a positive get none."""
        audience = fitted(self._audience, self.name)
        arrays = fitted(self._arrays, self.name)
        users, rows = audience.asked_warm(user_ids, k)
        top = top_k(
            lambda block: self._score(arrays, rows[block]),
            (len(users), len(audience.post_ids)),
            k,
            masked=audience.seen_by(rows) if exclude_seen else None,
        )
        return audience.candidates(users, top, self.name)

    def save(self, folder: Path) -> None:
        """Write ``generator.json`` and ``state.npz`` into `folder`."""
        audience = fitted(self._audience, self.name)
        learnt = {f"learnt_{key}": value for key, value in (self._arrays or {}).items()}
        save_state(folder, self.name, self.settings, {**audience.arrays(), **learnt})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        settings, arrays = load_state(folder, cls.name, cls.settings_kind)
        generator = cls(settings)
        generator._audience = Audience.from_arrays(arrays)
        generator._arrays = {
            key.removeprefix("learnt_"): value
            for key, value in arrays.items()
            if key.startswith("learnt_")
        }
        return generator


class FactorGenerator(ScoredGenerator[SettingsType]):
    """Scores are dot products; learns ``users`` (n, d), ``posts`` (m, d), ``bias`` (m,)."""

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = arrays["users"][rows] @ arrays["posts"].T
        scores += arrays["bias"]
        return scores


def latest_histories(interactions: Interactions, length: int) -> tuple[Ids, Ids]:
    """Return each user's last positive posts, oldest first, one after the other.

    Returns
    -------
    posts : int64[n]
        Positions in ``post_ids``.
    bounds : int64[n_users + 1]
        User u's are ``posts[bounds[u]:bounds[u + 1]]``, at most `length`.
    """
    bounds = interactions.history_bounds
    from_end = np.repeat(bounds[1:], np.diff(bounds)) - np.arange(bounds[-1])
    kept = from_end <= length
    lengths = np.minimum(np.diff(bounds), length)
    posts = interactions.event_posts[kept].astype(np.int64)
    return posts, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _silent(_: float) -> None:
    """Take the place of a progress that nobody asked for."""

"""The most liked posts among users alike in one attribute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.protocol import Progress, fitted
from pipelines.candidates.scored import Arrays, ScoredGenerator
from pipelines.candidates.topk import top_k
from pipelines.errors import GeneratorError

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class SegmentPopularSettings:
    """Settings of `SegmentPopular`.

    Attributes
    ----------
    attribute
        Column of the users' table; numbers are cut into `parts` of equally many users.
    parts
        At least 1.
    prior_likes
        A segment's shares are drawn towards everybody's as if it had so many more likes; at
        least 0.
    half_life_days
        Age at which a like counts half; above 0. None: all likes count the same.
    """

    attribute: str = "gender"
    parts: int = 5
    prior_likes: float = 1000.0
    half_life_days: float | None = 7.0

    def __post_init__(self) -> None:
        half_life = self.half_life_days
        if self.parts < 1 or self.prior_likes < 0 or (half_life is not None and half_life <= 0):
            raise GeneratorError(
                f"segment_popular: found {self}, expected parts of at least 1, prior_likes of "
                "at least 0 and half_life_days above 0 (or None)"
            )


class SegmentPopular(ScoredGenerator[SegmentPopularSettings]):
    """Scores are a post's share of the decayed likes of the user's segment.

    Users without the attribute, or in no row of the table, get everybody's list.

    Parameters
    ----------
    settings
        See `SegmentPopularSettings`.
    users
        ``user_id`` int64 and the attribute; needed to fit.
    """

    name: ClassVar[str] = "segment_popular"
    serves_cold_users: ClassVar[bool] = True
    settings_kind: ClassVar[type[Any]] = SegmentPopularSettings

    def __init__(
        self, settings: SegmentPopularSettings | None = None, *, users: pa.Table | None = None
    ) -> None:
        super().__init__(settings)
        self._users = users

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        """Count each segment's likes; ages are taken from the last positive event."""
        user_ids, segment_of, n_segments = self._segments()
        row = positions(interactions.user_ids, user_ids)
        # The last segment is everybody.
        segments = np.where(row >= 0, np.append(segment_of, n_segments)[row], n_segments)
        weights = interactions.event_weights
        if self.settings.half_life_days is not None:
            age_days = (interactions.latest_time - interactions.event_times) / _DAY_US
            weights = weights * np.exp2(-age_days / self.settings.half_life_days)
        likes = np.zeros((n_segments + 1, len(interactions.post_ids)))
        np.add.at(likes, (segments[interactions.event_users], interactions.event_posts), weights)
        likes[-1] = likes.sum(axis=0)
        everybody = likes[-1] / likes[-1].sum()
        prior = self.settings.prior_likes
        totals = likes.sum(axis=1, keepdims=True) + prior
        shares = (likes + prior * everybody) / np.where(totals > 0, totals, 1)
        return {
            "shares": shares.astype(np.float32),
            "known_users": user_ids,
            "segments": segment_of,
        }

    def _segments(self) -> tuple[Ids, Ids, int]:
        """Return user ids (ascending), the segment of each, and the number of segments."""
        column = self.settings.attribute
        if self._users is None or not {"user_id", column} <= set(self._users.column_names):
            found = "none" if self._users is None else self._users.column_names
            raise GeneratorError(
                f"segment_popular: expected a table of users with the columns user_id and "
                f"{column}, found {found}; pass it as users="
            )
        table = self._users.sort_by("user_id")
        values = table[column].combine_chunks()
        if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
            numbers = np.asarray(values.cast(pa.float64()).fill_null(np.nan))
            known = ~np.isnan(numbers)
            inner = np.linspace(0, 1, self.settings.parts + 1)[1:-1]
            cuts = np.quantile(numbers[known], inner) if known.any() else np.empty(0)
            codes = np.where(known, np.searchsorted(cuts, numbers, side="right"), -1)
        else:
            names = pa.array(sorted(set(values.to_pylist()) - {None}), values.type)
            codes = np.asarray(pc.index_in(values, names).fill_null(-1))
        count = int(codes.max(initial=-1)) + 1
        segments = np.where(codes >= 0, codes, count).astype(np.int64)
        return np.asarray(table["user_id"]).astype(np.int64), segments, count

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return each user's segment's list; users unknown at fit time are served."""
        audience = fitted(self._audience, self.name)
        arrays = fitted(self._arrays, self.name)
        users, rows = audience.asked(user_ids, k)
        known = positions(users, arrays["known_users"])
        everybody = len(arrays["shares"]) - 1
        segments = np.where(known >= 0, np.append(arrays["segments"], everybody)[known], everybody)
        top = top_k(
            lambda block: self._score(arrays, segments[block]),
            (len(users), len(audience.post_ids)),
            k,
            masked=audience.seen_by(rows) if exclude_seen else None,
        )
        return audience.candidates(users, top, self.name)

    def examples(self, users: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield for each segment one user, and which values of the attribute belong to it.

        That is ``{"value": text}``, or ``{"up_to": number}`` with the highest one among those
        users; numbers ascend. Users without the attribute are no segment.
        """
        arrays = fitted(self._arrays, self.name)
        column = self.settings.attribute
        values = dict(zip(users["user_id"].to_pylist(), users[column].to_pylist(), strict=True))
        for segment in range(len(arrays["shares"]) - 1):
            members = arrays["known_users"][arrays["segments"] == segment].tolist()
            if members:
                highest = max(members, key=values.__getitem__)
                value = values[highest]
                yield highest, {"value" if isinstance(value, str) else "up_to": value}

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        """Return the shares of segments, not of users."""
        shares: NDArray[np.float32] = arrays["shares"][rows]
        return shares

"""What is true of a simulated feed: the HitRate@5 of any lists, the best possible and the random.

HitRate@5. A moment is a user and the time at which one of his visits after the cut begins. A
recommender names five posts for it out of the whole catalogue, none of which he has liked before
that time. The five are shown to him at that moment; it is a hit if he likes at least one. He likes
each with the probability of the taste model, independently, so the chance of a hit is
1 - (1 - p_1) ... (1 - p_5), and the HitRate is its mean over all moments: the expectation over his
answers, without their noise. The real system was measured in this way in its A/B test, on the
answers of real users to the five posts that they were shown.

The **oracle** names the five never-liked posts of highest probability, and nothing can do better;
**random** names five never-liked posts by chance.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipelines.errors import SimulationError
from pipelines.simulation.taste import Floats, Taste

SHOWN = 5
_BLOCK = 256
_RANDOM_DRAWS = 20


@dataclass(frozen=True)
class HitRate:
    """A mean over moments and its standard error over users' moments."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, hits: NDArray[np.float64]) -> "HitRate":
        """Average the chances of a hit of n moments."""
        spread = hits.std(ddof=1) / np.sqrt(len(hits)) if len(hits) > 1 else 0.0
        return cls(float(hits.mean()), float(spread))

    def to_json(self) -> dict[str, float]:
        """Return value and standard error."""
        return asdict(self)


@dataclass(frozen=True)
class Moments:
    """Moments after the cut, ordered by user and time; no user and time twice.

    Parameters
    ----------
    table
        ``user_id`` int64, ``timestamp`` timestamp[us, UTC].
    liked
        One array a moment: rows of the posts that the user had liked before it.
    """

    table: pa.Table
    liked: list[NDArray[np.int64]]

    @property
    def user_ids(self) -> NDArray[np.int64]:
        """Users, one a moment."""
        return np.asarray(self.table["user_id"].to_numpy(), dtype=np.int64)

    @property
    def seconds(self) -> NDArray[np.int64]:
        """Times, unix seconds, one a moment."""
        return np.asarray(self.table["timestamp"].cast(pa.int64()).to_numpy() // 1_000_000)


def with_liked(moments: pa.Table, feed: Path, taste: Taste) -> Moments:
    """Look up what each user had liked before his moment, in the feed's parquet files."""
    users = pc.unique(moments["user_id"])
    source = ds.dataset(feed, format="parquet")
    condition = pc.equal(ds.field("action"), "like") & ds.field("user_id").isin(users)
    # The like's row comes after the view's; only who has finished liking is asked again.
    likes = source.to_table(columns=["user_id", "post_id", "timestamp"], filter=condition)
    likes = likes.sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    owners = likes["user_id"].to_numpy()
    posts = np.searchsorted(taste.post_ids, likes["post_id"].to_numpy())
    times = likes["timestamp"].cast(pa.int64()).to_numpy()
    found = []
    asked = zip(
        moments["user_id"].to_numpy(), moments["timestamp"].cast(pa.int64()).to_numpy(), strict=True
    )
    for user, moment in asked:
        low, high = np.searchsorted(owners, [user, user + 1])
        high = low + np.searchsorted(times[low:high], moment)
        found.append(posts[low:high])
    return Moments(moments, found)


def hit_rate(taste: Taste, moments: Moments, lists: NDArray[np.int64]) -> HitRate:
    """Return the HitRate of lists.

    Parameters
    ----------
    lists
        Post ids, (moments, 5).

    Raises
    ------
    SimulationError
        If the lists are not five posts a moment, name a post twice, or one already liked.
    """
    if lists.shape != (len(moments.liked), SHOWN):
        raise SimulationError(
            f"lists: found shape {lists.shape}, expected ({len(moments.liked)}, {SHOWN}): five "
            "posts a moment"
        )
    rows = np.searchsorted(taste.post_ids, lists)
    _check(taste, moments, lists, rows)
    users = np.repeat(_rows_of(taste, moments), SHOWN)
    chances = taste.of_views(users, rows.ravel(), np.repeat(moments.seconds, SHOWN))
    return HitRate.of(_hits(chances.reshape(lists.shape)))


def _check(
    taste: Taste, moments: Moments, lists: NDArray[np.int64], rows: NDArray[np.int64]
) -> None:
    known = np.take(taste.post_ids, rows, mode="clip") == lists
    if not known.all():
        raise SimulationError(
            f"lists: found post {lists[~known][0]}, which the feed does not have; map ids back to "
            "those of the source"
        )
    ordered = np.sort(rows, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise SimulationError("lists: found a post twice at one moment, expected five posts")
    for moment, (own, liked) in enumerate(zip(rows, moments.liked, strict=True)):
        again = np.intersect1d(own, liked)
        if len(again):
            user = moments.user_ids[moment]
            raise SimulationError(
                f"lists: user {user} is shown post {taste.post_ids[again[0]]}, which he has liked "
                "before; leave out what users have liked"
            )


def bounds(taste: Taste, moments: Moments, rng: np.random.Generator) -> dict[str, HitRate]:
    """Return the HitRate of the ``oracle`` and of ``random`` lists."""
    best, chance = [], []
    for rows, probabilities in _blocks(taste, moments):
        unliked = np.where(np.isnan(probabilities), -1.0, probabilities)
        top = -np.partition(-unliked, SHOWN - 1, axis=1)[:, :SHOWN]
        best.append(_hits(top))
        draws = [_hits(_drawn(unliked, rng)) for _ in range(_RANDOM_DRAWS)]
        chance.append(np.mean(draws, axis=0).reshape(len(rows)))
    return {
        "oracle": HitRate.of(np.concatenate(best)),
        "random": HitRate.of(np.concatenate(chance)),
    }


def _drawn(probabilities: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the probabilities of five distinct posts a row, drawn among the never-liked.

    Each row reads one shuffled catalogue from a place of its own.
    """
    rows, posts = probabilities.shape
    most_liked = int((probabilities < 0).sum(axis=1).max())
    window = np.arange(min(SHOWN + most_liked, posts))
    places = rng.permutation(posts)[(rng.integers(0, posts, (rows, 1)) + window) % posts]
    drawn = np.take_along_axis(probabilities, places, axis=1)
    first = np.argsort(drawn < 0, axis=1, kind="stable")[:, :SHOWN]
    return np.take_along_axis(drawn, first, axis=1)


def _blocks(
    taste: Taste, moments: Moments
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield blocks of moments and their probabilities (n, posts), NaN where already liked."""
    users, seconds = _rows_of(taste, moments), moments.seconds
    for start in range(0, len(users), _BLOCK):
        part = np.arange(start, min(start + _BLOCK, len(users)))
        probabilities = taste.of_all_posts(users[part], seconds[part]).astype(np.float64)
        for row, moment in enumerate(part):
            probabilities[row, moments.liked[moment]] = np.nan
        yield part, probabilities


def _rows_of(taste: Taste, moments: Moments) -> NDArray[np.int64]:
    return np.searchsorted(taste.user_ids, moments.user_ids)


def _hits(probabilities: NDArray[np.float64] | Floats) -> NDArray[np.float64]:
    missed: NDArray[np.float64] = np.prod(1.0 - probabilities.astype(np.float64), axis=1)
    return 1.0 - missed

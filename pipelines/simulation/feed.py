"""Views and likes of the simulated feed, in order of time and in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.simulation import facts
from pipelines.simulation.posts import Posts
from pipelines.simulation.taste import Taste

FEED = pa.schema(
    [
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("user_id", pa.int64()),
        ("post_id", pa.int64()),
        ("action", pa.string()),
        ("target", pa.int64()),
    ]
)
"""A row a view or a like, as the real table has them: the view that led to a like has target 1,
the like's own row follows within a minute and has target 0."""

BATCH_VIEWS = 500_000
_ACTIVITY_SHAPE = 2.0  # of the gamma that users' numbers of views follow
_DAY_S = 86_400
_LONGEST_PAUSE_S = 300.0
_MEAN_PAUSE_S = 45.0


@dataclass(frozen=True)
class Sessions:
    """Visits of users, in order of time.

    Parameters
    ----------
    users
        int32 (n,), rows of users.
    starts_s
        int64 (n,), unix seconds.
    views
        int32 (n,), how many posts are looked at; at least 1.
    """

    users: NDArray[np.int32]
    starts_s: NDArray[np.int64]
    views: NDArray[np.int32]


def period(days: int) -> tuple[int, int]:
    """Return the first and the last second (exclusive) of a feed of so many days."""
    first = datetime.fromisoformat(facts.FIRST_DAY).replace(tzinfo=UTC)
    start = int(first.timestamp())
    return start, start + days * _DAY_S


def make_sessions(users: int, views: int, days: int, rng: np.random.Generator) -> Sessions:
    """Share views out among users and their visits; they sum to ``views`` exactly."""
    activity = rng.standard_gamma(_ACTIVITY_SHAPE, users)
    of_users = rng.multinomial(views, activity / activity.sum())
    visits = np.maximum(1, np.rint(of_users / facts.VIEWS_PER_SESSION)).astype(np.int64)
    visits[of_users == 0] = 0
    first = np.cumsum(visits) - visits
    sizes = np.zeros(int(visits.sum()), dtype=np.int32)
    # In pieces: a position a view of the whole feed would not fit.
    piece = max(1, BATCH_VIEWS * users // max(views, 1))
    for start in range(0, users, piece):
        part = slice(start, start + piece)
        owners = np.repeat(np.arange(users)[part], of_users[part])
        places = first[owners] + (rng.random(len(owners)) * visits[owners]).astype(np.int64)
        low = int(first[part.start])
        counted = np.bincount(places - low)
        sizes[low : low + len(counted)] += counted.astype(np.int32)
    who = np.repeat(np.arange(users, dtype=np.int32), visits)
    starts = _starts(len(sizes), days, rng)
    kept = np.flatnonzero(sizes)
    kept = kept[np.argsort(starts[kept], kind="stable")]
    return Sessions(who[kept], starts[kept], sizes[kept])


def _starts(count: int, days: int, rng: np.random.Generator) -> NDArray[np.int64]:
    start, _ = period(days)
    weekday = (np.arange(days) + datetime.fromtimestamp(start, UTC).weekday()) % 7
    weights = np.where(weekday >= 5, facts.WEEKEND_FACTOR, 1.0)
    day = rng.choice(days, count, p=weights / weights.sum())
    hour = rng.choice(24, count, p=facts.HOUR_WEIGHTS / facts.HOUR_WEIGHTS.sum())
    moments: NDArray[np.int64] = start + day * _DAY_S + hour * 3600 + rng.integers(0, 3600, count)
    return moments


def stream(
    sessions: Sessions, posts: Posts, taste: Taste, rng: np.random.Generator
) -> Iterator[pa.Table]:
    """Yield the feed as `FEED`, piece by piece, ordered by time over all pieces.

    Which post is shown does not depend on the user. A user likes a post at most once.
    """
    cumulative = np.cumsum(posts.exposure)
    cumulative /= cumulative[-1]
    liked = np.empty(0, dtype=np.int64)  # user * posts + post, ascending
    waiting = FEED.empty_table()
    ends = np.cumsum(sessions.views, dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(BATCH_VIEWS, int(ends[-1]) + BATCH_VIEWS, BATCH_VIEWS))
    bounds = np.unique(np.append([0], np.minimum(cuts + 1, len(ends))))
    for first, last in pairwise(bounds):
        rows, new = _views(sessions, slice(int(first), int(last)), cumulative, taste, liked, rng)
        liked = np.sort(np.concatenate([liked, new]))
        table = pa.concat_tables([waiting, rows]).sort_by("timestamp")
        if last < len(sessions.starts_s):
            # Later sessions begin later: what comes before the next start is complete.
            limit = np.datetime64(int(sessions.starts_s[last]), "s")
            times = table["timestamp"].to_numpy()
            done = int(np.searchsorted(times, limit))
            yield table.slice(0, done)
            waiting = table.slice(done)
        else:
            yield table


def _views(
    sessions: Sessions,
    part: slice,
    cumulative: NDArray[np.float64],
    taste: Taste,
    liked: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the rows of some sessions, and the keys of the pairs that were liked in them."""
    sizes = sessions.views[part]
    users = np.repeat(sessions.users[part], sizes).astype(np.int64)
    pauses = np.minimum(5 + rng.exponential(_MEAN_PAUSE_S, len(users)), _LONGEST_PAUSE_S)
    before = np.cumsum(pauses) - pauses
    opening = np.cumsum(sizes) - sizes
    moments = np.repeat(sessions.starts_s[part] - before[opening], sizes) + before
    # The last second of the period: a visit that runs over it is cut short there.
    moments = np.minimum(moments, taste.end_s - 61)
    seconds = moments.astype(np.int64)
    shown = np.searchsorted(cumulative, rng.random(len(users)), side="right")
    shown = np.minimum(shown, len(cumulative) - 1)
    likes = rng.random(len(users)) < taste.of_views(users, shown, seconds)
    keys = users * len(cumulative) + shown
    likes &= ~_is_in(keys, liked)
    # Of several likes of a pair in this batch the first stays.
    places = np.flatnonzero(likes)
    _, first = np.unique(keys[places], return_index=True)
    likes[:] = False
    likes[places[first]] = True
    return _rows(taste, users, shown, moments, pauses, likes, rng), keys[likes]


def _rows(
    taste: Taste,
    users: NDArray[np.int64],
    shown: NDArray[np.int64],
    moments: NDArray[np.float64],
    pauses: NDArray[np.float64],
    likes: NDArray[np.bool_],
    rng: np.random.Generator,
) -> pa.Table:
    """Return views and likes side by side, in no order of time."""
    where = np.flatnonzero(likes)
    shortest, longest = facts.LIKE_DELAY_S
    room = np.clip(pauses[where], shortest + 1, longest)
    delay = shortest + rng.random(len(where)) * (room - shortest)
    times = np.concatenate([moments, moments[where] + delay])
    who = np.concatenate([users, users[where]])
    what = np.concatenate([shown, shown[where]])
    kind = np.repeat(np.array([0, 1], dtype=np.int32), [len(users), len(where)])
    return pa.table(
        [
            pa.array((times * 1e6).astype(np.int64)).cast(FEED.field("timestamp").type),
            taste.user_ids[who],
            taste.post_ids[what],
            pa.DictionaryArray.from_arrays(kind, ["view", "like"]).cast(pa.string()),
            np.concatenate([likes, np.zeros(len(where), dtype=bool)]).astype(np.int64),
        ],
        schema=FEED,
    )


def _is_in(keys: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == keys
    return found

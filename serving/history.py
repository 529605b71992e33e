"""What a user did: up to publication, as the bundle's generation keeps it, and since then.

Both lie in Redis and are read together with the user's lists and features. The *past* of a user
is written at publication, one value a user and generation: the latest liked posts with their
weights, oldest first, and all seen posts, packed as `serving.lists` packs lists. The *recent*
events are one value a user, to which `serving.events` appends a record for each event.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.lists import SourceList, key_prefix, pack, unpack, write_values

MAX_LIKED = 500
"""Liked posts of the past that are kept for a user; the latest ones."""
MAX_SEEN = 65_535
MAX_RECENT = 512
"""Recent events that are kept for a user; the latest ones."""

RECORD = np.dtype([("post_id", "<i4"), ("time_us", "<i8"), ("weight", "<f4")])
"""One recent event: 16 bytes. Its weight is 0 unless it is positive."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Past:
    """A user's history up to publication.

    Attributes
    ----------
    liked
        int64 (n,), distinct, oldest first.
    weights
        float64 (n,): the summed weight of the positive events with each.
    seen
        int64 (m,), ascending: every post with any event.
    """

    liked: Ids
    weights: NDArray[np.float64]
    seen: Ids


@dataclass(frozen=True)
class History:
    """What a user did, past and recent events together.

    Attributes
    ----------
    liked, weights
        As of `Past`. A post liked in the past and again since counts once, with the larger of
        both weights: an event may be in the past already and still be among the recent ones.
    seen
        int64, ascending.
    seen_since
        int64, ascending: posts with a recent event; the published lists may still hold them.
    is_fresh
        Whether a post was liked since publication, so that lists made of the past are outdated.
    """

    liked: Ids
    weights: NDArray[np.float64]
    seen: Ids
    seen_since: Ids
    is_fresh: bool


NOTHING_PAST = Past(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


def past_key(project: str, generation: str, user_id: int) -> str:
    """Return the key of a user's past; it goes with the generation's lists."""
    return f"{key_prefix(project, generation)}past:{user_id}"


def recent_key(space: str, user_id: int) -> str:
    """Return the key of a user's recent events; in the slot of the events' stream."""
    return f"feastrank:{{{space}}}:recent:{user_id}"


def pack_past(past: Past) -> bytes:
    """Pack what `unpack_past` unpacks, cut to `MAX_LIKED` and `MAX_SEEN`."""
    liked = SourceList(
        past.liked[-MAX_LIKED:].astype(np.int32), past.weights[-MAX_LIKED:].astype(np.float32)
    )
    seen = past.seen[-MAX_SEEN:].astype(np.int32)
    unscored = SourceList(seen, np.empty(len(seen), np.float32))
    return pack([liked]) + pack([unscored], with_scores=False)


def unpack_past(value: bytes | None) -> Past:
    """Unpack a value; None is a user without a past.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    if value is None:
        return NOTHING_PAST
    liked, seen = unpack(value, 2)
    return Past(
        liked.post_ids.astype(np.int64), liked.scores.astype(np.float64), seen.post_ids.astype("i8")
    )


def write_pasts(
    client: Any, project: str, generation: str, pasts: Iterable[tuple[int, Past]]
) -> Iterator[int]:
    """Write the past of many users; yield the number written after every batch."""
    values = ((past_key(project, generation, user), pack_past(past)) for user, past in pasts)
    return write_values(client, values)


def history_of(past: Past, recent: bytes | None) -> History:
    """Join a user's past with the value of his recent events.

    Raises
    ------
    ValueError
        If the value does not consist of whole records.
    """
    if not recent:
        return History(past.liked, past.weights, past.seen, np.empty(0, np.int64), False)
    records = np.frombuffer(recent, RECORD)
    records = records[np.argsort(records["time_us"], kind="stable")]
    likes = records[records["weight"] > 0]
    liked = likes["post_id"].astype(np.int64)
    posts, weights = _summed(liked, likes["weight"].astype(np.float64))
    order = _latest_order(np.concatenate([past.liked, liked]))
    everything = np.concatenate([past.liked, posts])
    heaviest = np.concatenate([past.weights, weights])
    by_post = {int(post): 0.0 for post in order}
    for post, weight in zip(everything.tolist(), heaviest.tolist(), strict=True):
        by_post[post] = max(by_post[post], weight)
    seen_since = np.unique(records["post_id"]).astype(np.int64)
    return History(
        liked=order,
        weights=np.array([by_post[post] for post in order.tolist()]),
        seen=np.union1d(past.seen, seen_since),
        seen_since=seen_since,
        is_fresh=bool(np.setdiff1d(posts, past.liked).size),
    )


def _summed(posts: Ids, weights: NDArray[np.float64]) -> tuple[Ids, NDArray[np.float64]]:
    distinct, places = np.unique(posts, return_inverse=True)
    return distinct, np.bincount(places, weights, len(distinct)).astype(np.float64)


def _latest_order(posts: Ids) -> Ids:
    """Return the distinct posts, ordered by where each stands last."""
    _, last = np.unique(posts[::-1], return_index=True)
    return posts[::-1][np.sort(last)][::-1]


def without(source: SourceList, posts: Ids) -> SourceList:
    """Return a source's list without some posts; the others move up."""
    kept = ~np.isin(source.post_ids, posts)
    return source if kept.all() else SourceList(source.post_ids[kept], source.scores[kept])


def lists_without(lists: Sequence[SourceList], posts: Ids) -> list[SourceList]:
    """Return every source's list without some posts."""
    return [without(one, posts) for one in lists] if len(posts) else list(lists)

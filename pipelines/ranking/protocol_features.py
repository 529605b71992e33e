"""Features of (user, post) pairs from positives alone, for the hold-out protocols.

Every feature is a function of the positives given and of each user's own moment: likes that
others gave at or after that moment do not count where a feature looks at time. Similarities
between posts are dense matrices, so this is for catalogues of some ten thousand posts; the main
job takes its features from the feature store instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.topics import topic_matrix

Floats = NDArray[np.float32]
LATEST = 10
_SECOND_US = 1_000_000
_DAY_S = 86_400


@dataclass(frozen=True, eq=False)
class Past:
    """What is known when the lists are made.

    Attributes
    ----------
    interactions
        Positives before the cut.
    now : int64[n_users]
        Each user's moment, microseconds since 1970, aligned with ``interactions.user_ids``.
    posts
        ``post_id``, ``topics``, ``post_text_embedding``, ``release_year`` (optional).
    users
        ``user_id``, and attributes: text ones and ``age`` are used as segments.
    """

    interactions: Interactions
    now: Ids
    posts: pa.Table
    users: pa.Table

    @cached_property
    def liked(self) -> csr_matrix:
        """Users by posts, float32 0/1."""
        return (self.interactions.matrix > 0).astype(np.float32)

    @cached_property
    def latest(self) -> Ids:
        """Positions of each user's last posts, newest first, int64 (n_users, 10), -1 for none."""
        bounds = self.interactions.history_bounds
        places = bounds[1:, None] - 1 - np.arange(LATEST)
        inside = places >= bounds[:-1, None]
        posts: Ids = self.interactions.event_posts[np.where(inside, places, 0)].astype(np.int64)
        return np.where(inside, posts, -1)

    @cached_property
    def topics(self) -> Floats:
        """Post by topic, rows of length 1 (0 for posts without topics)."""
        matrix, _ = topic_matrix(self.posts, self.interactions.post_ids)
        return _unit(matrix.toarray().astype(np.float32))

    @cached_property
    def texts(self) -> Floats:
        """Post by dimension, centred on the mean text, rows of length 1."""
        lists = self.posts["post_text_embedding"].combine_chunks()
        vectors = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(lists), -1)
        rows = positions(self.interactions.post_ids, np.asarray(self.posts["post_id"]))
        known = vectors[rows]
        return _unit(known - known.mean(axis=0))


def features(past: Past, users: Ids, posts: Ids) -> dict[str, Floats]:
    """Return one column per feature for each pair.

    Parameters
    ----------
    past
        See `Past`.
    users, posts : int64[n]
        Positions in ``interactions.user_ids`` and ``post_ids``.

    Returns
    -------
    dict of str to float32[n]
        NaN where a feature has no value, such as the similarity to a post that is not there.
    """
    columns = {
        **_popularity(past, users, posts),
        **_activity(past, users),
        **_company(past, users, posts),
        **_content(past, users, posts),
        **_segments(past, users, posts),
    }
    return {name: np.asarray(values, dtype=np.float32) for name, values in columns.items()}


def _popularity(past: Past, users: Ids, posts: Ids) -> dict[str, Floats]:
    """Likes of the post before the user's moment: how many, how recent, what share."""
    data = past.interactions
    start = int(data.event_times.min())
    seconds = (data.event_times - start) // _SECOND_US
    moment = (past.now[users] - start) // _SECOND_US
    span = int(max(seconds.max(), moment.max(initial=0))) + 2
    order = np.lexsort((seconds, data.event_posts))
    keys = data.event_posts[order].astype(np.int64) * span + seconds[order]
    ordered = np.sort(seconds)

    def likes_before(moments: Ids) -> Ids:
        key = posts * span + np.clip(moments, 0, span - 1)
        return np.searchsorted(keys, key) - np.searchsorted(keys, posts * span)

    def all_before(moments: Ids) -> Ids:
        return np.searchsorted(ordered, np.clip(moments, 0, span - 1))

    likes, total = likes_before(moment), all_before(moment)
    found: dict[str, NDArray[Any]] = {
        "post_likes": np.bincount(data.event_posts, minlength=len(data.post_ids))[posts],
        "post_likes_before": likes,
    }
    shares = {}
    for days in (1, 7, 28):
        since = moment - days * _DAY_S
        recent = likes - likes_before(since)
        shares[days] = (recent + 0.05) / (total - all_before(since) + 50.0)
        found[f"post_likes_{days}d"] = recent
        found[f"post_like_share_{days}d"] = shares[days]
    found["post_trend_7d_to_28d"] = shares[7] / shares[28]
    found["post_trend_28d_to_all"] = shares[28] / ((likes + 0.05) / (total + 50.0))
    first = seconds[order][np.searchsorted(keys, posts * span)]
    found["post_age_days"] = np.where(likes > 0, (moment - first) / _DAY_S, np.nan)
    last = seconds[order][np.searchsorted(keys, posts * span) + np.maximum(likes - 1, 0)]
    found["days_since_post_liked"] = np.where(likes > 0, (moment - last) / _DAY_S, np.nan)
    return found


def _activity(past: Past, users: Ids) -> dict[str, Floats]:
    data = past.interactions
    counts = np.diff(data.history_bounds)
    last = data.event_times[np.maximum(data.history_bounds[1:] - 1, 0)]
    first = data.event_times[np.minimum(data.history_bounds[:-1], len(data.event_times) - 1)]
    likes = np.bincount(data.event_posts, minlength=len(data.post_ids))
    taste = past.liked @ np.log1p(likes) / np.maximum(counts, 1)
    return {
        "user_likes": counts[users],
        "days_since_user_liked": ((past.now - last) / _SECOND_US / _DAY_S)[users],
        "user_active_days": ((last - first) / _SECOND_US / _DAY_S)[users],
        "user_mean_log_popularity": taste[users],
    }


def _company(past: Past, users: Ids, posts: Ids) -> dict[str, Floats]:
    """How much the post goes with, and follows, the user's latest posts in others' histories."""
    liked = past.liked
    together = (liked.T @ liked).toarray()
    length = np.sqrt(np.diagonal(together))
    cosine = together / length / length[:, None]
    np.fill_diagonal(cosine, 0.0)
    follows = _transitions(past.interactions)
    found = _to_latest("cosine", cosine, past.latest, users, posts, singles=3)
    found |= _to_latest("follows", follows, past.latest, users, posts, singles=2)
    mean = (liked @ cosine) / np.maximum(np.diff(liked.indptr), 1)[:, None]
    found["cosine_to_all"] = mean[users, posts]
    return found


def _transitions(data: Interactions) -> Floats:
    """Return how often column's post came within 3 events after row's, over row's likes + 5."""
    n_posts = len(data.post_ids)
    counts = np.zeros((n_posts, n_posts), dtype=np.float32)
    for ahead in (1, 2, 3):
        same = data.event_users[ahead:] == data.event_users[:-ahead]
        pairs = (data.event_posts[:-ahead][same], data.event_posts[ahead:][same])
        np.add.at(counts, pairs, 1.0 / ahead)
    likes = np.bincount(data.event_posts, minlength=n_posts).astype(np.float32)
    shares: Floats = counts / (likes[:, None] + 5.0)
    return shares


def _content(past: Past, users: Ids, posts: Ids) -> dict[str, Floats]:
    found = _to_latest("text", past.texts @ past.texts.T, past.latest, users, posts, singles=1)
    found |= _to_latest("topics", past.topics @ past.topics.T, past.latest, users, posts, singles=1)
    for name, vectors in (("text", past.texts), ("topics", past.topics)):
        taste = _unit(past.liked @ vectors)
        found[f"{name}_to_all"] = np.einsum("ij,ij->i", taste[users], vectors[posts])
    if "release_year" in past.posts.column_names:
        rows = positions(past.interactions.post_ids, np.asarray(past.posts["post_id"]))
        years = np.asarray(past.posts["release_year"].cast(pa.float64()).fill_null(np.nan))[rows]
        filled = np.where(np.isnan(years), np.nanmean(years), years)
        counts = np.maximum(np.diff(past.liked.indptr), 1)
        found["release_year"] = years[posts]
        found["release_year_to_liked"] = years[posts] - (past.liked @ filled / counts)[users]
        newest = past.latest[users, 0]
        newest = past.latest[users, 0]
        difference = years[posts] - years[newest]
        found["release_year_to_latest"] = np.where(newest >= 0, difference, np.nan)
    return found


def _segments(past: Past, users: Ids, posts: Ids) -> dict[str, Floats]:
    """Lift of the post, and of its topics, in the user's segment over everybody."""
    data = past.interactions
    rows = positions(data.user_ids, np.asarray(past.users["user_id"]))
    found = {}
    for name in past.users.column_names:
        codes = _codes(name, past.users[name])
        if codes is None:
            continue
        segment = np.where(rows >= 0, codes[rows], codes.max(initial=0) + 1)
        likes = np.zeros((int(segment.max()) + 1, len(data.post_ids)))
        np.add.at(likes, segment, past.liked.toarray())
        everybody = likes.sum(axis=0) / likes.sum()
        totals = likes.sum(axis=1, keepdims=True)
        lift = (likes + 2000.0 * everybody) / (totals + 2000.0) / everybody
        found[f"{name}_post_lift"] = lift[segment[users], posts]
        topic_shares = likes @ past.topics / np.maximum(totals, 1)
        topic_lift = topic_shares / np.maximum(everybody @ past.topics, 1e-9)
        weights = past.topics / np.maximum(past.topics.sum(axis=1, keepdims=True), 1e-9)
        found[f"{name}_topic_lift"] = (topic_lift @ weights.T)[segment[users], posts]
    return found


def _codes(name: str, column: pa.ChunkedArray) -> Ids | None:
    if name == "age":
        ages = np.asarray(column.cast(pa.float64()).fill_null(np.nan))
        groups: Ids = np.digitize(np.nan_to_num(ages, nan=-1.0), [18, 25, 35, 45, 50])
        return groups.astype(np.int64)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        codes: Ids = np.asarray(pc.rank(column.fill_null(""), tiebreaker="dense")).astype(np.int64)
        return codes - 1
    return None


def _to_latest(
    name: str,
    similarity: Floats,
    latest: Ids,
    users: Ids,
    posts: Ids,
    *,
    singles: int,
) -> dict[str, Floats]:
    """Similarities to each of the last few posts, and their greatest and mean."""
    mine = latest[users]
    values = np.where(mine >= 0, similarity[mine, posts[:, None]], np.nan).astype(np.float32)
    known = np.maximum((mine >= 0).sum(axis=1), 1)
    filled = np.nan_to_num(values)
    found = {f"{name}_to_latest_{place + 1}": values[:, place] for place in range(singles)}
    found[f"{name}_to_latest_3_mean"] = filled[:, :3].sum(axis=1) / np.minimum(known, 3)
    found[f"{name}_to_latest_{LATEST}_mean"] = filled.sum(axis=1) / known
    found[f"{name}_to_latest_{LATEST}_max"] = filled.max(axis=1)
    return found


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit

"""What the two towers take in: content of posts, attributes of users, trends, and examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.candidates.content import text_vectors
from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.topics import topic_matrix
from serving.user_tower import AttributeEncoder

Floats = NDArray[np.float32]

DAY_US = 86_400_000_000
TEXT_EMBEDDING = "post_text_embedding"
_NO_ATTRIBUTES = {"user_id", "post_id", "known_time", "title", "text", "topics", "image"}
_MOST_VALUES = 100
TREND_NAMES = ("recent likes", "less recent likes", "all likes", "age", "not liked yet")


def attribute_encoder(table: pa.Table | None, key: str, ids: Ids) -> AttributeEncoder:
    """Learn how to encode the attributes of a table from the rows of `ids`.

    Columns of numbers and of strings are attributes, the lake's own columns are none. Of each
    string column the 100 most frequent values get an input.
    """
    numbers: list[tuple[str, float, float]] = []
    values: list[tuple[str, str]] = []
    rows = pa.table({}) if table is None else _rows(table, key, ids)
    for name in sorted(set(rows.column_names) - _NO_ATTRIBUTES):
        column = rows[name]
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            known = np.asarray(column.drop_null().cast(pa.float64()))
            known = known[np.isfinite(known)]
            if len(known):
                numbers.append((name, float(known.mean()), float(known.std()) or 1.0))
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            counts = pc.value_counts(column.drop_null()).to_pylist()
            counts.sort(key=lambda one: (-one["counts"], one["values"]))
            values += [(name, one["values"]) for one in counts[:_MOST_VALUES]]
    return AttributeEncoder(
        np.array([name for name, _, _ in numbers], dtype=np.str_),
        np.array([mean for _, mean, _ in numbers], dtype=np.float64),
        np.array([scale for _, _, scale in numbers], dtype=np.float64),
        np.array([name for name, _ in values], dtype=np.str_),
        np.array([value for _, value in values], dtype=np.str_),
    )


def encode(table: pa.Table | None, key: str, ids: Ids, encoder: AttributeEncoder) -> Floats:
    """Return the attributes of `ids`, float32 (len(ids), encoder.width); null without a row."""
    nothing = encoder.encode({}, len(ids))
    if table is None:
        return nothing
    rows = _rows(table, key, ids)
    names = {*encoder.numbers.tolist(), *encoder.categories.tolist()}
    columns = {name: rows[name].to_pylist() for name in sorted(names)}
    nothing[positions(np.asarray(rows[key]), ids)] = encoder.encode(columns, rows.num_rows)
    return nothing


def _rows(table: pa.Table, key: str, ids: Ids) -> pa.Table:
    return table.filter(pc.is_in(table[key], pa.array(ids))).sort_by(key)


def post_content(posts: pa.Table | None, post_ids: Ids) -> Floats:
    """Return topics, attributes and text of posts, float32 (n_posts, inputs).

    Topics are divided by the root of their number, so that a post of many has no longer a
    vector; a text has a root mean square of 1 an input.
    """
    if posts is None:
        return np.zeros((len(post_ids), 0), dtype=np.float32)
    parts = [encode(posts, "post_id", post_ids, attribute_encoder(posts, "post_id", post_ids))]
    if "topics" in posts.column_names:
        topics = topic_matrix(posts, post_ids)[0].toarray().astype(np.float32)
        parts.append(topics / np.sqrt(np.maximum(topics.sum(axis=1, keepdims=True), 1)))
    if TEXT_EMBEDDING in posts.column_names:
        text = text_vectors(posts, post_ids)
        parts.append(text * np.float32(text.shape[1] ** 0.5))
    return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Trends:
    """How liked and how old each post was at some moments, seen from before each.

    Attributes
    ----------
    times : int64[n_moments]
        Ascending, microseconds since 1970.
    values : float32 (n_moments + 1, n_posts, len(TREND_NAMES))
        The last row is as of the end, with every event counted. Likes are the log of the post's
        share of all decayed likes times the number of posts, age is log(1 + days since the
        first like).
    """

    times: Ids
    values: Floats

    @classmethod
    def of(cls, interactions: Interactions, half_life_days: float | None, moments: int) -> Trends:
        """Follow the events; `half_life_days` None: nothing is told of any post."""
        n_posts = len(interactions.post_ids)
        if half_life_days is None:
            return cls(np.empty(0, np.int64), np.zeros((1, n_posts, 0), np.float32))
        order = np.argsort(interactions.event_times, kind="stable")
        posts, times = interactions.event_posts[order], interactions.event_times[order]
        # As many events between one moment and the next.
        starts = np.unique(times[np.linspace(0, len(times), moments, endpoint=False, dtype=int)])
        cuts = np.append(np.searchsorted(times, starts), len(times))
        ends = np.append(starts, times[-1])
        values = np.empty((len(cuts), n_posts, len(TREND_NAMES)), dtype=np.float32)
        first = np.full(n_posts, np.iinfo(np.int64).max)
        np.minimum.at(first, posts, times)
        halves = np.array([half_life_days, 4 * half_life_days, np.inf])
        likes = np.zeros((3, n_posts))
        before = 0
        for row, (cut, end) in enumerate(zip(cuts, ends, strict=True)):
            step = end - ends[max(row - 1, 0)]
            likes *= np.exp2(-step / DAY_US / halves)[:, None]
            age = (end - times[before:cut]) / DAY_US
            for i, half in enumerate(halves):
                weights = np.exp2(-age / half)
                likes[i] += np.bincount(posts[before:cut], weights=weights, minlength=n_posts)
            before = cut
            values[row] = _trend_values(likes, (end - first) / DAY_US, cut > 0).T
        return cls(starts, values)

    def moment_of(self, times: Ids) -> Ids:
        """Return the row of the last moment that is not after each time."""
        if not len(self.times):
            return np.zeros(len(times), dtype=np.int64)
        return np.maximum(np.searchsorted(self.times, times, side="right") - 1, 0)


def _trend_values(likes: NDArray[np.float64], days: NDArray[np.float64], known: bool) -> Any:
    """Return float64 (trends, n_posts); before the first event nothing is known."""
    n_posts = likes.shape[1]
    share = (likes + 0.1) / (likes.sum(axis=1, keepdims=True) + 0.1 * n_posts)
    new = (likes[2] == 0) & known
    age = np.log1p(np.maximum(days, 0)) * ~new
    return np.vstack([np.log(share * n_posts), age / 3.0, new])


@dataclass(frozen=True, eq=False)
class Histories:
    """Every user's liked posts by time, to be cut before any moment.

    Attributes
    ----------
    posts : int64[n_events]
        Positions, ordered by user, then time.
    starts : int64[n_events]
        Where the events of the event's user begin.
    length : int
        How many of the latest posts are looked at.
    """

    posts: Ids
    starts: Ids
    length: int

    @classmethod
    def of(cls, interactions: Interactions, length: int) -> Histories:
        """Index the events."""
        starts = interactions.history_bounds[interactions.event_users]
        return cls(interactions.event_posts.astype(np.int64), starts, length)

    def before(self, events: Ids, starts: Ids) -> Ids:
        """Return the posts before each event, int64 (n, length), latest first, -1: none.

        `starts` is where the user's events begin, so that an event may be one past his last.
        """
        places = events[:, None] - 1 - np.arange(self.length)
        return np.where(places >= starts[:, None], self.posts[np.maximum(places, 0)], -1)


def latest_posts(interactions: Interactions, histories: Histories) -> Ids:
    """Return each user's latest posts, int64 (n_users, length), as `Histories.before`."""
    bounds = interactions.history_bounds
    return histories.before(bounds[1:], bounds[:-1])

"""Who liked what, when, how much, and what they have already seen: what generators learn from."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipelines.errors import InteractionsError

Ids = NDArray[np.int64]
_TIME = pa.timestamp("us", tz="UTC")


def positions(ids: NDArray[Any], sorted_ids: Ids) -> Ids:
    """Return the position of each id in ``sorted_ids`` (ascending, distinct), -1 if it is not."""
    found = np.searchsorted(sorted_ids, ids)
    found[found == len(sorted_ids)] = 0
    if len(sorted_ids) == 0:
        return np.full(len(ids), -1, dtype=np.int64)
    return np.where(sorted_ids[found] == ids, found, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Seen:
    """Pairs that count as seen, each once, ordered by user, then post: int64 arrays of one length.

    Attributes
    ----------
    users, posts
        Ids.
    times
        When the user first saw the post, microseconds since 1970 (UTC).
    """

    users: Ids
    posts: Ids
    times: Ids


@dataclass(frozen=True, eq=False)
class Interactions:
    """Positive events, indexed, and every pair a user has seen.

    Attributes
    ----------
    user_ids : int64[n_users]
        Ascending: users with a positive or a seen post.
    post_ids : int64[n_posts]
        Ascending: posts with at least one positive, the only ones a collaborative generator
        can propose.
    event_users, event_posts : int32[n_events]
        Positions in `user_ids` and `post_ids` of each positive event; events are ordered by
        user, then time, then the source's own order.
    event_times : int64[n_events]
        Microseconds since 1970 (UTC).
    event_weights : float64[n_events]
        Above zero.
    seen_users : int32[n_seen]
        Positions in `user_ids`; one row per distinct pair, ordered by user, then post.
    seen_posts : int64[n_seen]
        Post ids (not positions: a seen post need not be in `post_ids`).
    seen_times : int64[n_seen]
        When the user first saw the post.
    """

    user_ids: Ids
    post_ids: Ids
    event_users: NDArray[np.int32]
    event_posts: NDArray[np.int32]
    event_times: Ids
    event_weights: NDArray[np.float64]
    seen_users: NDArray[np.int32]
    seen_posts: Ids
    seen_times: Ids

    @classmethod
    def from_table(cls, table: pa.Table, *, seen: pa.Table | None = None) -> Interactions:
        """Index a table of events.

        Parameters
        ----------
        table
            One row per event: ``user_id`` int64, ``post_id`` int64, ``event_time``
            timestamp[us, UTC], ``weight`` double, and optionally ``event_order`` int64, which
            breaks ties in time. A row of weight 0 is no positive: it only marks the post as
            seen, so the lake's events can be passed as they are.
        seen
            Further pairs that count as seen (``user_id``, ``post_id``, ``event_time``), on top
            of every pair in `table`.

        Raises
        ------
        InteractionsError
            A missing column, a null, a NaN, infinite or negative weight, a time without a
            zone, or no positive event at all.
        """
        users, posts, times = _pairs(table, "events")
        weights = _weights(table)
        order = (
            _column(table, "event_order", pa.int64(), "events")
            if "event_order" in table.column_names
            else np.zeros(len(users), dtype=np.int64)
        )
        seen_pairs = [(users, posts, times)]
        if seen is not None:
            seen_pairs.append(_pairs(seen, "seen pairs"))
        seen_users, seen_posts, seen_times = (
            np.concatenate(parts) for parts in zip(*seen_pairs, strict=True)
        )
        liked = weights > 0
        events = (users[liked], posts[liked], times[liked], weights[liked], order[liked])
        return cls._assemble(*events, seen_users, seen_posts, seen_times)

    @classmethod
    def from_positives(cls, table: pa.Table, seen: Seen, user_ids: Ids) -> Interactions:
        """Index positive events, where everything else is known already.

        Parameters
        ----------
        table
            As `from_table` takes it, of positives only.
        seen
            Pairs that count as seen.
        user_ids
            Ascending, distinct: everybody with a positive or a seen post, and others who are
            to have a row.

        Raises
        ------
        InteractionsError
            As `from_table`.
        """
        order = _column(table, "event_order", pa.int64(), "events")
        events = (*_pairs(table, "events"), _weights(table), order)
        return cls._indexed(*events, seen, user_ids)

    @classmethod
    def _assemble(
        cls,
        users: Ids,
        posts: Ids,
        times: Ids,
        weights: NDArray[np.float64],
        order: Ids,
        seen_users: Ids,
        seen_posts: Ids,
        seen_times: Ids,
    ) -> Interactions:
        by_pair = np.lexsort((seen_times, seen_posts, seen_users))
        seen_users, seen_posts, seen_times = (
            column[by_pair] for column in (seen_users, seen_posts, seen_times)
        )
        first = np.ones(len(seen_users), dtype=bool)
        first[1:] = (np.diff(seen_users) != 0) | (np.diff(seen_posts) != 0)
        seen = Seen(seen_users[first], seen_posts[first], seen_times[first])
        return cls._indexed(users, posts, times, weights, order, seen, np.unique(seen.users))

    @classmethod
    def _indexed(
        cls,
        users: Ids,
        posts: Ids,
        times: Ids,
        weights: NDArray[np.float64],
        order: Ids,
        seen: Seen,
        user_ids: Ids,
    ) -> Interactions:
        if len(users) == 0:
            raise InteractionsError(
                f"events: found no positive event among {len(seen.users):,} rows, expected at "
                "least one with weight > 0; widen the period or check which actions the dataset "
                "description calls positive"
            )
        # The order of rows in the source must change nothing: the keys decide, to the last one.
        by_time = np.lexsort((weights, posts, order, times, users))
        post_ids = np.unique(posts)
        return cls(
            user_ids=user_ids,
            post_ids=post_ids,
            event_users=positions(users[by_time], user_ids).astype(np.int32),
            event_posts=positions(posts[by_time], post_ids).astype(np.int32),
            event_times=times[by_time],
            event_weights=weights[by_time],
            seen_users=positions(seen.users, user_ids).astype(np.int32),
            seen_posts=seen.posts,
            seen_times=seen.times,
        )

    def until(self, time: datetime.datetime) -> Interactions:
        """Return what was known strictly before `time` (with a zone).

        Raises
        ------
        InteractionsError
            `time` has no zone, or no positive event is before it.
        """
        if time.tzinfo is None:
            raise InteractionsError(f"until {time}: the time has no zone; pass a UTC time")
        limit = pa.scalar(time, type=_TIME).cast(pa.int64()).as_py()
        event = self.event_times < limit
        seen = self.seen_times < limit
        users = self.user_ids[self.event_users[event]]
        return self._assemble(
            users,
            self.post_ids[self.event_posts[event]],
            self.event_times[event],
            self.event_weights[event],
            np.arange(len(users), dtype=np.int64),
            self.user_ids[self.seen_users[seen]],
            self.seen_posts[seen],
            self.seen_times[seen],
        )

    @cached_property
    def matrix(self) -> csr_matrix:
        """Users by posts, float32 (n_users, n_posts): the summed weight of each pair."""
        shape = (len(self.user_ids), len(self.post_ids))
        summed = csr_matrix((self.event_weights, (self.event_users, self.event_posts)), shape=shape)
        summed.sum_duplicates()
        return summed.astype(np.float32)

    @cached_property
    def history_bounds(self) -> Ids:
        """Where each user's events begin: user u's are ``[bounds[u], bounds[u + 1])``, by time."""
        counts = np.bincount(self.event_users, minlength=len(self.user_ids))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def latest_time(self) -> int:
        """The time of the last positive event, microseconds since 1970."""
        return int(self.event_times.max())

    def seen_matrix(self, catalogue: Ids) -> csr_matrix:
        """Return bool (n_users, len(catalogue)): which posts of an ascending catalogue were seen.

        Posts outside the catalogue are left out: nothing could propose them.
        """
        column = positions(self.seen_posts, catalogue)
        inside = column >= 0
        # They are in the order of a csr matrix; through coordinates it would take twice the memory.
        counts = np.bincount(self.seen_users[inside], minlength=len(self.user_ids))
        bounds = np.concatenate([[0], np.cumsum(counts)])
        return csr_matrix(
            (np.ones(bounds[-1], dtype=bool), column[inside].astype(np.int32), bounds),
            shape=(len(self.user_ids), len(catalogue)),
        )

    @cached_property
    def seen(self) -> csr_matrix:
        """Bool (n_users, n_posts): which of `post_ids` each user has seen."""
        return self.seen_matrix(self.post_ids)


def _column(table: pa.Table, name: str, kind: pa.DataType, what: str) -> NDArray[Any]:
    if name not in table.column_names:
        raise InteractionsError(
            f"{what}: no column {name!r}, found {table.column_names}; select or rename it"
        )
    column = table.column(name)
    if column.null_count:
        raise InteractionsError(
            f"{what}: {column.null_count:,} of {table.num_rows:,} rows have a null {name} "
            f"(first: row {pc.index(column.is_null(), True).as_py()}); drop or fill them"
        )
    if pa.types.is_timestamp(kind) and getattr(column.type, "tz", None) is None:
        raise InteractionsError(
            f"{what}: {name} is {column.type}, expected {kind}; cast it to UTC microseconds"
        )
    try:
        # Nanoseconds are cut to microseconds; nothing else is allowed to lose anything.
        cast = column.cast(kind, safe=not pa.types.is_timestamp(kind))
    except pa.ArrowInvalid as error:
        raise InteractionsError(f"{what}: {name} cannot be read as {kind}: {error}") from error
    return np.asarray(cast.cast(pa.int64()) if pa.types.is_timestamp(kind) else cast)


def _pairs(table: pa.Table, what: str) -> tuple[Ids, Ids, Ids]:
    return (
        _column(table, "user_id", pa.int64(), what),
        _column(table, "post_id", pa.int64(), what),
        _column(table, "event_time", _TIME, what),
    )


def _weights(table: pa.Table) -> NDArray[np.float64]:
    weights = _column(table, "weight", pa.float64(), "events")
    wrong = ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InteractionsError(
            f"events: {int(wrong.sum()):,} of {len(weights):,} rows have a weight that is NaN, "
            f"infinite or negative (first: row {first}, {weights[first]}); weights are finite, "
            "0 for events that are no positive and above 0 for positives"
        )
    return weights

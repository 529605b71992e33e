"""Where train ends and test begins: cuts by time, and the published hold-out protocols.

Every function is pure. `time_slices` serves the pipeline, which cuts whole tables at a
time; `leave_last_one`, `last_n_file_order` and `global_time` are protocols on positive
(user, post) pairs under which published figures were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.evaluation.errors import SplitError

Times: TypeAlias = pa.Array | pa.ChunkedArray | npt.NDArray[np.datetime64] | npt.NDArray[np.int64]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TimeSlice:
    """The half-open stretch of time `[start, end)`, UTC, and its number of positive events."""

    start: datetime
    end: datetime
    positives: int

    def contains(self, event_times: Times) -> npt.NDArray[np.bool_]:
        """Mark the events of this slice; shape and order of `event_times`."""
        times = to_microseconds(event_times)
        return (times >= _from_datetime(self.start)) & (times < _from_datetime(self.end))


@dataclass(frozen=True)
class Slices:
    """Cuts of one dataset by time: history, then the label slices, then the test slice.

    Generators that make the candidates of a slice are fitted on events before its start.

    Attributes
    ----------
    history : TimeSlice
        From the first event to the first label slice; never labelled.
    labels : tuple of TimeSlice
        Oldest first and without gaps; the last one is the validation slice.
    test : TimeSlice
        Begins where `labels` end; its `end` is 1 us after the last event.
    """

    history: TimeSlice
    labels: tuple[TimeSlice, ...]
    test: TimeSlice

    @property
    def validation(self) -> TimeSlice:
        """The last label slice: models and settings are chosen here, never on `test`."""
        return self.labels[-1]

    @property
    def training(self) -> tuple[TimeSlice, ...]:
        """The label slices before validation; empty if there is one label slice only."""
        return self.labels[:-1]


@dataclass(frozen=True)
class PairSplit:
    """One hold-out split of positive pairs.

    Attributes
    ----------
    train, test : pa.Table
        Columns of the input, one row per (user_id, post_id): its first event. Ordered as
        the protocol says. Nothing of `test` is in `train`.
    tied_users : int
        Users whose last train event and first test event carry the same time, so that
        the order in the file decided between them. 0 where time plays no part.
    """

    train: pa.Table
    test: pa.Table
    tied_users: int

    @property
    def cold_user_ids(self) -> npt.NDArray[np.int64]:
        """Test users without a train row, ascending: reported apart, or counted as misses."""
        return np.setdiff1d(_int64(self.test, "user_id"), _int64(self.train, "user_id"))


def time_slices(
    event_times: Times,
    positive_mask: pa.Array | pa.ChunkedArray | npt.NDArray[np.bool_],
    *,
    test_share: float = 0.1,
    slices: int = 4,
    slice_share: float = 0.1,
) -> Slices:
    """Cut time by the quantiles of the positive events' times.

    A cut is the time of one event, and everything at that time or later lies after it:
    events of one moment are never parted, so a slice may hold more than its share.

    Parameters
    ----------
    event_times
        When each event happened: timestamps, or int64 microseconds since 1970 UTC.
        Any order, no nulls.
    positive_mask
        True for the successes; the same length.
    test_share, slice_share
        Share of the positive events in the test slice and in each label slice.
    slices
        Number of label slices before the test slice, validation included.

    Raises
    ------
    SplitError
        If a slice, or the history before the first one, would hold no positive event.
    """
    times = to_microseconds(event_times)
    positive = _mask(positive_mask, times.size)
    _check_shares(test_share, slices, slice_share)
    ordered = np.sort(times[positive])
    needed = slices + 2
    if ordered.size < needed:
        raise SplitError(
            f"time split: {ordered.size} positive events of {times.size} for {needed} slices; "
            "provide more events, or check which actions the dataset calls positive"
        )
    shares = test_share + slice_share * np.arange(slices, -1, -1)
    first_after = ordered.size - np.maximum(np.round(ordered.size * shares).astype(np.int64), 1)
    cuts = ordered[np.maximum(first_after, 0)]
    bounds = np.concatenate([[times.min()], cuts, [times.max() + 1]])
    counts = np.diff(np.searchsorted(ordered, bounds, side="left"))
    _check_no_slice_empty(counts, ordered)
    parts = tuple(
        TimeSlice(_to_datetime(start), _to_datetime(end), int(count))
        for start, end, count in zip(bounds[:-1], bounds[1:], counts, strict=True)
    )
    return Slices(history=parts[0], labels=parts[1:-1], test=parts[-1])


def warm_and_cold_users(
    train_user_ids: pa.Array | pa.ChunkedArray | npt.NDArray[np.int64],
    test_user_ids: pa.Array | pa.ChunkedArray | npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Part the users of the test slice by whether they have an event before it.

    Returns
    -------
    tuple of (warm, cold)
        Distinct user ids, ascending.

    Raises
    ------
    SplitError
        If no user of the test slice is known before it, or the slice has no users.
    """
    train = np.unique(np.asarray(train_user_ids, dtype=np.int64))
    test = np.unique(np.asarray(test_user_ids, dtype=np.int64))
    warm = np.intersect1d(train, test, assume_unique=True)
    if not warm.size:
        raise SplitError(
            f"test slice: none of its {test.size} users has an event before it ({train.size} users "
            "have); widen test_share, or collect events over a longer time"
        )
    return warm, np.setdiff1d(test, train, assume_unique=True)


def leave_last_one(positives: pa.Table) -> PairSplit:
    """Hold out each user's last post by time; ties in time are settled by file order.

    Parameters
    ----------
    positives
        user_id int64, post_id int64, event_time timestamp, event_order int64; further
        columns are kept. One row per event, any order.
    """
    ordered = _first_of_each_pair(_by_user(positives, "event_time", "event_order"))
    held_out = _rows_from_end(_int64(ordered, "user_id")) < 1
    return _pair_split(ordered, held_out, by_time=True)


def last_n_file_order(
    positives: pa.Table, n: int = 3, rng: np.random.Generator | None = None
) -> PairSplit:
    """Hold out the last `n` posts of each user in file order.

    Where the file is not ordered by time, as in MovieLens-100k, this is a random
    hold-out and not a temporal one. Users with at most `n` posts have no train row.

    Parameters
    ----------
    positives
        user_id int64, post_id int64, event_order int64; further columns are kept.
    n
        Posts held out for each user.
    rng
        If given, the rows are shuffled first: another split by the same rule.

    Raises
    ------
    SplitError
        If `n` is not positive.
    """
    if n < 1:
        raise SplitError(f"hold-out of the last {n} posts: n must be at least 1")
    if rng is not None:
        order = pa.array(rng.permutation(positives.num_rows))
        positives = positives.set_column(
            positives.schema.get_field_index("event_order"), "event_order", order
        )
    ordered = _first_of_each_pair(_by_user(positives, "event_order"))
    held_out = _rows_from_end(_int64(ordered, "user_id")) < n
    return _pair_split(ordered, held_out, by_time=False)


def global_time(positives: pa.Table, test_share: float = 0.1) -> PairSplit:
    """Hold out the last `test_share` of all rows by time; ties are settled by file order.

    Parameters
    ----------
    positives
        user_id int64, post_id int64, event_time timestamp, event_order int64; further
        columns are kept.
    test_share
        Share of the distinct (user, post) pairs that is held out.

    Raises
    ------
    SplitError
        If train or test would be empty.
    """
    ordered = _first_of_each_pair(_sorted_by(positives, "event_time", "event_order"))
    held_out_rows = round(ordered.num_rows * test_share)
    if not 0 < held_out_rows < ordered.num_rows:
        raise SplitError(
            f"global time split: test_share={test_share} of {ordered.num_rows} pairs leaves "
            f"{held_out_rows} for test; both sides need at least one pair"
        )
    held_out = np.arange(ordered.num_rows) >= ordered.num_rows - held_out_rows
    return _pair_split(ordered, held_out, by_time=True)


def to_microseconds(event_times: Times) -> npt.NDArray[np.int64]:
    """Read times as int64 microseconds since 1970 UTC.

    Raises
    ------
    SplitError
        If a time is null or the type is not a time.
    """
    if isinstance(event_times, pa.Array | pa.ChunkedArray):
        if event_times.null_count:
            raise SplitError(
                f"event times: {event_times.null_count} of {len(event_times)} are null; "
                "drop these events or give them a time"
            )
        if pa.types.is_timestamp(event_times.type):
            event_times = event_times.cast(pa.timestamp("us", tz=event_times.type.tz), safe=False)
            event_times = event_times.cast(pa.int64())
        event_times = event_times.to_numpy()
    values: npt.NDArray[Any] = np.asarray(event_times)
    if np.issubdtype(values.dtype, np.datetime64):
        if np.isnat(values).any():
            raise SplitError("event times: some are NaT; drop these events or give them a time")
        values = values.astype("datetime64[us]").astype(np.int64)
    if not np.issubdtype(values.dtype, np.integer):
        raise SplitError(
            f"event times: found {values.dtype}, expected timestamps or int64 microseconds"
        )
    return values.astype(np.int64, copy=False)


def _mask(positive_mask: object, length: int) -> npt.NDArray[np.bool_]:
    mask = np.asarray(positive_mask)
    if mask.dtype != np.bool_ or mask.shape != (length,):
        raise SplitError(
            f"positive mask: found {mask.dtype} of shape {mask.shape}, "
            f"expected {length} booleans, one for each event"
        )
    return mask


def _check_shares(test_share: float, slices: int, slice_share: float) -> None:
    if slices < 1:
        raise SplitError(f"time split: slices={slices}; at least one is needed, for validation")
    labelled = test_share + slices * slice_share
    if test_share <= 0 or slice_share <= 0 or labelled >= 1:
        raise SplitError(
            f"time split: test_share={test_share} and {slices} slices of {slice_share} take "
            f"{labelled:.2f} of the events; each must be positive and the sum below 1, "
            "as the generators learn from what lies before"
        )


def _check_no_slice_empty(counts: npt.NDArray[np.int64], ordered: npt.NDArray[np.int64]) -> None:
    empty = np.flatnonzero(counts == 0)
    if not empty.size:
        return
    names = ["the history", *(f"label slice {i}" for i in range(1, counts.size - 1)), "the test"]
    raise SplitError(
        f"time split: no positive event in {', '.join(names[i] for i in empty)} of {counts.size} "
        f"parts: the {ordered.size} positive events have {np.unique(ordered).size} distinct times; "
        "ask for fewer slices or larger shares, or provide finer times"
    )


def _sorted_by(table: pa.Table, *columns: str) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in columns])


def _by_user(table: pa.Table, *columns: str) -> pa.Table:
    return _sorted_by(table, "user_id", *columns)


def _first_of_each_pair(ordered: pa.Table) -> pa.Table:
    """Keep the first row of each (user, post): meeting a post again is no discovery."""
    _, user = np.unique(_int64(ordered, "user_id"), return_inverse=True)
    posts, post = np.unique(_int64(ordered, "post_id"), return_inverse=True)
    _, first = np.unique(user * max(posts.size, 1) + post, return_index=True)
    return ordered.take(pa.array(np.sort(first)))


def _rows_from_end(user_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number each row within its user from the end, 0 for the last; rows lie by user."""
    return np.searchsorted(user_ids, user_ids, side="right") - 1 - np.arange(user_ids.size)


def _pair_split(ordered: pa.Table, held_out: npt.NDArray[np.bool_], *, by_time: bool) -> PairSplit:
    train, test = ordered.filter(pa.array(~held_out)), ordered.filter(pa.array(held_out))
    return PairSplit(train, test, _tied_users(train, test) if by_time else 0)


def _tied_users(train: pa.Table, test: pa.Table) -> int:
    last = train.group_by("user_id").aggregate([("event_time", "max")])
    first = test.group_by("user_id").aggregate([("event_time", "min")])
    joined = last.join(first, "user_id", join_type="inner")
    before = to_microseconds(joined["event_time_max"])
    return int((before == to_microseconds(joined["event_time_min"])).sum())


def _int64(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    return np.asarray(table[column].to_numpy(), dtype=np.int64)


def _from_datetime(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _to_datetime(microseconds: np.int64) -> datetime:
    return _EPOCH + timedelta(microseconds=int(microseconds))

"""Cuts by time and the hold-out protocols, on hand-worked tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.evaluation.errors import SplitError
from pipelines.evaluation.split import (
    global_time,
    last_n_file_order,
    leave_last_one,
    time_slices,
    to_microseconds,
    warm_and_cold_users,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def day(n: float) -> datetime:
    return EPOCH + timedelta(days=n)


def days(*numbers: float) -> pa.Array:
    return pa.array([day(n) for n in numbers], pa.timestamp("us", tz="UTC"))


def events(*rows: tuple[int, int, float]) -> pa.Table:
    """Rows (user, post, day) in file order."""
    users, posts, moments = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "post_id": pa.array(posts, pa.int64()),
            "event_time": days(*moments),
            "event_order": pa.array(range(len(rows)), pa.int64()),
        }
    )


def pairs(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["user_id"].to_pylist(), table["post_id"].to_pylist(), strict=True))


def test_ten_events_on_ten_days_are_cut_by_share():
    slices = time_slices(
        days(*range(10)), np.ones(10, dtype=bool), test_share=0.2, slices=2, slice_share=0.1
    )
    assert slices.test.start == day(8)
    assert slices.test.end == day(9) + timedelta(microseconds=1)
    assert [(s.start, s.end, s.positives) for s in slices.labels] == [
        (day(6), day(7), 1),
        (day(7), day(8), 1),
    ]
    assert slices.validation is slices.labels[1]
    assert slices.training == slices.labels[:1]
    assert (slices.history.start, slices.history.end, slices.history.positives) == (
        day(0),
        day(6),
        6,
    )


def test_cuts_count_positive_events_only():
    times = days(*range(20))
    positive = np.arange(20) < 10  # the second half of the days has no success
    slices = time_slices(times, positive, test_share=0.2, slices=1, slice_share=0.1)
    assert slices.test.start == day(8)
    assert slices.test.end == day(19) + timedelta(microseconds=1)
    assert slices.test.positives == 2


def test_events_of_one_moment_stay_together():
    # The share asks for the last 2 of 10; three events share the moment of the cut.
    times = days(0, 1, 2, 3, 4, 5, 6, 8, 8, 8)
    slices = time_slices(times, np.ones(10, dtype=bool), test_share=0.2, slices=1, slice_share=0.2)
    assert slices.test.start == day(8)
    assert slices.test.positives == 3
    assert slices.test.contains(times).tolist() == [False] * 7 + [True] * 3
    assert slices.validation.positives == 1


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=40, max_size=80),
    st.integers(1, 4),
    st.randoms(),
)
@settings(deadline=None, max_examples=50)
def test_slices_part_all_events_whatever_their_order(rows, slices, random):
    times = np.array([row[0] for row in rows], dtype=np.int64)
    positive = np.array([row[1] for row in rows])
    assume(np.unique(times[positive]).size > 30)  # enough moments for any split asked for here
    cut = time_slices(times, positive, slices=slices, test_share=0.1, slice_share=0.1)
    parts = [cut.history, *cut.labels, cut.test]
    assert sum(part.contains(times).astype(int) for part in parts).tolist() == [1] * len(rows)
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert [int(part.contains(times[positive]).sum()) for part in parts] == [
        part.positives for part in parts
    ]
    assert min(part.positives for part in parts) > 0
    order = list(range(len(rows)))
    random.shuffle(order)
    assert time_slices(times[order], positive[order], slices=slices) == cut


def test_all_forms_of_time_are_the_same():
    arrow = days(0, 1.5)
    numpy = np.array(["1970-01-01", "1970-01-02T12"], dtype="datetime64[s]")
    expected = [0, 129_600_000_000]
    for times in (arrow, pa.chunked_array([arrow]), arrow.cast(pa.timestamp("ns")), numpy):
        assert to_microseconds(times).tolist() == expected
    assert to_microseconds(np.array(expected)).tolist() == expected


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([1, 2, 3], {}, "3 positive events of 3 for 6 slices; provide more events"),
        ([5] * 50, {}, "no positive event in the history.*1 distinct times; ask for fewer"),
        ([1] * 45 + [2] * 5, {"slices": 2}, "no positive event in the history, label slice 1"),
        (range(50), {"slices": 9}, "1.00 of the events; each must be positive and the sum below 1"),
        (range(50), {"test_share": 0.0}, "each must be positive"),
        (range(50), {"slices": 0}, "at least one is needed, for validation"),
    ],
)
def test_too_little_data_says_what_to_do(times, options, message):
    values = np.array(times, dtype=np.int64)
    with pytest.raises(SplitError, match=message):
        time_slices(values, np.ones(values.size, dtype=bool), **options)


def test_malformed_times_and_masks_are_refused():
    with pytest.raises(SplitError, match="1 of 2 are null; drop these events"):
        to_microseconds(pa.array([1, None], pa.int64()))
    with pytest.raises(SplitError, match="NaT; drop these events"):
        to_microseconds(np.array(["NaT"], dtype="datetime64[us]"))
    with pytest.raises(SplitError, match="found float64, expected timestamps"):
        to_microseconds(np.array([1.0]))
    with pytest.raises(SplitError, match=r"found int64 of shape \(2,\), expected 3 booleans"):
        time_slices(np.arange(3), np.array([1, 0]))


def test_warm_and_cold_users():
    warm, cold = warm_and_cold_users(np.array([3, 1, 1]), pa.array([9, 3, 3, 2]))
    assert warm.tolist() == [3]
    assert cold.tolist() == [2, 9]
    with pytest.raises(SplitError, match="none of its 1 users has an event before it"):
        warm_and_cold_users(np.array([1, 2]), np.array([3]))


def test_leave_last_one_by_hand():
    split = leave_last_one(
        events(
            (2, 10, 5),  # user 2 in reverse order of time: the last is the first row
            (2, 11, 1),
            (1, 10, 3),  # user 1: two posts at the last moment; the later row is the last
            (1, 12, 3),
            (1, 13, 0),
            (3, 14, 7),  # user 3: a single post, so nothing to learn from
            (2, 10, 9),  # met again: the first time counts, so post 10 stays at day 5
        )
    )
    assert pairs(split.test) == [(1, 12), (2, 10), (3, 14)]
    assert pairs(split.train) == [(1, 13), (1, 10), (2, 11)]
    assert split.tied_users == 1
    assert split.cold_user_ids.tolist() == [3]
    assert split.test["event_time"].to_pylist() == [day(3), day(5), day(7)]


def test_last_n_file_order_by_hand():
    table = events((1, 10, 9), (1, 11, 8), (2, 20, 1), (1, 12, 7), (2, 21, 2), (1, 13, 6))
    split = last_n_file_order(table, n=2)
    assert pairs(split.test) == [(1, 12), (1, 13), (2, 20), (2, 21)]
    assert pairs(split.train) == [(1, 10), (1, 11)]
    assert split.tied_users == 0
    assert split.cold_user_ids.tolist() == [2]
    assert last_n_file_order(table.take([5, 3, 1, 0, 2, 4]), n=2).test == split.test
    with pytest.raises(SplitError, match="n must be at least 1"):
        last_n_file_order(table, n=0)


def test_last_n_file_order_reshuffled_is_another_split_of_the_same_pairs():
    table = events(*[(1, post, 0) for post in range(50)])
    first = last_n_file_order(table, rng=np.random.default_rng(1))
    second = last_n_file_order(table, rng=np.random.default_rng(2))
    assert first.test.num_rows == second.test.num_rows == 3
    assert pairs(first.test) != pairs(second.test)
    assert first.test == last_n_file_order(table, rng=np.random.default_rng(1)).test
    assert sorted(pairs(first.train) + pairs(first.test)) == pairs(table)


def test_global_time_by_hand():
    table = events((1, 10, 2), (2, 10, 3), (1, 11, 3), (3, 12, 4), (1, 13, 0))
    split = global_time(table, test_share=0.4)
    assert pairs(split.train) == [(1, 13), (1, 10), (2, 10)]
    assert pairs(split.test) == [(1, 11), (3, 12)]
    assert split.cold_user_ids.tolist() == [3]
    assert split.tied_users == 0  # user 1's last train event is at day 2, the first test at 3
    with pytest.raises(SplitError, match="leaves 0 for test; both sides need at least one pair"):
        global_time(table, test_share=0.01)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40
    )
)
@settings(deadline=None)
def test_every_protocol_parts_the_distinct_pairs(rows):
    assume(len({row[:2] for row in rows}) > 1)
    table = events(*rows)
    for split in (leave_last_one(table), last_n_file_order(table), global_time(table, 0.5)):
        train, test = pairs(split.train), pairs(split.test)
        assert sorted(train + test) == sorted({row[:2] for row in rows})

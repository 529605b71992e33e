"""Past and recent events of a user, joined; worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.history import (
    MAX_LIKED,
    NOTHING_PAST,
    RECORD,
    Past,
    history_of,
    lists_without,
    pack_past,
    unpack_past,
)
from serving.lists import SourceList

PAST = Past(np.array([7, 3, 5]), np.array([1.0, 2.0, 1.0]), np.array([1, 3, 5, 7]))


def recent(*records: tuple[int, int, float]) -> bytes:
    return np.array(list(records), RECORD).tobytes()


def test_without_recent_events_the_past_is_the_history():
    history = history_of(PAST, None)
    assert history.liked.tolist() == [7, 3, 5]
    assert history.seen.tolist() == [1, 3, 5, 7]
    assert not history.is_fresh
    nobody = history_of(NOTHING_PAST, None)
    assert not len(nobody.liked)
    assert not len(nobody.seen)


def test_recent_likes_come_last_in_the_order_of_their_times():
    history = history_of(PAST, recent((9, 30, 1), (4, 20, 0), (8, 10, 3), (9, 40, 1)))
    assert history.liked.tolist() == [7, 3, 5, 8, 9]
    assert history.weights.tolist() == [1, 2, 1, 3, 2]
    # 4 was only seen.
    assert history.seen.tolist() == [1, 3, 4, 5, 7, 8, 9]
    assert history.seen_since.tolist() == [4, 8, 9]
    assert history.is_fresh


def test_what_is_in_the_past_already_counts_once():
    history = history_of(PAST, recent((7, 10, 1), (3, 5, 1)))
    # Both move to the end, by time; neither weighs more than in the past.
    assert history.liked.tolist() == [5, 3, 7]
    assert history.weights.tolist() == [1, 2, 1]
    assert not history.is_fresh
    assert history_of(PAST, recent((7, 10, 5))).weights.tolist() == [2, 1, 5]


ids = st.lists(st.integers(0, 100_000), max_size=40, unique=True)


@given(ids, ids)
def test_a_past_is_unpacked_as_it_was_packed(liked: list[int], seen: list[int]):
    past = Past(np.array(liked, "i8"), np.arange(len(liked)) + 0.5, np.array(sorted(seen), "i8"))
    back = unpack_past(pack_past(past))
    assert back.liked.tolist() == liked
    assert back.weights.tolist() == past.weights.tolist()
    assert back.seen.tolist() == sorted(seen)


def test_a_long_past_keeps_the_latest():
    long = Past(np.arange(2 * MAX_LIKED), np.ones(2 * MAX_LIKED), np.arange(5))
    assert unpack_past(pack_past(long)).liked.tolist() == list(range(MAX_LIKED, 2 * MAX_LIKED))


def test_damaged_values_are_refused():
    assert unpack_past(None) == NOTHING_PAST
    with pytest.raises(ValueError, match="end within"):
        unpack_past(b"\x00")
    with pytest.raises(ValueError, match="buffer size must be a multiple"):
        history_of(PAST, recent((7, 10, 1))[:-1])


def test_lists_lose_posts_and_the_others_move_up():
    first = SourceList(np.array([4, 2, 9], np.int32), np.array([3, 2, 1], np.float32))
    second = SourceList(np.array([1], np.int32), np.array([1], np.float32))
    shorter = lists_without([first, second], np.array([2]))
    assert shorter[0].post_ids.tolist() == [4, 9]
    assert shorter[0].scores.tolist() == [3, 1]
    assert shorter[1] is second

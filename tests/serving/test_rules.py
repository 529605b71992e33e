"""Rules: by hand, and against their plain definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.rules import admitted, by_popularity

posts = st.lists(st.integers(0, 12), max_size=10, unique=True)


def array(values):
    return np.array(values, dtype=np.int64)


def test_exclude_wins_over_only_and_nothing_is_added():
    assert admitted(array([5, 2, 9]), array([2]), None).tolist() == [5, 9]
    assert admitted(array([5, 2, 9]), array([2]), array([2, 9, 7])).tolist() == [9]
    assert admitted(array([5, 2, 9]), array([]), array([])).tolist() == []


@given(posts, posts, st.none() | posts)
def test_admitted_is_a_filter(candidates, exclude, only):
    found = admitted(array(candidates), array(exclude), None if only is None else array(only))
    assert found.tolist() == [
        post for post in candidates if post not in exclude and (only is None or post in only)
    ]


@given(posts, posts)
def test_by_popularity_is_a_stable_sort_by_place(wanted, popular):
    places = {post: place for place, post in enumerate(popular)}
    expected = sorted(wanted, key=lambda post: places.get(post, len(popular)))
    assert by_popularity(array(wanted), array(popular)).tolist() == expected

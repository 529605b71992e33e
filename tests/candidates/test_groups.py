"""Groups of rows, membership of pairs, ranked lists and standard scores, worked by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.candidates.groups import Groups, are_among, ranked, standard_scores


def test_a_group_ends_where_any_key_changes():
    groups = Groups.of(np.array([1, 1, 1, 2]), np.array(["a", "a", "b", "b"]))
    assert groups.starts.tolist() == [0, 2, 3]
    assert groups.sizes.tolist() == [2, 1, 1]
    assert groups.places().tolist() == [0, 1, 0, 0]
    assert groups.spread(np.array([7, 8, 9])).tolist() == [7, 7, 8, 9]
    assert groups.having(np.array([False, True, False, True])).tolist() == [True, False, True]


def test_no_rows_are_no_groups():
    groups = Groups.of(np.empty(0, np.int64))
    assert len(groups.starts) == len(groups.sizes) == 0
    assert groups.places().tolist() == []
    assert groups.having(np.empty(0, bool)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=20), st.data())
def test_membership_is_that_of_a_set(pairs, data):
    asked = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=20))
    users, posts = np.array(asked, np.int64).reshape(-1, 2).T
    their = np.array(pairs, np.int64).reshape(-1, 2)
    table = pa.table({"user_id": their[:, 0], "post_id": their[:, 1]})
    assert are_among(users, posts, table).tolist() == [one in set(pairs) for one in asked]


def test_all_equal_scores_are_ordered_by_post_and_cut():
    lists = ranked(np.array([2, 1, 1, 1]), np.array([5, 9, 3, 4]), np.zeros(4), source="flat", k=2)
    assert lists.select(["user_id", "post_id", "rank"]).to_pylist() == [
        {"user_id": 1, "post_id": 3, "rank": 1},
        {"user_id": 1, "post_id": 4, "rank": 2},
        {"user_id": 2, "post_id": 5, "rank": 1},
    ]


def test_standard_scores_have_mean_0_and_spread_1_in_each_group():
    groups = Groups.of(np.array([1, 1, 2, 2]))
    scaled = standard_scores(groups, np.array([1.0, 3.0, 5.0, 5.0], np.float32))
    assert scaled == pytest.approx([-1.0, 1.0, 0.0, 0.0])

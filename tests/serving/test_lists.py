"""Packed candidate lists: round trip, damage, Redis, and the union of sources."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.candidates import union
from serving.lists import (
    SourceList,
    delete_generations,
    key_prefix,
    pack,
    read_list,
    unpack,
    write_lists,
)


def listed(posts, scores=None):
    scores = scores if scores is not None else [1.0 / (i + 1) for i in range(len(posts))]
    return SourceList(np.array(posts, np.int32), np.array(scores, np.float32))


lists = st.lists(
    st.lists(st.integers(0, 2**31 - 1), max_size=20, unique=True).map(listed),
    min_size=1,
    max_size=4,
)


@given(lists)
def test_what_is_packed_is_unpacked(sources):
    for before, after in zip(sources, unpack(pack(sources), len(sources)), strict=True):
        np.testing.assert_array_equal(before.post_ids, after.post_ids)
        np.testing.assert_array_equal(before.scores, after.scores)


@given(lists)
def test_scores_are_left_out_only_where_that_is_asked_for(sources):
    value = pack(sources, with_scores=False)
    for before, after in zip(sources, unpack(value, len(sources)), strict=True):
        np.testing.assert_array_equal(before.post_ids, after.post_ids)
        assert after.post_ids.dtype == np.int32
        assert np.isnan(after.scores).all()
        assert len(after.scores) == len(after.post_ids)


@pytest.mark.parametrize(("last", "bytes_per_id"), [(2**16 - 1, 2), (2**16, 4)])
def test_ids_take_two_bytes_where_all_of_a_list_fit(last, bytes_per_id):
    value = pack([listed([0, 1, last])], with_scores=False)
    assert len(value) == 3 + 3 * bytes_per_id
    assert unpack(value, 1)[0].post_ids.tolist() == [0, 1, last]


def test_a_value_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"found form 100, expected 0 to 3.*publish again"):
        unpack(b"\x64\x00" + bytes(800), 1)


@given(lists, st.data())
def test_a_cut_value_is_refused(sources, data):
    value = pack(sources)
    cut = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(ValueError, match="candidate list"):
        unpack(value[:cut], len(sources))


def test_a_value_of_another_number_of_sources_is_refused():
    with pytest.raises(ValueError, match="expected"):
        unpack(pack([listed([1]), listed([2])]), 1)


def test_lists_of_unequal_posts_and_scores_are_refused():
    with pytest.raises(ValueError, match="2 posts and 1 scores"):
        pack([listed([1, 2], [0.5])])


def test_users_read_their_own_generation_only(redis_client):
    old, new = key_prefix("p", "old"), key_prefix("p", "new")
    assert list(write_lists(redis_client, old, [(7, [listed([1, 2])])])) == [1]
    list(write_lists(redis_client, new, [(7, [listed([3])]), (8, [listed([])])]))
    assert read_list(redis_client, old, 7, 1)[0].post_ids.tolist() == [1, 2]
    assert read_list(redis_client, new, 7, 1)[0].post_ids.tolist() == [3]
    assert read_list(redis_client, new, 9, 1)[0].post_ids.tolist() == []


def test_lists_without_scores_are_read_as_the_others(redis_client):
    prefix = key_prefix("p", "g")
    list(write_lists(redis_client, prefix, [(7, [listed([5, 2])])], with_scores=False))
    assert read_list(redis_client, prefix, 7, 1)[0].post_ids.tolist() == [5, 2]


def test_old_generations_are_deleted_and_other_projects_kept(redis_client):
    for project, generation in (("p", "old"), ("p", "new"), ("q", "old")):
        list(write_lists(redis_client, key_prefix(project, generation), [(1, [listed([1])])]))
    assert delete_generations(redis_client, "p", ["new"]) == 1
    assert sorted(redis_client.keys()) == [
        b"feastrank:p:lists:new:1",
        b"feastrank:q:lists:old:1",
    ]


def test_union_keeps_every_proposal_with_its_scores_and_ranks():
    joined = union({"a": listed([5, 3], [0.9, 0.1]), "b": listed([3, 7], [2.0, 1.0])})
    assert joined.post_ids.tolist() == [3, 5, 7]
    np.testing.assert_array_equal(joined.ranks["a"], [2, 1, np.nan])
    np.testing.assert_array_equal(joined.ranks["b"], [1, np.nan, 2])
    np.testing.assert_allclose(joined.scores["b"], [2.0, np.nan, 1.0])


def test_given_posts_are_described_whether_proposed_or_not():
    about = union({"a": listed([5, 3])}).about(np.array([3, 4]))
    assert about.post_ids.tolist() == [3, 4]
    np.testing.assert_array_equal(about.ranks["a"], [2, np.nan])
    same = union({"a": listed([5, 3]), "b": listed([3])}).about(np.array([3, 5]))
    assert same.post_ids.tolist() == [3, 5]
    np.testing.assert_array_equal(same.ranks["b"], [1, np.nan])
    nothing = union({"a": listed([])}).about(np.array([3]))
    np.testing.assert_array_equal(nothing.ranks["a"], [np.nan])

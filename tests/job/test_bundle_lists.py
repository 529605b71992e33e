"""What the gate of the lists counts, by hand."""

import numpy as np

from pipelines.job.published_gates import _list_faults
from serving.lists import SourceList, pack


def a_list(*posts: int, scores: tuple[float, ...] = ()) -> SourceList:
    values = scores or tuple(range(len(posts)))
    return SourceList(np.array(posts, np.int32), np.array(values, np.float32))


def test_faults_are_counted_by_user():
    users = [
        # In two lists, but twice in neither.
        [a_list(5, 7, 70_000), a_list(7, 5)],
        [a_list(), a_list()],
        [a_list(7, 7, 7, 5), a_list(5, 5)],
        [a_list(6, -1), a_list(5, 7, scores=(np.nan, np.inf))],
    ]
    found = _list_faults([pack(one) for one in users], 2, np.array([5, 7, 70_000]))
    listed, repeated, unknown, not_finite = (one.tolist() for one in found)
    assert listed == [5, 0, 6, 4]
    assert repeated == [0, 0, 3, 0]
    assert unknown == [0, 0, 0, 2]
    assert not_finite == [0, 0, 0, 2]
    assert [len(one) for one in _list_faults([], 2, np.array([5]))] == [0] * 4

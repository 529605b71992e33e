"""The index of vectors: exact search by hand, approximate search against it, files at fault."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.errors import IndexUnavailableError
from serving.index import VectorIndex, exact_search, recall, write_index

# By dot product with (1, 1): 2, 2, 7, 0, -1; by angle to it: rows 0, 1 and 2 are told apart.
VECTORS = np.array([[1, 1], [2, 0], [3, 4], [0, 0], [0, -1]], np.float32)
ONES = np.ones(2, np.float32)


def test_exact_search_by_hand():
    assert exact_search(VECTORS, ONES, 3, "ip").tolist() == [2, 0, 1]
    # 2 / sqrt(2), 7 / 5, 2 / 2, -1; the zero vector has no direction.
    assert exact_search(VECTORS, ONES, 5, "cos").tolist() == [0, 2, 1, 4]
    assert exact_search(VECTORS, ONES, 0, "ip").tolist() == []
    assert exact_search(VECTORS, ONES, 9, "ip").tolist() == [2, 0, 1, 3, 4]


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(-3, 3)),
    st.integers(1, 35),
)
def test_exact_search_is_a_full_sort_with_ties_by_row(vectors, k: int):
    vector = np.array([1, -2, 1], np.float32)
    scores = vectors @ vector
    expected = sorted(range(len(vectors)), key=lambda row: (-scores[row], row))[:k]
    assert exact_search(vectors, vector, k, "ip").tolist() == expected


def clustered(posts: int, dims: int = 16) -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((40, dims))
    near = centres[rng.integers(40, size=posts)] + 0.5 * rng.standard_normal((posts, dims))
    return (near * rng.lognormal(0, 0.4, (posts, 1))).astype(np.float32)


@pytest.mark.parametrize("metric", ["ip", "cos"])
def test_what_is_found_through_the_file_is_nearly_what_exact_search_finds(tmp_path: Path, metric):
    vectors = clustered(3_000)
    path = tmp_path / "posts.index"
    write_index(path, vectors, metric)
    index = VectorIndex.open(path, vectors.shape, metric)
    assert recall(index, vectors, clustered(100)[::-1], metric) > 0.95
    # A worse index is measured as one: this one knows only half of the posts.
    half = tmp_path / "half.index"
    write_index(half, vectors[:1_500], metric)
    poor = VectorIndex.open(half, (1_500, 16), metric)
    assert recall(poor, vectors, clustered(100)[::-1], metric) < 0.75


def test_equal_vectors_make_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        write_index(tmp_path / name, clustered(500), "ip")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in "ab"}
    assert len(digests) == 1


def test_a_file_at_fault_is_said_to_be(tmp_path: Path):
    path = tmp_path / "posts.index"
    with pytest.raises(IndexUnavailableError, match=r"posts\.index: cannot be opened"):
        VectorIndex.open(path, (10, 16), "ip")
    write_index(path, clustered(100), "ip")
    with pytest.raises(IndexUnavailableError, match=r"100 vectors of 16 dimensions, expected 10"):
        VectorIndex.open(path, (10, 16), "ip")
    whole = path.read_bytes()
    for damaged in (b"", b"no index" * 20, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(IndexUnavailableError, match="cannot be opened"):
            VectorIndex.open(path, (100, 16), "ip")

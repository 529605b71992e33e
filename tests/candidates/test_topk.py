import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from pipelines.candidates.topk import sparse_top_k, top_k
from pipelines.errors import GeneratorError


def brute_force(scores, k, mask):
    """Sort every row in full: score descending, then column ascending."""
    found = []
    for row, values in enumerate(scores):
        proposed = [
            (-value, column)
            for column, value in enumerate(values)
            if value > -np.inf and not (mask is not None and mask[row, column])
        ]
        for rank, (negative, column) in enumerate(sorted(proposed)[:k], start=1):
            found.append((row, column, -negative, rank))
    return found


def listed(top):
    return list(
        zip(
            top.rows.tolist(),
            top.columns.tolist(),
            top.scores.tolist(),
            top.ranks.tolist(),
            strict=True,
        )
    )


@st.composite
def problems(draw):
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 9)))
    # Few distinct values: ties are the hard part.
    values = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 2.0])
    scores = draw(arrays(np.float32, shape, elements=values))
    mask = draw(st.none() | arrays(np.bool_, shape))
    return scores, mask, draw(st.integers(1, 12))


@settings(deadline=None)
@given(problems(), st.sampled_from([1, 40, 10_000]), st.sampled_from([1, 3]))
def test_equals_a_full_sort_in_any_batches(problem, block_bytes, threads):
    scores, mask, k = problem
    top = top_k(
        lambda rows: scores[rows].copy(),
        scores.shape,
        k,
        masked=None if mask is None else csr_matrix(mask),
        block_bytes=block_bytes,
        threads=threads,
    )
    assert listed(top) == brute_force(scores, k, mask)


@settings(deadline=None)
@given(problems(), st.sampled_from([1, 3, 1024]), st.sampled_from([1, 3]))
def test_entries_above_0_are_ordered_as_dense_scores_are(problem, block_rows, threads):
    scores, mask, k = problem
    scores[scores == -np.inf] = 0
    top = sparse_top_k(
        lambda rows: csr_matrix(scores[rows]),
        len(scores),
        k,
        masked=None if mask is None else csr_matrix(mask),
        block_rows=block_rows,
        threads=threads,
    )
    assert listed(top) == brute_force(np.where(scores > 0, scores, -np.inf), k, mask)


def test_entries_in_any_order_are_told_apart_by_their_columns():
    rng = np.random.default_rng(3)
    columns = np.stack([rng.permutation(5000)[:900] for _ in range(50)])
    values = rng.integers(1, 40, columns.shape).astype(np.float32)
    entries = csr_matrix((values.ravel(), columns.ravel(), np.arange(51) * 900), shape=(50, 5000))
    assert not entries.has_sorted_indices
    dense = entries.toarray()
    dense[dense == 0] = -np.inf
    top = sparse_top_k(lambda rows: entries[rows], 50, 100, block_rows=7)
    assert listed(top) == brute_force(dense, 100, None)


def test_equal_scores_over_a_wide_catalogue_go_to_the_lowest_columns():
    scores = np.full((600, 50), 3.0, dtype=np.float32)
    top = top_k(lambda rows: scores[rows].copy(), scores.shape, 4)
    assert top.columns.reshape(600, 4).tolist() == [[0, 1, 2, 3]] * 600


@settings(deadline=None, max_examples=50)
@given(st.integers(100, 700), st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_equals_a_full_sort_where_slices_are_compared_first(n_columns, k, distinct, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, distinct, (4, n_columns)).astype(np.float32)
    scores[rng.random(scores.shape) < rng.random()] = -np.inf
    mask = rng.random(scores.shape) < 0.1
    top = top_k(lambda rows: scores[rows].copy(), scores.shape, k, masked=csr_matrix(mask))
    assert listed(top) == brute_force(scores, k, mask)


def test_a_block_never_exceeds_its_bound():
    asked = []

    def score(rows):
        asked.append(rows.stop - rows.start)
        return np.zeros((rows.stop - rows.start, 100), dtype=np.float32)

    top_k(score, (1000, 100), 5, block_bytes=4 * 100 * 7)
    assert max(asked) == 7
    assert sum(asked) == 1000


def test_no_rows_and_no_columns_give_nothing():
    for shape in [(0, 5), (5, 0)]:
        assert len(top_k(lambda rows: np.empty((0, 0), np.float32), shape, 3).rows) == 0


@pytest.mark.parametrize("n_columns", [3, 205])
@pytest.mark.parametrize("place", [0, -1])
def test_nan_is_refused(n_columns, place):
    scores = np.ones((2, n_columns), dtype=np.float32)
    scores[1, place] = np.nan
    with pytest.raises(GeneratorError, match="found NaN among the scores"):
        top_k(lambda rows: scores[rows].copy(), scores.shape, 1)


def test_nan_among_entries_is_refused():
    scores = csr_matrix(np.array([[0, 1, np.nan]], dtype=np.float32))
    with pytest.raises(GeneratorError, match="NaN among the scores"):
        sparse_top_k(lambda rows: scores[rows], 1, 2, masked=scores.astype(bool))


def test_k_below_one_is_refused():
    with pytest.raises(GeneratorError, match="found k = 0, expected at least 1"):
        top_k(lambda rows: np.zeros((1, 1), np.float32), (1, 1), 0)

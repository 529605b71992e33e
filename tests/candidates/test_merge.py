import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.candidates.merge import merge_candidates, reciprocal_rank_fusion
from pipelines.candidates.protocol import CANDIDATES
from pipelines.errors import GeneratorError


def candidates(source, lists):
    """Make `CANDIDATES` from {user: [post, ...]}, best first; scores fall from 10."""
    rows = [
        {"user_id": user, "post_id": post, "score": 10.0 - rank, "rank": rank, "source": source}
        for user, posts in lists.items()
        for rank, post in enumerate(posts, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES.with_metadata({"source": source}))


def test_union_by_hand():
    popular = candidates("popular", {1: [10, 11], 2: [10]})
    als = candidates("als", {1: [11, 12]})
    merged = merge_candidates([popular, als])
    assert merged.schema.names == [
        *("user_id", "post_id", "popular_score", "popular_rank", "als_score", "als_rank"),
        "rrf_score",
    ]
    assert merged.drop_columns("rrf_score").to_pylist() == [
        dict(zip(merged.schema.names[:6], row, strict=True))
        for row in [
            (1, 11, 8.0, 2, 9.0, 1),
            (1, 10, 9.0, 1, None, None),
            (1, 12, None, None, 8.0, 2),
            (2, 10, 9.0, 1, None, None),
        ]
    ]
    expected = [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 61]
    np.testing.assert_allclose(merged["rrf_score"], expected, rtol=1e-6)
    assert merged.schema.field("als_score").type == pa.float32()
    assert merged.schema.field("als_rank").type == pa.int32()


def test_best_of_each_user_and_fusion():
    tables = [candidates("a", {1: [10, 11, 12], 2: [13]}), candidates("b", {1: [12, 14]})]
    merged = merge_candidates(tables, k_per_user=2)
    assert merged["post_id"].to_pylist() == [12, 10, 13]
    fused = reciprocal_rank_fusion(merge_candidates(tables), 2)
    assert fused.schema.equals(CANDIDATES)
    assert fused["post_id"].to_pylist() == [12, 10, 13]
    assert fused["rank"].to_pylist() == [1, 2, 1]
    assert set(fused["source"].to_pylist()) == {"rrf"}


def test_a_source_without_rows_keeps_its_columns():
    merged = merge_candidates([candidates("a", {1: [10]}), candidates("b", {})])
    assert merged["b_score"].to_pylist() == [None]
    assert merge_candidates([candidates("a", {})]).num_rows == 0
    assert reciprocal_rank_fusion(merge_candidates([candidates("a", {})]), 3).num_rows == 0


lists = st.dictionaries(
    st.integers(0, 5), st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True)
)


@settings(deadline=None)
@given(st.lists(lists, min_size=1, max_size=4), st.randoms())
def test_nothing_is_lost_or_doubled_and_order_of_tables_is_irrelevant(sources, random):
    tables = [candidates(f"s{number}", found) for number, found in enumerate(sources)]
    merged = merge_candidates(tables)
    pairs = list(zip(merged["user_id"].to_pylist(), merged["post_id"].to_pylist(), strict=True))
    proposed = {
        (user, post) for found in sources for user, posts in found.items() for post in posts
    }
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == proposed
    for number, found in enumerate(sources):
        ranks = {
            pair: rank
            for pair, rank in zip(pairs, merged[f"s{number}_rank"].to_pylist(), strict=True)
            if rank is not None
        }
        assert ranks == {
            (user, post): rank
            for user, posts in found.items()
            for rank, post in enumerate(posts, start=1)
        }
    shuffled = list(tables)
    random.shuffle(shuffled)
    assert (
        merge_candidates(shuffled).select(merged.schema.names)["post_id"].equals(merged["post_id"])
    )


def test_wrong_inputs_are_refused():
    table = candidates("a", {1: [10]})
    with pytest.raises(GeneratorError, match=r"found sources \[\], expected at least one"):
        merge_candidates([])
    with pytest.raises(GeneratorError, match=r"found sources \['a', 'a'\]"):
        merge_candidates([table, table])
    with pytest.raises(GeneratorError, match="1 pairs occur more than once in source 'a'"):
        merge_candidates([pa.concat_tables([table, table])])
    with pytest.raises(GeneratorError, match="in one table of 2 rows, expected exactly one"):
        merge_candidates([pa.concat_tables([table, candidates("b", {1: [10]})])])
    with pytest.raises(GeneratorError, match=r"expected also \['rank'\]"):
        merge_candidates([table.drop_columns("rank")])
    with pytest.raises(GeneratorError, match="found k = 0"):
        merge_candidates([table], k_per_user=0)
    with pytest.raises(GeneratorError, match=r"found sources \[\] in one table of 0 rows"):
        merge_candidates([CANDIDATES.empty_table()])

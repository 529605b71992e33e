"""Metrics: hand-worked lists, trec_eval, a brute-force reading of the formulas, properties."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.evaluation.errors import MetricsError
from pipelines.evaluation.metrics import (
    ACCURACY,
    BEYOND_ACCURACY,
    average_precision_over_k,
    evaluate_lists,
    recall_curve,
    union_of_sources,
)


def lists(by_user: dict[int, list[int]]) -> pa.Table:
    rows = [(u, p, r) for u, posts in by_user.items() for r, p in enumerate(posts, start=1)]
    return _table(rows, ("user_id", "post_id", "rank"))


def pairs(by_user: dict[int, set[int] | list[int]]) -> pa.Table:
    return _table([(u, p) for u, posts in by_user.items() for p in posts], ("user_id", "post_id"))


def _table(rows: list[tuple[int, ...]], names: tuple[str, ...]) -> pa.Table:
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(names))
    return pa.table({name: columns[:, i] for i, name in enumerate(names)})


def shuffled(table: pa.Table, seed: int) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def test_three_users_by_hand():
    # User 1: hits at ranks 1 and 3 of 3 relevant; user 2: a hit at rank 2 of 1 relevant;
    # user 3 has no list; user 9 has no relevant post, so their list is not looked at.
    result = evaluate_lists(
        lists({1: [10, 20, 11, 21], 2: [30, 31], 9: [99]}),
        pairs({1: {10, 11, 12}, 2: {31}, 3: {40}}),
        cutoffs=(2, 3),
        catalogue_size=10,
    )
    assert result.user_ids.tolist() == [1, 2, 3]
    assert result.users_without_list == 1
    log3 = math.log2(3)
    expected = {
        "hit_rate@2": [1, 1, 0],
        "hit_rate@3": [1, 1, 0],
        "precision@2": [1 / 2, 1 / 2, 0],
        "precision@3": [2 / 3, 1 / 3, 0],
        "recall@2": [1 / 3, 1, 0],
        "recall@3": [2 / 3, 1, 0],
        "map@2": [1 / 2, 1 / 2, 0],  # 1 / min(2, 3); (1/2) / min(2, 1)
        "map@3": [(1 + 2 / 3) / 3, 1 / 2, 0],
        "map_over_k@2": [1 / 2, 1 / 4, 0],
        "map_over_k@3": [(1 + 2 / 3) / 3, 1 / 6, 0],
        "ndcg@2": [1 / (1 + 1 / log3), 1 / log3, 0],
        "ndcg@3": [(1 + 1 / 2) / (1 + 1 / log3 + 1 / 2), 1 / log3, 0],
        "mrr@2": [1, 1 / 2, 0],
        "mrr@3": [1, 1 / 2, 0],
    }
    assert set(result.per_user) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result.per_user[name], values, rtol=1e-12, err_msg=name)
        assert result.means[name] == pytest.approx(sum(values) / 3)
    assert result.means["coverage@2"] == 4 / 10
    assert result.means["coverage@3"] == 5 / 10


def test_novelty_and_popularity_by_hand():
    # In train: post 10 seen by users 1-4 (twice by user 1), post 20 by user 1, 30 by nobody.
    train = pairs({1: [10, 10, 20], 2: [10], 3: [10], 4: [10]})
    result = evaluate_lists(
        lists({1: [10, 30], 5: [20, 10]}), pairs({1: {30}, 5: {1}, 6: {1}}), train_pairs=train
    )
    np.testing.assert_array_equal(result.per_user["novelty@5"], [1 / 2, 1, np.nan])
    assert result.means["novelty@5"] == 3 / 4
    # log2(4 / 4) = 0 for post 10, log2(4 / 1) = 2 for post 20 and for the unseen post 30.
    np.testing.assert_array_equal(result.per_user["inverse_user_frequency@5"], [1, 1, np.nan])


def test_nobody_has_a_list():
    empty = pa.table({name: pa.array([], pa.int64()) for name in ("user_id", "post_id", "rank")})
    relevant = pairs({1: {1}})
    result = evaluate_lists(empty, relevant, train_pairs=relevant, catalogue_size=3)
    assert result.users_without_list == 1
    assert result.means["ndcg@10"] == result.means["coverage@10"] == 0
    assert math.isnan(result.means["novelty@10"])


def test_published_map_divides_by_k():
    relevance = np.array([False, True, False, True, True])
    assert average_precision_over_k(relevance, 10) == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 10)
    assert average_precision_over_k(relevance, 3) == pytest.approx((1 / 2) / 3)
    assert average_precision_over_k(np.zeros(0, dtype=bool), 10) == 0


def test_gaps_in_rank_are_misses():
    gap = pa.table({"user_id": [1, 1], "post_id": [10, 11], "rank": [1, 4]})
    result = evaluate_lists(gap, pairs({1: {11}}), cutoffs=(3, 4))
    assert result.means["hit_rate@3"] == 0
    assert result.means["mrr@4"] == 1 / 4


@pytest.mark.parametrize(
    ("recommended", "options", "message"),
    [
        (lists({1: [10, 10]}), {}, "1 rows repeat a post of their user .first: user 1, post 10."),
        (
            pa.table({"user_id": [1, 1], "post_id": [1, 2], "rank": [1, 1]}),
            {},
            "1 rows repeat a rank of their user .first: user 1, rank 1.",
        ),
        (pa.table({"user_id": [1], "post_id": [1], "rank": [0]}), {}, "found rank 0, expected 1"),
        (pairs({1: {10}}), {}, "column rank is missing; found user_id, post_id"),
        (
            pa.table({"user_id": [1], "post_id": pa.array([None], pa.int64()), "rank": [1]}),
            {},
            "post_id is int64 with 1 nulls",
        ),
        (
            pa.table({"user_id": ["a"], "post_id": [1], "rank": [1]}),
            {},
            "user_id is string with 0 nulls, expected integers",
        ),
        (lists({1: [1, 2]}), {"catalogue_size": 1}, "2 distinct posts .* catalogue of 1"),
        (lists({1: [1]}), {"cutoffs": ()}, "expected one or more, all at least 1"),
        (lists({1: [1]}), {"cutoffs": (0, 5)}, "expected one or more, all at least 1"),
    ],
)
def test_malformed_lists_are_refused(recommended, options, message):
    with pytest.raises(MetricsError, match=message):
        evaluate_lists(recommended, pairs({1: {10}}), **options)


def test_no_relevant_posts_is_an_error():
    nothing = pa.table({"user_id": pa.array([], pa.int64()), "post_id": pa.array([], pa.int64())})
    with pytest.raises(MetricsError, match=r"found no rows.*widen the test slice"):
        evaluate_lists(lists({1: [1]}), nothing)


def test_recall_curve_and_union_by_hand():
    relevant = pairs({1: {10, 11}, 2: {20}})
    first, second = lists({1: [10, 12, 11]}), lists({1: [13, 11], 2: [21, 22, 20]})
    np.testing.assert_allclose(recall_curve(first, relevant, 3), [1 / 4, 1 / 4, 1 / 2])
    np.testing.assert_allclose(recall_curve(second, relevant, 3), [0, 1 / 4, 3 / 4])
    union = union_of_sources([first, second])
    assert union.num_rows == 7  # post 11 is in both lists of user 1
    np.testing.assert_allclose(recall_curve(union, relevant, 3), [1 / 4, 1 / 2, 1])


# --- against others -----------------------------------------------------------------------


def random_case(seed: int, users: int = 60, posts: int = 40) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    recommended = {u: rng.permutation(posts)[: rng.integers(0, 30)].tolist() for u in range(users)}
    relevant = {
        u: set(rng.permutation(posts)[: rng.integers(1, 20)].tolist()) for u in range(5, users + 5)
    }
    return recommended, relevant


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_trec_eval(seed):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="install feastrank[dev]")
    recommended, relevant = random_case(seed)
    ours = evaluate_lists(lists(recommended), pairs(relevant), cutoffs=(5, 10, 100))
    qrels = {str(u): dict.fromkeys(map(str, posts), 1) for u, posts in relevant.items()}
    for k in (5, 10, 100):
        run = {
            str(u): {str(p): -float(i) for i, p in enumerate(recommended.get(u, [])[:k])}
            for u in relevant
        }
        names = {
            "hit_rate": f"success_{k}",
            "precision": f"P_{k}",
            "recall": f"recall_{k}",
            "map": f"map_cut_{k}",
            "ndcg": f"ndcg_cut_{k}",
            "mrr": "recip_rank",
        }
        measures = {
            f"{name.rsplit('_', 1)[0]}.{k}" for name in names.values() if "recip" not in name
        }
        theirs = pytrec_eval.RelevanceEvaluator(qrels, measures | {"recip_rank"}).evaluate(run)
        for name, trec_name in names.items():
            expected = np.array([theirs.get(str(u), {}).get(trec_name, 0.0) for u in ours.user_ids])
            if name == "map":  # trec_eval divides by all relevant posts, we by at most k
                count = np.array([len(relevant[u]) for u in ours.user_ids])
                expected = expected * count / np.minimum(count, k)
            np.testing.assert_allclose(ours.per_user[f"{name}@{k}"], expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_formulas_read_one_user_at_a_time(seed):
    recommended, relevant = random_case(seed)
    _, train = random_case(seed + 100)
    ours = evaluate_lists(
        lists(recommended), pairs(relevant), cutoffs=(3, 10), train_pairs=pairs(train)
    )
    seen_by = {p: sum(p in posts for posts in train.values()) for p in range(40)}
    for i, user in enumerate(ours.user_ids.tolist()):
        for k in (3, 10):
            listed = recommended.get(user, [])[:k]
            relevance = np.array([p in relevant[user] for p in listed], dtype=bool)
            assert ours.per_user[f"map_over_k@{k}"][i] == pytest.approx(
                average_precision_over_k(relevance, k)
            )
            if listed:
                new = [p not in train.get(user, set()) for p in listed]
                frequency = [math.log2(len(train) / max(seen_by[p], 1)) for p in listed]
                assert ours.per_user[f"novelty@{k}"][i] == pytest.approx(np.mean(new))
                assert ours.per_user[f"inverse_user_frequency@{k}"][i] == pytest.approx(
                    np.mean(frequency)
                )


# --- properties ---------------------------------------------------------------------------

POSTS = st.integers(0, 15)
LISTS = st.dictionaries(st.integers(0, 5), st.lists(POSTS, unique=True, max_size=12), max_size=6)
RELEVANT = st.dictionaries(st.integers(0, 5), st.sets(POSTS, min_size=1), min_size=1, max_size=6)
CUTOFFS = (1, 4, 10)


@given(LISTS, RELEVANT, RELEVANT, st.integers(0, 100))
@settings(deadline=None)
def test_row_order_is_irrelevant_and_values_are_bounded(recommended, relevant, train, seed):
    tables = [lists(recommended), pairs(relevant), pairs(train)]
    result, again = (
        evaluate_lists(rec, rel, cutoffs=CUTOFFS, catalogue_size=16, train_pairs=seen)
        for rec, rel, seen in (tables, [shuffled(table, seed) for table in tables])
    )
    for name, values in result.per_user.items():
        np.testing.assert_array_equal(values, again.per_user[name])
        known = values[~np.isnan(values)]
        assert (known >= 0).all()
        if not name.startswith("inverse_user_frequency"):
            assert (known <= 1 + 1e-12).all()
    for k in CUTOFFS:
        assert (result.per_user[f"map_over_k@{k}"] <= result.per_user[f"map@{k}"] + 1e-12).all()
    assert {name.split("@")[0] for name in result.per_user} == {*ACCURACY, *BEYOND_ACCURACY}


@given(RELEVANT)
@settings(deadline=None)
def test_a_perfect_list_scores_one(relevant):
    perfect = lists({user: sorted(posts) for user, posts in relevant.items()})
    result = evaluate_lists(perfect, pairs(relevant), cutoffs=(*CUTOFFS, 16))
    for k in (*CUTOFFS, 16):
        for metric in ("hit_rate", "map", "ndcg", "mrr"):
            assert result.means[f"{metric}@{k}"] == pytest.approx(1)
    assert result.means["recall@16"] == pytest.approx(1)


@given(LISTS.filter(bool), RELEVANT, st.data())
@settings(deadline=None)
def test_adding_a_hit_never_lowers(recommended, relevant, data):
    user = data.draw(st.sampled_from(sorted(relevant)))
    listed = recommended.get(user, [])
    missing = sorted(relevant[user] - set(listed))
    assume(missing)
    hit = data.draw(st.sampled_from(missing))
    misses = [i for i, post in enumerate(listed) if post not in relevant[user]]
    place = data.draw(st.sampled_from([*misses, len(listed)]))  # instead of a miss, or at the end
    better = [*listed[:place], hit, *listed[place + 1 :]]
    before = evaluate_lists(lists(recommended), pairs(relevant), cutoffs=CUTOFFS)
    after = evaluate_lists(lists({**recommended, user: better}), pairs(relevant), cutoffs=CUTOFFS)
    for name, values in before.per_user.items():
        assert (after.per_user[name] >= values - 1e-12).all(), name


@given(LISTS.filter(bool), RELEVANT)
@settings(deadline=None)
def test_recall_curve_equals_recall_at_each_cutoff(recommended, relevant):
    curve = recall_curve(lists(recommended), pairs(relevant), max_k=12)
    result = evaluate_lists(lists(recommended), pairs(relevant), cutoffs=range(1, 13))
    np.testing.assert_allclose(curve, [result.means[f"recall@{k}"] for k in range(1, 13)])

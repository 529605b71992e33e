"""Candidates from a history: equal to what the trained generators say of the same history."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from implicit.cpu.als import AlternatingLeastSquares

from pipelines.candidates.als import ALS, ALSSettings
from pipelines.candidates.interactions import Interactions
from pipelines.candidates.item_to_item import ItemToItem, ItemToItemSettings
from pipelines.job.fresh import pasts, write_fresh_sources
from serving.errors import BundleError
from serving.fresh import DESCRIPTION, NO_INDEX, FoldIn, FreshSources, Neighbours, index_file
from serving.history import NOTHING_PAST, RECORD, history_of
from serving.index import VectorIndex

USERS, POSTS, EVENTS, K = 60, 90, 1_500, 20


def events(seed: int = 5) -> pa.Table:
    rng = np.random.default_rng(seed)
    users = rng.integers(USERS, size=EVENTS)
    # A user's taste is a third of the posts.
    posts = (rng.integers(POSTS // 3, size=EVENTS) * 3 + users % 3) % POSTS
    times = pa.array(rng.permutation(EVENTS), pa.timestamp("us", tz="UTC"))
    weights = rng.integers(0, 3, size=EVENTS).astype(float)
    return pa.table({"user_id": users, "post_id": posts, "event_time": times, "weight": weights})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[Path, Interactions, ALS, ItemToItem]:
    interactions = Interactions.from_table(events())
    als = ALS(ALSSettings(factors=8, alpha=3.0, iterations=40)).fit(interactions)
    neighbours = ItemToItem(ItemToItemSettings(latest_posts=6)).fit(interactions)
    folder = tmp_path_factory.mktemp("bundle")
    measures = write_fresh_sources(folder, {"als": als, "item_to_item": neighbours}, K)
    assert [one["recall@10"] for one in measures.values()] == [1.0, 1.0]
    return folder, interactions, als, neighbours


def opened(folder: Path, **is_whole: bool) -> FreshSources:
    every = {index_file("ip"): True, index_file("cos"): True}
    return FreshSources.open(folder, {**every, **is_whole})


def test_the_vector_is_the_one_that_implicit_finds(fitted):
    folder, interactions, als, _ = fitted
    model = AlternatingLeastSquares(factors=8, regularization=10.0, alpha=3.0)
    model.item_factors = als.post_factors
    model.user_factors = als.user_factors
    fold_in = opened(folder).fold_in
    assert fold_in is not None
    for row, (_, past) in zip(range(10), pasts(interactions), strict=False):
        expected = model.recalculate_user(0, interactions.matrix[row])
        np.testing.assert_allclose(fold_in.vector(past.liked, past.weights), expected, atol=1e-5)
    assert not fold_in.vector(np.array([10_000]), np.ones(1)).any()


def test_folded_in_candidates_are_nearly_those_that_were_trained(fitted):
    folder, interactions, als, _ = fitted
    source = opened(folder).sources["als"]
    trained = als.recommend(interactions.user_ids, K)
    users, posts = trained["user_id"].to_numpy(), trained["post_id"].to_numpy()
    overlap = [
        np.isin(source.propose(history_of(past, None)).post_ids, posts[users == user]).mean()
        for user, past in pasts(interactions)
        if (users == user).any()
    ]
    # Not all: training ends with the posts' vectors, so the users' are half a step behind.
    assert np.mean(overlap) > 0.9


def test_item_to_item_is_exactly_what_was_trained(fitted):
    folder, interactions, _, neighbours = fitted
    source = opened(folder).sources["item_to_item"]
    trained = neighbours.recommend(interactions.user_ids, K)
    users = trained["user_id"].to_numpy()
    compared = 0
    for user, past in pasts(interactions):
        found = source.propose(history_of(past, None))
        own = trained.filter(pa.array(users == user))
        assert found.post_ids.tolist() == own["post_id"].to_pylist()
        np.testing.assert_allclose(found.scores, own["score"].to_numpy(), rtol=1e-5)
        compared += len(found.post_ids)
    assert compared > 500


def test_events_since_publication_give_what_training_on_them_would(fitted):
    folder, _, _, neighbours = fitted
    everything = events()
    cut = everything.num_rows - 300
    before, after = everything.sort_by("event_time"), everything.sort_by("event_time").slice(cut)
    earlier = dict(pasts(Interactions.from_table(before.slice(0, cut))))
    source = opened(folder).sources["item_to_item"]
    # The published neighbours, and the histories with everything in them.
    trained = neighbours.recommend(np.arange(USERS), K)
    for user in range(USERS):
        own = after.filter(pa.array(after["user_id"].to_numpy() == user))
        records = np.empty(own.num_rows, RECORD)
        records["post_id"], records["weight"] = own["post_id"], own["weight"]
        records["time_us"] = own["event_time"].cast(pa.int64()).to_numpy()
        history = history_of(earlier.get(user, NOTHING_PAST), records.tobytes())
        expected = trained.filter(pa.array(trained["user_id"].to_numpy() == user))["post_id"]
        assert source.propose(history).post_ids.tolist() == expected.to_pylist()


def test_similar_posts_are_those_of_the_generator(fitted):
    folder, interactions, als, _ = fitted
    fold_in = opened(folder).fold_in
    assert fold_in is not None
    expected = als.similar(5)
    for post in interactions.post_ids[:20].tolist():
        own = expected.filter(pa.array(expected["post_id"].to_numpy() == post))
        found = fold_in.similar(post, 5)
        assert found.post_ids.tolist() == own["similar_post_id"].to_pylist()
        np.testing.assert_allclose(found.scores, own["score"].to_numpy(), atol=1e-6)
    assert not len(fold_in.similar(10_000, 5).post_ids)


def test_a_large_catalogue_is_searched_through_the_index(fitted, tmp_path: Path):
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((5_000, 8)).astype(np.float32)
    als = ALS(ALSSettings(factors=8))
    audience = Interactions.from_table(events())
    als.fit(audience)
    write_fresh_sources(tmp_path, {"als": als}, K)

    class Counting:
        asked = 0

        def search(self, vector, k: int):
            Counting.asked += 1
            return np.argsort(-(factors @ vector))[:k]

    settings = opened(tmp_path).fold_in.settings
    gram = factors.astype(float).T @ factors
    source = FoldIn(settings, np.arange(5_000), factors, gram, {"ip": Counting()})
    past = next(past for _, past in pasts(audience))
    found = source.propose(history_of(past, None))
    exact = FoldIn(settings, np.arange(5_000), factors, gram, {}).propose(history_of(past, None))
    assert Counting.asked == 1
    assert found.post_ids.tolist() == exact.post_ids.tolist()
    assert len(found.post_ids) == K
    assert not np.isin(found.post_ids, past.seen).any()


def test_without_an_index_answers_are_the_same_and_it_is_said(fitted):
    folder, _, _, _ = fitted
    whole, without = opened(folder), opened(folder, **{index_file("cos"): False})
    assert whole.degraded == ()
    assert without.degraded == (NO_INDEX,)
    assert whole.fold_in is not None
    assert without.fold_in is not None
    assert without.fold_in.similar(5, 5).post_ids.tolist() == (
        whole.fold_in.similar(5, 5).post_ids.tolist()
    )
    assert isinstance(whole.fold_in._indexes["ip"], VectorIndex)


def test_arrays_are_mapped_and_a_missing_one_is_named(fitted, tmp_path: Path):
    folder, _, _, _ = fitted
    source = opened(folder).sources["item_to_item"]
    assert isinstance(source, Neighbours)
    assert isinstance(source._similarities, np.memmap)
    assert FreshSources.open(tmp_path, {}).sources == {}
    (tmp_path / DESCRIPTION).write_text(
        json.dumps({"item_to_item": json.loads((folder / DESCRIPTION).read_text())["item_to_item"]})
    )
    with pytest.raises(BundleError, match=r"item_to_item_posts\.npy: unreadable"):
        FreshSources.open(tmp_path, {})

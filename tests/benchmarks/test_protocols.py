"""The protocols' slices, and the joining of candidates, on tables small enough to follow."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.protocols import (
    PROTOCOLS,
    SETTINGS_FOLDER,
    Data,
    cut,
    inner_cuts,
    known_pairs,
    read_settings,
    settings_for,
    warm_test,
)
from benchmarks.second_stage import Experiment, Search, with_seeds
from benchmarks.two_stage import (
    BLEND,
    Slice,
    blend_scores,
    candidates,
    learn,
    learnt_members,
    propose,
    vote,
)
from pipelines.candidates.groups import ranked, standard_scores
from pipelines.candidates.registry import GENERATORS, make_generator
from pipelines.ranking.models import make_ranker

START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    users, posts, likes = 40, 30, 12
    rows = []
    for user in range(users):
        chosen = rng.choice(posts, size=likes, replace=False)
        starts = rng.uniform(0, 60)
        rows += [
            (user, int(post), starts + place, place % 4 > 0) for place, post in enumerate(chosen)
        ]
    rng.shuffle(rows)
    columns = list(zip(*rows, strict=True))
    times = [START + datetime.timedelta(days=float(day)) for day in columns[2]]
    events = pa.table(
        {
            "user_id": pa.array([int(user) for user in columns[0]], pa.int64()),
            "post_id": pa.array([int(post) for post in columns[1]], pa.int64()),
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "weight": pa.array([float(liked) for liked in columns[3]]),
            "event_order": pa.array(range(len(rows)), pa.int64()),
        }
    )
    vectors = rng.normal(size=(posts, 4)).astype(np.float32)
    described = pa.table(
        {
            "post_id": pa.array(range(posts), pa.int64()),
            "topics": [[f"t{post % 3}"] for post in range(posts)],
            "post_text_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4),
        }
    )
    people = pa.table({"user_id": pa.array(range(users), pa.int64()), "gender": ["F", "M"] * 20})
    positives = events.filter(pa.array(np.asarray(events["weight"]) > 0))
    return Data(events, positives, described, people)


def pairs(table):
    return set(zip(table["user_id"].to_pylist(), table["post_id"].to_pylist(), strict=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_slices_are_cut_from_train_and_know_nothing_of_test(data, protocol):
    split = cut(protocol, data.positives)
    inner = inner_cuts(protocol, split.train, 3, split.test.num_rows)
    assert len(inner) == 3
    for part in inner:
        assert not pairs(part.test) & pairs(split.test)
        assert not pairs(part.train) & pairs(split.test)
        assert not pairs(part.train) & pairs(part.test)
        assert pairs(part.test) <= pairs(split.train)
    if protocol == "leave_last_one":
        assert not pairs(inner[0].test) & pairs(inner[1].test)
    if protocol == "global_time":
        assert inner[0].test.num_rows == split.test.num_rows
        assert max(inner[1].train["event_time"].to_pylist()) <= min(
            inner[1].test["event_time"].to_pylist()
        )
        assert inner[1].train.num_rows < inner[0].train.num_rows


def test_known_pairs_are_those_before_the_test(data):
    split = cut("global_time", data.positives)
    begin = min(split.test["event_time"].to_pylist())
    known = known_pairs(split, data.events, protocol="global_time")
    assert known.num_rows > 0
    assert max(known["event_time"].to_pylist()) < begin
    everything = known_pairs(split, data.events, protocol="last3_file_order")
    assert known.num_rows < everything.num_rows
    assert not pairs(everything) & pairs(data.positives)
    split = cut("leave_last_one", data.positives)
    held_out = dict(
        zip(split.test["user_id"].to_pylist(), split.test["event_time"].to_pylist(), strict=True)
    )
    known = known_pairs(split, data.events, protocol="leave_last_one")
    times = zip(known["user_id"].to_pylist(), known["event_time"].to_pylist(), strict=True)
    assert all(time < held_out[user] for user, time in times)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_candidates_carry_labels_and_no_seen_post(data, protocol):
    split = cut(protocol, data.positives)
    sources = ("popular", "item_to_item", "ease")
    lists = propose(split, data, {"models": {}}, sources=sources)
    part = candidates(split, lists, data, protocol)
    found = set(zip(part.users.tolist(), part.posts.tolist(), strict=True))
    assert len(found) == len(part.users) == part.groups.sizes.sum()
    assert not found & pairs(split.train)
    assert part.labels.sum() == len(found & pairs(split.test)) > 0
    assert set(part.users.tolist()) <= set(warm_test(split)["user_id"].to_pylist())
    # A post that a source did not propose has a null rank there, and stays.
    assert np.isnan(part.matrix[:, part.names.index("item_to_item_rank")]).sum() >= 0
    assert "cosine_to_latest_1" in part.names


def example():
    users = np.repeat([1, 2], 4)
    posts = np.tile([10, 11, 12, 13], 2)
    ranks = np.array([1, 2, np.nan, 3, 3, 1, 2, np.nan], np.float32)
    others = np.array([np.nan, 1, 2, 3, 1, 2, 3, 4], np.float32)
    labels = np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int32)
    return Slice(users, posts, np.column_stack([ranks, others]), ("a_rank", "b_rank"), labels)


def test_blend_weighs_reciprocal_ranks():
    scores = blend_scores(example(), {"a": 1.0, "b": 0.5})
    assert scores[:3].tolist() == pytest.approx([1 / 11, 1 / 12 + 0.5 / 11, 0.5 / 12])
    table = ranked(example().users, example().posts, scores, source="blend", k=2)
    assert table["post_id"].to_pylist() == [11, 13, 11, 10]
    assert table["rank"].to_pylist() == [1, 2, 1, 2]


def test_scores_are_standardised_for_each_user():
    scaled = standard_scores(example().groups, np.array([1, 2, 3, 4, 5, 5, 5, 5], np.float32))
    assert scaled[:4].mean() == pytest.approx(0, abs=1e-6)
    assert scaled[:4].std() == pytest.approx(1)
    assert scaled[4:].tolist() == [0, 0, 0, 0]


def test_users_without_a_hit_teach_nothing():
    part = example()
    settings = {"leaves": 2, "rounds": 2, "least_rows_a_leaf": 1, "threads": 1}
    both = learn(make_ranker("lightgbm", settings), [part, part])
    first = Slice(
        *(value[:4] for value in (part.users, part.posts, part.matrix)), part.names, part.labels[:4]
    )
    alone = learn(make_ranker("lightgbm", settings), [first, first])
    assert np.array_equal(both.predict(part.matrix), alone.predict(part.matrix))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_committed_settings_make_generators_and_rankers(protocol):
    settings = read_settings(protocol)
    assert set(settings["models"]) <= set(GENERATORS)
    for name in settings["models"]:
        make_generator(name, settings_for(name, settings))
    for member in settings["two_stage"]["rankers"]:
        if member["ranker"] != BLEND:
            make_ranker(member["ranker"], member["settings"])
    assert set(settings["two_stage"]["sources"]) == set(settings["two_stage"]["blend"])
    text = (SETTINGS_FOLDER / f"{protocol}.json").read_text(encoding="utf-8")
    assert "test was never looked at" in json.loads(text)["found"]


def test_equal_members_are_learnt_once_and_the_blend_is_one_of_them():
    part = example()
    settings = {"leaves": 2, "rounds": 2, "least_rows_a_leaf": 1}
    member = {"ranker": "lightgbm", "settings": settings}
    learnt = learnt_members([member, {"ranker": BLEND}, dict(member)], [part, part])
    assert learnt[0] is learnt[2]
    assert learnt[1] is None
    weights = {"a": 1.0, "b": 0.5}
    expected = standard_scores(part.groups, blend_scores(part, weights))
    assert np.array_equal(vote(learnt[1], part, weights), expected)


def test_an_ensemble_takes_what_helps_and_stops_where_it_is_best(tmp_path, monkeypatch):
    monkeypatch.setenv("FEASTRANK_HOME", str(tmp_path))
    part = example()
    relevant = pa.table({"user_id": part.users, "post_id": part.posts}).filter(
        pa.array(part.labels == 1)
    )
    search = Search([Experiment(part, relevant, [part, part])], ("a", "b"), "study", None)
    good, bad = {"ranker": BLEND}, {"ranker": "lightgbm", "settings": {"rounds": 1, "leaves": 2}}
    members, values = search.ensemble([bad, good], {"a": 1.0, "b": 0.5})
    assert len(members) == len(values)
    assert values[-1] == max(values)
    assert len(list(tmp_path.rglob("*.npy"))) == 1  # the blend has nothing to keep
    alone = search.ensemble([bad], {"a": 1.0, "b": 0.5})[1][0]
    assert values[0] >= alone


def test_members_that_come_twice_differ_in_their_seed():
    one, blend = {"ranker": "lightgbm", "settings": {"leaves": 3, "seed": 0}}, {"ranker": BLEND}
    seeded = with_seeds([one, blend, one, one])
    assert [member.get("settings", {}).get("seed") for member in seeded] == [0, None, 1, 2]
    assert seeded[1] == blend
    assert one["settings"]["seed"] == 0
    slow = {"ranker": "catboost", "settings": {"seed": 0}}
    assert with_seeds([slow, slow]) == [slow, slow]

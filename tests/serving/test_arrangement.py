"""Arrangements: by hand, and the properties that hold whatever the rules."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.arrangement import Arrangement, Arranger, Groups
from serving.rule_settings import Diversity, Exploration


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def groups(limit: int, values: list) -> Groups:
    """Return the groups of candidates of which each has one value, None: none."""
    rows = [row for row, value in enumerate(values) if value is not None]
    return Groups(limit, np.array(rows, np.int64), np.array([values[r] for r in rows], np.int64))


def test_without_rules_the_order_is_that_of_scores():
    found = Arranger().arrange(np.array([1.0, 3.0, 3.0, 2.0]), 3, rng())
    assert found.rows.tolist() == [1, 2, 3]
    assert found.propensities.tolist() == [1.0] * 3
    assert found.rules == [()] * 3


def test_caps_let_the_next_ones_move_up():
    # Values a a a b none, limit 2: the third a is passed over.
    arranger = Arranger([groups(2, [0, 0, 0, 1, None])])
    found = arranger.arrange(np.array([5.0, 4, 3, 2, 1]), 5, rng())
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert found.rules == [(), (), ("cap",), ("cap",)]


def test_a_post_counts_under_each_of_its_values():
    # Post 0 has the values 0 and 1, so with limit 1 neither 1 (value 0) nor 2 (value 1) may follow.
    both = Groups(1, np.array([0, 0, 1, 2, 3]), np.array([0, 1, 0, 1, 2]))
    found = Arranger([both]).arrange(np.array([4.0, 3, 2, 1]), 4, rng())
    assert found.rows.tolist() == [0, 3]


def test_pins_stand_at_their_places_and_count_towards_caps():
    arranger = Arranger([groups(1, [0, 1, 0, 2])], pins={2: 2})
    found = arranger.arrange(np.array([4.0, 3, 2, 1]), 3, rng())
    # Row 0 has the value of the pin.
    assert found.rows.tolist() == [1, 2, 3]
    assert found.rules == [("cap",), ("pinned",), ("cap",)]
    # A pin beyond the answer neither shows nor counts.
    assert Arranger(pins={9: 0}).arrange(np.array([2.0, 1.0]), 2, rng()).rows.tolist() == [1]
    # With too few candidates it moves up.
    assert Arranger(pins={5: 0}).arrange(np.array([2.0, 1.0]), 5, rng()).rows.tolist() == [1, 0]


def test_diversity_by_hand():
    # 0 and 1 are alike, 2 is at a right angle. Relevance 1, 0.9, 0. After 0, with strength 0.6:
    # 1 is worth 0.4 x 0.9 - 0.6 x 1 = -0.24, 2 is worth 0.4 x 0 - 0.6 x 0 = 0.
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([10.0, 9.0, 0.0])
    strong = Arranger(diversity=Diversity(strength=0.6), vectors=vectors).arrange(scores, 3, rng())
    assert strong.rows.tolist() == [0, 2, 1]
    assert strong.rules == [(), ("diversity",), ()]
    # With 0.4: 0.54 - 0.4 = 0.14 against 0.
    weak = Arranger(diversity=Diversity(strength=0.4), vectors=vectors).arrange(scores, 3, rng())
    assert weak.rows.tolist() == [0, 1, 2]


def test_exploration_by_hand():
    always = Arranger(exploration=Exploration(share=1, among=2))
    found = always.arrange(np.array([3.0, 2.0, 1.0]), 3, rng())
    # The first two places are drawn among two, the last one has one post left.
    assert found.propensities.tolist() == [0.5, 0.5, 1.0]
    some = Arranger(exploration=Exploration(share=0.2, among=4)).arrange(
        np.array([4.0, 3, 2, 1]), 1, rng()
    )
    assert some.propensities.tolist() == pytest.approx([0.85])


def test_propensities_are_how_often_it_happens():
    arranger = Arranger(exploration=Exploration(share=0.5, among=3))
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    chance, told = Counter(), {}
    for seed in range(2000):
        found = arranger.arrange(scores, 1, rng(seed))
        chance[int(found.rows[0])] += 1
        told[int(found.rows[0])] = found.propensities[0]
    assert sum(told.values()) == pytest.approx(1)
    for row, propensity in told.items():
        assert chance[row] / 2000 == pytest.approx(propensity, abs=0.03)
    assert 3 not in told


@st.composite
def problems(draw):
    """Return an arranger with any rules, scores, k and the values that are capped."""
    count = draw(st.integers(0, 12))
    scores = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)), float)
    values = draw(st.lists(st.none() | st.integers(0, 3), min_size=count, max_size=count))
    limit = draw(st.integers(1, 3))
    places = st.lists(st.integers(1, 14), unique=True, max_size=min(count, 3))
    at = draw(places)
    rows = draw(st.permutations(range(count)))
    strength = draw(st.sampled_from([None, 0.0, 0.3, 1.0]))
    share = draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
    vectors = rng(count).normal(size=(count, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    arranger = Arranger(
        [groups(limit, values)],
        dict(zip(at, rows[: len(at)], strict=True)),
        None if strength is None else Diversity(strength=strength, among=draw(st.integers(1, 12))),
        vectors,
        None if share is None else Exploration(share=share, among=draw(st.integers(1, 12))),
    )
    return arranger, scores, draw(st.integers(1, 13)), values


@given(problems(), st.integers(0, 99))
def test_whatever_the_rules(problem, seed: int):
    arranger, scores, k, values = problem
    found: Arrangement = arranger.arrange(scores, k, rng(seed))
    shown = found.rows.tolist()
    assert len(shown) == len(set(shown)) <= min(k, len(scores))
    assert len(shown) == len(found.propensities) == len(found.rules)
    assert ((found.propensities > 0) & (found.propensities <= 1)).all()
    pinned = {place: row for place, row in arranger.pins.items() if place <= k}
    for place, row in pinned.items():
        # Nothing but a lack of candidates moves a pin, and only up.
        assert shown.index(row) + 1 == place or shown.index(row) + 1 < place
        if len(shown) == k:
            assert shown[place - 1] == row
    assert [r for r, one in zip(shown, found.rules, strict=True) if one == ("pinned",)] == [
        pinned[place] for place in sorted(pinned)
    ]
    pins = Counter(values[row] for row in pinned.values())
    limit = arranger.caps[0].limit
    for value, count in Counter(values[row] for row in shown).items():
        assert value is None or count <= max(limit, pins[value])
    again = arranger.arrange(scores, k, rng(seed))
    assert again.rows.tolist() == shown


@given(problems(), st.integers(0, 99))
def test_strength_0_and_share_0_change_nothing(problem, seed: int):
    arranger, scores, k, _ = problem
    plain = Arranger(arranger.caps, arranger.pins).arrange(scores, k, rng(seed))
    none = Arranger(
        arranger.caps,
        arranger.pins,
        Diversity(strength=0),
        arranger.vectors,
        Exploration(share=0),
    ).arrange(scores, k, rng(seed))
    assert none.rows.tolist() == plain.rows.tolist()
    assert none.rules == plain.rules
    assert none.propensities.tolist() == plain.propensities.tolist() == [1.0] * len(plain.rows)


@settings(max_examples=15)
@given(st.integers(2, 8), st.floats(0, 1), st.integers(1, 8), st.integers(0, 9))
def test_the_propensities_of_all_posts_of_a_place_sum_to_one(count, share, among, value):
    arranger = Arranger(exploration=Exploration(share=share, among=among))
    scores = -np.arange(count, dtype=float)
    told = {}
    for seed in range(200):
        found = arranger.arrange(scores, 1, rng(1000 * value + seed))
        told[int(found.rows[0])] = float(found.propensities[0])
    unseen = min(among, count) - len(told)
    # Posts that chance never met have the propensity of an explored one each.
    assert sum(told.values()) + unseen * share / min(among, count) == pytest.approx(1)

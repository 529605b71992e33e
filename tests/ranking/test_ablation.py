"""Groups of inputs, and what is lost without one, on data whose answer lies in one group."""

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contract import Contract, ModelInput, contract_of
from feature_repo.definitions import columns as c
from feature_repo.definitions.repository import objects
from pipelines.ranking.ablation import feature_groups, losses
from pipelines.ranking.models import make_ranker
from pipelines.ranking.training_set import LABEL, SLICE, Examples

USERS, POSTS = 60, 12


def contract():
    inputs = [("answer", "post_activity"), ("city", "user_profile"), ("noise", "user_profile")]
    return Contract(
        "ranker", tuple(ModelInput(n, view, "Float64", n == "city") for n, view in inputs)
    )


def examples(seed):
    rng = np.random.default_rng(seed)
    rows = USERS * POSTS
    answer, city, noise = rng.random(rows), rng.integers(0, 3, rows), rng.random(rows)
    labels = (answer > 0.8).astype(np.float32)
    keys = pa.table(
        {
            "user_id": np.repeat(np.arange(USERS), POSTS),
            "post_id": np.tile(np.arange(POSTS), USERS),
            SLICE: pa.repeat("validation", rows),
            LABEL: labels.astype(np.int8),
        }
    )
    matrix = np.column_stack([answer, city, noise]).astype(np.float32)
    return Examples(keys, matrix, labels, np.full(USERS, POSTS))


def test_the_group_that_holds_the_answer_is_missed_and_the_others_are_not():
    judged = examples(2)
    relevant = judged.keys.filter(pa.array(judged.labels == 1)).select(["user_id", "post_id"])
    settings = {"rounds": 20, "leaves": 4, "feature_share": 1.0}
    found = {
        one.group: one
        for one in losses(
            contract(),
            examples(1),
            judged,
            relevant,
            lambda: make_ranker("lightgbm", settings),
            np.random.default_rng(0),
        )
    }
    assert list(found) == ["post_activity", "user_profile"]
    assert found["post_activity"].inputs == ("answer",)
    assert found["post_activity"].loss.low > 0.2
    assert found["user_profile"].loss.mean == pytest.approx(0, abs=0.02)
    whole = found["user_profile"].ndcg + found["user_profile"].loss.mean
    assert found["post_activity"].ndcg + found["post_activity"].loss.mean == pytest.approx(whole)


def test_every_input_of_the_demo_is_in_one_group():
    demo = contract_of(objects()[-1])
    groups = feature_groups(demo)
    assert sorted(name for names in groups.values() for name in names) == sorted(demo.names)
    assert c.CANDIDATE_SOURCE_COUNT in groups["candidate scores and ranks"]
    assert set(groups["days since"]) <= set(c.DAYS_SINCE)
    assert groups["topic match"] == ("user_post_topic_rate", "user_post_topic_share")
    assert "user_gender" in groups["user_profile"]


def test_a_single_group_cannot_be_left_out():
    alone = Contract("ranker", contract().inputs[1:])
    judged = examples(2)
    part = Examples(judged.keys, judged.matrix[:, 1:], judged.labels, judged.group_sizes)
    relevant = judged.keys.filter(pa.array(judged.labels == 1)).select(["user_id", "post_id"])
    make = lambda: make_ranker("lightgbm", {"rounds": 2})  # noqa: E731
    assert list(losses(alone, part, part, relevant, make, np.random.default_rng(0))) == []

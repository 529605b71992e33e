"""Declared rules on a published workspace: what they do to answers, and what the log says of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from job_runner import Job
from tiny_feed import make_feed

from pipelines.job.context import open_store
from serving.errors import RulesError
from serving.impressions import ImpressionLog
from serving.recommender import Recommender
from serving.rule_settings import Rules


def recommender(job: Job, log: ImpressionLog | None = None, **sections: Any) -> Recommender:
    rules = Rules.model_validate(sections)
    store = open_store(job.workspace)
    return Recommender(job.workspace.bundles, store, impressions=log, rules=rules)


def posts(answer) -> list[str]:
    return [one.post for one in answer.recommendations]


def topics() -> dict[str, list[str]]:
    return {row["post"]: row["topics"].split("|") for row in make_feed().posts}


def test_caps_pins_and_diversity_change_the_answer_as_declared(job: Job):
    plain = posts(recommender(job).recommend("u003", 1000))
    topics_of = topics()
    capped = posts(recommender(job, cap=[{"attribute": "topics", "limit": 2}]).recommend("u003", 8))
    count = Counter(topic for post in capped for topic in topics_of[post])
    uncapped = Counter(topic for post in plain[:8] for topic in topics_of[post])
    assert max(count.values()) == 2 < max(uncapped.values())
    # What is left keeps the order of the scores.
    assert [post for post in plain if post in capped] == capped
    met = {row["post"] for row in make_feed().events if row["user"] == "u003"}
    seen = min(met)
    unproposed = next(post for post in sorted(topics_of) if post not in met | set(plain))
    pins = [
        {"post": plain[9], "position": 2},
        {"post": unproposed, "position": 3},
        {"post": seen, "position": 1},
        {"post": "no such post", "position": 4},
    ]
    pinned = recommender(job, pin=pins)
    assert posts(pinned.recommend("u003", 5)) == [plain[0], plain[9], unproposed, *plain[1:3]]
    # The request's wish is stronger, and another user may not have seen the post.
    assert posts(pinned.recommend("u003", 3, exclude=[plain[9]]))[1:] == [plain[1], unproposed]
    assert posts(pinned.recommend("nobody", 1)) == [seen]
    diverse = recommender(job, diversity={"strength": 0.8, "vectors": "als"})
    assert posts(diverse.recommend("u003", 10)) != plain[:10]
    same = recommender(job, diversity={"strength": 0, "vectors": "als"})
    assert posts(same.recommend("u003", 1000)) == plain


def test_exploration_is_logged_with_its_propensity_and_follows_from_the_request_id(
    job: Job, tmp_path: Path
):
    log = ImpressionLog(tmp_path)
    exploring = recommender(job, log, exploration={"share": 0.5, "among": 10})
    answers = [exploring.recommend("u003", 5) for _ in range(20)]
    log.close()
    rows = pq.read_table(tmp_path).to_pylist()
    told = Counter()
    for answer in answers:
        shown = [r for r in rows if r["request_id"] == answer.request_id and r["position"]]
        shown.sort(key=lambda row: row["position"])
        assert [row["post"] for row in shown] == posts(answer)
        for row in shown:
            told[row["rules"]] += 1
            expected = 0.05 if row["rules"] == "exploration" else 0.55
            assert row["propensity"] == pytest.approx(expected)
    # 100 places; 45 % are expected to go elsewhere than by score.
    assert 25 <= told["exploration"] <= 65
    assert set(told) == {"", "exploration"}


def test_rules_hold_without_redis_too(job: Job):
    topics_of = topics()
    capped = recommender(
        job, cap=[{"attribute": "topics", "limit": 1}], pin=[{"post": "p007", "position": 2}]
    )
    job.close()
    answer = capped.recommend("u003", 4)
    assert answer.degraded == ("lists_unavailable",)
    assert posts(answer)[1] == "p007"
    count = Counter(topic for post in posts(answer) for topic in topics_of[post])
    assert max(count.values()) == 1


def test_a_rule_that_the_bundle_cannot_keep_is_refused_at_once(job: Job):
    with pytest.raises(RulesError, match="posts have no 'author', expected one of: topics, length"):
        recommender(job, cap=[{"attribute": "author", "limit": 1}])
    with pytest.raises(RulesError, match="no post of this bundle has a creation time"):
        recommender(job, freshness={"max_age_days": 1})
    with pytest.raises(RulesError, match="has no text vectors"):
        recommender(job, diversity={"strength": 0.5})

"""The last part of the demo: a service on a free port, a like that changes its answer."""

import re
import threading
from typing import Any

import pytest
from job_runner import Job

from feature_repo.dataset import Events
from pipelines.demo import positive_event
from serving.event_rules import EventRules


def test_the_demo_ends_with_a_like_that_changes_the_answer(job: Job):
    published = job.published()
    outcome = job.do("demo")
    assert outcome.code == 0, outcome.err
    assert set(outcome.steps.values()) == {"unchanged"}
    shown = outcome.out[outcome.out.index("the service at http://127.0.0.1:") :]
    assert len(re.findall(r"(?m)^  user u\d+ \(\d+ ms\)  \S", shown)) == 3
    liked = re.search(r"likes (.+): POST /events, accepted", shown)
    assert liked is not None
    places = re.findall(r"(?m)^   \d\. (.+) \(was \d+\)", shown)
    assert len(places) >= 3
    assert liked[1] not in places
    # It leaves nothing behind: no thread, no event, no changed answer.
    assert "demo-service" not in {thread.name for thread in threading.enumerate()}
    assert job.published() == published


RULES: list[dict[str, Any]] = [
    {"positive": {"every": True}},
    {"positive": {"actions": ["like"]}, "action": {"column": "do"}},
    {"positive": {"column": "stars", "at_least": 4}, "value": "stars"},
    {"positive": {"column": "do", "equals": "like"}, "action": {"column": "do"}},
    {
        "positive": {"column": "target", "equals": 1},
        "impressions": {"column": "shown", "equals": True},
        "weight": {"column": "plays"},
        "value": "plays",
    },
]


@pytest.mark.parametrize("described", RULES)
def test_the_like_is_a_positive_event_of_any_dataset(described: dict[str, Any]):
    table = {"path": "e.csv", "format": "csv", "user": "u", "post": "p", "time": {"column": "t"}}
    events = Events.model_validate(table | described)
    rules, event = EventRules(events), positive_event(events)
    fields = event.get("fields", {})
    row = rules.row("u1", "p1", event.get("action"), event.get("value"), fields)
    assert rules.weight(row) > 0

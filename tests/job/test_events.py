"""Events over HTTP: kept once, in effect at once, refused rather than lost."""

import json
import os
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from http_service import EVENT_ROOM, MAX_BODY_KIB, Service, ids
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_feed import TOPICS

from serving.events import StoredEvent, StreamKeys
from serving.fresh import index_file
from serving.history import RECORD, recent_key

USER = "u003"


def event(number: int, post: str, action: str = "like", user: str = USER) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "post_id": post, "action": action}


def post_events(service: Service, *events: dict[str, Any]) -> dict[str, Any]:
    response = service.client.post("/events", json={"events": list(events)})
    assert response.status_code == 200, response.text
    return dict(response.json())


def statuses(answer: dict[str, Any]) -> list[str]:
    return [one["status"] for one in answer["results"]]


def stream(service: Service) -> list[StoredEvent]:
    entries = service.job.redis().xrange(StreamKeys(service.job.name).stream)
    return [StoredEvent.from_json(fields[b"event"]) for _, fields in entries]


def liked_posts_of_another_topic(service: Service, count: int) -> list[str]:
    """Return posts that the user has not met, of the topic that is least in his answer."""
    posts = service.recommend(k=1000)["posts"]
    topics = Counter(one["title"].split()[0] for one in posts[:10])
    rarest = min((topic.title() for topic in TOPICS), key=lambda topic: topics[topic])
    found = [one["post_id"] for one in posts if one["title"].startswith(rarest)]
    assert len(found) > count
    return found[:count]


def test_the_next_answer_reflects_a_like_of_a_moment_ago(service: Service):
    before = service.recommend(k=1000, explain=True)
    liked = ids(before)[0]
    answer = service.client.post("/events", json=event(1, liked))
    assert answer.status_code == 200
    assert answer.json()["accepted"] == 1
    assert statuses(answer.json()) == ["accepted"]
    after = service.recommend(k=1000, explain=True)
    assert liked not in ids(after)
    assert after["degraded"] == []
    # Not only the post is gone: what the user's lists say of the others has changed.
    scores = {one["post_id"]: one["score"] for one in before["posts"]}
    moved = [one for one in after["posts"] if one["score"] != scores.get(one["post_id"])]
    assert len(moved) > 3


def test_likes_of_a_new_topic_bring_more_of_it(service: Service):
    liked = liked_posts_of_another_topic(service, 4)
    params = {"user_id": USER, "post_id": ids(service.recommend(k=1000))}
    titles = {one["post_id"]: one["title"] for one in service.recommend(k=1000)["posts"]}
    topic = titles[liked[0]].split()[0]

    def als_ranks() -> dict[str, float | None]:
        rows = service.client.get("/features", params=params).json()["rows"]
        return {one["post_id"]: one["values"]["candidate_als_rank"] for one in rows}

    before = als_ranks()
    post_events(service, *(event(i, post) for i, post in enumerate(liked)))
    after = als_ranks()
    others = [
        post
        for post, title in titles.items()
        if title.startswith(topic) and post not in liked and before[post] and after[post]
    ]
    assert np.mean([after[one] for one in others]) < np.mean([before[one] for one in others])
    # What was liked is proposed no more.
    assert all(after[one] is None for one in liked)


def test_a_view_takes_the_post_away_and_changes_no_taste(service: Service):
    before = ids(service.recommend(k=1000))
    params = {"user_id": USER, "post_id": before[2:]}

    def scores() -> list[Any]:
        rows = service.client.get("/features", params=params).json()["rows"]
        return [(one["values"]["candidate_als_score"], one["post_id"]) for one in rows]

    expected = scores()
    post_events(service, event(1, before[1], "view"))
    assert sorted(ids(service.recommend(k=1000))) == sorted({*before} - {before[1]})
    assert scores() == expected


def test_an_id_is_kept_once_also_within_a_batch_and_with_another_body(service: Service):
    first = post_events(service, event(1, "p001"), event(2, "p002"), event(1, "p003"))
    assert statuses(first) == ["accepted", "accepted", "duplicate"]
    assert first["accepted"] == 2
    again = post_events(service, event(2, "p005"), event(3, "p006"))
    assert statuses(again) == ["duplicate", "accepted"]
    assert [one.event_id for one in stream(service)] == ["e1", "e2", "e3"]
    assert [one.row["post"] for one in stream(service)] == ["p001", "p002", "p006"]
    lake_id = service.published.current()._catalogue.users.find(USER)
    value = service.job.redis().get(recent_key(service.job.name, int(lake_id or 0)))
    assert len(np.frombuffer(value, RECORD)) == 3
    assert service.metric('feastrank_events_total{status="accepted"}') == 3
    assert service.metric('feastrank_events_total{status="duplicate"}') == 2


def test_each_event_has_its_own_answer(service: Service):
    answer = post_events(
        service,
        event(1, "p001", user="nobody"),
        event(2, "no such post"),
        {"event_id": "e3", "user_id": USER, "post_id": "p001"},
        event(4, "p001") | {"value": 3},
        event(5, "p001") | {"time": "2150-01-01T00:00:00Z"},
        event(6, "p001") | {"fields": {"mood": "good"}},
        event(7, "p001") | {"time": "2024-05-01T12:00:00.000001Z"},
    )
    assert [(one["status"], one["detail"]) for one in answer["results"]] == [
        ("unknown_user", None),
        ("unknown_post", None),
        ("invalid", "action is missing"),
        ("invalid", "value is not part of this dataset's events"),
        ("invalid", "time lies in the future"),
        ("invalid", "fields.mood is not part of this dataset's events"),
        ("accepted", None),
    ]
    (kept,) = stream(service)
    assert kept.time_us == 1_714_564_800_000_001
    assert kept.row == {"user": USER, "post": "p001", "action": "like"}


def test_events_are_of_the_bundles_moment_unless_they_say_another(service: Service):
    post_events(service, event(1, "p001"))
    moment = service.published.current().moment()
    assert stream(service)[0].time_us == round(moment.timestamp() * 1e6)


def test_events_of_machines_whose_clocks_differ_count_once_and_at_once(service: Service):
    first, second = ids(service.recommend())[:2]

    def at(minutes: float) -> dict[str, str]:
        return {"time": (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()}

    answer = post_events(service, event(1, first) | at(4), event(2, second) | at(-4))
    assert statuses(answer) == ["accepted", "accepted"]
    # The service's own clock is behind the first.
    assert not {first, second} & set(ids(service.recommend()))
    assert statuses(post_events(service, event(1, first) | at(-4))) == ["duplicate"]
    assert statuses(post_events(service, event(3, first) | at(6))) == ["invalid"]


def test_a_full_stream_refuses_and_loses_nothing(service: Service):
    posts = [f"p{i:03}" for i in range(EVENT_ROOM - 1)]
    assert post_events(service, *map(event, range(EVENT_ROOM - 1), posts))["accepted"] == len(posts)
    batch = {"events": [event(100, "p001"), event(101, "p002")]}
    refused = service.client.post("/events", json=batch)
    assert refused.status_code == refused.json()["status"] == 503
    assert refused.headers["retry-after"]
    assert refused.json()["detail"].startswith("events_full")
    assert len(stream(service)) == EVENT_ROOM - 1
    assert service.metric('feastrank_degraded_total{reason="events_full"}') == 1
    # Nothing of the refused batch counts as kept; what fits, and what was kept before, is fine.
    again = post_events(service, event(100, "p001"), event(0, "p000"))
    assert statuses(again) == ["accepted", "duplicate"]
    assert service.recommend()["degraded"] == []


def test_without_redis_events_are_refused_and_may_be_sent_again(service: Service):
    service.kill_redis()
    refused = service.client.post("/events", json=event(1, "p001"))
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("events_unavailable")
    service.redis.ensure_running()
    assert statuses(post_events(service, event(1, "p001"))) == ["accepted"]
    os.kill(service.redis.pid, signal.SIGSTOP)
    try:
        assert service.client.post("/events", json=event(2, "p002")).status_code == 503
    finally:
        os.kill(service.redis.pid, signal.SIGCONT)
    # It hung before or after it kept the event: sent again, the event is there exactly once.
    post_events(service, event(2, "p002"))
    assert [one.event_id for one in stream(service)] == ["e1", "e2"]


def test_events_survive_a_restart_of_service_and_redis(service: Service):
    before = ids(service.recommend(k=3))
    post_events(service, event(1, before[0]))
    after = ids(service.recommend(k=3))
    service.kill_redis()
    service.redis.ensure_running()
    assert [one.event_id for one in stream(service)] == ["e1"]
    assert ids(service.recommend(k=3)) == after != before


def test_drained_events_reach_the_lake_once(service: Service):
    job = service.job
    before = job.facts("ingest")["events"]
    time = {"time": "2024-05-02T12:00:00Z"}
    post_events(service, event(1, "p001") | time, event(2, "p002", "view") | time)
    for moved, step in ((2, "s"), (0, "unchanged")):
        outcome = job.do("drain")
        assert outcome.code == 0, outcome.err
        assert f"{moved} events into" in outcome.out
        outcome = job.do("ingest")
        assert outcome.code == 0, outcome.err
        assert outcome.steps["ingest"].endswith(step)
        facts = job.facts("ingest")
        assert (facts["events"], facts["new_events"]) == (before + 2, 2)
    assert stream(service) == []
    # They stay in effect until a bundle that knows them is published.
    assert "p001" not in ids(service.recommend(k=1000))


def test_a_request_takes_two_round_trips(service: Service):
    service.recommend()
    post_events(service, event(1, "p001"))
    with service.job.redis().monitor() as monitor:
        commands = monitor.listen()

        def of(request: Any) -> list[str]:
            request()
            service.job.redis().echo("done")
            sent = []
            for one in commands:
                if one["command"].startswith("ECHO"):
                    return sent
                if one["client_type"] != "lua" and one["command"].split()[0] not in _GREETINGS:
                    sent.append(one["command"].split()[0])
            return sent

        assert of(service.recommend) == ["MGET", "MGET"]
        ranked = {"user_id": USER, "post_ids": ["p001", "p002"]}
        assert of(lambda: service.client.post("/rank", json=ranked)) == ["MGET", "MGET"]
        assert of(lambda: service.recommend("nobody")) == ["MGET"]
        assert of(lambda: service.client.get("/similar/p001")) == []
        assert of(lambda: post_events(service, event(2, "p002"), event(3, "p003"))) == ["EVALSHA"]


_GREETINGS = ("CLIENT", "HELLO", "MONITOR", "PING")


def test_similar_posts_over_http(service: Service):
    response = service.client.get("/similar/p003", params={"k": 5})
    body = response.json()
    found, degraded = service.published.current().similar("p003", 5)
    assert (response.status_code, body["degraded"], degraded) == (200, [], ())
    assert [one["post_id"] for one in body["posts"]] == [one.post for one in found]
    assert len(found) == 5
    assert "p003" not in ids(body)
    cosines = [one["score"] for one in body["posts"]]
    assert cosines == sorted(cosines, reverse=True)
    assert service.client.get("/similar/no such post").status_code == 404
    assert service.client.get("/similar/a/b%2Fc").status_code == 404
    assert service.client.get("/similar/p003", params={"k": 0}).status_code == 422


@pytest.mark.parametrize("damage", ["absent", "changed"])
def test_an_index_at_fault_degrades_and_nothing_else(service: Service, damage: str):
    expected = ids(service.client.get("/similar/p003").json())
    generation = service.published.current().manifest.generation
    path = service.job.workspace.bundles / generation / index_file("cos")
    if damage == "absent":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    service.published._current = service.published._open()
    body = service.client.get("/similar/p003").json()
    assert body["degraded"] == ["index_unavailable"]
    assert ids(body) == expected
    assert service.recommend()["degraded"] == []
    post_events(service, event(1, "p001"))
    assert service.recommend()["degraded"] == ["index_unavailable"]


def test_the_manifest_tells_the_recall_of_each_index(service: Service):
    manifest = service.published.current().manifest
    assert set(manifest.indexes) == {index_file("ip"), index_file("cos")}
    for name, measured in manifest.indexes.items():
        assert name in manifest.files
        assert 0.9 <= measured["recall@10"] <= 1
        assert measured["posts"] > 50


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
NEARLY_AN_EVENT = st.fixed_dictionaries(
    {
        "event_id": st.text(st.characters(), max_size=5),
        "user_id": st.sampled_from([USER, "nobody"]),
        "post_id": st.sampled_from(["p001", "\ud800", "x"]),
    },
    optional={
        "action": st.sampled_from(["like", "view"]) | JSON,
        "value": st.floats() | st.integers() | JSON,
        "time": st.datetimes().map(lambda time: f"{time}Z") | JSON,
        "fields": JSON,
    },
)
BODIES = (
    NEARLY_AN_EVENT | st.fixed_dictionaries({"events": st.lists(NEARLY_AN_EVENT | JSON)}) | JSON
).map(lambda value: json.dumps(value).encode())


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(BODIES | st.binary(max_size=100))
@example(b'{"event_id": "e", "user_id": "u003", "post_id": "p001", "value": ' + b"9" * 400 + b"}")
@example(b'{"event_id": "e", "user_id": "u003", "post_id": "p001", "fields": {"a": NaN}}')
@example(b'{"event_id": "e", "user_id": "u003", "post_id": "p001", "action": "like"}')
@example(b'{"event_id": "\\ud800", "user_id": "u003", "post_id": "p001", "action": "like"}')
@example(b'{"events": []}')
def test_no_body_of_events_brings_the_service_down(service: Service, body: bytes):
    assert len(body) < 1024 * MAX_BODY_KIB
    response = service.client.post("/events", content=body)
    assert response.status_code in (200, 422, 503), response.text
    if response.status_code == 503:
        service.job.redis().flushall()
    elif response.status_code == 422:
        assert response.headers["content-type"] == "application/problem+json"

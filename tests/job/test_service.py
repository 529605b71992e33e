"""The HTTP service on a published workspace, with its own Redis to kill, stop and restart."""

import json
import os
import shutil
import signal
import time
from datetime import datetime
from typing import Any

import pytest
from http_service import MAX_BODY_KIB, REDIS_TIMEOUT_S, Service, ids
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from job_runner import REPOSITORY

from serving.bundle import CURRENT, MANIFEST, current_generation
from serving.messages import Explanation


def test_http_answers_are_the_recommenders(service: Service):
    recommender = service.published.current()
    answer = recommender.recommend("u003", 5, explain=True)
    body = service.recommend(k=5, explain=True)
    assert body["is_known"]
    assert body["degraded"] == []
    assert body["bundle"] == recommender.manifest.generation
    assert body["posts"] == [
        {
            "post_id": one.post,
            "title": one.title,
            "score": one.score,
            "reason": Explanation.of(one.reason).model_dump(mode="json"),
        }
        for one in answer.recommendations
        if one.reason
    ]
    assert len(body["posts"]) == 5
    ranked = service.client.post("/rank", json={"user_id": "u003", "post_ids": ids(body)[::-1]})
    assert ids(ranked.json()) == ids(body)
    assert {one["reason"] for one in ranked.json()["posts"]} == {None}
    explained = {"user_id": "u003", "post_ids": ids(body), "explain": True}
    answered = service.client.post("/rank", json=explained).json()["posts"]
    reasons = [one["reason"] for one in answered]
    for own, theirs in zip(reasons, (one["reason"] for one in body["posts"]), strict=True):
        assert own["contributions"] == theirs["contributions"]
    assert not service.recommend("nobody", k=3)["is_known"]


def test_a_reason_tells_sources_contributions_and_the_features_with_their_age(service: Service):
    recommender = service.published.current()
    body = service.recommend(k=3, explain=True)
    inputs = recommender.features("u003", ids(body))
    moment = recommender.moment()
    stored = 0
    for row, post in enumerate(body["posts"]):
        reason = post["reason"]
        assert reason["sources"].keys() == reason["source_scores"].keys()
        for source, rank in reason["sources"].items():
            if f"candidate_{source}_rank" in inputs.column_names:
                assert inputs[f"candidate_{source}_rank"][row].as_py() == rank
                score = inputs[f"candidate_{source}_score"][row].as_py()
                assert reason["source_scores"][source] == score
        sizes = [abs(value) for value in reason["contributions"].values()]
        assert sizes == sorted(sizes, reverse=True)
        assert reason["features"].keys() == reason["contributions"].keys()
        for name, served in reason["features"].items():
            assert served["value"] == inputs[name][row].as_py()
            if served["event_time"] is not None:
                stored += 1
                since = datetime.fromisoformat(served["event_time"])
                assert served["age_seconds"] == (moment - since).total_seconds() >= 0
            computed = name.startswith("candidate_") or "days" in name.split("_")[1:2]
            assert not computed or served["event_time"] is None
        assert reason["rules"] == []
    assert stored


def test_exclude_and_only_move_the_next_posts_up(service: Service):
    everything = ids(service.recommend(k=1000))
    assert ids(service.recommend(k=2, exclude=[everything[0], "no such post"])) == everything[1:3]
    allowed = everything[5:20:3]
    assert ids(service.recommend(k=1000, only=allowed[::-1])) == allowed
    assert ids(service.recommend(k=1000, only=allowed, exclude=allowed[:2])) == allowed[2:]
    for nothing in ([], ["no such post"]):
        assert service.recommend(only=nothing)["posts"] == []


def test_the_context_says_for_when(service: Service):
    def scores(**body: Any) -> list[float]:
        return [post["score"] for post in service.recommend(k=1000, **body)["posts"]]

    as_of = service.client.get("/version").json()["as_of"]
    assert scores(context={"time": as_of}) == scores()
    # A year on, every age is another.
    assert scores(context={"time": "2025-06-01T00:00:00Z"}) != scores()


def test_features_are_those_that_the_ranker_saw(service: Service):
    posts = ["p003", "p001", "p003"]
    response = service.client.get("/features", params={"user_id": "u003", "post_id": posts})
    body = response.json()
    assert [row["post_id"] for row in body["rows"]] == posts
    recommender = service.published.current()
    names = [one["name"] for one in recommender.manifest.contract["inputs"]]
    expected = recommender.features("u003", posts).select(names).to_pylist()
    for row, one in zip(body["rows"], expected, strict=True):
        nan_is_null = {k: None if isinstance(v, float) and v != v else v for k, v in one.items()}
        assert row["values"] == nan_is_null


def test_health_readiness_version_and_openapi(service: Service):
    get = service.client.get
    assert get("/health").json() == {"status": "ok"}
    ready = get("/ready").json()
    assert (ready["ready"], ready["degraded"]) == (True, [])
    manifest = service.published.current().manifest
    said = get("/version").json()
    assert said["bundle"] == manifest.generation
    assert said["contract_hash"] == manifest.contract_hash
    document = get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/recommend", "/rank", "/features", "/health", "/ready", "/version", "/metrics"),
        *("/similar/{post_id}", "/events"),
    }
    schemas = document["components"]["schemas"]
    referred = set(json.dumps(document).split("#/components/schemas/")[1:])
    assert {one.partition('"')[0] for one in referred} <= schemas.keys()
    for name, path in (("RecommendRequest", "/recommend"), ("RankRequest", "/rank")):
        for body in schemas[name]["examples"]:
            assert service.client.post(path, json=body).status_code in (200, 404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.user_id"),
        ({"user_id": ""}, "body.user_id"),
        ({"user_id": 3}, "body.user_id"),
        ({"user_id": "a\x00b"}, "body.user_id"),
        ({"user_id": "u" * 201}, "body.user_id"),
        ({"user_id": "u003", "k": 0}, "body.k"),
        ({"user_id": "u003", "k": 1001}, "body.k"),
        ({"user_id": "u003", "k": True}, "body.k"),
        ({"user_id": "u003", "exclude": ["p001"] * 1001}, "body.exclude"),
        ({"user_id": "u003", "only": [""]}, "body.only.0"),
        ({"user_id": "u003", "context": {"time": "2024-03-01T00:00:00"}}, "body.context.time"),
        ({"user_id": "u003", "context": {"time": "1969-01-01T00:00:00Z"}}, "body.context.time"),
        ({"user_id": "u003", "limit": 3}, "body.limit"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_place(service: Service, body, field: str):
    response = service.client.post("/recommend", json=body)
    problem = response.json()
    assert response.status_code == problem["status"] == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in problem["errors"]] == [field]


def test_problems_are_of_one_form_and_tell_nothing_of_the_inside(service: Service):
    client = service.client
    long = json.dumps({"user_id": "u003", "exclude": ["x" * 200] * 400}).encode()
    assert len(long) > 1024 * MAX_BODY_KIB
    unknown = {"user_id": "u003", "post_ids": ["no such post"]}
    responses = {
        404: [
            client.get("/nothing"),
            client.post("/rank", json=unknown),
            client.get("/features", params={"user_id": "u003", "post_id": "no such post"}),
        ],
        405: [client.get("/recommend")],
        413: [
            client.post("/recommend", content=long),
            # Without a declared length, as a stream is sent.
            client.post("/recommend", content=iter([long[:9], long[9:]])),
        ],
        422: [client.post("/recommend", content=b"{"), client.get("/features")],
    }
    for status, answers in responses.items():
        for answer in answers:
            assert answer.status_code == answer.json()["status"] == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert not any(word in answer.text for word in ("Traceback", ".py", str(REPOSITORY)))
    assert service.metric('feastrank_requests_total{endpoint="other",status="404"}') == 1


def test_metrics_count_by_route_and_status(service: Service):
    for user in ("u001", "u002"):
        service.recommend(user)
    service.client.post("/recommend", json={})
    count = 'feastrank_requests_total{endpoint="/recommend",status="%d"}'
    assert service.metric(count % 200) == 2
    assert service.metric(count % 422) == 1
    assert service.metric('feastrank_request_seconds_count{endpoint="/recommend"}') == 3
    bundle = service.client.get("/version").json()["bundle"]
    assert service.metric(f'feastrank_bundle{{bundle="{bundle}"}}') == 1


def test_without_redis_the_popular_list_answers_and_all_is_well_again_with_it(service: Service):
    client, listed, before = service.client, service.popular(), service.recommend(k=5)
    service.kill_redis()
    meanwhile = service.recommend(k=5, exclude=[listed[1]], explain=True)
    assert meanwhile["degraded"] == ["lists_unavailable"]
    assert ids(meanwhile) == [listed[0], *listed[2:6]]
    assert [post["score"] for post in meanwhile["posts"]] == [None] * 5
    reason = meanwhile["posts"][1]["reason"]
    assert (reason["sources"], reason["contributions"]) == ({"popular": 3}, {})
    ranked = client.post("/rank", json={"user_id": "u003", "post_ids": [listed[4], listed[0]]})
    assert ids(ranked.json()) == [listed[0], listed[4]]
    assert service.recommend("nobody")["degraded"] == ["features_unavailable"]
    params = {"user_id": "u003", "post_id": "p001"}
    features = client.get("/features", params=params)
    assert (features.status_code, features.json()["rows"]) == (200, [])
    assert client.get("/ready").json()["degraded"] == ["redis_unreachable"]
    assert client.get("/health").status_code == 200
    assert service.metric('feastrank_degraded_total{reason="lists_unavailable"}') == 3
    assert service.metric('feastrank_degraded_total{reason="features_unavailable"}') == 1
    service.redis.ensure_running()
    after = service.recommend(k=5)
    assert after["degraded"] == []
    assert ids(after) == ids(before)
    assert client.get("/ready").json()["degraded"] == []


def test_a_redis_that_hangs_is_waited_for_no_longer_than_the_deadline(service: Service):
    service.recommend()
    os.kill(service.redis.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        assert service.recommend()["degraded"] == ["lists_unavailable"]
        assert time.monotonic() - start < 2 * REDIS_TIMEOUT_S + 0.2
    finally:
        os.kill(service.redis.pid, signal.SIGCONT)
    assert service.recommend()["degraded"] == []


def test_an_emptied_or_damaged_redis_is_told_from_one_that_is_well(service: Service):
    redis = service.job.redis()
    keys = list(redis.scan_iter(f"feastrank:{service.job.name}:lists:*"))
    for key in keys:
        redis.set(key, b"\x01\x00")
    assert service.recommend()["degraded"] == ["lists_damaged"]
    redis.flushall()
    answer = service.recommend(k=1000)
    assert answer["degraded"] == ["lists_missing"]
    assert sorted(ids(answer)) == sorted(service.popular())


def test_a_new_bundle_is_taken_and_a_bad_one_is_not(service: Service):
    bundles = service.job.workspace.bundles
    first = str(current_generation(bundles))

    def publish(generation: str, contract_hash: str | None = None) -> None:
        manifest = json.loads((bundles / first / MANIFEST).read_text())
        manifest["generation"] = generation
        manifest["contract_hash"] = contract_hash or manifest["contract_hash"]
        shutil.copytree(bundles / first, bundles / generation)
        (bundles / generation / MANIFEST).write_text(json.dumps(manifest))
        (bundles / CURRENT).write_text(generation)
        service.published.refresh()

    publish("misfit", "0" * 64)
    answer = service.recommend()
    assert (answer["bundle"], answer["degraded"]) == (first, ["bundle_outdated"])
    publish("second")
    # Its lists were never written, which is said; the bundle itself is the new one.
    answer = service.recommend()
    assert (answer["bundle"], answer["degraded"]) == ("second", ["lists_missing"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ("user_id", "k", "context", "exclude", "only", "explain", "post_ids", "time")
NEARLY_RIGHT = st.fixed_dictionaries(
    {"user_id": st.sampled_from(["u003", "nobody"]) | st.text(st.characters(), max_size=5)},
    optional={
        "k": st.integers(-1, 1001) | JSON,
        "post_ids": st.lists(st.sampled_from(["p001", "p002", "x", "\ud800"]), max_size=3) | JSON,
        "exclude": st.lists(st.sampled_from(["p001", "x"]), max_size=3) | JSON,
        "only": st.lists(st.sampled_from(["p001", "x"]), max_size=3) | JSON,
        "context": st.fixed_dictionaries({"time": st.datetimes().map(str) | JSON}) | JSON,
        "explain": st.booleans() | JSON,
    },
)
BODIES = (NEARLY_RIGHT | st.dictionaries(st.sampled_from(FIELDS), JSON) | JSON).map(
    lambda value: json.dumps(value).encode()
) | st.binary(max_size=200)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(["/recommend", "/rank"]), BODIES)
@example("/recommend", b"[" * 60_000)
@example("/recommend", b'{"user_id": "u003", "k": ' + b"9" * 5000 + b"}")
@example("/recommend", b'{"user_id": "\\ud800", "\\ud800": NaN}')
@example("/recommend", b'{"user_id": "u003", "context": {"time": "2199-12-31T23:59:59+00:00"}}')
@example("/recommend", b'{"user_id": "u003", "context": {"time": 1e999}}')
@example("/rank", b'{"user_id": "u003", "post_ids": ["p001", "p001"]}')
def test_no_body_brings_the_service_down(service: Service, path: str, body: bytes):
    response = service.client.post(path, content=body)
    assert response.status_code in (200, 404, 422), response.text
    if response.status_code == 200:
        assert response.json()["degraded"] == []
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=60).map(lambda raw: "&".join(f"%{byte:02x}" for byte in raw)), JSON)
def test_no_query_brings_the_service_down(service: Service, query: str, value: Any):
    text = json.dumps(value)
    for path in (f"/features?{query}", f"/features?user_id=u003&post_id={query}", f"/{query}"):
        assert service.client.get(path).status_code in (200, 404, 422)
    found = service.client.get("/features", params={"user_id": text, "post_id": ["p001", text]})
    assert found.status_code in (404, 422)

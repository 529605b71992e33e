"""Ages of served features: known, shown, and what becomes of answers when they are too great."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feast.protos.feast.core.Registry_pb2 import Registry
from http_service import Service, ids
from job_runner import Job
from tiny_feed import DESCRIPTION

from feastpack.materialized import read_materialized, write_materialized
from feature_repo.dataset import Dataset, DatasetError
from feature_repo.definitions.views import feature_views
from feature_repo.workspace import Workspace
from pipelines.job.context import open_store
from serving.bundle import MANIFEST, REGISTRY, checksum, current_generation

VIEW = "user_activity"


def bundle_folder(job: Job) -> Path:
    return job.workspace.bundles / str(current_generation(job.workspace.bundles))


def _age(job: Job, view: str, hours: float, event_hours: float | None = None) -> None:
    """Let Redis say that a view was materialized so long before the bundle's moment."""
    manifest = json.loads((bundle_folder(job) / MANIFEST).read_text("utf-8"))
    moment = datetime.fromisoformat(manifest["as_of"])
    newest = None if event_hours is None else moment - timedelta(hours=event_hours)
    client, namespace = job.redis(), manifest["namespace"]
    client.hdel(f"fp-materialized:{job.name}@{namespace}", view)
    until = moment - timedelta(hours=hours)
    write_materialized(client, job.name, namespace, view, until, newest)


def tag(job: Job, view: str, **tags: str) -> None:
    """Put tags on a view of the published generation, as `feastrank apply` would have."""
    change_view(job, view, lambda found: found.spec.tags.update(tags))


def change_view(job: Job, view: str, change: Callable[[Any], None]) -> None:
    """Change a view in the registry of the published generation."""
    path = bundle_folder(job) / REGISTRY
    registry = Registry.FromString(path.read_bytes())
    (found,) = (one for one in registry.feature_views if one.spec.name == view)
    change(found)
    path.write_bytes(registry.SerializeToString())
    manifest = json.loads((bundle_folder(job) / MANIFEST).read_text("utf-8"))
    manifest["files"][REGISTRY] = checksum(path)
    (bundle_folder(job) / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def test_a_materialized_view_is_as_old_as_its_materialization(service: Service):
    body = service.client.get("/ready").json()
    assert body["degraded"] == []
    views = {one["view"]: one for one in body["views"]}
    manifest = service.published.current().manifest
    assert set(views) == set(manifest.feature_tables)
    moment = datetime.fromisoformat(str(manifest.as_of))
    for one in views.values():
        assert datetime.fromisoformat(one["materialized"]) == moment
        assert one["age_seconds"] == 0
        newest = datetime.fromisoformat(one["newest_event"])
        assert one["event_age_seconds"] == (moment - newest).total_seconds() >= 0
    assert views[VIEW]["max_age_seconds"] == 48 * 3600
    assert views["user_profile"]["max_age_seconds"] is None
    line = 'feastrank_view_stale{view="user_activity"}'
    assert service.metric(line) == 0
    assert service.recommend()["degraded"] == []


def test_a_stale_view_is_flagged_everywhere(service: Service):
    _age(service.job, VIEW, hours=50)
    answer = service.recommend(k=5)
    assert answer["degraded"] == ["stale_user_activity"]
    assert answer["posts"][0]["score"] is not None
    body = service.client.get("/ready").json()
    assert body["degraded"] == ["stale_user_activity"]
    (stale,) = (one for one in body["views"] if one["is_stale"])
    assert (stale["view"], stale["age_seconds"]) == (VIEW, 50 * 3600)
    assert service.metric('feastrank_view_age_seconds{view="user_activity"}') == 50 * 3600
    assert service.metric('feastrank_view_stale{view="user_activity"}') == 1
    assert service.metric('feastrank_degraded_total{reason="stale_user_activity"}') == 1
    outcome = service.job.do("doctor")
    assert outcome.code == 1
    assert "50.0 h old (at most 48 h)" in outcome.out
    assert "stale (flag); run `feastrank run`" in outcome.out


def test_the_newest_row_has_an_age_of_its_own(job: Job, opened: Callable[[Job], Service]):
    tag(job, VIEW, max_event_age_hours="1")
    service = opened(job)
    _age(job, VIEW, hours=0, event_hours=2)
    assert service.recommend()["degraded"] == ["stale_user_activity"]


def test_a_stale_view_can_be_null_or_hand_over_to_the_popular_list(
    job: Job, opened: Callable[[Job], Service]
):
    _age(job, VIEW, hours=50)
    tag(job, VIEW, when_stale="default")
    service = opened(job)
    rows = service.client.get("/features", params={"user_id": "u003", "post_id": ["p001"]}).json()
    values = rows["rows"][0]["values"]
    mine = {n for n in values if n.startswith(("user_event", "user_positive", "user_impression"))}
    mine |= {"user_days_since_last_event"}
    assert {name for name in mine if values[name] is not None} == set()
    assert values["user_age"] is not None
    assert values["post_event_count_lifetime"] is not None
    answer = service.recommend(k=5)
    assert answer["degraded"] == ["stale_user_activity"]
    assert all(post["score"] is not None for post in answer["posts"])

    tag(job, VIEW, when_stale="fallback")
    service = opened(job)
    answer = service.recommend(k=5)
    assert answer["degraded"] == ["stale_user_activity"]
    assert ids(answer) == service.popular()[:5]
    assert all(post["score"] is None for post in answer["posts"])
    posts = service.popular()[:3]
    ranked = service.client.post("/rank", json={"user_id": "u003", "post_ids": posts[::-1]}).json()
    assert (ids(ranked), ranked["degraded"]) == (posts, ["stale_user_activity"])


def test_what_is_known_holds_while_redis_is_gone(service: Service):
    assert service.client.get("/ready").json()["views"][0]["age_seconds"] == 0
    service.kill_redis()
    body = service.client.get("/ready").json()
    assert body["degraded"] == ["redis_unreachable"]
    assert body["views"][0]["age_seconds"] == 0


def test_a_refresh_by_feast_makes_a_view_young_again(service: Service):
    job = service.job
    _age(job, VIEW, hours=50)
    assert service.recommend()["degraded"] == ["stale_user_activity"]
    manifest = service.published.current().manifest
    moment = datetime.fromisoformat(str(manifest.as_of))
    open_store(job.workspace).materialize(moment - timedelta(days=90), moment, [VIEW])
    known = read_materialized(job.redis(), manifest.project, manifest.namespace)
    assert known[VIEW].until == moment
    again = service.published.current().freshness
    again._checked = float("-inf")
    assert service.recommend()["degraded"] == []


def test_limits_come_from_the_description():
    text = DESCRIPTION.format(name="tiny") + (
        "\n[freshness.user_profile]\nmax_age_hours = 3\nwhen_stale = 'fallback'\n"
        "[freshness.post_activity]\nmax_event_age_hours = 5\n"
    )
    workspace = Workspace(Path("home"), "tiny")
    tags = {view.name: view.tags for view in feature_views(Dataset.parse(text), workspace)}
    assert tags["user_profile"] == {"max_age_hours": "3.0", "when_stale": "fallback"}
    assert tags["post_activity"] == {"max_event_age_hours": "5.0", "when_stale": "flag"}
    assert tags["user_activity"] == {"max_age_hours": "48.0", "when_stale": "flag"}
    assert tags["post_profile"] == {}
    wrong = DESCRIPTION.format(name="tiny") + "\n[freshness.user_likes]\nmax_age_hours = 3\n"
    with pytest.raises(DatasetError, match=r"\[freshness.user_likes\]: no such feature view"):
        feature_views(Dataset.parse(wrong), workspace)

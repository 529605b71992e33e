"""What a service showed against the offline store: no difference, and each fault by its name."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from http_service import Service, open_service
from job_runner import Job
from test_freshness import bundle_folder, change_view, tag

from feastpack.views import layout_of
from feastpack.writer import delete_view
from feature_repo import transforms
from pipelines.job.context import open_store
from pipelines.monitoring.skew import RESULT
from serving.bundle import read_manifest
from serving.generation import generation_store
from serving.recommender import redis_of

EXPECTED = 0
GATE = 3


def test_what_the_service_showed_is_what_the_offline_store_has(service: Service):
    _ask(service)
    found = _skew(service.job, EXPECTED)
    manifest = service.published.current().manifest
    assert set(found["features"]) == {one["name"] for one in manifest.contract["inputs"]}
    assert found["values"] > 10_000
    assert found["causes"] == {}
    assert all(one["equal"] == one["rows"] for one in found["features"].values())


def test_nothing_logged_is_said(job: Job):
    outcome = job.do("skew")
    assert outcome.code == GATE
    assert "no served features are logged" in outcome.err


def test_a_float32_cast_is_named(service: Service):
    _ask(service)

    def rounded(log: pa.Table) -> pa.Table:
        name = "post_positive_rate_smoothed_lifetime"
        return _with(log, name, log[name].cast(pa.float32(), safe=False).cast(pa.float64()))

    _rewrite_log(service, rounded)
    found = _skew(service.job, GATE)
    assert _faulty(found) == {"post_positive_rate_smoothed_lifetime": {"float32"}}


def test_a_wrong_time_zone_is_named(service: Service):
    _ask(service)
    table = service.job.workspace.feature_table("user_activity")
    rows = pq.read_table(table)
    name = "user_last_event_unix_s"
    # As if the source's times had been read as of Helsinki and not of UTC.
    pq.write_table(_with(rows, name, pc.subtract(rows[name], 7200)), table)
    found = _skew(service.job, GATE)
    assert _faulty(found) == {"user_days_since_last_event": {"time_zone"}}
    assert found["features"]["user_days_since_last_event"]["detail"] == "-2 h"


def test_a_changed_transform_is_named(service: Service, monkeypatch: pytest.MonkeyPatch):
    _ask(service)
    before = transforms.dot
    monkeypatch.setattr(transforms, "dot", lambda left, right: np.sqrt(before(left, right)))
    found = _skew(service.job, GATE)
    faulty = _faulty(found)
    assert set(faulty) == {"user_post_topic_share", "user_post_topic_rate"}
    assert set.union(*faulty.values()) == {"transform"}


def test_a_stale_view_is_named(job: Job):
    _materialize(job, "post_activity", timedelta(days=20))
    with open_service(job) as service:
        _ask(service)
    found = _skew(job, GATE)
    faulty = _faulty(found)
    assert set(faulty) <= {n for n in found["features"] if n.startswith("post_")}
    assert "post_event_count_7d" in faulty
    assert set.union(*faulty.values()) == {"stale_row"}
    assert found["features"]["post_event_count_7d"]["stale"] > 0


def test_rows_that_are_not_there_are_named(job: Job):
    _materialize(job, "post_activity", None)
    with open_service(job) as service:
        _ask(service)
    found = _skew(job, GATE)
    assert found["features"]["post_event_count_lifetime"]["missing_online"] > 0
    assert set(found["causes"]) == {"missing_row"}


def test_what_is_not_materialized_yet_is_to_be_expected(job: Job):
    with open_service(job) as service:
        # Asked for a later moment than was materialized until: windows have emptied since.
        later = datetime.fromisoformat(service.client.get("/version").json()["as_of"])
        _ask(service, context={"time": (later + timedelta(days=9)).isoformat()})
    found = _skew(job, EXPECTED)
    assert set(found["causes"]) == {"not_materialized"}
    assert found["features"]["post_event_count_7d"]["stale"] > 0
    assert found["features"]["user_age"]["equal"] == found["features"]["user_age"]["rows"]


def test_a_late_event_is_named(service: Service):
    _ask(service)
    job = service.job
    manifest = service.published.current().manifest
    moment = datetime.fromisoformat(str(manifest.as_of)) - timedelta(days=3)
    late = job.home / "source" / "events_late.csv"
    lines = [f"u003,p00{n},{moment:%Y-%m-%dT%H:%M:%S}Z,view" for n in range(1, 4)]
    header = (job.home / "source" / "events.csv").read_text("utf-8").splitlines()[0]
    late.write_text("\n".join([header, *lines]) + "\n", "utf-8")
    for step in ("ingest", "features"):
        outcome = job.do(step)
        assert outcome.code == 0, outcome.err
    found = _skew(job, EXPECTED)
    assert set(found["causes"]) == {"late_event"}
    assert found["features"]["user_event_count_lifetime"]["causes"]["late_event"] > 0
    late.unlink()


def test_a_view_served_as_null_because_it_was_stale_is_to_be_expected(
    job: Job, opened: Callable[[Job], Service]
):
    tag(job, "user_activity", when_stale="default", max_event_age_hours="0.001")
    _ask(opened(job))
    found = _skew(job, EXPECTED)
    assert set(found["causes"]) == {"stale_default"}


def test_a_row_older_than_the_ttl_is_to_be_expected(service: Service):
    _ask(service)
    # Offline, rows of more than a day before the answer are none any more.
    change_view(
        service.job, "post_activity", lambda view: view.spec.ttl.FromTimedelta(timedelta(days=1))
    )
    found = _skew(service.job, EXPECTED)
    assert set(found["causes"]) == {"ttl"}
    assert found["features"]["post_event_count_lifetime"]["missing_offline"] > 0


def test_an_answer_of_a_bundle_with_other_inputs_is_to_be_expected(service: Service):
    _ask(service)

    def of_another(log: pa.Table) -> pa.Table:
        for name in ("generation", "contract_hash"):
            log = _with(log, name, pa.array(["another"] * log.num_rows))
        return _with(log, "user_age", pc.add(log["user_age"], 1))

    _rewrite_log(service, of_another)
    found = _skew(service.job, EXPECTED)
    assert _faulty(found) == {"user_age": {"other_contract"}}


def test_a_table_computed_by_other_rules_since_is_named(service: Service):
    _ask(service)
    table = service.job.workspace.feature_table("post_activity")
    rows = pq.read_table(table)
    name = "post_event_count_lifetime"
    more = pa.array(np.arange(rows.num_rows) % 7 + 1)
    pq.write_table(_with(rows, name, pc.add(rows[name], more).cast(rows[name].type)), table)
    found = _skew(service.job, GATE)
    assert _faulty(found) == {name: {"table_changed"}}


def _ask(service: Service, **body: Any) -> None:
    for number in range(40):
        service.recommend(f"u{number:03}", k=5, **body)
    service.recommend("nobody", k=5, **body)
    service.log.close()


def _skew(job: Job, code: int) -> dict[str, Any]:
    outcome = job.do("skew")
    assert outcome.code == code, outcome.out + outcome.err
    found = json.loads((job.workspace.reports / RESULT).read_text("utf-8"))
    found["features"] = {one["feature"]: one for one in found["features"]}
    assert "unexplained" not in found["causes"], outcome.out
    return dict(found)


def _faulty(found: dict[str, Any]) -> dict[str, set[str]]:
    return {name: set(one["causes"]) for name, one in found["features"].items() if one["causes"]}


def _with(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def _rewrite_log(service: Service, change: Callable[[pa.Table], pa.Table]) -> None:
    files: list[Path] = sorted(service.job.workspace.impressions.rglob("*.parquet"))
    assert files
    for file in files:
        pq.write_table(change(pq.ParquetFile(file).read()), file)


def _materialize(job: Job, view: str, before: timedelta | None) -> None:
    """Put a view's rows back to an earlier moment, or take them away."""
    folder = bundle_folder(job)
    manifest = read_manifest(folder)
    store = generation_store(open_store(job.workspace), folder, manifest)
    feature_view = store.get_feature_view(view)
    delete_view(redis_of(store), layout_of(store.config, feature_view).keys)
    if before is not None:
        moment = datetime.fromisoformat(str(manifest.as_of)) - before
        registry = (folder / "registry.db").read_bytes()
        store.materialize(moment - timedelta(days=400), moment, [view])
        (folder / "registry.db").write_bytes(registry)

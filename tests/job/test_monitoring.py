"""The commands that watch a published ranker, on the tiny feed."""

import re

from job_runner import Job

from pipelines.monitoring.drift import HISTORY, PAGE, history
from serving.bundle import current_generation, read_manifest


def test_drift_is_measured_kept_and_drawn(job: Job):
    before = job.published()
    outcome = job.do("drift")
    assert outcome.code == 0, outcome.err
    manifest = read_manifest(job.workspace.bundles / str(current_generation(job.workspace.bundles)))
    inputs = {one["name"] for one in manifest.contract["inputs"]}
    (line,) = history(job.workspace.reports)
    vectors = {"post_topic_vector", "user_topic_positive_share", "user_topic_positive_rate"}
    assert set(line["features"]) == inputs | vectors
    page = (job.workspace.reports / PAGE).read_text(encoding="utf-8")
    assert page.count("<figure") == len(line["features"])
    assert "http" not in page
    job.do("drift")
    lines = history(job.workspace.reports)
    assert [one["features"] for one in lines] == [line["features"]] * 2
    assert "Earlier:" in (job.workspace.reports / PAGE).read_text(encoding="utf-8")
    assert job.published() == before


def test_drift_stops_a_publication_with_the_exit_code_of_gates(job: Job):
    (job.workspace.steps / "publish.json").unlink()
    before = job.in_bundles()
    given = ("--drift-thresholds", '{"psi": 0.0001, "auc": 0.5}')
    stopped = job.do("publish", "--drift-gate", "stop", *given)
    assert stopped.code == 3
    assert re.search(r"drift: \d+ of \d+ features drifted .*post_days_since_first", stopped.err)
    assert job.in_bundles() == before
    assert not (job.workspace.steps / "publish.json").exists()
    warned = job.do("publish", "--drift-gate", "warn", *given)
    assert warned.code == 0, warned.err
    assert "warning drift:" in warned.out
    assert len((job.workspace.reports / HISTORY).read_text("utf-8").splitlines()) == 2

"""The commands that watch a published ranker, on the tiny feed."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from http_service import open_service
from job_runner import Job
from PIL import Image
from tiny_feed import Feed, make_feed

from pipelines.job.context import STEPS
from pipelines.monitoring.drift import HISTORY, PAGE, history
from pipelines.monitoring.overview import publications
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


def test_the_report_ties_everything_together(job: Job, tmp_path: Path):
    with open_service(job) as service:
        for number in range(5):
            service.recommend(f"u{number:03}", k=5)
        service.log.close()
    for command in ("skew", "drift", "report"):
        outcome = job.do(command)
        assert outcome.code == 0, outcome.err
    current, served = history(job.workspace.reports)
    assert (current["against"], served["against"]) == ("current", "served")
    assert served["features"].keys() == current["features"].keys()
    assert served["rows"]["served"]["user_id"] == 5
    page = job.workspace.reports / "overview.html"
    assert str(page) in outcome.out
    text = page.read_text("utf-8")
    manifest = read_manifest(job.workspace.bundles / str(current_generation(job.workspace.bundles)))
    for name in (*STEPS, manifest.generation, "gate", "user_activity", "all equal", "served"):
        assert name in text
    for gate in job.workspace.reports.joinpath("gates").glob("*.json"):
        assert gate.stem in text
    assert f"{manifest.metrics['ndcg@10']:.4f}" in text
    for link in re.findall(r'href="([^#"]+)"', text):
        assert (page.parent / link).exists()
    assert {"report.html", PAGE} <= set(re.findall(r'href="([^#"]+)"', text))
    assert "src=" not in text
    assert "http" not in text
    # The history outlives the generations.
    assert [one["generation"] for one in publications(job.workspace)] == [manifest.generation]
    shutil.rmtree(job.workspace.bundles)
    assert [one["generation"] for one in publications(job.workspace)] == [manifest.generation]


def test_the_report_of_nothing_says_so(new_job: Callable[[Feed], Job]):
    job = new_job(make_feed())
    outcome = job.do("report")
    assert outcome.code == 0, outcome.err
    text = (job.workspace.reports / "overview.html").read_text("utf-8")
    assert text.count("never run") == len(STEPS)
    assert "Nothing is published yet" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_the_report(job: Job, tmp_path: Path):
    assert job.do("drift").code == 0
    assert job.do("report").code == 0
    for name, colours in (("overview.html", ["#0072b2"]), (PAGE, ["#0072b2", "#b26b00"])):
        picture = tmp_path / f"{name}.png"
        page = job.workspace.reports / name
        done = subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={tmp_path / 'profile'}",
                *("--window-size=1280,2400", f"--screenshot={picture}", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert picture.exists(), done.stderr
        with Image.open(picture) as image:
            assert image.size == (1280, 2400)
            drawn = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
        # Text makes many shades; the bars and lines have their own.
        assert len(drawn) > 50
        assert {tuple(bytes.fromhex(colour[1:])) for colour in colours} <= drawn

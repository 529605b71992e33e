"""The past does not depend on the future; what does is named."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runner import Job
from tiny_feed import make_feed

from feature_repo.dataset import Dataset
from feature_repo.workspace import home
from pipelines.cli import main
from pipelines.features import build, post_activity
from pipelines.features.tables import LakeTables
from validation.leakage import chance_interval, differences, perturbed

CUT = datetime(2024, 1, 10, tzinfo=UTC)


def times(*days: int) -> pa.Array:
    return pa.array([CUT + timedelta(days=day) for day in days], pa.timestamp("us", tz="UTC"))


def written(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_differences_are_found_up_to_the_cut_only(tmp_path: Path):
    rows = {
        "post_id": [1, 2, 3, 4],
        "event_timestamp": times(-2, -1, 0, 1),
        "same": [1.0, float("nan"), None, 4.0],
    }
    before = written(tmp_path / "b.parquet", **rows, x=[1, None, 3, 4], v=[[1.0], [2.0], [3.0], []])
    changed = {**rows, "x": [1, 2, 3, 99], "v": [[1.0], [2.0], [3.5], [9.0]]}
    after = written(tmp_path / "a.parquet", **changed)
    found = differences("view", before, after, ["post_id", "event_timestamp"], CUT)
    assert [(one.column, one.count, one.rows) for one in found] == [("x", 1, 3), ("v", 1, 3)]
    assert "post_id 2" in found[0].example
    assert "null became 2" in found[0].example


def test_a_row_that_only_one_side_has_is_a_difference(tmp_path: Path):
    before = written(
        tmp_path / "b.parquet", post_id=[1, 2], event_timestamp=times(-2, -1), x=[1, 2]
    )
    after = written(tmp_path / "a.parquet", post_id=[1, 2], event_timestamp=times(-2, 1), x=[1, 2])
    (found,) = differences("view", before, after, ["post_id", "event_timestamp"], CUT)
    assert (found.column, found.count, found.rows) == ("rows", 1, 2)


def test_another_future_keeps_times_and_the_past():
    rng = np.random.default_rng(0)
    days = rng.integers(-20, 20, 500)
    events = pa.table(
        {
            "user_id": rng.integers(0, 40, 500),
            "post_id": rng.integers(0, 40, 500),
            "event_time": times(*days.tolist()),
            "is_positive": rng.random(500) < 0.5,
        }
    )
    changed = perturbed(events, CUT, rng)
    late = days >= 0
    for column in ("event_time", "is_positive"):
        assert changed[column].equals(events[column])
    for column in ("user_id", "post_id"):
        mine, theirs = changed[column].to_numpy(), events[column].to_numpy()
        np.testing.assert_array_equal(mine[~late], theirs[~late])
        assert (mine[late] != theirs[late]).mean() > 0.8
        assert not np.array_equal(np.bincount(mine), np.bincount(theirs))


def test_chance_is_the_spread_of_random_orders():
    low, high = chance_interval([0.1, 0.2, 0.3], deviations=2)
    assert (low, high) == pytest.approx((0.0, 0.4))


@pytest.mark.slow
def test_the_job_does_not_leak(job: Job):
    before = job.published()
    outcome = job.do("leakage")
    assert outcome.code == 0, outcome.err
    assert "feature tables and 3 candidate sources before it are the same" in outcome.out
    assert "shuffled labels: NDCG@10" in outcome.out
    assert job.published() == before
    assert not (job.workspace.root / ".leakage").exists()


def test_a_feature_that_looks_ahead_is_named(job: Job, monkeypatch: pytest.MonkeyPatch):
    """A count of all of a post's events, whenever they are, is the classic mistake."""

    def leaking(tables: LakeTables, dataset: Dataset) -> ir.Table:
        totals = tables.events.group_by("post_id").agg(total=lambda t: t.count())
        honest = post_activity.compute(tables, dataset)
        joined = honest.join(totals, "post_id")
        return joined.mutate(post_event_count_lifetime=joined.total).drop("total")

    monkeypatch.setitem(build.EXPRESSIONS, "post_activity", leaking)
    assert job.do("features", "--seed", "41").code == 0
    outcome = job.do("leakage", "--seed", "41")
    assert outcome.code == 3
    assert "post_activity.post_event_count_lifetime" in outcome.err
    assert "1 columns change before the cut" in outcome.err
    assert not (job.workspace.root / ".leakage").exists()


@pytest.mark.slow
def test_the_predicted_conversion_does_not_leak_and_would_be_named(
    new_job, monkeypatch: pytest.MonkeyPatch
):
    feed = make_feed("texts")
    description = feed.description.replace('title = "title"', 'title = "title"\ntext = "title"')
    job = new_job(feed.with_(description=description))
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    table = pq.read_table(job.workspace.training / "examples.parquet")
    known = table["post_predicted_positive_rate"].drop_null()
    assert len(known.unique()) > 50
    outcome = job.do("leakage")
    assert outcome.code == 0, outcome.err

    honest = build._counts

    def of_all_times(tables, dataset, before, posts):
        late = pa.scalar(datetime(2100, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
        return honest(tables, dataset, late, posts)

    monkeypatch.setattr(build, "_counts", of_all_times)
    leaking = ("--seed", "41", "--refit-clusters")
    assert job.do("features", *leaking).code == 0
    outcome = job.do("leakage", *leaking)
    assert outcome.code == 3
    assert "post_conversion.post_predicted_positive_rate" in outcome.err
    assert "1 columns change before the cut" in outcome.err


@pytest.mark.skipif(
    not (home() / "movielens_100k" / "steps" / "train.json").exists(), reason="needs `make demo`"
)
def test_the_demo_does_not_leak(capsys: pytest.CaptureFixture[str]):
    assert main(["leakage", "--home", str(home())]) == 0
    assert "are the same, bit by bit" in capsys.readouterr().out

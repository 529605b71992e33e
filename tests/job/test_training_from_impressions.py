"""Train, and evaluate, from what the service showed instead of by a point-in-time join."""

from datetime import datetime, timedelta

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_feed import START, make_feed

from pipelines.job.context import open_store
from pipelines.job.train import TrainingFiles
from pipelines.ranking.impression_set import shown_in
from serving.impressions import ImpressionLog
from serving.recommender import Recommender

FROM_LOG = ("--training-from", "impressions", "--impression-label-hours", "480")


@pytest.mark.slow
def test_the_ranker_learns_from_what_was_shown(new_job):
    job = new_job(make_feed("shown_feed"))
    for step in ("ingest", "features", "apply", "train"):
        assert job.do(step).code == 0
    # Features as of a moment within the first label slice, so that later likes are labels.
    moment = datetime.fromisoformat(job.facts("train")["cuts"][0]) + timedelta(days=1)
    assert moment > START
    as_of = ("--as-of", moment.isoformat())
    assert job.do("run", *as_of).code == 0
    refused = job.do("train", *as_of, *FROM_LOG)
    assert refused.code == 1
    assert "no impressions of the ranker inputs" in refused.err
    _show(job, moment)
    trained = job.do("train", *as_of, *FROM_LOG)
    assert trained.code == 0, trained.err
    assert "shown in 40 logged requests" in trained.out
    _is_as_logged(job)
    evaluated = job.do("evaluate", *as_of, *FROM_LOG)
    assert evaluated.code == 0, evaluated.err
    # More impressions are another training set.
    _show(job, moment)
    again = job.do("train", *as_of, *FROM_LOG)
    assert "shown in 80 logged requests" in again.out


def _show(job, moment: datetime) -> None:
    """Show every user the posts that he is about to like, and some others."""
    log = ImpressionLog(job.workspace.impressions)
    store = open_store(job.workspace)
    recommender = Recommender(job.workspace.bundles, store, impressions=log)
    events = make_feed("shown_feed").events
    later = [row for row in events if row["time"] > moment.isoformat()]
    for user in sorted({row["user"] for row in events}):
        liked = {r["post"] for r in later if r["user"] == user and r["action"] == "like"}
        others = sorted({row["post"] for row in later} - liked)[:20]
        recommender.rank(user, [*sorted(liked), *others], now=moment)
    log.close()
    assert log.counts["written"] == 40


def _is_as_logged(job) -> None:
    """Compare the training set with the log, row by row."""
    examples = pq.read_table(TrainingFiles(job.workspace.training).examples)
    prefix = f"{shown_in('labels 1')}:"
    shown = examples.filter(pc.starts_with(examples["slice"], prefix)).to_pylist()
    assert {row["label"] for row in shown} == {0, 1}
    others = set(pc.unique(examples["slice"]).to_pylist()) - {row["slice"] for row in shown}
    assert others == {"validation", "test"}
    logged = {
        (row["request_id"], row["post_id"]): row
        for row in pq.read_table(job.workspace.impressions).to_pylist()
    }
    for row in shown:
        source = logged[row["slice"].removeprefix(prefix), row["post_id"]]
        names = row.keys() - {"slice", "label", "event_timestamp"}
        assert {name: row[name] for name in names} == {name: source[name] for name in names}

"""What the ranker learns from is what it is served, and nothing of it comes from the future."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from job_runner import Job
from tiny_feed import START, Row, make_feed

from feastpack import FeatureReader
from feature_repo.contract import registered_contract
from feature_repo.definitions.columns import DEFAULT_SOURCES, REQUEST_TIME
from pipelines.job.context import open_store
from pipelines.job.slices import TEST
from pipelines.job.train import TrainingFiles
from serving.recommender import Recommender


def requests_as_of(moment: datetime, users: int, posts: int) -> pd.DataFrame:
    """Return requests of all users for some posts, with candidate scores of all kinds."""
    rng = np.random.default_rng(3)
    pairs = [(u, p) for u in range(users) for p in rng.choice(posts, 6, replace=False)]
    frame = pd.DataFrame(pairs, columns=["user_id", "post_id"]).astype("int64")
    frame[REQUEST_TIME] = int(moment.timestamp())
    for source in DEFAULT_SOURCES:
        listed = rng.random(len(frame)) < 0.7
        frame[f"{source}_score"] = np.where(listed, rng.random(len(frame)), np.nan)
        frame[f"{source}_rank"] = np.where(listed, rng.integers(1, 99, len(frame)), np.nan)
    return frame


def test_offline_equals_online_for_every_input_of_the_ranker(job: Job):
    store = open_store(job.workspace)
    contract = registered_contract(store)
    service = store.get_feature_service(contract.service)
    moment = datetime.fromisoformat(job.facts("materialize")["as_of"])
    # Users and posts that nobody knows are part of it.
    requests = requests_as_of(moment, users=42, posts=125)
    asked = requests.assign(event_timestamp=pd.Timestamp(moment))
    offline = store.get_historical_features(entity_df=asked, features=service).to_arrow()
    given = {name: requests[name].to_numpy() for name in requests}
    entities = {name: given.pop(name) for name in ("user_id", "post_id")}
    reader = FeatureReader(store)
    read = reader.read(contract.service, entities, request_data=given).to_arrow()
    ours = store.get_online_features(service, requests.to_dict("list")).to_arrow()
    for name in contract.names:
        expected = _plain(offline[name])
        np.testing.assert_array_equal(_plain(read[name]), expected, err_msg=name)
        np.testing.assert_array_equal(_plain(ours[name]), expected, err_msg=name)
    assert sum(column.null_count < len(requests) for column in read.columns) > 40


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_null(column.type):
        return np.array([value or "" for value in column.to_pylist()])
    return column.cast(pa.float64()).to_numpy()


def test_the_recommender_sees_what_the_offline_join_gives(job: Job):
    store = open_store(job.workspace)
    contract = registered_contract(store)
    recommender = Recommender(job.workspace.bundles, store)
    posts = [f"p{number:03}" for number in range(0, 120, 11)]
    served = recommender.features("u007", posts)
    ids = pq.read_table(job.workspace.lake / "ids" / "users.parquet").to_pylist()
    post_ids = pq.read_table(job.workspace.lake / "ids" / "posts.parquet").to_pylist()
    dense = {row["external_id"]: row["post_id"] for row in post_ids}
    user = next(row["user_id"] for row in ids if row["external_id"] == "u007")
    moment = pd.Timestamp(job.facts("materialize")["as_of"])
    asked = pd.DataFrame({"user_id": user, "post_id": [dense[post] for post in posts]})
    asked["event_timestamp"] = moment
    stored = [f"{i.view}:{i.name}" for i in contract.inputs if i.view != "request_features"]
    offline = store.get_historical_features(entity_df=asked, features=stored).to_arrow()
    for name in (feature.split(":")[1] for feature in stored):
        np.testing.assert_array_equal(_plain(served[name]), _plain(offline[name]), err_msg=name)


def examples_before(job: Job, moment: datetime) -> pa.Table:
    """Return the labelled examples and candidates of the slices that end before a moment."""
    files = TrainingFiles(job.workspace.training)
    keys = [(name, "ascending") for name in ("slice", "user_id", "post_id")]
    examples, requests = (
        pq.read_table(path).sort_by(keys) for path in (files.examples, files.requests)
    )
    assert set(pc.unique(examples["slice"]).to_pylist()) >= {"validation", TEST}
    early = pc.less(examples["event_timestamp"], pa.scalar(moment, pa.timestamp("us", tz="UTC")))
    assert requests.num_rows == examples.num_rows
    return examples.filter(early), requests.filter(early)


def test_events_after_a_cut_change_no_example_before_it(job: Job):
    cuts = [datetime.fromisoformat(cut) for cut in job.facts("train")["cuts"]]
    before = examples_before(job, cuts[1])
    assert before[0].num_rows > 100
    feed = make_feed()
    last = START + timedelta(days=91)
    # Views only, so that the cuts stay where they are; of posts that were popular, by everybody.
    later: list[Row] = [
        {
            "user": f"u{user:03}",
            "post": f"p{(user * 7 + n) % 120:03}",
            "time": (last + timedelta(minutes=user * 10 + n)).isoformat(),
            "action": "view",
        }
        for user in range(40)
        for n in range(10)
    ]
    feed.with_(events=[*feed.events, *later]).write(job.home / "source")
    for step in ("ingest", "features", "apply", "train"):
        outcome = job.do(step, "--accept-changes")
        assert outcome.code == 0, outcome.err
    assert "400 new" in job.facts("ingest")["summary"]
    assert [datetime.fromisoformat(cut) for cut in job.facts("train")["cuts"]] == cuts
    after = examples_before(job, cuts[1])
    for ours, theirs in zip(after, before, strict=True):
        assert ours.equals(theirs)


def test_without_the_events_after_a_cut_its_examples_are_the_same(job: Job):
    """The other way round: the past alone gives the same features as the past with its future."""
    cut = datetime.fromisoformat(job.facts("train")["cuts"][0])
    store = open_store(job.workspace)
    contract = registered_contract(store)
    service = store.get_feature_service(contract.service)
    asked = requests_as_of(cut, users=40, posts=120).assign(event_timestamp=pd.Timestamp(cut))
    with_future = store.get_historical_features(entity_df=asked, features=service).to_arrow()
    feed = make_feed()
    past = [row for row in feed.events if datetime.fromisoformat(row["time"]) < cut]
    for folder in ("lake", "features", "steps"):
        shutil.rmtree(job.workspace.root / folder)
    feed.with_(events=past).write(job.home / "source")
    for step in ("ingest", "features"):
        outcome = job.do(step)
        assert outcome.code == 0, outcome.err
    alone = store.get_historical_features(entity_df=asked, features=service).to_arrow()
    for name in contract.names:
        np.testing.assert_array_equal(_plain(alone[name]), _plain(with_future[name]), err_msg=name)


@pytest.mark.slow
def test_live_data_are_materialized_as_of_now(new_job):
    feed = make_feed("live_feed")
    shift = datetime.now(UTC) - timedelta(hours=2) - (START + timedelta(days=91))
    rows = [
        {**row, "time": (datetime.fromisoformat(row["time"]) + shift).isoformat()}
        for row in feed.events
    ]
    job = new_job(feed.with_(events=rows))
    outcome = job.do("run")
    assert outcome.code == 0, outcome.err
    assert job.facts("materialize")["as_of"] is None
    assert job.do("recommend", "--user", "u003").code == 0

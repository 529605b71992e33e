"""What is asked of the lake equals what is made of all its events in memory."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.candidates.interactions import Interactions
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.evaluation.split import time_slices
from pipelines.job.features import slices_of_lake
from pipelines.job.lake_events import LakeEvents
from pipelines.settings import JobSettings

START = datetime(2024, 1, 1, tzinfo=UTC)
CUT = START + timedelta(days=20)


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(3)
    count = 3000
    liked = rng.random(count) < 0.3
    # Whole hours: many events at one moment.
    times = [START + timedelta(hours=int(hour)) for hour in rng.integers(0, 720, count)]
    return pa.table(
        {
            "user_id": rng.integers(0, 60, count),
            "post_id": rng.integers(0, 80, count),
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
            "is_positive": liked,
            "weight": np.where(liked, rng.integers(1, 4, count), 0).astype(float),
            "event_order": rng.permutation(count),
        }
    )


@pytest.fixture(scope="module")
def lake(events, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "lake"
    months = pc.strftime(events["event_time"], "%Y-%m-%d")
    for month in pc.unique(months).to_pylist():
        (folder / "events" / f"event_month={month}").mkdir(parents=True)
        part = events.filter(pc.equal(months, month))
        pq.write_table(part, folder / "events" / f"event_month={month}" / "part-000000.parquet")
    return folder


ARRAYS = ("user_ids", "post_ids", "event_users", "event_posts", "event_times", "event_weights")
SEEN = ("seen_users", "seen_posts", "seen_times")


@pytest.mark.parametrize("until", [None, CUT])
def test_interactions_are_those_of_the_table_of_events(lake, events, until):
    expected = Interactions.from_table(events)
    expected = expected if until is None else expected.until(until)
    with LakeEvents(lake) as asked:
        found = asked.interactions(until)
    for name in (*ARRAYS, *SEEN):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert (found.seen != expected.seen_matrix(expected.post_ids)).nnz == 0


def test_seen_posts_may_be_those_of_some_users_and_nothing_else_changes(lake, events):
    expected = Interactions.from_table(events).until(CUT)
    with LakeEvents(lake) as asked:
        found = asked.interactions(CUT, seen_by=np.array([3, 7, 1000]))
    for name in ARRAYS:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    chosen = np.isin(expected.user_ids[expected.seen_users], [3, 7])
    assert chosen.any()
    for name in SEEN:
        assert np.array_equal(getattr(found, name), getattr(expected, name)[chosen]), name


def test_measures_beyond_accuracy_need_the_seen_posts_of_users_with_lists_only(lake, events):
    lists = pa.table({"user_id": [3, 3, 7, 7], "post_id": [1, 2, 3, 4], "rank": [1, 2, 1, 2]})
    relevant = pa.table({"user_id": [3, 7], "post_id": [2, 9]})
    before = events.filter(pc.less(events["event_time"], pa.scalar(CUT)))
    with LakeEvents(lake) as asked:
        known = asked.known_pairs(CUT, np.array([3, 7]))
    found, expected = (
        evaluate_lists(lists, relevant, catalogue_size=80, train_pairs=pairs).means
        for pairs in (known, before)
    )
    assert found == expected
    assert 0 < expected["novelty@5"] < 1


def test_slices_are_those_of_all_events(lake, events):
    settings = JobSettings(label_slices=3, slice_share=0.15)
    expected = time_slices(
        events["event_time"],
        events["is_positive"],
        test_share=settings.test_share,
        slices=3,
        slice_share=0.15,
    )
    assert slices_of_lake(lake, settings) == expected

"""Who liked what in a slice, worked by hand."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluation.errors import SplitError
from pipelines.evaluation.split import TimeSlice
from pipelines.job.lake_events import LakeEvents
from pipelines.job.slices import distinct_users, sampled

START = datetime(2024, 1, 1, tzinfo=UTC)
# user, post, day, whether liked
ROWS = [
    *((1, 10, 0, True), (1, 11, 1, False), (2, 10, 2, True)),
    # The slice begins on day 5.
    *((1, 12, 5, True), (1, 12, 6, True)),  # liked twice counts once
    (1, 11, 6, True),  # seen before, so it is no discovery
    (2, 99, 6, True),  # a post that nobody met before counts: it is missed by all
    (3, 10, 7, True),  # an unknown user
    (2, 12, 7, False),  # not liked
]


@pytest.fixture
def recommendable(tmp_path):
    def find(rows, part):
        folder = tmp_path / "lake" / "events" / "all"
        folder.mkdir(parents=True)
        pq.write_table(table(rows), folder / "part.parquet")
        with LakeEvents(tmp_path / "lake") as events:
            return events.recommendable(part)

    return find


def table(rows):
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.int64()),
            "post_id": pa.array([row[1] for row in rows], pa.int64()),
            "event_time": pa.array(
                [START + timedelta(days=row[2]) for row in rows], pa.timestamp("us", tz="UTC")
            ),
            "is_positive": [row[3] for row in rows],
        }
    )


def part(first, last):
    return TimeSlice(START + timedelta(days=first), START + timedelta(days=last), 0)


def test_new_likes_of_a_slice_each_once(recommendable):
    pairs = recommendable(ROWS, part(5, 8))
    assert pairs.to_pylist() == [
        {"user_id": 1, "post_id": 12},
        {"user_id": 2, "post_id": 99},
        {"user_id": 3, "post_id": 10},
    ]


def test_a_slice_ends_before_its_end(recommendable):
    assert recommendable(ROWS, part(5, 6))["post_id"].to_pylist() == [12]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:3], "test slice: none of its 0 users has an event before it"),
        ([*ROWS[:3], ROWS[7]], "none of its 1 users has an event before it .2 users have.; widen"),
    ],
)
def test_an_empty_or_unknown_slice_says_what_to_do(recommendable, rows, message):
    with pytest.raises(SplitError, match=message):
        recommendable(rows, part(5, 8))


def test_so_many_users_are_drawn_with_all_their_pairs(recommendable):
    pairs = recommendable(ROWS, part(5, 8))
    assert sampled(pairs, 3, 0) is pairs
    drawn = sampled(pairs, 2, 0)
    assert len(distinct_users(drawn)) == 2
    assert drawn.equals(sampled(pairs, 2, 0))

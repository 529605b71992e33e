"""Ranker rows out of the impression log: by hand."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import Contract, ModelInput
from pipelines.errors import RankerTrainingError
from pipelines.evaluation.split import TimeSlice
from pipelines.ranking.impression_set import (
    label_impressions,
    read_impressions,
    shown_in,
    with_shown,
)

CONTRACT = Contract("ranker", (ModelInput("user_age", "user_profile", "Float64", False),))
DAY = datetime(2024, 5, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")
IDS = (
    pa.table({"external_id": ["ann", "bob"], "user_id": [0, 1]}),
    pa.table({"external_id": ["x", "y", "z"], "post_id": [5, 6, 7]}),
)
PARTS = [
    ("labels 1", TimeSlice(DAY, DAY + timedelta(days=2), 1)),
    ("validation", TimeSlice(DAY + timedelta(days=2), DAY + timedelta(days=4), 1)),
]


def logged(rows: list[tuple[str, str, str, float]]) -> pa.Table:
    """Return log rows of (request, user, post, hours after DAY), materialized at DAY."""
    moments = [int((DAY + timedelta(hours=hours)).timestamp()) for *_, hours in rows]
    return pa.table(
        {
            "request_id": [row[0] for row in rows],
            "user": [row[1] for row in rows],
            "post": [row[2] for row in rows],
            "materialized_until": pa.array([DAY] * len(rows), TIME),
            "request_unix_time_s": moments,
            "user_age": [float(at) for at in range(len(rows))],
        }
    )


def liked(rows: list[tuple[int, int, float]], positive: bool = True) -> pa.Table:
    times = [DAY + timedelta(hours=hours) for *_, hours in rows]
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.int64()),
            "post_id": pa.array([row[1] for row in rows], pa.int64()),
            "event_time": pa.array(times, TIME),
            "is_positive": pa.array([positive] * len(rows), pa.bool_()),
        }
    )


def labels(rows, events, hours: float = 24.0) -> list[tuple[str, int, int, int]]:
    found = label_impressions(logged(rows), IDS, events, PARTS, hours, CONTRACT).rows
    names = ("slice", "user_id", "post_id", "label")
    return list(zip(*(found[name].to_pylist() for name in names), strict=True))


def test_what_was_liked_in_time_is_labelled_and_requests_without_likes_are_left_out():
    rows = [("r1", "ann", "x", 1), ("r1", "ann", "y", 1), ("r2", "bob", "x", 1)]
    events = liked([(0, 6, 10), (1, 7, 10)])
    assert labels(rows, events) == [
        ("shown in labels 1:r1", 0, 5, 0),
        ("shown in labels 1:r1", 0, 6, 1),
    ]
    # In another table a row would stand for the one that was served.
    found = label_impressions(logged(rows), IDS, events, PARTS, 24, CONTRACT)
    assert found.rows["user_age"].to_pylist() == [0.0, 1.0]
    assert (found.requests, found.too_late) == (2, 0)


@pytest.mark.parametrize(
    ("at", "label"), [(0.9, None), (1, 1), (1.5, 1), (11, 1), (11.1, None), (48, None)]
)
def test_the_like_must_come_within_the_hours_from_the_moment_on(at: float, label):
    found = labels([("r1", "ann", "x", 1)], liked([(0, 5, at)]), hours=10)
    assert [row[3] for row in found] == ([] if label is None else [label])


def test_a_like_in_a_later_slice_labels_nothing_in_an_earlier_one():
    rows = [("r1", "ann", "x", 47), ("r2", "ann", "x", 49)]
    assert labels(rows, liked([(0, 5, 50)])) == [("shown in validation:r2", 0, 5, 1)]


def test_what_is_no_like_or_in_no_label_slice_gives_no_rows():
    rows = [("r1", "ann", "x", 1), ("r2", "ann", "x", 97)]
    assert labels(rows, liked([(0, 5, 2)], positive=False)) == []
    assert labels(rows, liked([(0, 5, 98)])) == []
    assert labels([("r1", "eve", "x", 1), ("r2", "ann", "w", 1)], liked([(0, 5, 2)])) == []


def test_features_of_a_later_moment_are_refused():
    # Asked for a moment a day before the features were materialized.
    rows = logged([("r1", "ann", "x", 1)])
    late = pa.array([DAY + timedelta(days=1)], TIME)
    at = rows.column_names.index("materialized_until")
    rows = rows.set_column(at, "materialized_until", late)
    found = label_impressions(rows, IDS, liked([(0, 5, 2)]), PARTS, 24, CONTRACT)
    assert (found.rows.num_rows, found.requests, found.too_late) == (0, 1, 1)
    with pytest.raises(RankerTrainingError, match=r"1 requests are logged.*1 were answered with"):
        with_shown(found.rows, found)


def test_a_user_who_asked_twice_is_two_groups():
    rows = [("r1", "ann", "x", 1), ("r2", "ann", "x", 2)]
    found = labels(rows, liked([(0, 5, 3)]))
    assert [row[0] for row in found] == [f"{shown_in('labels 1')}:{one}" for one in ("r1", "r2")]


def test_only_what_was_shown_and_ranked_under_the_contract_is_read(tmp_path: Path):
    with pytest.raises(RankerTrainingError, match="no impressions of the ranker inputs"):
        read_impressions(tmp_path, CONTRACT)
    table = logged([(name, "ann", "x", 1) for name in ("shown", "not shown", "degraded")])
    table = table.append_column("position", pa.array([1, None, 2], pa.int32()))
    table = table.append_column("ranker_score", pa.array([0.5, 0.1, None], pa.float32()))
    folder = tmp_path / CONTRACT.hash[:12]
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    assert read_impressions(tmp_path, CONTRACT)["request_id"].to_pylist() == ["shown"]

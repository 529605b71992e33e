"""A training row's features were known at its moment, and its label came after."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from validation.leakage import early_labels, late_features

START = datetime(2024, 1, 10, tzinfo=UTC)


def times(*days: int) -> pa.Array:
    return pa.array([START + timedelta(days=day) for day in days], pa.timestamp("us", tz="UTC"))


def written(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_a_feature_of_after_the_moment_is_named(tmp_path: Path):
    table = written(
        tmp_path / "post.parquet",
        post_id=[1, 1, 2],
        event_timestamp=times(-1, 1, -1),
        likes=[5, 6, None],
        shown=[7, 8, 9],
    )
    rows = {"user_id": [1, 1, 1], "post_id": [1, 2, 3], "event_timestamp": times(0, 0, 0)}
    honest = written(tmp_path / "a.parquet", **rows, likes=[5, None, None], shown=[7, 9, None])
    assert late_features(honest, {"post": (table, "post_id")}) == []
    leaking = written(tmp_path / "b.parquet", **rows, likes=[6, None, None], shown=[7, 9, None])
    (found,) = late_features(leaking, {"post": (table, "post_id")})
    assert (found.table, found.column, found.count, found.rows) == ("post", "likes", 1, 3)
    assert found.example == "post_id 1: 6, known then 5"


def test_a_label_of_before_the_moment_is_named(tmp_path: Path):
    written(
        tmp_path / "events" / "event_month=2024-01" / "part.parquet",
        user_id=[1, 1, 1, 1],
        post_id=[1, 2, 3, 3],
        event_time=times(1, -1, -1, 2),
        is_positive=[True, True, True, False],
    )
    rows = {"user_id": [1, 1, 1], "post_id": [1, 2, 3], "event_timestamp": times(0, 0, 0)}
    honest = written(tmp_path / "a.parquet", **rows, label=[1, 0, 0])
    assert early_labels(honest, tmp_path / "events") == []
    leaking = written(tmp_path / "b.parquet", **rows, label=[1, 1, 1])
    (found,) = early_labels(leaking, tmp_path / "events")
    assert (found.count, found.rows) == (2, 3)

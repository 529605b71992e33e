"""`feastrank feed` on a tiny feed: what it lists, and what it refuses."""

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from job_runner import Job
from tiny_feed import START, USERS, make_feed

END = START + timedelta(days=85)


def moments(folder: Path, *rows: tuple[str, datetime]) -> str:
    users, times = zip(*rows, strict=True)
    path = folder / "moments.parquet"
    zoned = pa.array(times, pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"user_id": users, "timestamp": zoned}), path)
    return str(path)


def test_lists_of_a_small_catalogue_leave_out_what_was_liked(job: Job, tmp_path: Path) -> None:
    asked = [(f"u{i:03}", END + timedelta(hours=i)) for i in range(USERS)]
    # More than there are posts: each user's whole rest is ordered then.
    outcome = job.do("feed", "--moments", moments(tmp_path, *asked), "--shortlist", "1000")
    assert outcome.code == 0, outcome.err
    table = pq.read_table(job.workspace.root / "feed" / "recommendations.parquet").to_pylist()
    assert len(table) == USERS * 5
    assert [row["rank"] for row in table[:6]] == [1, 2, 3, 4, 5, 1]
    likes = [row for row in make_feed().events if row["action"] == "like"]
    liked = {(row["user"], row["post"], datetime.fromisoformat(row["time"])) for row in likes}
    times = dict(asked)
    before = {(user, post) for user, post, time in liked if time < times[user]}
    shown = {(row["user_id"], row["post_id"]) for row in table}
    assert len(before) > 300
    assert len(shown) == USERS * 5
    assert not shown & before


def test_moments_that_cannot_be_answered_are_refused(job: Job, tmp_path: Path) -> None:
    early = moments(tmp_path, ("u001", START - timedelta(days=1)), ("u002", END))
    outcome = job.do("feed", "--moments", early)
    assert outcome.code == 1
    assert "the first is at 2024-02-29T00:00:00.000000 UTC, and nothing was shown" in outcome.err
    stranger = moments(tmp_path, ("u001", END), ("nobody", END))
    outcome = job.do("feed", "--moments", stranger)
    assert outcome.code == 1
    assert "1 of 2 rows name a user whom the lake does not know" in outcome.err
    outcome = job.do("feed")
    assert outcome.code == 1
    assert "pass --moments, or --simulated" in outcome.err

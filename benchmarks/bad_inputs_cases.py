"""Ways in which real tables go wrong, as changes of rows that are otherwise good."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Feed:
    """Rows of the three files, all texts; `files` replaces whole files by bytes."""

    users: list[Row]
    posts: list[Row]
    events: list[Row]
    files: dict[str, bytes] = field(default_factory=dict)

    def each(self, table: str, change: Callable[[Row, int], Row | None]) -> "Feed":
        """Return the feed with a table's rows changed; rows that become None go."""
        rows = [change(dict(row), i) for i, row in enumerate(getattr(self, table))]
        return replace(self, **{table: [row for row in rows if row is not None]})

    def put(self, table: str, column: str, value: Any, every: int = 1, first: int = 0) -> "Feed":
        """Return the feed with a column set in every nth row from the first on."""

        def change(row: Row, i: int) -> Row:
            if i >= first and i % every == 0:
                row[column] = value(row[column]) if callable(value) else value
            return row

        return self.each(table, change)


Mutation = Callable[[Feed], Feed]


def _without(table: str, column: str) -> Mutation:
    return lambda f: f.each(table, lambda row, _: {k: v for k, v in row.items() if k != column})


def _renamed(table: str, old: str, new: str) -> Mutation:
    return lambda f: f.each(
        table, lambda row, _: {(new if k == old else k): v for k, v in row.items()}
    )


def _swapped(table: str, a: str, b: str) -> Mutation:
    return lambda f: f.each(table, lambda row, _: {**row, a: row[b], b: row[a]})


def _set(table: str, column: str, value: Any, every: int = 1, first: int = 0) -> Mutation:
    return lambda f: f.put(table, column, value, every, first)


def _shuffled(table: str, column: str) -> Mutation:
    def change(feed: Feed) -> Feed:
        values = [row[column] for row in getattr(feed, table)]
        random.Random(3).shuffle(values)
        return feed.each(table, lambda row, i: {**row, column: values[i]})

    return change


def _doubled(table: str, times: int = 2) -> Mutation:
    return lambda f: replace(f, **{table: getattr(f, table) * times})


def _kept(table: str, keep: Callable[[int, int], bool]) -> Mutation:
    def change(feed: Feed) -> Feed:
        n = len(getattr(feed, table))
        return feed.each(table, lambda row, i: row if keep(i, n) else None)

    return change


def _text(feed: Feed, table: str, encoding: str = "utf-8", separator: str = ",") -> bytes:
    rows = getattr(feed, table)
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    quoted = (separator.join('"' + str(v).replace('"', '""') + '"' for v in line) for line in lines)
    return "\n".join(quoted).encode(encoding, errors="replace")


def _file(table: str, change: Callable[[bytes], bytes], **written: str) -> Mutation:
    return lambda f: replace(f, files={f"{table}.csv": change(_text(f, table, **written))})


def _plus(seconds: float) -> Callable[[str], str]:
    return lambda text: str(int(float(text) + seconds))


def _times(factor: float) -> Callable[[str], str]:
    return lambda text: f"{float(text) * factor:g}" if text else text


def _microseconds(factor: int) -> Callable[[str], str]:
    return lambda text: str(int(float(text) * factor))


def _late_month_without_ratings(feed: Feed) -> Feed:
    last = max(float(row["time"]) for row in feed.events) - 25 * 86_400
    return feed.each(
        "events", lambda row, _: {**row, "rating": ""} if float(row["time"]) > last else row
    )


def _burst(feed: Feed) -> Feed:
    """Multiply the rows of the last day, each a second apart."""
    last = max(float(row["time"]) for row in feed.events)
    more = [{**row, "time": str(int(last + 60 + i))} for i, row in enumerate(feed.events * 2)]
    return replace(feed, events=feed.events + more)


def _mostly(column: str) -> Mutation:
    value: dict[str, str] = {}

    def change(feed: Feed) -> Feed:
        value[column] = feed.events[0][column]
        return (
            feed.put("events", column, value[column])
            .put("events", "time", lambda t: t)
            .each(
                "events", lambda row, i: row if i % 10 else {**row, column: feed.events[i][column]}
            )
        )

    return change


MUTATIONS: dict[str, Mutation] = {
    # schema
    "schema: users lose a column": _without("users", "age"),
    "schema: events lose the time": _without("events", "time"),
    "schema: a column is renamed": _renamed("events", "post", "item_id"),
    "schema: the ids' column is renamed": _renamed("users", "user", "id"),
    "schema: no header": _file("events", lambda b: b.partition(b"\n")[2]),
    "schema: another separator": _file("events", lambda b: b, separator=";"),
    "schema: a row with more fields": _file("events", lambda b: b + b'\n"1","2","3","4","5","6"'),
    # types
    "type: ages in words": _set("users", "age", "thirty", every=9),
    "type: decimal commas": _set("events", "rating", lambda t: f"{t},5"),
    "type: times as dates": _set("events", "time", "1998-03-01"),
    "type: times in words": _set("events", "time", "yesterday", every=500),
    "type: a rating 'N/A'": _set("events", "rating", "N/A", every=200),
    # encodings and files
    "encoding: latin-1 for utf-8": _file("posts", lambda b: b.replace(b"a", b"\xe4")),
    "encoding: utf-16": _file("posts", lambda b: b, encoding="utf-16"),
    "encoding: replacement characters": _set(
        "posts", "title", lambda t: t.replace("a", "\ufffd"), every=7
    ),
    "encoding: titles decoded twice": _set("posts", "title", lambda t: f"Ã¶{t}".replace("e", "Ã©")),
    "file: empty": _file("events", lambda _: b""),
    "file: header only": _file("events", lambda b: b.partition(b"\n")[0] + b"\n"),
    "file: compressed, named csv": _file("events", lambda _: b"\x1f\x8b\x08\x00" + bytes(400)),
    "file: zeros at the end": _file("events", lambda b: b + bytes(4096)),
    # ranges
    "range: ratings times 20": _set("events", "rating", _times(20)),
    "range: new ratings times 20": lambda f: f.put(
        "events", "rating", _times(20), first=len(f.events) * 9 // 10
    ),
    "range: ratings from 0 to 1": _set("events", "rating", _times(0.2)),
    "range: all ratings 5": _set("events", "rating", "5"),
    "range: ratings reversed": _set("events", "rating", lambda t: str(6 - int(float(t)))),
    "range: ages negative": _set("users", "age", _times(-1)),
    "range: ages in months": _set("users", "age", _times(12)),
    "huge: a rating of 1e300": _set("events", "rating", "1e300", every=900),
    "huge: an age of 1e18": _set("users", "age", "1e18", every=50),
    "NaN among the ratings": _set("events", "rating", "nan", every=300),
    "infinity among the ages": _set("users", "age", "inf", every=40),
    # nulls
    "null: users of events": _set("events", "user", "", every=400),
    "null: times": _set("events", "time", "", every=400),
    "null: post ids": _set("posts", "post", "", every=300),
    "null: ages of a fifth": _set("users", "age", "", every=5),
    "null: a month without ratings": _late_month_without_ratings,
    "null: all ratings": _set("events", "rating", ""),
    "constant: one gender": _set("users", "gender", "F"),
    # duplicates and orphans
    "duplicate: users": _doubled("users"),
    "duplicate: posts with other titles": lambda f: replace(
        f, posts=f.posts + [{**row, "title": "x"} for row in f.posts[:3]]
    ),
    "duplicate: events by a join": _doubled("events", 3),
    "orphan: events of unknown posts": _set("events", "post", "999999", every=700),
    "orphan: events of unknown users": _set("events", "user", "999999", every=700),
    "orphan: a third of the posts lost": _kept("posts", lambda i, _: i % 3 > 0),
    # times
    "unit: milliseconds for seconds": _set("events", "time", _microseconds(1000)),
    "unit: microseconds for seconds": _set("events", "time", _microseconds(1_000_000)),
    "unit: minutes for seconds": _set("events", "time", _times(1 / 60)),
    "unit: new rows in milliseconds": lambda f: f.put(
        "events", "time", _microseconds(1000), first=len(f.events) * 95 // 100
    ),
    "time travel: a year 2150": _set("events", "time", "5680281600", every=900),
    "time travel: 1970": _set("events", "time", "0", every=900),
    "time: default for half": _set("events", "time", "891234567", every=2),
    "clock skew: ten minutes fast": _set("events", "time", _plus(600)),
    "timezone: an hour late": _set("events", "time", _plus(3600)),
    "timezone: eight hours early": _set("events", "time", _plus(-8 * 3600)),
    "time: cut to days": _set("events", "time", lambda t: str(int(float(t)) // 86400 * 86400)),
    # mixed up
    "swapped: user and post": _swapped("events", "user", "post"),
    "swapped: rating and user": _swapped("events", "user", "rating"),
    "swapped: gender and occupation": _swapped("users", "gender", "occupation"),
    "shuffled: users of events": _shuffled("events", "user"),
    "shuffled: ratings": _shuffled("events", "rating"),
    "shuffled: titles": _shuffled("posts", "title"),
    "shuffled: user ids of the users' table": _shuffled("users", "user"),
    "ids: written anew with a prefix": lambda f: f.put("events", "user", lambda t: f"u-{t}").put(
        "users", "user", lambda t: f"u-{t}"
    ),
    "ids: padded with spaces": lambda f: f.put("events", "user", lambda t: f" {t}", 50),
    # truncation and skew
    "truncated: the last fifth of events": _kept("events", lambda i, n: i < n * 4 // 5),
    "truncated: nine of ten events": _kept("events", lambda i, _: i % 10 == 0),
    "truncated: a tenth of the events": _kept("events", lambda i, _: i % 10 > 0),
    "truncated: half the users with their events": lambda f: replace(
        f,
        users=f.users[: len(f.users) // 2],
        events=[
            row
            for row in f.events
            if row["user"] in {u["user"] for u in f.users[: len(f.users) // 2]}
        ],
    ),
    "skewed: nine of ten events of one user": _mostly("user"),
    "skewed: nine of ten events of one post": _mostly("post"),
    "skewed: all twice again on the last day": _burst,
    # adversarial strings
    "string: NUL in titles": _set("posts", "title", lambda t: f"{t}\x00", every=200),
    "string: an id of 10,000 characters": lambda f: replace(
        f, users=[*f.users, {**f.users[0], "user": "9" * 10_000}]
    ),
    "string: invisible characters in ids": lambda f: replace(
        f, users=[*f.users, {**f.users[0], "user": f"{f.users[0]['user']}\u200b"}]
    ),
    "string: direction overrides in titles": _set(
        "posts", "title", lambda t: f"\u202e{t}", every=100
    ),
    "string: markup and SQL in titles": _set(
        "posts", "title", "'; DROP TABLE posts; --<script>alert(1)</script>", every=100
    ),
}

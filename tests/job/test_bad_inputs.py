"""Bad input after a good publication: it is named, and what is published stays as it was."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from job_runner import Job
from tiny_feed import Feed, Row, make_feed

from pipelines.job import materialize, publish

GATE, ERROR = 3, 1
AS_OF = ("--as-of", "2024-05-25T00:00:00")
Change = Callable[[Feed], Feed]


@dataclass(frozen=True)
class Case:
    """What is done to the source, and what the run must say of it.

    Every text of `says` is a regular expression that must be found in standard error.
    """

    change: Change
    code: int
    says: tuple[str, ...]
    gate: str | None = None


def without(rows: list[Row], column: str) -> list[Row]:
    return [{k: v for k, v in row.items() if k != column} for row in rows]


def with_(rows: list[Row], column: str, values: list[object]) -> list[Row]:
    changed = [{**row, column: value} for row, value in zip(rows, values, strict=False)]
    return changed + rows[len(values) :]


def events(feed: Feed, column: str, values: list[object]) -> Feed:
    return feed.with_(events=with_(feed.events, column, values))


def likes_by_hand(feed: Feed) -> Feed:
    """Turn the feed's labels into a column, so that every row can be positive."""
    rows = [{**row, "rating": 5} for row in feed.events]
    text = feed.description.replace('positive = { actions = ["like"] }', "")
    return feed.with_(events=rows, description=text + RATING)


RATING = 'positive = { column = "rating", at_least = 4 }\n'


def truncated_parquet(feed: Feed) -> Feed:
    table = pa.table({name: [row[name] for row in feed.events] for name in feed.events[0]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    text = feed.description.replace(
        'path = "events*.csv"\nformat = "csv"', 'path = "events.parquet"\nformat = "parquet"'
    )
    content = sink.getvalue().to_pybytes()
    return feed.with_(description=text, files={"events.parquet": content[: len(content) // 2]})


def wrong_encoding(feed: Feed) -> Feed:
    rows = "".join(f"u{i:03},{20 + i},{('Köln', 'Ulm')[i % 2]}\n" for i in range(40))
    content = ("user,age,city\n" + rows).encode("latin-1")
    return feed.with_(users=[], files={"users.csv": content})


CASES = {
    "missing column": Case(
        lambda f: f.with_(users=without(f.users, "city")),
        ERROR,
        (
            r"users: \S+users\.csv has no column 'city'; it has 'user', 'age'",
            "correct the description",
        ),
    ),
    "wrong type": Case(
        lambda f: f.with_(users=with_(f.users, "age", [30, "young", "old"])),
        ERROR,
        (
            r"users\.csv: 2 of 40 rows have a column 'age' that is not a number",
            r"first: line 3 'young', line 4 'old'",
            "correct the rows, or the description",
        ),
    ),
    "duplicate user ids": Case(
        lambda f: f.with_(users=[*f.users, f.users[3], f.users[5]]),
        GATE,
        (
            "gate raw_users: user_id must be unique: 4 of 42 rows fail",
            "first: .*u003",
            "keep one row for each of the users in the source",
        ),
        "raw_users",
    ),
    "events for unknown posts": Case(
        lambda f: events(f, "post", ["p900", "p901", "p900"]),
        GATE,
        (
            r"gate raw_events: post_id must exist in posts: 3 of 2,617 rows fail",
            "first: .*p900",
            "fix the source or pass --drop-orphans",
        ),
        "raw_events",
    ),
    "times in the future": Case(
        lambda f: events(f, "time", ["2199-01-01T00:00:00Z", "2198-01-01T00:00:00Z"]),
        GATE,
        (
            r"gate raw_events: event_time must be at least 1990\S+ and at most \S+: "
            "2 of 2,617 rows fail",
            "first: .*2199-01-01",
            r"check 'time' in \[events\] of the dataset description",
        ),
        "raw_events",
    ),
    "unparsable times": Case(
        lambda f: events(f, "time", ["yesterday", "31.12.2023"]),
        ERROR,
        (
            r"events\.csv: 2 of 2,617 rows have a column 'time' that is not a time in format 'iso'",
            "first: line 2 'yesterday', line 3 '31.12.2023'",
            "correct the rows, or the description",
        ),
    ),
    "empty file": Case(
        lambda f: f.with_(events=[], files={"events.csv": b""}),
        ERROR,
        (r"events: \S+events\.csv is empty \(0 bytes\)", "export it again"),
    ),
    "header only": Case(
        lambda f: f.with_(events=[], files={"events.csv": b"user,post,time,action\n"}),
        ERROR,
        (r"events: \S+events\.csv has no rows", "export it again"),
    ),
    "one user only": Case(
        lambda f: f.with_(events=[row for row in f.events if row["user"] == "u000"]),
        GATE,
        (
            r"gate raw_events: events must be by at least 2 users \(distinct user_id\): found 1",
            "nothing can be learned from one",
        ),
        "raw_events",
    ),
    "all labels positive": Case(
        likes_by_hand,
        GATE,
        (
            "gate raw_events: not all events may be positive .*: found 1",
            r"check 'positive' in \[events\]",
        ),
        "raw_events",
    ),
    "a constant column": Case(
        lambda f: f.with_(users=with_(f.users, "city", ["Ulm"] * 40)),
        GATE,
        (
            r"gate raw_users: city must not be constant \(distinct values at least 2\): found 1",
            r"remove attribute 'city' from \[users\]",
        ),
        "raw_users",
    ),
    "10 % nulls": Case(
        lambda f: f.with_(posts=with_(f.posts, "length", [""] * 12)),
        GATE,
        (
            "gate raw_posts: length must not be null in more than 0.05 of the rows: "
            "12 of 120 rows fail",
            "first: .*p000",
            "fill it in the source or remove attribute 'length'",
        ),
        "raw_posts",
    ),
    "truncated parquet": Case(
        truncated_parquet,
        ERROR,
        (r"events: \S+events\.parquet .*(truncated|damaged|not a parquet)", "export it again"),
    ),
    "wrong encoding": Case(
        wrong_encoding,
        ERROR,
        (r"users: \S+users\.csv .*utf-8", "encoding"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_and_nothing_published_changes(job: Job, name: str):
    case = CASES[name]
    before = job.published()
    case.change(make_feed()).write(job.home / "source")
    outcome = job.do("run")
    assert outcome.code == case.code, outcome.err
    for said in case.says:
        assert re.search(said, outcome.err), f"{said!r} is not in:\n{outcome.err}"
    if case.gate is not None:
        assert "stopped by a gate; nothing was published" in outcome.err
        page = job.workspace.reports / "data_docs" / f"{case.gate}.html"
        assert f"Data Docs: {page}" in outcome.err
        assert case.gate in page.read_text(encoding="utf-8")
    assert job.published() == before
    answer = job.do("recommend", "--user", "u003", "--top", "3")
    assert answer.code == 0, answer.err


def test_after_a_refusal_the_good_source_is_unchanged_again(job: Job):
    before = job.published()
    good = {path: path.stat() for path in (job.home / "source").iterdir()}
    saved = {path: path.read_bytes() for path in good}
    CASES["duplicate user ids"].change(make_feed()).write(job.home / "source")
    assert job.do("run").code == GATE
    import os

    for path, stamp in good.items():
        path.write_bytes(saved[path])
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    outcome = job.do("run")
    assert set(outcome.steps.values()) == {"unchanged"}
    assert job.published() == before


def test_orphans_are_dropped_and_counted_if_asked_for(job: Job):
    events(make_feed(), "post", ["p900", "p901", "p900"]).write(job.home / "source")
    outcome = job.do("ingest", "--drop-orphans")
    assert outcome.code == 0, outcome.err
    assert "3 orphans dropped" in outcome.out
    assert job.facts("ingest")["posts"] == 120


def test_rows_at_fault_are_set_aside_up_to_the_share_that_is_allowed(job: Job):
    events(make_feed(), "post", ["p900", "p901", "p900"]).write(job.home / "source")
    outcome = job.do("ingest", "--quarantine-share", "0.01", "--accept-changes")
    assert outcome.code == 0, outcome.err
    assert "3 rows set aside" in outcome.out
    assert "post_id must exist in posts: 3 of 2,617 rows fail" in outcome.out
    aside = pq.read_table(job.workspace.reports / "quarantine" / "raw_events.parquet")
    assert aside["post_id"].to_pylist() == ["p900", "p901", "p900"]
    assert set(aside["reason"].to_pylist()) == {"post_id must exist in posts"}
    assert job.facts("ingest")["quarantined"] == 3
    refused = job.do("ingest", "--quarantine-share", "0.001")
    assert refused.code == GATE
    assert "more than the share of 0.001 that may be set aside" in refused.err


def moved(feed: Feed, hours: int) -> Feed:
    rows = [
        {**r, "time": (datetime.fromisoformat(r["time"]) + timedelta(hours=hours)).isoformat()}
        for r in feed.events
    ]
    return feed.with_(events=rows)


# Well-formed, but not what was told before.
CHANGED = {
    "times in another zone": (lambda f: moved(f, 1), "of the events known in the source's span"),
    "a file cut short": (
        lambda f: f.with_(events=f.events[:-400]),
        "the source's last event must not be earlier than the last one known, in days: found",
    ),
    "ages in months": (
        lambda f: f.with_(users=[{**row, "age": row["age"] * 12} for row in f.users]),
        "the median of age, ",
    ),
    "a part of the posts": (
        lambda f: f.with_(posts=f.posts[:100]),
        "posts known at most 0.1 may be",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_source_that_tells_the_past_otherwise_is_refused(job: Job, name: str):
    change, says = CHANGED[name]
    before = job.published()
    change(make_feed()).write(job.home / "source")
    outcome = job.do("run", "--drop-orphans")
    assert outcome.code == GATE, outcome.out
    assert f"gate raw_changes: {says}" in outcome.err or (
        says in outcome.err and "gate raw_changes" in outcome.err
    ), outcome.err
    assert job.published() == before


def test_an_ordinary_next_month_passes(job: Job):
    """Some users come and some go; what was known stays."""
    feed, later = make_feed(), make_feed(seed=8)
    more = moved(later.with_(events=later.events[::3]), 24 * 91).events
    feed.with_(events=[*feed.events, *more]).write(job.home / "source")
    outcome = job.do("ingest")
    assert outcome.code == 0, outcome.err
    assert job.facts("ingest")["new_events"] == len(more)


def test_a_bundle_with_bad_lists_or_files_is_not_published(
    job: Job, monkeypatch: pytest.MonkeyPatch
):
    before = job.in_bundles()

    def twice(scores: pa.Table, *_: object, **__: object) -> pa.Table:
        return pa.concat_tables([scores, scores])

    honest = publish.recommend_with
    monkeypatch.setattr(publish, "recommend_with", lambda *a: twice(honest(*a)))
    assert job.do("materialize", *AS_OF).code == 0
    outcome = job.do("publish", *AS_OF)
    assert outcome.code == GATE, outcome.out
    assert "gate bundle_lists: repeated must be at least 0 and at most 0" in outcome.err
    assert job.in_bundles() == before
    monkeypatch.setattr(publish, "recommend_with", honest)
    shrink = publish.EventRules.save
    monkeypatch.setattr(
        publish.EventRules, "save", lambda self, folder: (folder / "events.json").write_text("")
    )
    outcome = job.do("publish", *AS_OF)
    assert outcome.code == GATE, outcome.out
    assert "gate bundle_files: bytes must be at least 1" in outcome.err
    assert "file=events.json" in outcome.err
    assert job.in_bundles() == before
    monkeypatch.setattr(publish.EventRules, "save", shrink)
    assert job.do("publish", *AS_OF).code == 0


def test_what_is_online_must_be_what_the_feature_tables_say(
    job: Job, monkeypatch: pytest.MonkeyPatch
):
    before = job.published()
    tables = job.workspace.features / "post_activity.parquet"
    judged = materialize.judge_online

    def other_table(*arguments: object) -> None:
        table = pq.read_table(tables)
        column = "post_event_count_lifetime"
        place = table.schema.get_field_index(column)
        more = pc.add(table[column], 1).cast(table.schema.field(column).type)
        pq.write_table(table.set_column(place, column, more), tables)
        judged(*arguments)

    monkeypatch.setattr(materialize, "judge_online", other_table)
    outcome = job.do("materialize", *AS_OF)
    assert outcome.code == GATE, outcome.out
    assert "gate online: served values must equal the feature tables' latest rows" in outcome.err
    assert "view=post_activity" in outcome.err
    assert job.in_bundles() == before[0]


def shuffled(feed: Feed, seed: int = 1) -> Feed:
    """Give likes to views by chance: what was learned before holds no longer."""
    rng = np.random.default_rng(seed)
    views = [row for row in feed.events if row["action"] == "view"]
    posts = rng.permutation([row["post"] for row in views])
    rows = [{**row, "post": post} for row, post in zip(views, posts, strict=True)]
    liked = [{**row, "action": "like"} for row in rows if rng.random() < 0.3]
    return feed.with_(events=sorted([*rows, *liked], key=lambda row: row["time"]))


def test_a_model_worse_than_the_published_one_is_refused(job: Job):
    before = job.published()
    published = job.facts("evaluate")["metrics"]["ndcg@10"]
    shuffled(make_feed()).write(job.home / "source")
    outcome = job.do("run", "--accept-changes")
    assert outcome.code == GATE, outcome.out
    assert "gate model: ndcg@10 must " in outcome.err, outcome.err
    assert "nothing was published; see the evaluation report" in outcome.err
    report = job.report()
    ranked = next(one for one in report["results"] if one["name"] == "two_stage")
    assert ranked["means"]["ndcg@10"] < 0.9 * published
    assert {"name": "model", "passed": False} in [
        {"name": gate["name"], "passed": gate["passed"]} for gate in report["gates"]
    ]
    assert job.published() == before
    # Nor does a step run alone get round the gate.
    assert job.do("evaluate").code == GATE
    refused = job.do("publish")
    assert refused.code == ERROR
    assert "the step evaluate was run before the latest train" in refused.err
    assert job.published() == before
    answer = job.do("recommend", "--user", "u003", "--top", "3")
    assert answer.code == 0, answer.err


def test_a_proposed_suite_is_a_file_that_the_next_ingest_obeys(job: Job):
    path = job.description.with_name("feed.gates.toml")
    outcome = job.do("gate", "propose")
    assert outcome.code == 0, outcome.err
    assert str(path) in outcome.out
    assert job.do("ingest").code == 0
    text = path.read_text(encoding="utf-8")
    assert 'says = "city must be one of the 2 values seen"' in text
    again = job.do("gate", "propose")
    assert (again.code, "exists; pass --force" in again.err) == (ERROR, True)
    feed = make_feed()
    feed.with_(users=with_(feed.users, "city", ["Ulm", "Atlantis"])).write(job.home / "source")
    refused = job.do("ingest")
    assert refused.code == GATE
    assert "gate raw_users: city must be one of the 2 values seen: 1 of 40 rows fail" in refused.err
    path.write_text(text.replace('"stop"', '"warn"'), encoding="utf-8")
    warned = job.do("ingest")
    assert warned.code == 0, warned.err
    assert "city must be one of the 2 values seen: 1 of 40 rows fail" in warned.out
    path.write_text('[[raw_users]]\ntype = "expect_magic"\n', encoding="utf-8")
    unknown = job.do("ingest")
    assert (unknown.code, "unknown type 'expect_magic'" in unknown.err) == (GATE, True)

"""What the lake holds after one ingest, after several, and after a crash."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_examples import (
    DESCRIPTION,
    EVENTS,
    EVENTS_ONLY,
    POSTS,
    USERS,
    contents,
    events_dataset,
    lake_table,
    write_json_lines,
    write_small,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.dataset import Dataset
from pipelines.datasets import commit
from pipelines.datasets.lake import LAKE_EVENTS_SCHEMA, ingest, recover
from pipelines.errors import LakeError, SourceError

EARLIEST = datetime(2024, 1, 5, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")


def small(folder, **changes):
    return ingest(Dataset.parse(DESCRIPTION), write_small(folder, **changes), folder / "lake")


def test_hand_worked_lake(tmp_path):
    result = small(tmp_path)
    lake = tmp_path / "lake"
    assert lake_table(lake, "users").to_pydict() == {
        "user_id": [0, 1, 2],
        "known_time": [EARLIEST] * 3,
        "age": [31.0, None, 7.5],
        "city": ["Ulm", "Bonn", None],
        "languages": [["de", "en"], [], ["en"]],
    }
    assert lake_table(lake, "posts").to_pydict() == {
        "post_id": [0, 1, 2],
        "known_time": [EARLIEST] * 3,
        "title": ["One", "Two", None],
        "text": ["One\nfirst text", "Two", "only text"],
        "topics": [["a", "b"], ["b"], []],
        "image": [None] * 3,
    }
    events = lake_table(lake, "events")
    assert events["user_id"].to_pylist() == [0, 1, 0, 2]
    assert events["post_id"].to_pylist() == [0, 0, 1, 2]
    assert events["weight"].to_pylist() == [1.0, 0.0, 1.0, 0.0]
    months = ["2024-01", "2024-02", "2024-02", "2024-01"]
    assert events["event_month"].to_pylist() == months
    assert lake_table(lake, "ids/users").to_pydict() == {
        "external_id": ["u1", "u2", "u3"],
        "user_id": [0, 1, 2],
    }
    assert lake_table(lake, "topics").to_pydict() == {
        "topic": ["b", "a"],
        "topic_id": [0, 1],
        "post_count": [2, 1],
    }
    assert (result.users, result.posts, result.events, result.topics) == (3, 3, 4, 2)
    assert (result.new_users, result.new_posts, result.new_events) == (3, 3, 4)
    assert (result.duplicates, result.already_known, result.orphans) == (0, 0, 0)
    assert (result.first_time, result.last_time) == (
        EARLIEST,
        datetime(2024, 2, 1, 8, tzinfo=UTC),
    )
    assert not result.rebuilt


def test_lake_has_the_promised_types_and_files(tmp_path):
    small(tmp_path)
    lake = tmp_path / "lake"
    assert sorted(contents(lake)) == [
        "events/event_month=2024-01/part-000000.parquet",
        "events/event_month=2024-02/part-000000.parquet",
        "ids/posts.parquet",
        "ids/users.parquet",
        "lake.json",
        "posts/part-000000.parquet",
        "topics.parquet",
        "users/part-000000.parquet",
    ]
    for part in lake.glob("events/*/*.parquet"):
        assert pq.read_schema(part) == LAKE_EVENTS_SCHEMA
    types = {one.name: one.type for one in pq.read_schema(lake / "users" / "part-000000.parquet")}
    assert types == {
        "user_id": pa.int64(),
        "known_time": TIME,
        "age": pa.float64(),
        "city": pa.string(),
        "languages": pa.list_(pa.string()),
    }
    assert pq.read_schema(lake / "topics.parquet").types == [pa.string(), pa.int32(), pa.int64()]
    assert not (tmp_path / ".lake-raw").exists()


def test_created_times_are_when_rows_become_known(tmp_path):
    users = USERS.replace("langs\n", "langs,since\n")
    users = re.sub(r"^(u\d.*)$", r"\1,2020-05-0\g<0>", users, flags=re.MULTILINE)
    users = re.sub(r"2020-05-0u(\d).*", r"2020-05-0\1", users).replace("2020-05-02", "")
    write_small(tmp_path, users=users)
    text = DESCRIPTION.replace("[users]", '[users]\ncreated = { column = "since" }')
    ingest(Dataset.parse(text), tmp_path, tmp_path / "lake")
    known = lake_table(tmp_path / "lake", "users")["known_time"].to_pylist()
    assert known == [datetime(2020, 5, 1, tzinfo=UTC), EARLIEST, datetime(2020, 5, 3, tzinfo=UTC)]


def test_events_alone_give_users_and_posts_in_order_of_appearance(tmp_path):
    write_small(tmp_path, events="user,post,ts\nz,q,2024-02-01\na,q,2024-01-01\nz,b,2024-03-01\n")
    result = ingest(Dataset.parse(EVENTS_ONLY), tmp_path, tmp_path / "lake")
    assert (result.users, result.posts, result.events, result.topics) == (2, 2, 3, 0)
    lake, first = tmp_path / "lake", datetime(2024, 1, 1, tzinfo=UTC)
    assert lake_table(lake, "ids/users")["external_id"].to_pylist() == ["z", "a"]
    assert lake_table(lake, "ids/posts")["external_id"].to_pylist() == ["q", "b"]
    assert lake_table(lake, "users").to_pydict() == {"user_id": [0, 1], "known_time": [first] * 2}
    assert lake_table(lake, "posts").to_pydict() == {
        "post_id": [0, 1],
        "known_time": [first] * 2,
        "title": [None] * 2,
        "text": [None] * 2,
        "topics": [[], []],
        "image": [None] * 2,
    }


def test_duplicates_are_removed_and_counted_and_the_first_is_kept(tmp_path):
    events = (
        "user,post,ts,rating\n"
        "u1,p1,2024-01-01T00:00:00Z,5\n"
        "u1,p1,2024-01-01T01:00:00+01:00,1\n"  # the same moment
        "u1,p1,2024-01-01T00:00:00.000001Z,2\n"
        "u1,p2,2024-01-01T00:00:00Z,3\n"
        "u1,p1,2024-01-01T00:00:00Z,5\n"
    )
    result = small(tmp_path, events=events)
    assert (result.events, result.duplicates) == (3, 2)
    table = lake_table(tmp_path / "lake", "events")
    assert table["value"].to_pylist() == [5.0, 2.0, 3.0]
    assert table["event_order"].to_pylist() == [0, 2, 3]


def test_another_action_at_the_same_time_is_no_duplicate(tmp_path):
    text = "user,post,ts,act\na,p,2024-01-01,view\na,p,2024-01-01,like\na,p,2024-01-01,view\n"
    write_small(tmp_path, events=text)
    dataset = events_dataset(action={"column": "act"})
    result = ingest(dataset, tmp_path, tmp_path / "lake")
    assert (result.events, result.duplicates) == (2, 1)


def test_ingesting_again_changes_nothing(tmp_path):
    small(tmp_path)
    before = contents(tmp_path / "lake")
    result = small(tmp_path)
    assert (result.new_users, result.new_posts, result.new_events) == (0, 0, 0)
    assert (result.already_known, result.duplicates, result.events) == (4, 0, 4)
    assert contents(tmp_path / "lake") == before


def test_new_files_append_and_ids_stay(tmp_path):
    small(tmp_path)
    lake = tmp_path / "lake"
    old = contents(lake)
    more = "user,post,ts,rating\nu0,p9,2024-02-03,5\nu1,p1,2024-01-31T23:59:59Z,5\n"
    write_small(
        tmp_path,
        users=USERS.replace("id,age,city,langs\n", "id,age,city,langs\nu0,1,Rom,\n"),
        posts=POSTS + "p9,Nine,,a\n",
        **{"events-2": more},
    )
    result = ingest(Dataset.parse(DESCRIPTION), tmp_path, lake)
    assert (result.new_users, result.new_posts, result.new_events) == (1, 1, 1)
    # The glob reads the new file first: the known event is in both files.
    assert (result.already_known, result.duplicates) == (4, 1)
    assert lake_table(lake, "ids/users")["external_id"].to_pylist() == ["u1", "u2", "u3", "u0"]
    assert lake_table(lake, "users")["city"].to_pylist() == ["Ulm", "Bonn", None, "Rom"]
    events = lake_table(lake, "events")
    assert events["user_id"].to_pylist() == [0, 1, 0, 2, 3]
    assert events["event_order"].to_pylist()[:4] == [0, 1, 2, 3]
    parts = {name: data for name, data in contents(lake).items() if name.startswith("events")}
    kept = {name: data for name, data in old.items() if name.startswith("events")}
    assert set(parts) - set(kept) == {"events/event_month=2024-02/part-000001.parquet"}
    assert kept.items() <= parts.items()


def test_earlier_events_make_everybody_known_earlier(tmp_path):
    small(tmp_path)
    (tmp_path / "events-0.csv").write_text("user,post,ts,rating\nu1,p1,2023-12-31,4\n")
    result = small(tmp_path)
    assert result.first_time == datetime(2023, 12, 31, tzinfo=UTC)
    for name in ("users", "posts"):
        known = lake_table(tmp_path / "lake", name)["known_time"].to_pylist()
        assert set(known) == {result.first_time}


def test_the_latest_row_of_a_user_wins_and_absent_users_stay(tmp_path):
    small(tmp_path)
    small(tmp_path, users="id,age,city,langs\nu2,40,Wien,\nu2,41,Graz,it\n")
    users = lake_table(tmp_path / "lake", "users")
    assert users["city"].to_pylist() == ["Ulm", "Graz", None]
    assert users["age"].to_pylist() == [31.0, 41.0, 7.5]


def test_attributes_that_are_new_or_of_another_type_are_null_for_old_rows(tmp_path):
    small(tmp_path)
    write_small(tmp_path, users="id,age,city,langs\nu2,40,7,fr\n")
    text = DESCRIPTION.replace('"city", type = "categorical"', '"city", type = "numeric"')
    text = text.replace('name = "languages"', 'name = "speaks"')
    ingest(Dataset.parse(text), tmp_path, tmp_path / "lake")
    assert lake_table(tmp_path / "lake", "users").drop_columns("known_time").to_pydict() == {
        "user_id": [0, 1, 2],
        "age": [31.0, 40.0, 7.5],
        "city": [None, 7.0, None],
        "speaks": [[], ["fr"], []],
    }


def test_other_rules_for_events_rebuild_them_under_the_same_ids(tmp_path):
    small(tmp_path)
    lake = tmp_path / "lake"
    ids = lake_table(lake, "ids/users")
    text = DESCRIPTION.replace("at_least = 4", "at_least = 3")
    result = ingest(Dataset.parse(text), tmp_path, lake)
    assert (result.rebuilt, result.events, result.new_events) == (True, 4, 4)
    assert lake_table(lake, "events")["is_positive"].to_pylist() == [True, True, True, False]
    assert lake_table(lake, "ids/users").equals(ids)


def test_without_a_clock_events_are_replaced_and_ids_stay(tmp_path):
    dataset = events_dataset(time={"format": "file_order"})
    write_small(tmp_path, events="user,post\na,p\na,q\na,p\n")
    first = ingest(dataset, tmp_path, tmp_path / "lake")
    assert (first.events, first.duplicates) == (3, 0)  # twice the same track is two plays
    write_small(tmp_path, events="user,post\nb,q\na,p\na,q\na,p\na,r\n")
    second = ingest(dataset, tmp_path, tmp_path / "lake")
    assert (second.events, second.new_users, second.new_posts, second.rebuilt) == (5, 1, 1, True)
    lake = tmp_path / "lake"
    assert lake_table(lake, "ids/posts")["external_id"].to_pylist() == ["p", "q", "r"]
    events = lake_table(lake, "events")
    assert events["user_id"].to_pylist() == [1, 0, 0, 0, 0]
    start = datetime(2000, 1, 1, tzinfo=UTC)
    days = [(time - start) / timedelta(days=1) for time in events["event_time"].to_pylist()]
    assert days == [0, 0, 25, 50, 75]
    ingest(dataset, tmp_path, tmp_path / "other")
    assert lake_table(tmp_path / "other", "events")["event_time"].equals(events["event_time"])


ORPHANS = EVENTS + "u1,p7,2024-02-02,4\nu{8},p1,2024-02-02,4\nu9,p7,2024-02-02,4\n"


def test_orphans_are_refused_with_counts_and_first_ids(tmp_path):
    message = (
        r"events of dataset small: 2 of 7 rows have a user_id missing from users \(first: u\{8\}, "
        r"u9\); 2 of 7 rows have a post_id missing from posts \(first: p7, p7\); fix the source or "
        r"pass --drop-orphans"
    )
    with pytest.raises(LakeError, match=message):
        small(tmp_path, events=ORPHANS)
    assert contents(tmp_path / "lake") == {}


def test_orphans_can_be_dropped_and_are_counted(tmp_path):
    write_small(tmp_path, events=ORPHANS)
    dataset = Dataset.parse(DESCRIPTION)
    result = ingest(dataset, tmp_path, tmp_path / "lake", drop_orphans=True)
    assert (result.orphans, result.events, result.users) == (3, 4, 3)
    only = "user,post,ts,rating\nx,y,2024-01-01,5\n"
    write_small(tmp_path, events=only)
    with pytest.raises(LakeError, match=r"no event is left \(1 orphans dropped\)"):
        ingest(dataset, tmp_path, tmp_path / "lake-2", drop_orphans=True)


def test_users_of_earlier_ingests_are_no_orphans(tmp_path):
    small(tmp_path)
    result = small(tmp_path, users="id,age,city,langs\nu4,1,Rom,\n")
    assert (result.orphans, result.users) == (0, 4)


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("events", EVENTS + ",p1,2024-01-01,3\n", "of 5 rows 1 have no user_id"),
        ("events", EVENTS + "u1,,,3\n", "of 5 rows 1 have no post_id, 1 have no event_time"),
        ("users", USERS + ",1,Rom,\n", "users of dataset small: of 4 rows 1 have no user_id"),
    ],
)
def test_rows_without_a_key_are_refused(tmp_path, table, content, message):
    with pytest.raises(LakeError, match=message + ".*; fill them in or remove"):
        small(tmp_path, **{table: content})


def test_a_failed_ingest_leaves_the_lake_as_it_was(tmp_path):
    small(tmp_path)
    before = contents(tmp_path / "lake")
    for changes in ({"events": ORPHANS}, {"users": "id\n1\n"}, {"posts": b"\xff"}):
        with pytest.raises((LakeError, SourceError), match=r"dataset small|users\.csv|posts\.csv"):
            small(tmp_path, **changes)
        assert {
            k: v for k, v in contents(tmp_path / "lake").items() if "staging" not in k
        } == before
        assert not (tmp_path / ".lake-raw").exists()
    small(tmp_path)
    assert contents(tmp_path / "lake") == before


def test_two_writers_at_once_are_refused(tmp_path):
    with (
        commit.locked(tmp_path / "lake"),
        pytest.raises(LakeError, match="another process is writing to it; wait"),
    ):
        small(tmp_path)


CHILD = """
import os, pathlib, signal, sys
from feature_repo.dataset import Dataset
from pipelines.datasets.lake import ingest

deadly, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
calls, replace = 0, pathlib.Path.replace

def replace_or_die(self, target):
    global calls
    calls += 1
    if calls == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

pathlib.Path.replace = replace_or_die
ingest(Dataset.read(folder / "small.toml"), folder, folder / "lake")
print(calls)
"""


def killed_ingest(folder: Path, deadly: int) -> subprocess.CompletedProcess[str]:
    """Ingest in a process that is killed before it renames its n-th file."""
    (folder / "small.toml").write_text(DESCRIPTION)
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(deadly), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def check_kill(folder: Path, deadly: int) -> bool:
    """Kill an appending ingest at a rename; run it again; compare with one that was left alone."""
    clean, broken = folder / "clean", folder / "broken"
    more = "user,post,ts,rating\nu1,p3,2024-02-03,5\nu2,p2,2024-03-31,5\n"
    for base in (clean, broken):
        small(base)
        write_small(base, **{"events-2": more}, posts=POSTS.replace("Two", "Zwei"))
    before = contents(broken / "lake")
    outcome = killed_ingest(broken, deadly)
    assert outcome.returncode in (-signal.SIGKILL, 0), outcome.stderr
    recover(broken / "lake")
    after = {k: v for k, v in contents(broken / "lake").items() if "staging" not in k}
    small(clean, posts=POSTS.replace("Two", "Zwei"))
    whole = contents(clean / "lake")
    assert after in (before, whole)  # all of it, or nothing
    small(broken, posts=POSTS.replace("Two", "Zwei"))
    assert contents(broken / "lake") == whole
    return outcome.returncode == 0


@pytest.mark.parametrize("deadly", [2, 4, 5, 8])
def test_killed_ingest_is_all_or_nothing_and_ends_the_same(tmp_path, deadly):
    assert not check_kill(tmp_path, deadly)


@pytest.mark.slow
def test_killed_at_any_rename_it_ends_the_same(tmp_path):
    deadly = 1
    while not check_kill(tmp_path / str(deadly), deadly):
        deadly += 1
    assert deadly > 10


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ü", 'x"y', "1,5"]),
        st.sampled_from(["p", "q", "r s"]),
        st.integers(0, 4).map(lambda step: 1_700_000_000 + step * 900_000),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=25,
)


def expected_lake(rows):
    """The lake's rules again, in plain Python: first of each key, dense ids by appearance."""
    users, posts, seen, events = {}, {}, set(), []
    for order, (user, post, time, rating) in enumerate(rows):
        ids = (users.setdefault(user, len(users)), posts.setdefault(post, len(posts)))
        if (*ids, time) not in seen:
            seen.add((*ids, time))
            moment = datetime.fromtimestamp(time, UTC)
            events.append((*ids, moment, float(rating), rating >= 4, order))
    return list(users), list(posts), events


def write_rows(folder: Path, rows: list[tuple[str, str, int, int]], form: str, name: str) -> None:
    names = ("user", "post", "ts", "rating")
    content = [dict(zip(names, row, strict=True)) for row in rows]
    if form == "jsonl":
        write_json_lines(folder / f"{name}.jsonl", content)
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")
    else:
        lines = [
            ",".join(f'"{str(one).replace(chr(34), chr(34) * 2)}"' for one in row) for row in rows
        ]
        (folder / f"{name}.csv").write_text("\n".join(["user,post,ts,rating", *lines]) + "\n")


def lake_rows(lake):
    names = ["user_id", "post_id", "event_time", "value", "is_positive", "event_order"]
    table = lake_table(lake, "events").select(names)
    return [tuple(row.values()) for row in table.to_pylist()]


@settings(max_examples=12, deadline=None)
@given(rows=ROWS, form=st.sampled_from(["csv", "jsonl", "parquet"]), cut=st.integers(0, 25))
def test_any_rows_in_any_format_give_the_lake_of_the_plain_rules(rows, form, cut):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = events_dataset(
            path=f"*.{form}",
            format=form,
            value="rating",
            time={"column": "ts", "format": "epoch_s"},
            positive={"column": "rating", "at_least": 4},
        )
        users, posts, events = expected_lake(rows)
        write_rows(folder, rows, form, "1")
        result = ingest(dataset, folder, folder / "lake")
        assert lake_rows(folder / "lake") == events
        assert result.duplicates == len(rows) - len(events)
        assert lake_table(folder / "lake", "ids/users")["external_id"].to_pylist() == users
        assert lake_table(folder / "lake", "ids/posts")["external_id"].to_pylist() == posts
        # Cut in two and ingested one after the other: the same, but for the numbers of the order.
        if 0 < cut < len(rows):
            write_rows(folder, rows[:cut], form, "1")
            ingest(dataset, folder, folder / "lake-2")
            write_rows(folder, rows[cut:], form, "2")
            ingest(dataset, folder, folder / "lake-2")
            assert [row[:-1] for row in lake_rows(folder / "lake-2")] == [
                row[:-1] for row in events
            ]

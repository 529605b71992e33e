"""Every way a source may be written gives the same raw tables; every defect its message."""

import base64
import re
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_examples import (
    DESCRIPTION,
    EVENTS,
    POSTS,
    USERS,
    events_dataset,
    write_json_lines,
    write_small,
)

from feature_repo.dataset import Dataset
from pipelines.datasets.normalise import EVENTS_SCHEMA, read_raw
from pipelines.errors import SourceError

T0 = datetime(2024, 2, 1, 8, 0, tzinfo=UTC)


def read(dataset, folder):
    return read_raw(dataset, folder, folder / "raw")


def read_events(folder, **settings):
    return read(events_dataset(**settings), folder).table("events")


def times(folder, values, form, **time):
    lines = "".join(f'a,p,"{value}"\n' for value in values)
    (folder / "events.csv").write_text(f"user,post,ts\n{lines}")
    column = None if form in ("file_order", "random_order") else "ts"
    table = read_events(folder, time={"column": column, "format": form} | time)
    return table["event_time"].to_pylist()


def test_hand_worked_csv_gives_named_typed_columns(tmp_path):
    raw = read(Dataset.parse(DESCRIPTION), write_small(tmp_path))
    assert raw.table("users").to_pydict() == {
        "user_id": ["u1", "u2", "u3"],
        "known_time": [None, None, None],
        "age": [31.0, None, 7.5],
        "city": ["Ulm", "Bonn", None],
        "languages": [["de", "en"], [], ["en"]],
    }
    assert raw.table("posts").to_pydict() == {
        "post_id": ["p1", "p2", "p3"],
        "known_time": [None, None, None],
        "title": ["One", "Two", None],
        "text": ["One\nfirst text", "Two", "only text"],
        "topics": [["a", "b"], ["b"], []],
        "image": [None, None, None],
    }
    events = raw.table("events")
    assert events.schema == EVENTS_SCHEMA
    assert events["event_time"].to_pylist() == [
        datetime(2024, 1, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2024, 2, 1, tzinfo=UTC),
        T0,
        datetime(2024, 1, 5, tzinfo=UTC),
    ]
    assert events["is_positive"].to_pylist() == [True, False, True, False]
    assert events["weight"].to_pylist() == [1.0, 0.0, 1.0, 0.0]
    assert events["is_impression"].to_pylist() == [True] * 4
    assert events["value"].to_pylist() == [5.0, 3.0, 4.0, 1.0]
    assert events["event_order"].to_pylist() == [0, 1, 2, 3]
    assert set(events["action"].to_pylist()) == {"rating"}


@pytest.mark.parametrize(
    "settings",
    [
        {"separator": "\t"},
        {"separator": ";", "encoding": "cp1251"},
        {"encoding": "utf-16"},
        {"encoding": "utf-8-sig"},
        {"header": False, "user": "0", "post": "1", "time": {"column": "2"}, "value": "3"},
        {"separator": "|", "quote": ""},
    ],
    ids=str,
)
def test_csv_variants_read_alike(tmp_path, settings):
    separator = settings.get("separator", ",")
    rows = [["ю", "p1", "2024-02-01", "2.5"], ["b", "п", "2024-02-02 03:00:00", ""]]
    if settings.get("header", True):
        rows.insert(0, ["user", "post", "ts", "value"])
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    (tmp_path / "events.csv").write_bytes(text.encode(settings.get("encoding", "utf-8")))
    table = read_events(tmp_path, **{"value": "value"} | settings)
    assert table.select(["user_id", "post_id", "value"]).to_pydict() == {
        "user_id": ["ю", "b"],
        "post_id": ["p1", "п"],
        "value": [2.5, None],
    }
    assert table["event_time"][1].as_py() == datetime(2024, 2, 2, 3, tzinfo=UTC)


def test_json_lines_and_parquet_read_as_csv_does(tmp_path):
    write_small(tmp_path)
    expected = read(Dataset.parse(DESCRIPTION), tmp_path)
    users = [
        {"id": "u1", "age": 31, "city": "Ulm", "langs": ["de", "en"]},
        {"id": "u2", "city": "Bonn", "langs": []},
        {"id": "u3", "age": 7.5, "city": None, "langs": ["en"]},
    ]
    posts = [
        {"id": "p1", "name": "One", "body": "first text", "genres": ["a", "b"]},
        {"id": "p2", "name": "Two", "body": None, "genres": ["b", "b", "", None]},
        {"id": "p3", "body": "only text", "genres": None, "name": None},
    ]
    events = [
        {"user": "u1", "post": "p1", "ts": "2024-01-31T23:59:59Z", "rating": 5},
        {"user": "u2", "post": "p1", "ts": "2024-02-01T00:00:00Z", "rating": 3},
        {"user": "u1", "post": "p2", "ts": "2024-02-01T10:00:00+02:00", "rating": 4},
        {"user": "u3", "post": "p3", "ts": "2024-01-05T00:00:00Z", "rating": 1},
    ]
    for name, rows in (("users", users), ("posts", posts), ("events", events)):
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    for form in ("jsonl", "parquet"):
        text = DESCRIPTION.replace('.csv"', f'.{form}"').replace('"csv"', f'"{form}"')
        found = read(Dataset.parse(text.replace(', separator = "|"', "")), tmp_path)
        for name in ("users", "posts", "events"):
            assert found.table(name).to_pylist() == expected.table(name).to_pylist(), (form, name)


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("iso", ["2024-02-01T08:00:00Z", "2024-02-01 08:00:00", "2024-02-01T11:00:00+03:00"]),
        ("iso", ["2024-02-01T08:00:00.000000Z", "2024-02-01 08:00", "2024-02-01T08:00:00+00"]),
        ("epoch_s", ["1706774400", "1706774400.0", "1.7067744e9"]),
        ("epoch_ms", ["1706774400000", "1706774400000.4", "1.7067744e12"]),
        ("epoch_us", ["1706774400000000", "1706774400000000.0"]),
        ("%d.%m.%Y %H:%M", ["01.02.2024 08:00"]),
        ("%m/%d/%Y %I %p", ["02/01/2024 08 AM"]),
        ("%d.%m.%Y %H:%M %z", ["01.02.2024 11:00 +0300"]),
    ],
)
def test_time_formats_agree(tmp_path, form, values):
    found = times(tmp_path, values, form)
    assert all(abs(one - T0) < timedelta(milliseconds=1) for one in found)
    assert found[0] == T0


def test_fractions_of_epoch_seconds_are_kept_to_the_microsecond(tmp_path):
    assert times(tmp_path, ["1706774400.123456"], "epoch_s") == [T0.replace(microsecond=123456)]


def test_a_zone_is_that_of_times_written_without_one(tmp_path):
    values = ["2024-07-01 10:00:00", "2024-07-01T08:00:00Z", "2024-01-01 09:00:00"]
    found = times(tmp_path, values, "iso", zone="Europe/Berlin")
    summer, winter = datetime(2024, 7, 1, 8, tzinfo=UTC), datetime(2024, 1, 1, 8, tzinfo=UTC)
    assert found == [summer, summer, winter]
    assert times(tmp_path, ["01.07.2024 10"], "%d.%m.%Y %H", zone="Europe/Berlin") == [summer]
    with pytest.raises(SourceError, match="events: unknown time zone 'Mars/Base'"):
        times(tmp_path, ["2024-07-01"], "iso", zone="Mars/Base")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parquet_timestamps_of_every_unit_and_zone(tmp_path, unit, zone):
    column = pa.array([T0, None], pa.timestamp(unit, tz="UTC")).cast(pa.timestamp(unit, tz=zone))
    table = pa.table({"user": [1, 2], "post": [3, 4], "ts": column})
    pq.write_table(table, tmp_path / "e.parquet")
    found = read_events(tmp_path, path="e.parquet", format="parquet")
    assert found["event_time"].to_pylist() == [T0, None]


def test_ids_of_any_type_are_the_same_text(tmp_path):
    table = pa.table({"user": [7.0, None], "post": pa.array([3, 4], pa.int32()), "ts": [T0, T0]})
    pq.write_table(table, tmp_path / "e.parquet")
    found = read_events(tmp_path, path="e.parquet", format="parquet")
    assert found["user_id"].to_pylist() == ["7", None]
    assert found["post_id"].to_pylist() == ["3", "4"]
    (tmp_path / "events.csv").write_text("user,post,ts\n 7 ,03,2024-01-01\n  ,4,2024-01-01\n")
    found = read_events(tmp_path)
    assert found["user_id"].to_pylist() == ["7", None]
    assert found["post_id"].to_pylist() == ["03", "4"]


def test_file_order_spreads_each_users_events_over_100_days(tmp_path):
    (tmp_path / "events.csv").write_text("user,post\na,p1\nb,p1\na,p2\na,p3\na,p4\nb,p9\n")
    table = read_events(tmp_path, time={"format": "file_order"})
    days = [
        (one - datetime(2000, 1, 1, tzinfo=UTC)).days for one in table["event_time"].to_pylist()
    ]
    assert days == [0, 0, 25, 50, 75, 50]


def test_random_order_is_another_order_of_the_same_times_and_always_the_same(tmp_path):
    lines = "".join(f"{user},p{post}\n" for user in "ab" for post in range(50))
    (tmp_path / "events.csv").write_text(f"user,post\n{lines}")
    shuffled = read_events(tmp_path, time={"format": "random_order"})
    ordered = read_events(tmp_path, time={"format": "file_order"})
    assert read_events(tmp_path, time={"format": "random_order"}).equals(shuffled)
    assert shuffled["event_order"].equals(ordered["event_order"])
    for user in range(2):
        mine = slice(50 * user, 50 * user + 50)
        times_shuffled = shuffled["event_time"].to_pylist()[mine]
        times_ordered = ordered["event_time"].to_pylist()[mine]
        assert sorted(times_shuffled) == times_ordered
        moved = sum(a != b for a, b in zip(times_shuffled, times_ordered, strict=True))
        assert moved > 40


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("a|b|a| c ||", "|", ["a", "b", "c"]),
        ("['x, y', 'z']", ", ", ["'x", "y'", "z"]),
        ("['rock', \"rock 'n' roll\"]", ",", ["rock", "rock 'n' roll"]),
        ('["x, y", "z"]', None, ["x, y", "z"]),
        ("business news", None, ["business news"]),
        ("[]", ",", []),
        ("[]", None, []),
        ("", ",", []),
    ],
)
def test_lists_in_text(tmp_path, text, separator, expected):
    quoted = text.replace('"', '""')
    posts = f'id,name,body,genres\np1,a,b,"{quoted}"\np2,a,b,\np3,,,\n'
    write_small(tmp_path, posts=posts)
    described = (
        '{ column = "genres" }'
        if separator is None
        else (f'{{ column = "genres", separator = "{separator}" }}')
    )
    dataset = Dataset.parse(
        DESCRIPTION.replace('{ column = "genres", separator = "|" }', described)
    )
    assert read(dataset, tmp_path).table("posts")["topics"].to_pylist() == [expected, [], []]


RULES = (
    "user,post,ts,act,target,plays\n"
    "a,p,2024-01-01,view,0,3\na,q,2024-01-01,view,1,0\n"
    "a,p,2024-01-02,like,0,\na,r,2024-01-03,,,7\n"
)


@pytest.mark.parametrize(
    ("settings", "impression", "positive", "weight"),
    [
        ({}, [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]),
        (
            {"impressions": {"actions": ["view"]}, "positive": {"actions": ["like"]}},
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 1, 0],
        ),
        (
            {"positive": {"column": "target", "equals": 1}, "weight": 2.5},
            [0, 0, 0, 0],
            [0, 1, 0, 0],
            [0, 2.5, 0, 0],
        ),
        ({"positive": {"column": "target", "equals": True}}, [0] * 4, [0, 1, 0, 0], [0, 1, 0, 0]),
        ({"positive": {"column": "act", "equals": "view"}}, [0] * 4, [1, 1, 0, 0], [1, 1, 0, 0]),
        (
            {"positive": {"column": "plays", "at_least": 3}, "weight": "plays"},
            [0] * 4,
            [1, 0, 0, 1],
            [3, 0, 0, 7],
        ),
        (
            {
                "positive": {"column": "plays", "at_least": 0.5},
                "weight": {"column": "plays", "scale": "log1p"},
                "impressions": {"every": True},
            },
            [1] * 4,
            [1, 0, 0, 1],
            [pytest.approx(1.3862943611), 0, 0, pytest.approx(2.0794415416)],
        ),
    ],
)
def test_impressions_positives_and_weights(tmp_path, settings, impression, positive, weight):
    (tmp_path / "events.csv").write_text(RULES)
    table = read_events(tmp_path, action={"column": "act"}, **settings)
    assert table["is_impression"].to_pylist() == [bool(one) for one in impression]
    assert table["is_positive"].to_pylist() == [bool(one) for one in positive]
    assert table["weight"].to_pylist() == weight
    assert table["action"].to_pylist() == ["view", "view", "like", None]


def test_images_as_path_base64_and_bytes(tmp_path):
    picture = b"\x89PNG\x00"
    code = base64.b64encode(picture).decode()
    posts = f"id,name,body,genres,photo\np1,a,b,,{code}\np2,a,b,,\np3,a,b,,{code}\n"
    write_small(tmp_path, posts=posts)
    for kind, expected in (("base64", picture), ("path", code)):
        text = DESCRIPTION.replace(
            'title = "name"', f'title = "name"\nimage = {{ column = "photo", kind = "{kind}" }}'
        )
        images = read(Dataset.parse(text), tmp_path).table("posts")["image"]
        assert images.to_pylist() == [expected, None, expected]


def test_pictures_in_base64_may_have_a_prefix_and_damaged_ones_pass_as_they_are(tmp_path):
    # The image step refuses and counts them; one upload must not stop an ingest.
    code = base64.b64encode(b"\x89PNG\x00").decode()
    posts = f'id,name,body,genres,photo\np1,a,b,,"data:image/png;base64,{code}"\np2,a,b,,no!\n'
    write_small(tmp_path, posts=posts)
    image = 'image = { column = "photo", kind = "base64" }'
    text = DESCRIPTION.replace('title = "name"', f'title = "name"\n{image}')
    images = read(Dataset.parse(text), tmp_path).table("posts")["image"]
    assert images.to_pylist() == [b"\x89PNG\x00", b"no!"]


def test_globs_and_lists_keep_the_order_of_the_files(tmp_path):
    for name, user in (("b2", "x"), ("b10", "y"), ("a", "z")):
        (tmp_path / f"{name}.csv").write_text(f"user,post,ts\n{user},p,2024-01-01\n")
    users = read_events(tmp_path, path=["b*.csv", "a.csv", "b2.csv"])["user_id"].to_pylist()
    assert users == ["y", "x", "z"]
    absolute = read_events(tmp_path, path=str(tmp_path / "?.csv"))["user_id"].to_pylist()
    assert absolute == ["z"]


def test_quoted_line_breaks_are_part_of_the_text(tmp_path):
    posts = 'id,name,body,genres\np1,"One\ntwo ""2""","b",\np2,Two,,b\np3,,x,\n'
    write_small(tmp_path, posts=posts)
    title = read(Dataset.parse(DESCRIPTION), tmp_path).table("posts")["title"][0].as_py()
    assert title == 'One\ntwo "2"'


BAD = [
    ("events", EVENTS.replace("rating\n", "stars\n"), r"has no column 'rating'; it has 'user', .*"),
    ("events", EVENTS.replace("rating\n", "ratings\n"), r"did you mean 'ratings'\?"),
    ("events", EVENTS.replace(",", ";"), r"\(one column only: is the separator"),
    ("events", EVENTS.replace("post,", "user,", 1), r"no column 'post'"),
    ("events", "user,post,ts,rating,rating\na,b,2024-01-01,1,1\n", "more than one column 'rating'"),
    ("events", "", r" is empty \(0 bytes\)"),
    ("events", "user,post,ts,rating\n", r"has no rows; expected one for each of the events"),
    ("users", "id,age,city,langs\n", r" has no rows"),
    (
        "events",
        EVENTS.replace("2024-01-05", "yesterday").replace("2024-02-01T00:00:00Z", "2024-02-30"),
        r"2 of 4 rows have a column 'ts' that is not a time in format 'iso', in the years .*"
        r"\(first: line 3 '2024-02-30', line 5 'yesterday'\); correct the rows, or",
    ),
    (
        "events",
        EVENTS.replace(",3\n", ",three\n").replace(",1\n", ",nan\n"),
        r"2 of 4 rows have a column 'rating' that is not a number .*line 3 'three', line 5 'nan'",
    ),
    ("users", USERS.replace("7.5", "old"), r"1 of 3 .* 'age' .*line 4 'old'.*users.nulls"),
    ("events", EVENTS + "u1,p1\n", r"Expected 4 columns, got 2.*correct the row"),
    (
        "events",
        EVENTS.replace("u3", "ü3").encode("latin-1"),
        r"not utf-8: line 5, byte \d+ is 0xfc",
    ),
    ("posts", POSTS.replace("Two", "ß").encode("cp1252"), r"posts.encoding in the description"),
]


@pytest.mark.parametrize(("table", "content", "message"), BAD, ids=range(len(BAD)))
def test_defects_are_told_with_file_place_and_remedy(tmp_path, table, content, message):
    write_small(tmp_path, **{table: content})
    with pytest.raises(SourceError, match=rf"(?s){table}: .*{table}\.csv.*{message}"):
        read(Dataset.parse(DESCRIPTION), tmp_path)


def test_missing_files_and_folders_are_told(tmp_path):
    write_small(tmp_path)
    (tmp_path / "users.csv").rename(tmp_path / "user.csv")
    with pytest.raises(SourceError, match=r"users: no file 'users.csv' .*did you mean 'user.csv'"):
        read(Dataset.parse(DESCRIPTION), tmp_path)
    with pytest.raises(SourceError, match=r"no file 'events.csv' .*\(the folder does not exist\)"):
        read_raw(events_dataset(), tmp_path / "none", tmp_path / "raw")


def test_lines_count_blank_ones_and_line_breaks_in_quotes(tmp_path):
    text = 'user,post,ts\n\n"a\nb",p,2024-01-01\n\na,p,soon\n'
    (tmp_path / "events.csv").write_text(text)
    with pytest.raises(SourceError, match=r"1 of 2 rows .*line 6 'soon'"):
        read_events(tmp_path)


def test_epoch_in_the_wrong_unit_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"'epoch_s', in the years 1678 to 2261 .*1706774400000'"):
        times(tmp_path, ["1706774400000"], "epoch_s")
    with pytest.raises(SourceError, match="1 of 1 rows"):
        times(tmp_path, ["1e300"], "epoch_us")


def test_unknown_strptime_pattern_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"%Q.*check the formats in the description"):
        times(tmp_path, ["2024"], "%Q")


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_positive_event_needs_a_weight(tmp_path, value):
    (tmp_path / "events.csv").write_text(f"user,post,ts,plays\na,p,2024-01-01,{value}\n")
    with pytest.raises(SourceError, match=r"'plays' that is not a weight: a number from 0 up"):
        read_events(tmp_path, weight="plays")


def test_truncated_parquet_is_told_with_its_size(tmp_path):
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user": ["a"], "post": ["p"], "ts": ["2024-01-01"]}), path)
    whole = path.read_bytes()
    for length in (len(whole) - 5, 10):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=rf"e.parquet \({length} bytes\) is truncated or no"):
            read_events(tmp_path, path="e.parquet", format="parquet")


def test_parquet_damaged_in_the_middle_is_told(tmp_path):
    path = tmp_path / "e.parquet"
    times_ = [f"2024-01-01 00:00:00.{n:06d}" for n in range(5000)]
    table = pa.table({"user": times_, "post": times_, "ts": times_})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    whole[2000:4000] = bytes(2000)
    path.write_bytes(whole)
    with pytest.raises(SourceError, match=r"e.parquet .* is truncated or no parquet file"):
        read_events(tmp_path, path="e.parquet", format="parquet")


@pytest.mark.parametrize(
    ("column", "values", "settings", "message"),
    [
        ("ts", pa.array([1]), {}, "'ts' holds int64, expected times as text; .*epoch_s"),
        ("ts", pa.array([[1]]), {}, r"'ts' holds list<.*>, expected times"),
        ("user", pa.array([["a"]]), {}, "'user' holds list<.*>, expected text or a number"),
        ("v", pa.array([T0]), {"value": "v"}, r"'v' holds timestamp.*expected numbers"),
        ("v", pa.array([float("inf")]), {"value": "v"}, "1 of 1 rows .* not a number .*row 1 inf"),
    ],
)
def test_wrong_parquet_types_are_told(tmp_path, column, values, settings, message):
    table = pa.table(
        {"user": ["a"], "post": ["p"], "ts": ["2024-01-01"], "v": [1.0], column: values}
    )
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(SourceError, match=f"(?s)events: .*e.parquet.*{message}"):
        read_events(tmp_path, path="e.parquet", format="parquet", **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user": 1, "post": 2}\n', "has no column 'ts'; it has 'user', 'post'"),
        ('{"user": 1,\n', "line 1 is not JSON"),
        ("[1, 2]\n", "line 1 holds list, expected an object"),
        ('{"user":1,"post":1,"ts":"2024-01-01"}\n' * 1001 + "{oops}\n", "line 1002 is not JSON"),
        ('{"user":1,"post":1,"ts":"2024-01-01"}\n\n{"user":2,"post":1,"ts":"x"}\n', "line 3 'x'"),
    ],
)
def test_bad_json_lines_are_told(tmp_path, text, message):
    (tmp_path / "e.jsonl").write_text(text)
    with pytest.raises(SourceError, match=f"(?s)events: .*e.jsonl.*{message}"):
        read_events(tmp_path, path="e.jsonl", format="jsonl")


def test_progress_tells_table_rows_and_share(tmp_path):
    told = []
    write_small(tmp_path)
    read_raw(
        Dataset.parse(DESCRIPTION), tmp_path, tmp_path / "raw", lambda *what: told.append(what)
    )
    assert told == [
        ("reading users", 3, 1.0),
        ("reading posts", 3, 1.0),
        ("reading events", 4, 1.0),
    ]


def test_values_are_judged_over_the_whole_of_a_large_file(tmp_path):
    rows = 600_000  # several pieces
    table = pa.table(
        {
            "user": pa.array(range(rows)),
            "post": pa.array([1] * rows),
            "ts": pa.array([1_706_774_400 + n for n in range(rows)]).cast(pa.string()),
        }
    )
    wrong = pa.table({"user": [1, 2], "post": [1, 1], "ts": ["never", "1706774400"]})
    pq.write_table(pa.concat_tables([table, wrong]), tmp_path / "e.parquet")
    message = re.escape("1 of 600,002 rows have a column 'ts'") + ".*row 600001 'never'"
    with pytest.raises(SourceError, match=message):
        read_events(
            tmp_path,
            path="e.parquet",
            format="parquet",
            time={"column": "ts", "format": "epoch_s"},
        )

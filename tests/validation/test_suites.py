"""Each bad input is caught by its table's gate, with its message; good tables pass."""

import datetime as dt
import math

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_repo.dataset import Dataset
from validation.gate import GateFailure, run_gate
from validation.suites.features import features
from validation.suites.model import model, model_table
from validation.suites.raw_entities import raw_posts, raw_users
from validation.suites.raw_events import raw_events
from validation.suites.training_set import training_set

NOW = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
TIMES = pa.timestamp("us", "UTC")
DATASET = Dataset.parse(
    """
name = "small"
[users]
path = "users.csv"
format = "csv"
id = "id"
created = { column = "joined", format = "iso" }
attributes = [
  { name = "age", column = "age", type = "numeric" },
  { name = "country", column = "country", type = "categorical" },
  { name = "hobbies", column = "hobbies", type = "list", separator = "|" },
]
[posts]
path = "posts.csv"
format = "csv"
id = "id"
attributes = [ { name = "year", column = "year", type = "numeric" } ]
[events]
path = "events.csv"
format = "csv"
user = "user"
post = "post"
value = "rating"
time = { column = "time", format = "epoch_s" }
impressions = { every = true }
positive = { column = "rating", at_least = 4 }
"""
)
ALL_POSITIVE_ALLOWED = Dataset.parse(
    """
name = "likes"
[events]
path = "events.csv"
format = "csv"
user = "user"
post = "post"
time = { format = "file_order" }
positive = { every = true }
"""
)


def users(rows=40):
    return pa.table(
        {
            "user_id": [f"u{i}" for i in range(rows)],
            "known_time": pa.array([NOW - dt.timedelta(days=i) for i in range(rows)], TIMES),
            "age": pa.array([20.0 + i % 7 for i in range(rows)]),
            "country": ["nl" if i % 2 else "de" for i in range(rows)],
            "hobbies": pa.array([["chess"] if i % 3 else [] for i in range(rows)]),
        }
    )


def posts(rows=20):
    return pa.table(
        {"post_id": [f"p{i}" for i in range(rows)], "year": [2000.0 + i for i in range(rows)]}
    )


def events(rows=200):
    return pa.table(
        {
            "user_id": [f"u{i % 40}" for i in range(rows)],
            "post_id": [f"p{i % 20}" for i in range(rows)],
            "event_time": pa.array([NOW - dt.timedelta(hours=i) for i in range(rows)], TIMES),
            "action": ["rate"] * rows,
            "value": [float(1 + i % 5) for i in range(rows)],
            "is_impression": [True] * rows,
            "is_positive": [i % 5 >= 3 for i in range(rows)],
            "weight": [1.0 if i % 5 >= 3 else 0.0 for i in range(rows)],
            "event_order": range(rows),
        }
    )


def with_column(table, name, values, data_type=None):
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, data_type or table[name].type))


def changed(table, name, at, value):
    values = table[name].to_pylist()
    values[at] = value
    return with_column(table, name, values)


def repeated(table, row):
    return pa.concat_tables([table, table.slice(row, 1)])


def judge_users(table, tmp_path):
    return run_gate(raw_users(DATASET, NOW), table, docs=tmp_path, now=NOW)


def judge_posts(table, tmp_path):
    return run_gate(raw_posts(DATASET, NOW), table, docs=tmp_path, now=NOW)


def judge_events(table, tmp_path, dataset=DATASET):
    references = {"users": users(), "posts": posts()}
    suite = raw_events(dataset, NOW, references=references)
    return run_gate(suite, table, docs=tmp_path, now=NOW, references=references)


@pytest.mark.parametrize(
    ("judge", "table"),
    [(judge_users, users()), (judge_posts, posts()), (judge_events, events())],
)
def test_good_tables_pass_without_a_warning(judge, table, tmp_path):
    result = judge(table, tmp_path)
    assert result.success
    assert result.warnings == ()
    assert result.rows == table.num_rows


NULLED = [None if i % 10 == 3 else 20.0 + i % 7 for i in range(40)]
BAD_USERS = {
    "missing column": (
        users().drop_columns(["country"]),
        r"^gate raw_users: columns user_id, known_time, age, country, hobbies must be there: "
        r"country missing; name the source's columns in \[users\] of the dataset description\n"
        r"Data Docs: .*raw_users\.html$",
    ),
    "wrong type": (
        with_column(users(), "age", [str(i) for i in range(40)], pa.string()),
        r"age must be of type double: found string; check the attribute's 'type'",
    ),
    "duplicate user ids": (
        repeated(users(), 5),
        r"user_id must be unique: 2 of 41 rows fail \(first: row 5 user_id=u5; row 40 user_id=u5\)"
        r"; keep one row for each of the users",
    ),
    "null id": (
        changed(users(), "user_id", 7, None),
        r"user_id must not be null: 1 of 40 rows fail \(first: row 7 user_id=null\)",
    ),
    "time in the future": (
        changed(users(), "known_time", 2, NOW + dt.timedelta(seconds=1)),
        r"known_time must be at most 2024-06-01T00:00:00\+00:00: 1 of 40 rows fail "
        r"\(first: row 2 user_id=u2 known_time=2024-06-01T00:00:01\+00:00\); check 'created'",
    ),
    "ten percent nulls": (
        with_column(users(), "age", NULLED),
        r"age must not be null in more than 0\.05 of the rows: 4 of 40 rows fail "
        r"\(first: row 3 user_id=u3 age=null; row 13 user_id=u13 age=null; .*; …\); fill it",
    ),
    "constant column": (
        with_column(users(), "country", ["nl"] * 40),
        r"country must not be constant \(distinct values at least 2\): found 1; it tells nothing; "
        r"remove attribute 'country'",
    ),
    "constant list column": (
        with_column(users(), "hobbies", [["chess"]] * 40),
        r"hobbies must not be constant",
    ),
    "infinite number": (
        changed(users(), "age", 1, math.inf),
        r"age must be finite \(no NaN, no infinity\): 1 of 40 rows fail \(first: row 1 user_id=u1 "
        r"age=inf\); repair the source",
    ),
    "NaN": (changed(users(), "age", 1, math.nan), r"age must be finite .* row 1 user_id=u1"),
    "empty": (users().slice(0, 0), r"there must be at least 2 users: found 0; add rows"),
    "one row": (users(1), r"there must be at least 2 users: found 1; add rows"),
}


@pytest.mark.parametrize(("table", "message"), BAD_USERS.values(), ids=BAD_USERS)
def test_bad_users_are_stopped(table, message, tmp_path):
    with pytest.raises(GateFailure, match=message):
        judge_users(table, tmp_path)


def test_bad_posts_are_stopped(tmp_path):
    with pytest.raises(GateFailure, match=r"gate raw_posts: post_id must be unique: 2 of 21 rows"):
        judge_posts(repeated(posts(), 3), tmp_path)


MILLISECONDS_AS_SECONDS = dt.datetime(1970, 1, 20, tzinfo=dt.UTC)
BAD_EVENTS = {
    "missing column": (events().drop_columns(["event_time"]), r"event_time missing; name the"),
    "wrong type": (
        with_column(events(), "event_time", ["x"] * 200, pa.string()),
        r"event_time must be of type timestamp\[us, tz=UTC\]: found string; check 'event_time'",
    ),
    "times without a zone": (
        with_column(events(), "event_time", events()["event_time"].to_pylist(), pa.timestamp("us")),
        r"event_time must be of type timestamp\[us, tz=UTC\]: found timestamp\[us\]",
    ),
    "unparsable time": (
        changed(events(), "event_time", 3, None),
        r"event_time must not be null: 1 of 200 rows fail \(first: row 3 user_id=u3 post_id=p3 ",
    ),
    "unknown post": (
        changed(changed(events(), "post_id", 17, "p1783"), "post_id", 30, "p1790"),
        r"^gate raw_events: post_id must exist in posts: 2 of 200 rows fail \(first: row 17 "
        r"user_id=u17 post_id=p1783; row 30 user_id=u30 post_id=p1790\); fix the source or pass "
        r"--drop-orphans\nData Docs",
    ),
    "unknown user": (
        changed(events(), "user_id", 9, "u999"),
        r"user_id must exist in users: 1 of 200 rows fail \(first: row 9 user_id=u999 post_id=p9\)",
    ),
    "time in the future": (
        changed(events(), "event_time", 3, NOW + dt.timedelta(days=2)),
        r"event_time must be at least 1990-01-01T00:00:00\+00:00 and at most "
        r"2024-06-02T00:00:00\+00:00: 1 of 200 rows fail \(first: row 3 .*2024-06-03",
    ),
    "seconds for milliseconds": (
        with_column(events(), "event_time", [MILLISECONDS_AS_SECONDS] * 200),
        r"event_time must be at least 1990.*: 200 of 200 rows fail .*epoch_s or epoch_ms\?",
    ),
    "one user only": (
        with_column(events(), "user_id", ["u1"] * 200),
        r"events must be by at least 2 users \(distinct user_id\): found 1; nothing can be learned",
    ),
    "one post only": (
        with_column(events(), "post_id", ["p1"] * 200),
        r"events must be of at least 2 posts \(distinct post_id\): found 1",
    ),
    "all-positive labels": (
        with_column(events(), "is_positive", [True] * 200),
        r"not all events may be positive \(share of is_positive below 1\): found 1; check "
        r"'positive' in \[events\]",
    ),
    "no positive label": (
        with_column(events(), "is_positive", [False] * 200),
        r"some events must be positive \(share of is_positive above 0\): found 0; check 'positive'",
    ),
    "negative weight": (
        changed(events(), "weight", 4, -1.0),
        r"weight must be at least 0: 1 of 200 rows fail \(first: row 4 .* weight=-1\)",
    ),
    "empty": (events().slice(0, 0), r"there must be at least 2 events: found 0"),
}


@pytest.mark.parametrize(("table", "message"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_bad_events_are_stopped(table, message, tmp_path):
    with pytest.raises(GateFailure, match=message):
        judge_events(table, tmp_path)


def test_a_missing_column_is_said_once(tmp_path):
    with pytest.raises(GateFailure, match="event_time missing") as caught:
        judge_events(events().drop_columns(["event_time"]), tmp_path)
    assert str(caught.value).count("gate raw_events") == 1
    assert sum("event_time" in (c.column or "") for c in caught.value.result.failures) > 1


def test_repeated_events_and_a_constant_value_are_warned_of(tmp_path):
    constant = with_column(events(), "value", [3.0] * 200)
    doubled = pa.concat_tables([constant, constant.slice(0, 5)])
    result = judge_events(doubled, tmp_path)
    assert result.success
    assert [(c.column, c.unexpected_count) for c in result.warnings] == [
        ("value", None),
        ("user_id, post_id, action, event_time", 10),
    ]


def test_events_that_are_all_positive_by_description_pass(tmp_path):
    table = with_column(events(), "is_positive", [True] * 200)
    assert judge_events(table, tmp_path, ALL_POSITIVE_ALLOWED).success


FEATURES = pa.table(
    {
        "user_id": pa.array([0, 0, 1], pa.int64()),
        "event_timestamp": pa.array([NOW, NOW + dt.timedelta(days=29), NOW], TIMES),
        "user_event_count_7d": pa.array([3, 0, 1], pa.int64()),
        "user_positive_rate_7d": pa.array([1.0, None, 0.0]),
        "user_topic_positive_share": pa.array([[0.0, 1.0], [], None], pa.list_(pa.float32())),
    }
)
AGAIN = pa.concat_tables([FEATURES, FEATURES.slice(1, 1)])
BAD_FEATURES = {
    "negative count": (
        changed(FEATURES, "user_event_count_7d", 1, -1),
        r"^gate features_user_activity: user_event_count_7d must be at least 0: 1 of 3 rows fail "
        r"\(first: row 1 user_id=0 event_timestamp=2024-06-30T00:00:00\+00:00 "
        r"user_event_count_7d=-1\); see pipelines/features/user_activity\.py",
    ),
    "rate above one": (
        changed(FEATURES, "user_positive_rate_7d", 0, 1.01),
        r"user_positive_rate_7d must be at least 0 and at most 1: 1 of 3 rows fail",
    ),
    "share in a list above one": (
        changed(FEATURES, "user_topic_positive_share", 0, [0.5, 1.5]),
        r"user_topic_positive_share must be at least 0 and at most 1: 1 of 3 rows fail",
    ),
    "NaN in a list": (
        changed(FEATURES, "user_topic_positive_share", 0, [0.5, math.nan]),
        r"user_topic_positive_share must be finite .* 1 of 3 rows fail \(first: row 0",
    ),
    "infinite": (
        changed(FEATURES, "user_positive_rate_7d", 2, -math.inf),
        r"user_positive_rate_7d must be finite .*row 2 user_id=1",
    ),
    "all null": (
        with_column(FEATURES, "user_positive_rate_7d", [None] * 3),
        r"user_positive_rate_7d must not be null in every row \(.*\): found 0; see .*, or leave",
    ),
    "null key": (changed(FEATURES, "user_id", 2, None), r"user_id must not be null: 1 of 3 rows"),
    "key and time twice": (
        AGAIN,
        r"no two rows may share user_id, event_timestamp: 2 of 4 rows fail \(first: row 1 .*row 3",
    ),
    "too late": (
        changed(FEATURES, "event_timestamp", 1, NOW + dt.timedelta(days=29, seconds=1)),
        r"event_timestamp must be at most 2024-06-30T00:00:00\+00:00: 1 of 3 rows fail",
    ),
    "key of the wrong type": (
        with_column(FEATURES, "user_id", ["0", "0", "1"], pa.string()),
        r"user_id must be of type int64: found string",
    ),
    "missing feature": (FEATURES.drop_columns(["user_event_count_7d"]), r"_count_7d missing"),
    "empty": (FEATURES.slice(0, 0), r"there must be at least 1 row: found 0"),
}


def judge_features(table, tmp_path):
    suite = features("user_activity", FEATURES.schema, ["user_id"], NOW)
    return run_gate(suite, table, docs=tmp_path, now=NOW)


def test_a_good_feature_table_passes(tmp_path):
    assert judge_features(FEATURES, tmp_path).success


@pytest.mark.parametrize(("table", "message"), BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_bad_features_are_stopped(table, message, tmp_path):
    with pytest.raises(GateFailure, match=message):
        judge_features(table, tmp_path)


TRAINING = pa.table(
    {
        "user_id": pa.array([0, 0, 1], pa.int64()),
        "post_id": pa.array([0, 1, 0], pa.int64()),
        "event_timestamp": pa.array([NOW] * 3, TIMES),
        "label": pa.array([1, 0, 0], pa.int64()),
        "user_event_count_7d": pa.array([3, 3, None], pa.int64()),
    }
)
BAD_TRAINING = {
    "null label": (changed(TRAINING, "label", 0, None), r"label must not be null: 1 of 3 rows"),
    "one class": (
        with_column(TRAINING, "label", [1, 1, 1]),
        r"label must be of at least two classes \(distinct values\): found 1; no candidate",
    ),
    "missing feature": (
        TRAINING.drop_columns(["user_event_count_7d"]),
        r"user_event_count_7d missing; .*`feastrank apply`",
    ),
    "all-null feature": (
        with_column(TRAINING, "user_event_count_7d", [None] * 3),
        r"user_event_count_7d must not be null in every row",
    ),
    "repeated row": (
        repeated(TRAINING, 1),
        r"no two rows may share user_id, post_id, event_timestamp: 2 of 4 rows fail",
    ),
}


def judge_training(table, tmp_path):
    return run_gate(training_set(["user_event_count_7d"]), table, docs=tmp_path, now=NOW)


def test_a_good_training_set_passes(tmp_path):
    assert judge_training(TRAINING, tmp_path).success


@pytest.mark.parametrize(("table", "message"), BAD_TRAINING.values(), ids=BAD_TRAINING)
def test_bad_training_sets_are_stopped(table, message, tmp_path):
    with pytest.raises(GateFailure, match=message):
        judge_training(table, tmp_path)


def judge_model(tmp_path, *, ndcg, published=None, users=10, recall=0.2):
    table = model_table(
        {"ndcg@10": ndcg, "recall@10": recall},
        metric="ndcg@10",
        popularity={"ndcg@10": 0.1},
        evaluated_users=users,
        published=published,
    )
    return run_gate(model(table, metric="ndcg@10"), table, docs=tmp_path, now=NOW)


@pytest.mark.parametrize("published", [None, {"ndcg@10": 0.2222}, {"recall@10": 0.9}])
def test_a_model_that_beats_popularity_and_keeps_up_passes(tmp_path, published):
    assert judge_model(tmp_path, ndcg=0.2, published=published).success


BAD_MODELS = {
    "no better than popularity": (
        {"ndcg": 0.1},
        r"^gate model: ndcg@10 must be better than the popularity list's: 1 of 1 rows fail "
        r"\(first: row 0 ndcg@10=0\.1 popularity=0\.1\); nothing was published",
    ),
    "worse than published": (
        {"ndcg": 0.2, "published": {"ndcg@10": 0.25}},
        r"ndcg@10 must not fall below the published model's, less the tolerance: 1 of 1 rows fail "
        r"\(first: row 0 ndcg@10=0\.2 published_least=0\.225\)",
    ),
    "NaN": ({"ndcg": math.nan}, r"ndcg@10 must be finite"),
    "another metric NaN": ({"ndcg": 0.2, "recall": math.nan}, r"recall@10 must be finite"),
    "no metric": ({"ndcg": None}, r"ndcg@10 must not be null: 1 of 1 rows fail"),
    "nobody evaluated": (
        {"ndcg": 0.2, "users": 0},
        r"evaluated_users must be at least 1: .*no user",
    ),
}


@pytest.mark.parametrize(("given", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models_are_stopped(given, message, tmp_path):
    with pytest.raises(GateFailure, match=message):
        judge_model(tmp_path, **given)


def test_names_that_only_sound_like_counts_have_no_range(tmp_path):
    table = FEATURES.append_column("user_country_discount", pa.array([-1.0, 2.0, 3.0]))
    table = table.append_column("user_generated_score", pc.multiply(2.0, pa.array([1.0, 2.0, 3.0])))
    suite = features("user_activity", table.schema, ["user_id"], NOW)
    assert run_gate(suite, table, docs=tmp_path, now=NOW).success

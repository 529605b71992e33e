"""What `feastrank init` makes of files; every proposal is one that ingest can follow."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_examples import FEED_POSTS, LASTFM, lake_table, movielens, write_json_lines

from feature_repo.dataset import Dataset, DatasetError
from pipelines.datasets.lake import ingest
from pipelines.datasets.propose import propose
from pipelines.errors import ProposalError

START = datetime(2024, 1, 1, tzinfo=UTC)


def proposed(folder, events, users=None, posts=None):
    """Write the files, propose, ingest what was proposed; return description and sentences."""
    paths = {}
    for name, content in (("users", users), ("posts", posts), ("events", events)):
        if content is not None:
            paths[name] = folder / f"{name}.csv"
            data = content.encode() if isinstance(content, str) else content
            paths[name].write_bytes(data)
    text, told = propose(paths.get("users"), paths.get("posts"), paths["events"], "mine", folder)
    dataset = Dataset.parse(text)
    ingest(dataset, folder, folder / "lake")
    return dataset, "\n".join(told)


def rows(count, line):
    return "".join(line(number) + "\n" for number in range(count))


def test_a_feed_with_actions_and_a_target(tmp_path):
    users = "user_id;gender;age;country;os\n" + rows(
        40, lambda n: f"{n + 200};{n % 2};{18 + n};{['Russia', 'Ukraine'][n % 2]};iOS"
    )
    posts = "post_id,text,topic\n" + rows(
        30, lambda n: f'{n},"Long text number {n}, with ""quotes"".\nSecond line.",{"ab"[n % 2]}'
    )
    events = "timestamp,user_id,post_id,action,target\n" + rows(
        200,
        lambda n: (
            f"2021-12-{n % 28 + 1:02d} 10:00:00,{n % 40 + 200},{n % 30},"
            + ("like,0" if n % 5 == 1 else f"view,{int(n % 5 == 0)}")
        ),
    )
    dataset, told = proposed(tmp_path, events, users, posts)
    assert dataset.users is not None
    assert dataset.users.separator == ";"
    assert dataset.users.id == "user_id"
    assert [(one.name, one.type) for one in dataset.user_attributes] == [
        ("gender", "categorical"),
        ("age", "numeric"),
        ("country", "categorical"),
        ("os", "categorical"),
    ]
    assert dataset.posts is not None
    assert dataset.posts.text == ("text",)
    assert dataset.posts.topics is not None
    assert (dataset.posts.topics.column, dataset.posts.topics.separator) == ("topic", None)
    assert (dataset.events.time.column, dataset.events.time.format) == ("timestamp", "iso")
    assert dataset.events.action.column == "action"
    assert dataset.events.impressions is not None
    assert dataset.events.impressions.actions == ("view",)
    assert (dataset.events.positive.column, dataset.events.positive.equals) == ("target", 1)
    assert dataset.has_impressions
    assert "users: 'gender' has 2 whole values: taken as categories" in told
    assert "events: 'action' is the action: view, like" in told


def test_events_alone_with_actions(tmp_path):
    events = "uid,item,when,event\n" + rows(
        60, lambda n: f"{n % 7},{n % 11},{1_700_000_000_000 + n},{['view', 'buy', 'hide'][n % 3]}"
    )
    dataset, told = proposed(tmp_path, events)
    assert (dataset.events.user, dataset.events.post) == ("uid", "item")
    assert dataset.events.time.format == "epoch_ms"
    assert dataset.events.positive.actions == ("buy",)
    assert dataset.users is None
    assert "positive actions: buy" in told


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("%Y-%m-%dT%H:%M:%S+00:00", "iso"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
        ("%m/%d/%Y", "%m/%d/%Y"),
        ("%Y%m%d", "%Y%m%d"),
        ("%a %b %d %H:%M:%S +0000 %Y", "%a %b %d %H:%M:%S %z %Y"),
    ],
)
def test_time_formats_are_found(tmp_path, written, form):
    moments = [START + timedelta(days=n) for n in range(60)]
    events = "user_id,post_id,created_at\n" + rows(
        60, lambda n: f"{n % 7},{n % 11},{moments[n].strftime(written)}"
    )
    dataset, _ = proposed(tmp_path, events)
    assert dataset.events.time.format == form
    times = lake_table(tmp_path / "lake", "events")["event_time"].to_pylist()
    assert [time.date() for time in times] == [moment.date() for moment in moments]


@pytest.mark.parametrize(
    ("value", "column", "threshold"),
    [
        (lambda n: n % 5 + 1, "rating", 4),
        (lambda n: n % 10 + 1, "score", 8),
        (lambda n: (n % 10) / 2 + 0.5, "stars", 4),
    ],
)
def test_ratings_have_a_threshold(tmp_path, value, column, threshold):
    events = f"user_id,movie_id,{column},ts\n" + rows(
        60, lambda n: f"{n % 7},{n % 11},{value(n)},{1_700_000_000 + n}"
    )
    dataset, told = proposed(tmp_path, events)
    assert dataset.events.positive.at_least == threshold
    assert f"{threshold} or more is positive" in told
    assert dataset.has_impressions


def test_counts_are_weights_and_sorted_rows_have_no_order(tmp_path):
    events = rows(20, lambda n: "\n".join(f"{n}\t{97 * (n + k) % 50}\t{999 - k}" for k in range(9)))
    dataset, told = proposed(tmp_path, events)
    assert dataset.events.header is False
    assert (dataset.events.user, dataset.events.post, dataset.events.value) == ("0", "1", "2")
    assert dataset.events.time.format == "random_order"
    assert (dataset.events.weight.column, dataset.events.weight.scale) == ("2", "log1p")
    assert "the first line holds values, so there is no header" in told
    assert "the rows of 100 % of users are sorted by '2' or '1'" in told


def test_rows_in_no_visible_order_keep_that_of_the_file(tmp_path):
    events = "user_id,track_id\n" + rows(99, lambda n: f"{n % 5},{n * n % 31}")
    dataset, told = proposed(tmp_path, events)
    assert dataset.events.time.format == "file_order"
    assert "order in which they happened" in told


def test_encodings_quotes_lists_and_odd_values(tmp_path):
    posts = "id\tname\tgenres\tyear\tviews\turl\n" + rows(
        40,
        lambda n: (
            f'{n}\t"{n} Фильм\t{["драма|комедия", "драма"][n % 2]}\t'
            f"{'нет' if n == 3 else 1950 + n}\t{n * 100}\thttp://x/{n}"
        ),
    )
    events = "user_id,post_id\n" + rows(99, lambda n: f"{n % 5},{n * n % 40}")
    dataset, told = proposed(tmp_path, events, posts=posts.encode("cp1251"))
    assert dataset.posts is not None
    assert (dataset.posts.encoding, dataset.posts.quote) == ("cp1251", "")
    assert dataset.posts.title == "name"
    assert dataset.posts.topics is not None
    assert dataset.posts.topics.separator == "|"
    assert [(one.name, one.type) for one in dataset.post_attributes] == [("year", "numeric")]
    assert "'views' is left out: a total up to the export would tell the ranker the future" in told
    assert "'url' is left out: nearly every value is different" in told
    assert "'нет' are taken for nulls" in told
    assert lake_table(tmp_path / "lake", "topics")["topic"].to_pylist() == ["драма", "комедия"]


def test_json_lines_and_parquet(tmp_path):
    events = [
        {
            "customer": f"c{n % 7}",
            "sku": n % 11,
            "liked": n % 2 == 0,
            "at": f"2024-01-{n % 28 + 1:02d}",
        }
        for n in range(60)
    ]
    posts = pa.table(
        {
            "item_id": list(range(11)),
            "title": [f"t{n}" for n in range(11)],
            "tags": [["a", "b"], ["a"]] * 5 + [None],
            "published": [START] * 11,
        }
    )
    write_json_lines(tmp_path / "events.jsonl", events)
    pq.write_table(posts, tmp_path / "posts.parquet")
    text, _ = propose(None, tmp_path / "posts.parquet", tmp_path / "events.jsonl", "mine")
    dataset = Dataset.parse(text)
    assert dataset.posts is not None
    assert dataset.posts.created is not None
    assert dataset.posts.created.column == "published"
    assert dataset.events.positive.equals is True
    result = ingest(dataset, tmp_path, tmp_path / "lake")
    assert (result.events, result.topics, result.posts) == (60, 2, 11)


def test_ids_are_found_by_their_values_where_names_tell_nothing(tmp_path):
    users = "name,id\n" + rows(9, lambda n: f"n{n},U{n}")
    events = "who,what_id,item\n" + rows(60, lambda n: f"U{n % 9},{n},{n * n % 7}")
    dataset, told = proposed(tmp_path, events, users=users)
    assert (dataset.events.user, dataset.events.post) == ("who", "item")
    assert "'who' is the user's id: 100 % of its values are ids of users" in told


def test_reserved_and_odd_column_names_become_feature_names(tmp_path):
    users = "user_id,Title,2nd Language,isActive,is-active\n" + rows(
        30, lambda n: f"{n},{'MD'[n % 2]},{'xy'[n % 2]},{'true' if n % 2 else 'false'},b"
    )
    events = "user_id,post_id\n" + rows(90, lambda n: f"{n % 30},{n * n % 31}")
    dataset, _ = proposed(tmp_path, events, users=users)
    assert [one.name for one in dataset.user_attributes] == [
        "own_title",
        "column_2nd_language",
        "is_active",
        "is_active_2",
    ]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            "post_id;Topic;likes;posts_views\n" + rows(30, lambda n: f"{n};1.5;{n};{n * 10}"),
            r"users: .*events.csv has no column of user ids; it has post_id, Topic, likes, .*"
            r"totals per post do not say who did what",
        ),
        (
            "user_id,age\n" + rows(30, lambda n: f"{n % 9},{n}"),
            "posts: .*has no column of post ids; it has user_id, age",
        ),
        (
            "user_id,post_id\n" + rows(30, lambda n: f"{n},{n}"),
            "no 'user_id' and no 'post_id' comes twice",
        ),
        ("", r"events: .*events.csv is empty \(0 bytes\)"),
        ("user_id,post_id\n", r"events: .*events.csv has no rows"),
    ],
)
def test_files_that_are_no_history_are_refused(tmp_path, events, message):
    with pytest.raises(ProposalError, match=message):
        proposed(tmp_path, events)


def test_missing_files_and_bad_names_are_refused(tmp_path):
    with pytest.raises(ProposalError, match=r"events: no file .*none.csv; check the path"):
        propose(None, None, tmp_path / "none.csv", "mine")
    path = tmp_path / "events.csv"
    path.write_text("user_id,post_id\n" + rows(40, lambda n: f"{n % 5},{n % 7}"))
    with pytest.raises(DatasetError, match=r"the proposed description: .*\n.*name: found 'My'"):
        propose(None, None, path, "My")


def test_movielens_is_proposed_as_it_is_described():
    described, folder = movielens()
    files = [folder / f"ml-100k.{name}" for name in ("user", "item", "inter")]
    text, told = propose(*files, "movielens_100k", folder)
    dataset = Dataset.parse(text)
    assert dataset.user_attributes == described.user_attributes
    assert dataset.post_attributes == described.post_attributes
    assert dataset.posts is not None
    assert described.posts is not None
    assert dataset.posts.topics == described.posts.topics
    assert dataset.posts.title == described.posts.title
    same = ("user", "post", "value", "time", "action", "impressions", "positive", "weight", "path")
    for name in same:
        assert getattr(dataset.events, name) == getattr(described.events, name), name
    assert (
        "events: 'rating:float' is a rating from 1 to 5: 4 or more is positive, and"
        in "\n".join(told)
    )


@pytest.mark.skipif(not LASTFM.exists(), reason="Last.fm is not on this machine")
def test_lastfm_is_proposed_without_a_clock():
    text, _ = propose(None, LASTFM / "artists.dat", LASTFM / "user_artists.dat", "lastfm", LASTFM)
    dataset = Dataset.parse(text)
    assert (dataset.events.user, dataset.events.post, dataset.events.value) == ("0", "1", "2")
    assert dataset.events.time.format == "random_order"
    assert dataset.posts is not None
    assert (dataset.posts.id, dataset.posts.title) == ("id", "name")


@pytest.mark.skipif(not FEED_POSTS.exists(), reason="the feed's posts are not on this machine")
@pytest.mark.parametrize("name", ["posts_views_likes.csv", "bbc_posts_with_text.csv"])
def test_totals_of_the_feed_are_refused(name):
    with pytest.raises(ProposalError, match=r"no column of user ids; it has post_id, .*totals per"):
        propose(None, None, FEED_POSTS / name, "feed")

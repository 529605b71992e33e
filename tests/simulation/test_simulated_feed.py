"""Simulated tables have the printed figures of the real feed, and the truth is true of them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from feeds import SMALL, write

from feature_repo.dataset import Dataset
from pipelines.cli import main
from pipelines.errors import SimulationError
from pipelines.simulation import facts
from pipelines.simulation.feed import period
from pipelines.simulation.simulate import SimulatedFeed
from pipelines.simulation.taste import Taste
from pipelines.simulation.truth import bounds, hit_rate, with_liked


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFeed:
    return write(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def rows(feed: SimulatedFeed) -> pd.DataFrame:
    return pq.read_table(feed.feed).to_pandas()


def test_sizes_are_exactly_what_was_asked_for(feed: SimulatedFeed, rows: pd.DataFrame) -> None:
    assert pq.read_metadata(feed.users).num_rows == SMALL.users
    assert pq.read_metadata(feed.posts).num_rows == SMALL.posts
    assert (rows["action"] == "view").sum() == SMALL.views
    assert not rows.isna().any().any()
    start, end = period(SMALL.days)
    assert rows["timestamp"].min() >= pd.Timestamp(start, unit="s", tz="UTC")
    assert rows["timestamp"].max() < pd.Timestamp(end, unit="s", tz="UTC")
    assert rows["timestamp"].is_monotonic_increasing


def test_users_have_the_printed_cities_and_plausible_attributes(feed: SimulatedFeed) -> None:
    users = pq.read_table(feed.users).to_pandas()
    assert users["user_id"].is_unique
    for city, real in facts.CITY_USERS.items():
        expected = real / facts.USERS
        deviation = 4 * np.sqrt(expected / SMALL.users)
        assert (users["city"] == city).mean() == pytest.approx(expected, abs=deviation)
    assert set(users["gender"]) == {0, 1}
    assert set(users["exp_group"]) == set(range(5))
    assert users["age"].between(facts.YOUNGEST, facts.OLDEST).all()
    assert users.loc[users["city"].isin([*facts.CITY_USERS]), "country"].eq("Russia").all()


def test_topics_views_and_like_rates_are_the_real_feeds(
    feed: SimulatedFeed, rows: pd.DataFrame
) -> None:
    posts = pq.read_table(feed.posts).to_pandas().set_index("post_id")
    views = rows[rows["action"] == "view"].assign(topic=lambda t: t["post_id"].map(posts["topic"]))
    assert views["target"].mean() == pytest.approx(facts.LIKES_PER_VIEW, abs=0.003)
    real_views = {
        name: sum(g.posts * g.views for g in topic.groups) for name, topic in facts.TOPICS.items()
    }
    for name, topic in facts.TOPICS.items():
        own = views[views["topic"] == name]
        share = (posts["topic"] == name).mean()
        assert share == pytest.approx(topic.posts / facts.POSTS, abs=0.01)
        assert (
            posts.index[posts["topic"] == name]
            .to_series()
            .between(topic.first_id, topic.last_id)
            .all()
        )
        real_share = real_views[name] / sum(real_views.values())
        assert len(own) / len(views) == pytest.approx(real_share, abs=0.02)
        noise = 4 * np.sqrt(topic.like_rate / len(own)) + 0.003
        assert own["target"].mean() == pytest.approx(topic.like_rate, abs=noise)
    never = posts.index.difference(views["post_id"])
    assert len(never) / len(posts) == pytest.approx(192 / facts.POSTS, abs=0.01)


def test_views_per_post_have_the_real_groups_spread(rows: pd.DataFrame) -> None:
    counts = rows.loc[rows["action"] == "view", "post_id"].value_counts()
    groups = [g for topic in facts.TOPICS.values() for g in topic.groups]
    real = np.repeat([g.views for g in groups], [g.posts for g in groups])
    # Two humps, at one and at two and a half times the median, here with the noise of few views.
    drawn = np.random.default_rng(0).poisson(
        real * counts.sum() / real.sum() / len(counts) * len(real)
    )
    for share in (0.1, 0.9):
        expected = np.quantile(drawn, share) / np.median(drawn)
        assert counts.quantile(share) / counts.median() == pytest.approx(expected, rel=0.05)


def test_a_like_follows_its_view_within_a_minute_and_happens_once(rows: pd.DataFrame) -> None:
    likes = rows[rows["action"] == "like"]
    assert (likes["target"] == 0).all()
    assert not likes.duplicated(["user_id", "post_id"]).any()
    origin = rows[(rows["action"] == "view") & (rows["target"] == 1)]
    pairs = likes.merge(origin, on=["user_id", "post_id"], how="outer", suffixes=("", "_view"))
    assert len(pairs) == len(likes) == len(origin)
    delay = (pairs["timestamp"] - pairs["timestamp_view"]).dt.total_seconds()
    assert delay.between(*facts.LIKE_DELAY_S).all()


def test_sessions_follow_the_hours_and_weekdays(rows: pd.DataFrame) -> None:
    views = rows[rows["action"] == "view"]
    hours = np.bincount(views["timestamp"].dt.hour, minlength=24) / len(views)
    expected = facts.HOUR_WEIGHTS / facts.HOUR_WEIGHTS.sum()
    # A visit of some minutes may run into the next hour.
    assert np.abs(hours - expected).max() < 0.02
    assert hours[1:6].sum() == 0
    weekend = views["timestamp"].dt.dayofweek >= 5
    days = views["timestamp"].dt.date
    ratio = weekend.sum() / days[weekend].nunique() / ((~weekend).sum() / days[~weekend].nunique())
    assert ratio == pytest.approx(facts.WEEKEND_FACTOR, abs=0.05)


def test_the_same_seed_gives_the_same_feed(tmp_path: Path, feed: SimulatedFeed) -> None:
    size = dataclasses.replace(SMALL, users=100, posts=80, views=4_000, moments=50)
    first, second = (write(tmp_path / name, size) for name in ("a", "b"))
    other = write(tmp_path / "c", dataclasses.replace(size, seed=4))
    for table in ("users", "posts", "feed", "moments"):
        assert pq.read_table(getattr(first, table)) == pq.read_table(getattr(second, table))
    assert pq.read_table(first.feed) != pq.read_table(other.feed)
    assert first.facts() == second.facts()


def test_the_feed_is_the_same_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces are ordered by time over their borders, and a pair is liked once over them."""
    monkeypatch.setattr("pipelines.simulation.feed.BATCH_VIEWS", 1_000)
    monkeypatch.setattr("pipelines.simulation.simulate._ROWS_PER_FILE", 5_000)
    size = dataclasses.replace(SMALL, users=60, posts=80, views=20_000, moments=50)
    feed = write(tmp_path, size)
    assert len(list(feed.feed.glob("*.parquet"))) > 3
    rows = pq.read_table(feed.feed).to_pandas()
    assert (rows["action"] == "view").sum() == 20_000
    assert rows["timestamp"].is_monotonic_increasing
    assert not rows[rows["action"] == "like"].duplicated(["user_id", "post_id"]).any()


def test_the_description_reads(feed: SimulatedFeed) -> None:
    dataset = Dataset.read(feed.description)
    assert dataset.name == "small_feed"
    assert dataset.has_impressions
    assert dataset.has_text
    assert dataset.has_topics


def test_likes_happen_with_the_probability_of_the_taste(
    feed: SimulatedFeed, rows: pd.DataFrame
) -> None:
    taste = Taste.load(feed.taste)
    views = rows[rows["action"] == "view"]
    users = np.searchsorted(taste.user_ids, views["user_id"])
    posts = np.searchsorted(taste.post_ids, views["post_id"])
    seconds = (views["timestamp"].astype("int64") // 1_000_000).to_numpy()
    chances = taste.of_views(users, posts, seconds).astype(np.float64)
    # By tenths of the probability: liked as often as the taste says, but for pairs liked before.
    tenth = np.searchsorted(np.quantile(chances, np.linspace(0.1, 0.9, 9)), chances)
    for part in range(10):
        own = tenth == part
        expected = chances[own].mean()
        noise = 4 * np.sqrt(expected / own.sum())
        assert views["target"].to_numpy()[own].mean() == pytest.approx(
            expected, abs=noise + 0.06 * expected
        )


def test_probabilities_of_all_posts_are_those_of_single_views(feed: SimulatedFeed) -> None:
    taste = Taste.load(feed.taste)
    users = np.array([0, 7, 7])
    seconds = taste.start_s + np.array([0, 3_600 * 20, 86_400 * 40])
    matrix = taste.of_all_posts(users, seconds)
    posts = np.arange(SMALL.posts)
    for row in range(3):
        single = taste.of_views(
            np.repeat(users[row], SMALL.posts), posts, np.repeat(seconds[row], SMALL.posts)
        )
        np.testing.assert_allclose(matrix[row], single, rtol=1e-4)


def test_hit_rates_of_the_oracle_and_of_chance_agree_with_answers(feed: SimulatedFeed) -> None:
    """Users who answer by the taste hit the oracle's lists as often as its HitRate says."""
    taste = Taste.load(feed.taste)
    moments = with_liked(pq.read_table(feed.moments), feed.feed, taste)
    facts_written = feed.facts()
    limits = bounds(taste, moments, np.random.default_rng(0))
    stated = facts_written["hit_rate_at_5"]
    assert limits["oracle"].value == pytest.approx(stated["oracle"]["value"], abs=1e-9)
    assert limits["random"].value == pytest.approx(stated["random"]["value"], abs=0.01)
    rows = np.searchsorted(taste.user_ids, moments.user_ids)
    chances = taste.of_all_posts(rows, moments.seconds).astype(np.float64)
    for moment, liked in enumerate(moments.liked):
        chances[moment, liked] = -1
    top = np.argsort(-chances, axis=1)[:, :5]
    measured = hit_rate(taste, moments, taste.post_ids[top])
    assert measured.value == pytest.approx(limits["oracle"].value, abs=1e-6)
    rng = np.random.default_rng(5)
    answers = rng.random((200, *top.shape)) < np.take_along_axis(chances, top, axis=1)
    assert answers.any(axis=2).mean() == pytest.approx(measured.value, abs=0.005)
    # Worth learning, not trivial: posts that are best for everybody fall far short of the best.
    best = np.argsort(-taste.base)[:12]
    same = np.array([[p for p in best if p not in liked][:5] for liked in moments.liked])
    popular = hit_rate(taste, moments, taste.post_ids[same]).value
    low, high = limits["random"].value, limits["oracle"].value
    assert 0.1 < (popular - low) / (high - low) < 0.6
    assert 0.40 < low < 0.48
    assert 0.70 < high < 0.85


def test_liked_before_a_moment_is_what_the_feed_says(
    feed: SimulatedFeed, rows: pd.DataFrame
) -> None:
    taste = Taste.load(feed.taste)
    table = pq.read_table(feed.moments)
    moments = with_liked(table, feed.feed, taste)
    likes = rows[rows["action"] == "like"]
    asked = table.to_pandas()
    assert asked["timestamp"].min() >= pd.Timestamp(feed.facts()["cut"])
    for moment in range(0, len(asked), 40):
        user, time = asked.iloc[moment]
        own = likes[(likes["user_id"] == user) & (likes["timestamp"] < time)]
        assert set(taste.post_ids[moments.liked[moment]]) == set(own["post_id"])
    assert sum(map(len, moments.liked)) > 0


def test_lists_that_break_the_rules_are_refused(feed: SimulatedFeed) -> None:
    taste = Taste.load(feed.taste)
    moments = with_liked(pq.read_table(feed.moments), feed.feed, taste)
    asked = len(moments.liked)
    lists = np.tile(taste.post_ids[:5], (asked, 1))
    with pytest.raises(SimulationError, match=r"found shape \(400, 4\), expected \(400, 5\)"):
        hit_rate(taste, moments, lists[:, :4])
    with pytest.raises(SimulationError, match="which the feed does not have"):
        hit_rate(taste, moments, lists + 1_000_000)
    with pytest.raises(SimulationError, match="a post twice at one moment"):
        hit_rate(taste, moments, np.tile(taste.post_ids[[0, 1, 2, 3, 0]], (asked, 1)))
    some = next(m for m, liked in enumerate(moments.liked) if len(liked))
    liked = moments.liked[some][0]
    others = [p for p in range(10) if p not in moments.liked[some]][:4]
    lists = np.array([[p for p in range(60) if p not in seen][:5] for seen in moments.liked])
    lists[some] = [liked, *others]
    with pytest.raises(SimulationError, match="which he has liked before"):
        hit_rate(taste, moments, taste.post_ids[lists])


def test_real_texts_are_used_by_topic(tmp_path: Path) -> None:
    given = tmp_path / "texts.csv"
    words = ["goal match team", "budget vote party"]
    lines = [f'"{words[i % 2]} number {i}",{("sport", "politics")[i % 2]}' for i in range(40)]
    given.write_text("\n".join(["text,topic", *lines]), encoding="utf-8")
    size = dataclasses.replace(SMALL, users=100, posts=300, views=4_000, moments=50)
    feed = write(tmp_path / "feed", size, given)
    posts = pq.read_table(feed.posts).to_pandas()
    assert posts.loc[posts["topic"] == "sport", "text"].str.startswith("goal match team").all()
    assert not posts.loc[posts["topic"] == "covid", "text"].str.contains("number").any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title,topic\nx,sport\n", "no column text, found"),
        ("text,topic\nx,gardening\n", r"of the topics \['gardening'\], expected some, of business"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    given = tmp_path / "texts.csv"
    given.write_text(content, encoding="utf-8")
    with pytest.raises(SimulationError, match=message):
        write(tmp_path / "feed", SMALL, given)
    with pytest.raises(SimulationError, match="cannot be read"):
        write(tmp_path / "feed", SMALL, tmp_path / "absent.csv")


def test_the_command_says_what_is_possible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--users", "100", "--posts", "80", "--views", "5000", "--moments", "30"]
    assert main(["simulate", "--output", str(tmp_path / "feed"), *sizes]) == 0
    out = capsys.readouterr().out
    assert "5,000 views and " in out
    truth = json.loads((tmp_path / "feed" / "truth" / "truth.json").read_text(encoding="utf-8"))
    assert f"oracle {truth['hit_rate_at_5']['oracle']['value']:.4f}" in out
    assert main(["simulate", "--output", str(tmp_path / "feed"), *sizes, "--days", "7"]) == 1
    assert "7 days after the cut of 7 days in all leave none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_large_feed_takes_little_memory(tmp_path: Path) -> None:
    """Ten times the views cost much less than ten times the memory."""
    script = Path(__file__).with_name("peak_memory.py")
    peaks = []
    for views in ("1000000", "10000000"):
        command = [sys.executable, str(script), str(tmp_path), views]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 300, peaks

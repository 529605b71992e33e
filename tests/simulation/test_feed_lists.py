"""System F on a simulated feed: lists obey the rules and come near the best possible ones."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from feeds import SMALL, write

from pipelines.cli import main
from pipelines.errors import RankerTrainingError
from pipelines.ranking.affinity import Affinity, Views
from pipelines.ranking.impressions import exposure_groups


def drawn(rng: np.random.Generator, count: int) -> tuple[Views, np.ndarray, np.ndarray]:
    """Two kinds of users who like opposite topics; 40 users, 30 posts, all posts as good."""
    attributes = np.ones((40, 2), dtype=np.float32)
    attributes[:, 1] = np.where(np.arange(40) % 2, 1.0, -1.0)
    contents = np.ones((30, 2), dtype=np.float32)
    contents[:, 1] = np.where(np.arange(30) % 3, 0.0, 1.0)
    users, posts = rng.integers(0, 40, count), rng.integers(0, 30, count)
    logits = -1.0 + attributes[users, 1] * contents[posts, 1]
    liked = rng.random(count) < 1 / (1 + np.exp(-logits))
    views = Views(users, posts, rng.integers(0, 24, count), liked.astype(np.float32))
    return views, attributes, contents


def test_affinity_finds_what_attributes_say_about_topics() -> None:
    views, attributes, contents = drawn(np.random.default_rng(1), 60_000)
    model = Affinity.fit(views, attributes, contents, topics=2)
    posts = np.arange(30)
    noon = np.full(2, 12)
    logits = model.of_all_posts(np.array([0, 1]), noon)
    on, off = posts % 3 == 0, posts % 3 != 0
    assert logits[1, on].mean() - logits[0, on].mean() == pytest.approx(2, abs=0.3)
    assert logits[:, off].mean() == pytest.approx(-1, abs=0.15)
    single = model.of_pairs(np.repeat([0, 1], 30), np.tile(posts, 2), np.repeat(noon, 30))
    np.testing.assert_allclose(single.reshape(2, 30), logits, rtol=1e-4, atol=1e-5)


def test_few_impressions_stay_near_the_prior() -> None:
    views, attributes, contents = drawn(np.random.default_rng(2), 40)
    model = Affinity.fit(views, attributes, contents, topics=2)
    logits = model.of_all_posts(np.arange(40), np.full(40, 12))
    assert logits.std() < 0.35
    one = dataclasses.replace(views, liked=np.ones_like(views.liked))
    with pytest.raises(RankerTrainingError, match="100% of them liked; expected some"):
        Affinity.fit(one, attributes, contents, topics=2)


def test_posts_with_few_impressions_stay_near_their_group() -> None:
    """Each of 400 posts was seen 12 times; the first 200 are liked far more often."""
    rng = np.random.default_rng(3)
    posts = np.repeat(np.arange(400), 12)
    liked = rng.random(len(posts)) < np.where(posts < 200, 0.3, 0.1)
    users = rng.integers(0, 40, len(posts))
    views = Views(users, posts, np.zeros_like(posts), liked.astype(np.float32))
    ones = np.ones((40, 1), dtype=np.float32), np.ones((400, 1), dtype=np.float32)
    groups = (np.arange(400) < 200).astype(np.int64)
    known = Affinity.fit(views, *ones, 1, groups)
    unknown = Affinity.fit(views, *ones, 1)
    for model, low, high in ((known, 0.9, 1.4), (unknown, 0.0, 0.6)):
        assert low < model.posts[:200].mean() - model.posts[200:].mean() < high
    again = Affinity.fit(views, *ones, 1, groups, start=known)
    np.testing.assert_allclose(again.posts, known.posts, atol=0.01)


def test_posts_are_grouped_by_topic_and_by_how_often_they_were_shown() -> None:
    counts = np.array([0, 1, 1, 50, 50, 50, 1])
    topics = np.zeros((7, 2), dtype=np.float32)
    topics[[0, 1, 3, 4, 6], 0] = 1
    topics[[2, 5], 1] = 1
    found = exposure_groups(np.repeat(np.arange(7), counts), topics)
    assert found[3] == found[4] != found[1] == found[6]
    assert found[5] != found[3]
    assert found[2] not in (found[1], found[5])
    assert found.min() >= 0
    whole = exposure_groups(np.repeat(np.arange(7), counts), topics[:, :0])
    assert whole[1] == whole[2] != whole[3] == whole[5]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Feast calls its on-demand views experimental
def test_a_simulated_feed_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feed = write(tmp_path / "simulated", dataclasses.replace(SMALL, moments=300))
    text = feed.description.read_text(encoding="utf-8").replace('text = "text"\n', "")
    feed.description.write_text(text, encoding="utf-8")
    job = ["--dataset", str(feed.description), "--home", str(tmp_path / "home")]
    sizes = ["--ranker-impressions", "20000", "--shortlist", "20"]
    assert main(["feed", *job, *sizes, "--simulated", str(feed.folder)]) == 0
    out = capsys.readouterr().out
    # Lists with a post liked before, or one twice, make `hit_rate` an error.
    found = re.search(r"HitRate@5 ([\d.]+) .*: ([\d.]+)% of the way", out)
    assert found is not None, out
    # Without the texts, which take long to embed, nobody can know more than 72 % of the way here:
    # that is what the posts' true levels and the users' true traits and topics reach.
    assert float(found[2]) > 65
    lists = pq.read_table(tmp_path / "home" / "small_feed" / "feed" / "recommendations.parquet")
    assert lists.num_rows == 300 * 5
    assert main(["feed", *job]) == 1
    assert "pass --moments, or --simulated" in capsys.readouterr().err

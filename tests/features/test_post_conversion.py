"""The predicted rate of posts: found by content, never from the post's own counts."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit

from pipelines.features.post_conversion import Viewed, compute

CUT = pa.scalar(datetime(2024, 5, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
COUNT = 240


def feed(unseen: int = 40) -> tuple[pa.Table, Viewed, dict[str, np.ndarray]]:
    """Posts whose first number of the embedding adds 1 to the log odds; the last ones are new."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(COUNT, 6)).astype(np.float32)
    rates = expit(-2.0 + vectors[:, 0].astype(np.float64))
    views = rng.integers(200, 900, COUNT)
    views[-unseen:] = 0
    days = np.where(np.arange(COUNT) < COUNT - unseen // 2, 1, 130)
    known = np.datetime64("2024-01-01", "us") + days * np.timedelta64(86_400_000_000, "us")
    posts = pa.table(
        {
            "post_id": np.arange(COUNT),
            "known_time": pa.array(known).cast(pa.timestamp("us", tz="UTC")),
            "text": [f"post number {i}" if i % 9 else None for i in range(COUNT)],
            "topics": [["tea"], ["maps", "tea"], None] * (COUNT // 3),
        }
    )
    return posts, Viewed(views, rng.binomial(views, rates)), {"text": vectors}


def rates_of(posts: pa.Table, viewed: Viewed, vectors: dict[str, np.ndarray]) -> np.ndarray:
    table = compute(posts, viewed, vectors, cut=CUT, seed=1)
    return table["post_predicted_positive_rate"].to_numpy()


def test_content_predicts_seen_and_new_posts() -> None:
    posts, viewed, vectors = feed()
    table = compute(posts, viewed, vectors, cut=CUT, seed=1)
    found = table["post_predicted_positive_rate"].to_numpy()
    truth = expit(-2.0 + vectors["text"][:, 0])
    for part in (slice(0, 200), slice(200, COUNT)):
        assert np.corrcoef(found[part], truth[part])[0, 1] > 0.8
    assert found[:200].mean() == pytest.approx(truth[:200].mean(), abs=0.03)
    since = table["event_timestamp"].to_pylist()
    assert set(since[: COUNT - 20]) == {CUT.as_py()}
    assert set(since[-20:]) == {datetime(2024, 5, 10, tzinfo=UTC)}


def test_a_posts_own_counts_do_not_change_its_prediction() -> None:
    posts, viewed, vectors = feed()
    before = rates_of(posts, viewed, vectors)
    likes = viewed.likes.copy()
    likes[7] = viewed.views[7]
    after = rates_of(posts, Viewed(viewed.views, likes), vectors)
    assert after[7] == before[7]
    assert (after != before).sum() > 100


def test_few_posts_have_the_mean_and_unseen_ones_nothing() -> None:
    posts, viewed, vectors = feed()
    views = np.where(np.arange(COUNT) < 30, 100, 0)
    likes = np.where(np.arange(COUNT) < 30, 20, 0)
    assert (rates_of(posts, Viewed(views, likes), vectors) == 0.2).all()
    # Posts without text are told apart by their pictures.
    blank = posts.set_column(2, "text", pa.nulls(COUNT, pa.string()))
    assert len(np.unique(rates_of(blank, viewed, {"image": vectors["text"]}))) > 100
    nothing = np.zeros(COUNT, dtype=np.int64)
    table = compute(posts, Viewed(nothing, nothing), vectors, cut=CUT, seed=1)
    assert table["post_predicted_positive_rate"].null_count == COUNT

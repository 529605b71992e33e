"""Targets worked by hand, likelihoods of counts, shrinkage, and tables that are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.conversion.folds import folds
from pipelines.conversion.likelihood import (
    RatePrior,
    deviance,
    expected_deviance,
    log_loss,
    saturated_log_loss,
)
from pipelines.conversion.models import Goals
from pipelines.conversion.posts import Columns, Posts, picture, read_posts
from pipelines.conversion.properties import clean_text, languages, properties
from pipelines.conversion.targets import fixed_weights, inverse_mean_weights, weighted_target
from pipelines.errors import ConversionError

COUNTS = {"like": np.array([5, 0, 10]), "share_to_message": np.array([1, 0, 0])}
VIEWS = np.array([10, 4, 100])


def posts_of(texts: list[str], **columns: object) -> Posts:
    n = len(texts)
    return Posts(
        tuple(map(str, range(n))), tuple(texts), np.full(n, 9), {"like": np.arange(n) % 9},
        **columns,  # type: ignore[arg-type]
    )  # fmt: skip


def written(folder: Path, **columns: list[object]) -> Path:
    base: dict[str, list[object]] = {"text": ["a", "b"], "views": [3, 4], "like": [1, 0]}
    path = folder / "posts.parquet"
    pq.write_table(pa.table(base | columns), path)
    return path


def test_fixed_weights_make_the_target_worked_by_hand() -> None:
    weights = fixed_weights(COUNTS, {})
    assert weights == {"like": 1.8, "share_to_message": 5.0}
    # (1.8 * 5 + 5 * 1) / 10, 0 / 4, 1.8 * 10 / 100
    assert weighted_target(COUNTS, VIEWS, weights) == pytest.approx([1.4, 0.0, 0.18])


def test_inverse_means_let_every_activity_add_as_much() -> None:
    weights = inverse_mean_weights({**COUNTS, "hide": np.zeros(3, dtype=np.int64)})
    # Means 5 and 1/3, inverses 0.2 and 3, scaled by 2 / 3.2; a hide never happened.
    assert weights == pytest.approx({"like": 0.125, "share_to_message": 1.875, "hide": 0.0})
    assert weights["like"] * 15 == pytest.approx(weights["share_to_message"] * 1)


def test_weights_of_strangers_are_refused() -> None:
    with pytest.raises(ConversionError, match="liek is none of the activities like"):
        fixed_weights({"like": 0}, {"liek": 1.0})


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.floats(0, 1), st.floats(0.001, 0.999)),
        min_size=1,
        max_size=8,
    )
)
def test_counts_have_the_likelihood_of_one_row_a_view(
    rows: list[tuple[int, float, float]],
) -> None:
    views = np.array([n for n, _, _ in rows])
    count = np.array([round(n * share) for n, share, _ in rows])
    rate = np.array([p for _, _, p in rows])
    happened = np.concatenate([np.arange(n) < k for n, k in zip(views, count, strict=True)])
    p = np.repeat(rate, views)
    expanded = -np.where(happened, np.log(p), np.log(1 - p))
    assert log_loss(count, views, rate).sum() == pytest.approx(expanded.sum(), rel=1e-9)
    # What models minimise: rates as targets, weighted by views.
    goals = Goals("rate", count / views, views.astype(float))
    assert goals.loss(np.arange(len(views)), rate) == pytest.approx(expanded.mean(), rel=1e-9)
    assert (saturated_log_loss(count, views) <= log_loss(count, views, rate) + 1e-9).all()


def test_the_noise_floor_of_many_views_is_one_and_of_one_view_its_own() -> None:
    rng = np.random.default_rng(3)
    many = expected_deviance(np.full(2_000, 5_000), np.full(2_000, 0.12), rng)
    assert many.mean() == pytest.approx(1.0, abs=0.01)
    # One view: -2 log p with probability p, -2 log(1 - p) else.
    exact = -2 * (0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    one = expected_deviance(np.ones(2_000, dtype=int), np.full(2_000, 0.1), rng)
    assert one.mean() == pytest.approx(exact, rel=0.01)
    assert deviance(np.array([3]), np.array([10]), np.array([0.3])) == pytest.approx([0.0])


def test_the_prior_finds_the_scatter_that_rates_were_drawn_with() -> None:
    rng = np.random.default_rng(4)
    views = rng.integers(50, 5_000, 4_000)
    expected = rng.choice([0.1, 0.2], 4_000)
    count = rng.binomial(views, rng.beta(200 * expected, 200 * (1 - expected)))
    assert RatePrior.fit(count, views, expected).precision == pytest.approx(200, rel=0.1)
    same = RatePrior.fit(rng.binomial(views, expected), views, expected)
    assert same.correlation < 1e-4


@given(
    st.integers(0, 1_000),
    st.integers(0, 1_000),
    st.floats(0.001, 0.999),
    st.floats(0.5, 1e6),
)
def test_shrunk_rates_lie_between_what_was_expected_and_what_was_seen(
    count: int, others: int, expected: float, precision: float
) -> None:
    views = np.array([count + others, 10 * (count + others)])
    counts, mean = np.array([count, 10 * count]), np.full(2, expected)
    prior = RatePrior(precision)
    few, many = prior.mean(counts, views, mean)
    low, high = prior.interval(counts, views, mean)
    assert (low <= high).all()
    if not views[0]:
        assert few == pytest.approx(expected)
        return
    seen = count / views[0]
    for rate in (few, many):
        assert min(seen, expected) - 1e-12 <= rate <= max(seen, expected) + 1e-12
    assert abs(many - seen) <= abs(few - seen) + 1e-12
    effective = prior.effective_views(views)
    assert effective[0] <= effective[1] + 1e-9
    assert effective[1] <= 1 / prior.correlation + 1e-6


def test_texts_are_cleaned_as_system_c_does() -> None:
    raw = "<p class='x'>Win&nbsp;5kg &amp; 3D</p>\n1 &lt; 2"
    assert clean_text(raw) == "Win 5 kg & 3 D 1 < 2"


def test_properties_are_what_a_reader_counts() -> None:
    posts = posts_of(
        [
            "Big NEWS\nIs it? Yes! 😀👍 #win @me http://a.b/c?d=1 5 people, really.",
            "ж",
            "",
        ],
        times=np.array(["2025-01-01T09:30", "2025-01-01T10:00", "2025-01-02"], "datetime64[us]"),
    )
    read = properties(posts)
    found = dict(zip(read.names, read.values[0], strict=True))
    expected = {
        "question_marks": 1,
        "exclamation_marks": 1,
        "emoji": 2,
        "hashtags": 1,
        "links": 1,
        "mentions": 1,
        "headline_words": 2,
        "paragraphs": 2,
        "hour": 9,
        "latin_share": 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert "quotation_marks" not in read.names
    assert np.isnan(read.column("latin_share")[2])
    assert read.column("latin_share")[1] == 0


def test_the_language_is_told_where_the_text_tells_it() -> None:
    english = "The film was long, but we liked the music and the actors a lot."
    german = "Der Film war lang, aber die Musik und die Schauspieler waren sehr gut."
    russian = "Фильм был длинный, но музыка и актёры нам очень понравились."
    marked = f"<p>{german}</p> https://example.com/the/most/english/of/all/addresses"
    texts = [english, german, russian, marked, "", "2021 🙂", "lol"]
    assert languages(texts) == ["en", "de", "ru", "de", None, None, None]
    read = properties(posts_of([english] * 30 + [german] * 25 + [russian] * 3 + ["lol"] * 4))
    assert [name for name in read.names if name.startswith("language")] == [
        "language de",
        "language en",
    ]
    column = read.column("language de")
    assert column[:58].sum() == 25
    assert np.isnan(column[58:]).all()


def test_pictures_are_told_apart() -> None:
    assert picture(b"\x89PNG") == b"\x89PNG"
    assert picture("data:image/png;base64,iVBORw0KGgo=") == b"\x89PNG\r\n\x1a\n"
    assert picture("photos/cat.jpg") == "photos/cat.jpg"
    assert picture(None) is None


def test_folds_keep_equal_texts_together_and_part_everything() -> None:
    posts = posts_of([f"text {k % 40}" for k in range(80)])
    parts = folds(posts, 4, np.random.default_rng(0))
    assert sorted(np.concatenate([part.test for part in parts]).tolist()) == list(range(80))
    for part in parts:
        sides = [{posts.texts[i] for i in side} for side in (part.fit, part.check, part.test)]
        assert not sides[0] & sides[1]
        assert not (sides[0] | sides[1]) & sides[2]
        assert all(sides)


def test_folds_by_time_learn_from_earlier_posts_only() -> None:
    days = np.random.default_rng(0).integers(0, 30, 90)
    times = np.datetime64("2025-01-01", "us") + days * np.timedelta64(1, "D")
    for part in folds(posts_of(["x"] * 90, times=times), 3, np.random.default_rng(0)):
        assert times[part.fit].max() < times[part.check].min()
        assert times[part.train].max() < times[part.test].min()
    with pytest.raises(ConversionError, match="too few for 3 folds by time"):
        folds(posts_of(["x"] * 9, times=times[:1].repeat(9)), 3, np.random.default_rng(0))
    with pytest.raises(ConversionError, match="1 different texts are too few for 3 folds"):
        folds(posts_of(["x"] * 9), 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"views": [0, 0], "like": [0, 0]}, "column views is 0 for all 2 posts"),
        ({"like": [1, 5]}, r"1 of 2 posts have more of it than views \(first: post 1, 5 of 4\)"),
        ({"views": [3, 0], "like": [1, 1]}, "post 1, 1 of 0"),
        ({"like": [1, -1]}, r"1 of 2 counts are negative \(row 2: -1\)"),
        ({"views": [3, None]}, r"1 of 2 counts are missing \(first in row 2\)"),
        ({"like": [1.5, 0.0]}, "expected whole numbers"),
        ({"text": [None, " "]}, "none of 2 posts has a text in column text"),
    ],
)
def test_counts_that_cannot_be_are_refused(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        read_posts(written(tmp_path, **columns), Columns())


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ConversionError, match=r"no column view; .* did you mean views"):
        read_posts(path, Columns(views="view"))
    with pytest.raises(ConversionError, match="no column topic; there are text, views, like"):
        read_posts(path, Columns(topic="topic"))
    with pytest.raises(ConversionError, match="no such file"):
        read_posts(tmp_path / "nothing.csv", Columns())
    pa.csv.write_csv(pq.read_table(path).drop(["like"]), tmp_path / "bare.csv")
    with pytest.raises(ConversionError, match="no column of activities; expected one of like"):
        read_posts(tmp_path / "bare.csv", Columns())
    with pytest.raises(ConversionError, match="is the separator right"):
        read_posts(tmp_path / "bare.csv", Columns(activities={"like": "like"}), separator=";")


def test_posts_that_nobody_saw_are_left_out_and_counted(tmp_path: Path) -> None:
    posts = read_posts(written(tmp_path, views=[3, 0]), Columns())
    assert (posts.ids, posts.never_viewed) == (("0",), 1)
    assert posts.rates("like") == pytest.approx([1 / 3])

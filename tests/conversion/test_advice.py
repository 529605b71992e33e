"""Advice finds what was planted, says nothing of noise; the whole command from table to page."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.special import expit

from pipelines.cli import main
from pipelines.conversion.advice import Advice, advise
from pipelines.conversion.folds import folds
from pipelines.conversion.likelihood import RatePrior
from pipelines.conversion.models import Goals, Inputs, TreeSettings
from pipelines.conversion.posts import Posts
from pipelines.conversion.properties import properties
from pipelines.conversion.report import (
    ActivityResult,
    ConversionReport,
    TargetResult,
    rate_bins,
)
from pipelines.conversion.study import (
    GLOBAL_MEAN,
    POOLED_MEAN,
    TOPIC_MEAN,
    cross_validate,
    predictable,
    score_rates,
    score_values,
)

TREES = TreeSettings(depth=4, trees=40, seed=1, threads=1)
ON_TEXT = "CatBoost on text"


def silent(done: int, total: int) -> None:
    assert done <= total


def feed(seed: int, effect: float, count: int = 300) -> tuple[Posts, Inputs]:
    """Two topics; posts of topic a that ask a question have ``effect`` more in log odds."""
    rng = np.random.default_rng(seed)
    asks, shouts = rng.random(count) < 0.5, rng.random(count) < 0.5
    topics = rng.choice(["a", "b"], count)
    texts = tuple(
        " ".join(["word"] * rng.integers(5, 40)) + "?" * bool(q) + "!" * bool(s)
        for q, s in zip(asks, shouts, strict=True)
    )
    views = rng.integers(500, 5_000, count)
    mean = expit(np.where(topics == "a", -2.0, -1.5) + effect * (asks & (topics == "a")))
    rates = rng.beta(400 * mean, 400 * (1 - mean))
    posts = Posts(
        tuple(f"p{i}" for i in range(count)), texts, views, {"like": rng.binomial(views, rates)},
        topics=tuple(topics.tolist()),
    )  # fmt: skip
    vectors = {"text": rng.normal(size=(count, 8)).astype(np.float32)}
    return posts, Inputs(properties(posts), posts.topics, vectors)


def advice_of(seed: int, effect: float) -> dict[str, Advice]:
    posts, inputs = feed(seed, effect)
    goals = Goals("rate", posts.rates("like"), RatePrior(400).effective_views(posts.views))
    found = advise(
        posts, "like", inputs, goals, TREES,
        refits=12, rng=np.random.default_rng(seed), on_progress=silent,
    )  # fmt: skip
    return {one.topic: one for one in found}


def test_a_planted_effect_is_found_in_its_topic_with_its_size_and_posts() -> None:
    found = advice_of(0, 0.6)
    (claim,) = [one for one in found["a"].claims if one.property == "question_marks"]
    assert claim.words == "question marks: some against none"
    assert 0 < claim.low < claim.change < claim.high
    # Planted: 0.6 in log odds, at a rate of about 0.15; trees that stop early shrink it.
    assert 0.03 < claim.change < 0.09
    assert all(example.value > 0 for example in claim.much)
    assert all(example.value == 0 for example in claim.little)
    assert not [one for one in found["a"].claims if one.property == "exclamation_marks"]


def test_of_pure_noise_nothing_is_claimed() -> None:
    found = [advice_of(seed, 0.0) for seed in range(4)]
    assert sum(one.looked_at for by_topic in found for one in by_topic.values()) >= 20
    assert [claim for by_topic in found for one in by_topic.values() for claim in one.claims] == []


def test_cross_validation_tells_a_planted_effect_from_noise() -> None:
    for effect, better in ((0.6, True), (0.0, False)):
        posts, inputs = feed(3, effect)
        views = posts.views.astype(np.float64)
        goals = Goals("rate", posts.rates("like"), views, views)
        found = cross_validate(
            inputs, folds(posts, 3, np.random.default_rng(0)), lambda _, goals=goals: goals,
            trees=TREES, most_trees=60, on_progress=silent,
        )  # fmt: skip
        count, rng = posts.activities["like"], np.random.default_rng(0)
        assert found.judged.tolist() == list(range(len(posts)))
        assert all(np.isfinite(p).all() for p in found.by_model.values())
        prior = RatePrior.fit(count, posts.views, found.by_model[ON_TEXT])
        known = predictable(count, posts.views, found.by_model[ON_TEXT], prior, rng)
        scores = score_rates(count, posts.views, found.by_model, known.floor, rng)
        assert (scores[ON_TEXT].gain_per_view.low > 0) == better
        assert known.floor == pytest.approx(1.0, abs=0.02)
        assert scores[ON_TEXT].r2 < known.most_r2
        assert scores[TOPIC_MEAN].deviance_per_post > known.floor


def test_targets_are_scored_by_squared_error() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])
    guesses = {TOPIC_MEAN: np.full(4, 3.0), "best": values}
    scores = score_values(values, guesses, np.random.default_rng(0))
    assert (scores["best"].mse, scores["best"].r2) == (0.0, 1.0)
    # Squared errors of 3: 4, 1, 0, 9; the variance is 3.5.
    assert scores[TOPIC_MEAN].mse == 3.5
    assert scores[TOPIC_MEAN].r2 == pytest.approx(0.0)
    assert scores["best"].gain.mean == pytest.approx(3.5)


def test_how_much_is_predictable_is_what_was_drawn() -> None:
    rng = np.random.default_rng(5)
    views = np.full(3_000, 400)
    rates = rng.beta(40, 360, 3_000)
    count = rng.binomial(views, rates)
    expected = np.full(3_000, 0.1)
    known = predictable(count, views, expected, RatePrior.fit(count, views, expected), rng)
    # Variance of the rates 0.1 * 0.9 / 401, of the noise (0.1 * 0.9 - that) / 400.
    truth = 0.09 / 401
    assert known.rate_variance - known.noise_variance == pytest.approx(truth, rel=0.1)
    assert known.most_r2 == pytest.approx(truth / (truth + (0.09 - truth) / 400), abs=0.03)


def test_the_page_shows_claims_with_their_posts_and_says_where_there_are_none() -> None:
    found = advice_of(0, 0.6)
    posts, _ = feed(0, 0.6)
    count, views = posts.activities["like"], posts.views
    predicted = {
        GLOBAL_MEAN: np.full(len(posts), 0.15),
        **dict.fromkeys((TOPIC_MEAN, POOLED_MEAN, ON_TEXT), np.linspace(0.1, 0.2, len(posts))),
    }
    rng = np.random.default_rng(0)
    known = predictable(count, views, predicted[ON_TEXT], RatePrior(400), rng)
    scores = score_rates(count, views, predicted, known.floor, rng)
    bins = rate_bins(count, views, predicted[ON_TEXT], rng)
    like = ActivityResult("like", int(count.sum()), ON_TEXT, scores, known, bins)
    target = TargetResult(
        "fixed weights", {"like": 1.8}, 0.3, 0.1, score_values(count / views, predicted, rng)
    )
    report = ConversionReport(
        "a <b> table", len(posts), len(posts), int(views.sum()), 3, "", "3 folds", [like],
        [target], list(found.values()),
    )  # fmt: skip
    page = report.page()
    assert "a &lt;b&gt; table" in page
    assert "question marks: some against none: +" in page
    (claim,) = [one for one in found["a"].claims if one.property == "question_marks"]
    assert all(example.excerpt in page for example in (*claim.much, *claim.little))
    assert ("nothing is advised" in page) == (not found["b"].claims)
    assert json.loads(json.dumps(report.figures()))["activities"][0]["model"] == ON_TEXT
    assert [table.row_count for table in report.tables()] == [4, 4]


@pytest.mark.slow
def test_the_command_reads_a_table_with_pictures_and_writes_a_page(tmp_path: Path) -> None:
    posts, _ = feed(1, 0.6, 90)
    rng = np.random.default_rng(1)
    pictures = []
    for shade in rng.integers(0, 255, 90):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (int(shade), 0, 0)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    columns = {
        "text": ["", *posts.texts[1:]],
        "topic": list(posts.topics or ()),
        "view": posts.views,
        "like": posts.activities["like"],
        "comment": rng.binomial(posts.views, 0.01),
        "photo": [b"damaged", None, *pictures[2:]],
    }
    pq.write_table(pa.table(columns), tmp_path / "posts.parquet")
    flags = {
        "posts": tmp_path / "posts.parquet",
        "views": "view",
        "topic": "topic",
        "image": "photo",
        "folds": 2,
        "iterations": 10,
        "refits": 10,
        "home": tmp_path,
        "output": tmp_path / "out",
    }
    arguments = ["conversion", *(f"--{name}={value}" for name, value in flags.items())]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["targets"]] == ["fixed weights", "inverse means"]
    models = set(found["activities"][0]["scores"])
    assert {"CatBoost on text + image", "CatBoost on image", "linear on text"} <= models
    assert "1 not a JPEG" in found["pictures"]
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert predictions.num_rows == 90
    low, shrunk, high = (
        predictions[f"comment_rate_{name}"].to_numpy() for name in ("low", "shrunk", "high")
    )
    assert ((low < shrunk) & (shrunk < high)).all()
    page = (tmp_path / "out" / "conversion.html").read_text(encoding="utf-8")
    assert "Advice: a" in page
    assert page.count("<svg") >= 2

"""The command `feastrank conversion`: system C, from a table of posts to a page of advice."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from pipelines.conversion import report as reporting
from pipelines.conversion.advice import Advice, advise
from pipelines.conversion.folds import Fold, folds
from pipelines.conversion.likelihood import RatePrior
from pipelines.conversion.models import Goals, Inputs, Matrix, TreeSettings
from pipelines.conversion.posts import Columns, Posts, read_posts
from pipelines.conversion.properties import clean_text, properties
from pipelines.conversion.study import (
    Predictions,
    cross_validate,
    model_names,
    predictable,
    score_rates,
    score_values,
    topic_means,
)
from pipelines.conversion.targets import fixed_weights, inverse_mean_weights, weighted_target
from pipelines.errors import ConversionError
from pipelines.features.embedding import embed_texts
from pipelines.features.text_encoders import TextModel
from pipelines.job.context import Progresses, progress_bars
from pipelines.settings import ConversionSettings

Floats = NDArray[np.float64]


def conversion(settings: ConversionSettings, console: Console) -> None:
    """Study the table; print the figures; write the page, the figures and the predictions."""
    posts = read_posts(settings.posts, _columns(settings), separator=settings.separator)
    console.print(
        f"{len(posts):,} posts with {posts.views.sum():,} views"
        + (f"; {posts.never_viewed:,} never viewed are left out" if posts.never_viewed else ""),
        highlight=False,
    )
    with progress_bars(console) as bars:
        study = _Study(posts, settings, bars)
        report, predictions = study.run()
    folder = settings.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conversion.html").write_text(report.page(), encoding="utf-8")
    text = json.dumps(report.figures(), indent=1)
    (folder / "conversion.json").write_text(text, encoding="utf-8")
    pq.write_table(predictions, folder / "predictions.parquet")
    for table in report.tables():
        console.print(table)
    for result in report.activities:
        console.print(result.verdict, highlight=False)
    claims = sum(len(one.claims) for one in report.advice)
    looked_at = sum(one.looked_at for one in report.advice)
    console.print(
        f"Advice: {claims} of {looked_at} effects of properties have an interval without zero",
        highlight=False,
    )
    for name in ("conversion.html", "conversion.json", "predictions.parquet"):
        console.print(f"{folder / name}", highlight=False, soft_wrap=True)


class _Study:
    """One run over one table."""

    def __init__(self, posts: Posts, settings: ConversionSettings, bars: Progresses) -> None:
        self.posts, self.settings, self.bars = posts, settings, bars
        self.rng = np.random.default_rng(settings.seed)
        self.parts = folds(posts, settings.folds, self.rng)
        vectors, self.pictures = _vectors(posts, settings, bars)
        self.inputs = Inputs(properties(posts), posts.topics, vectors)
        # What the shrunk rates, the calibration and the advice are of: the model that sees most.
        self.model = [n for n, (kind, _) in model_names(self.inputs).items() if kind == "trees"][-1]

    def run(self) -> tuple[reporting.ConversionReport, pa.Table]:
        """Return what was found, and a row for each judged post."""
        results: list[reporting.ActivityResult] = []
        columns: dict[str, Floats] = {}
        advice: list[Advice] = []
        for name in self.posts.activities:
            found = self._cross_validate(name, self._rate_goals(name))
            result, rates = self._activity(name, found)
            results.append(result)
            columns |= rates
            if not advice:
                advice = self._advise(name, found)
        judged = np.sort(np.concatenate([part.test for part in self.parts]))
        ids = pa.array([self.posts.ids[i] for i in judged.tolist()])
        report = reporting.ConversionReport(
            source=self.settings.posts.name,
            posts=len(self.posts),
            judged=len(judged),
            views=int(self.posts.views.sum()),
            never_viewed=self.posts.never_viewed,
            pictures=self.pictures,
            judged_by="later posts than the models learned from"
            if self.posts.times is not None
            else f"{self.settings.folds} folds drawn by chance, equal texts in one fold",
            activities=results,
            targets=self._targets(),
            advice=advice,
        )
        views = {"post_id": ids, "views": pa.array(self.posts.views[judged])}
        return report, pa.table({**views, **columns})

    def _cross_validate(self, title: str, goals_of: Callable[[Fold], Goals]) -> Predictions:
        return cross_validate(
            self.inputs,
            self.parts,
            goals_of,
            trees=TreeSettings(seed=self.settings.seed),
            most_trees=self.settings.iterations,
            on_progress=self.bars.bar(f"models of {title}"),
        )

    def _rate_goals(self, name: str) -> Callable[[Fold], Goals]:
        rates = self.posts.rates(name)

        def goals_of(part: Fold) -> Goals:
            views = self.posts.views.astype(np.float64)
            goals = Goals("rate", rates, weights=views, views=views)
            if self.settings.weighting == "views":
                return goals
            prior = self._prior(name, goals, part)
            return replace(goals, weights=prior.effective_views(self.posts.views))

        return goals_of

    def _prior(self, name: str, goals: Goals, part: Fold) -> RatePrior:
        """Fit how much training posts of one topic differ."""
        train = part.train
        expected = topic_means(goals, self.posts.topics, train, train)
        return RatePrior.fit(self.posts.activities[name][train], self.posts.views[train], expected)

    def _activity(
        self, name: str, found: Predictions
    ) -> tuple[reporting.ActivityResult, dict[str, Floats]]:
        count, views = self.posts.activities[name][found.judged], self.posts.views[found.judged]
        expected = found.by_model[self.model]
        prior = RatePrior.fit(count, views, expected)
        known = predictable(count, views, expected, prior, self.rng)
        low, high = prior.interval(count, views, expected)
        columns = {
            f"{name}_rate": count / views,
            f"{name}_rate_predicted": expected,
            f"{name}_rate_shrunk": prior.mean(count, views, expected),
            f"{name}_rate_low": low,
            f"{name}_rate_high": high,
        }
        return (
            reporting.ActivityResult(
                name,
                int(count.sum()),
                self.model,
                score_rates(count, views, found.by_model, known.floor, self.rng),
                known,
                reporting.rate_bins(count, views, expected, self.rng),
            ),
            columns,
        )

    def _advise(self, name: str, found: Predictions) -> list[Advice]:
        chosen = found.trees[self.model]
        typical = sorted(chosen, key=lambda one: one.trees)[len(chosen) // 2]
        everything = np.arange(len(self.posts))
        whole = Fold(everything, everything[:0], everything[:0])
        return advise(
            self.posts,
            name,
            self.inputs,
            self._rate_goals(name)(whole),
            typical,
            refits=self.settings.refits,
            rng=self.rng,
            on_progress=self.bars.bar("refits for advice"),
        )

    def _targets(self) -> list[reporting.TargetResult]:
        weightings = {"fixed weights": fixed_weights(self.posts.activities, self.settings.weights)}
        # With one activity the two weightings are multiples of each other.
        if len(self.posts.activities) > 1:
            weightings["inverse means"] = inverse_mean_weights(self.posts.activities)
        results = []
        for name, weights in weightings.items():
            values = weighted_target(self.posts.activities, self.posts.views, weights)
            goals = Goals("value", values, np.ones(len(values)))
            found = self._cross_validate(f"the target by {name}", partial(_same, goals))
            judged = values[found.judged]
            results.append(
                reporting.TargetResult(
                    name,
                    weights,
                    float(judged.mean()),
                    float(judged.std()),
                    score_values(judged, found.by_model, self.rng),
                )
            )
        return results


def _same(goals: Goals, _: Fold) -> Goals:
    return goals


def _columns(settings: ConversionSettings) -> Columns:
    activities = dict(_activity(one) for one in settings.activities)
    return Columns(
        text=settings.text,
        views=settings.views,
        activities=activities or None,
        id=settings.id,
        topic=settings.topic,
        time=settings.time,
        image=settings.image,
    )


def _activity(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not name.strip() or (equals and not column.strip()):
        raise ConversionError(f"--activities {text}: expected a column, or name=column")
    return name.strip(), column.strip() if equals else name.strip()


def _vectors(
    posts: Posts, settings: ConversionSettings, bars: Progresses
) -> tuple[dict[str, Matrix], str]:
    """Embed texts and pictures; rows of NaN where there is none. Say what was refused."""
    cache = settings.home.resolve() / "embeddings"
    texts = [clean_text(text) for text in posts.texts]
    found = embed_texts(
        texts,
        model=TextModel(settings.text_model),
        cache=cache,
        on_progress=bars.bar("texts embedded"),
    )
    vectors = {"text": _spread(found.vectors, found.places, len(posts))}
    if posts.images is None:
        return vectors, ""
    # torch takes seconds to import, which tables without pictures need not pay.
    from pipelines.features.image import embed_images

    pictures = embed_images(
        posts.images,
        folder=Path(settings.posts).resolve().parent,
        cache=cache,
        model=settings.image_model,
        on_progress=bars.bar("pictures embedded"),
    )
    if not len(pictures.places):
        raise ConversionError(
            f"{settings.posts}, column {settings.image}: no picture can be used "
            f"({pictures.summary or 'all are missing'}); correct it, or leave out --image"
        )
    vectors["image"] = _spread(pictures.vectors, pictures.places, len(posts))
    return vectors, pictures.summary


def _spread(found: Matrix, places: NDArray[np.int64], rows: int) -> Matrix:
    # Without any text or picture the vectors have no size of their own.
    vectors = np.full((rows, max(found.shape[1], 1)), np.nan, dtype=np.float32)
    if len(places):
        vectors[places] = found
    return vectors

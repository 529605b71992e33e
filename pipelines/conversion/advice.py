"""Advice for authors: which readable properties go with a higher or lower predicted rate.

Trees are refitted on resampled posts; each refit explains the posts that it has not seen (SHAP:
Lundberg et al. 2020, exact for trees). The effect of a property within a topic is the mean
contribution for posts that have much of it minus that for posts that have little. Over refits that
difference varies by the choice of training posts and of explained posts at once. Topic and the
embeddings are among the inputs, so that a property does not speak for the subject.

Nothing is said whose interval includes zero, where intervals are widened for the number of effects
looked at (Bonferroni), nor of an effect that does not make unseen posts better predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from catboost import Pool
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from pipelines.conversion.likelihood import log_loss
from pipelines.conversion.models import Goals, Inputs, TreeSettings, fit_trees
from pipelines.conversion.posts import Posts
from pipelines.conversion.properties import LANGUAGE, PROPERTIES, clean_text
from pipelines.shards import Progress

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

ALL_POSTS = "all posts"
_FEWEST_POSTS = 20
_EXCERPT = 160
_EXAMPLES = 2
_WORDS = PROPERTIES | {"hour": "hour of the day (UTC)", "picture": "a picture"}


@dataclass(frozen=True)
class Example:
    """A post that has much or little of a property, with its observed rate."""

    id: str
    excerpt: str
    value: float
    rate: float
    views: int


@dataclass(frozen=True)
class Claim:
    """One effect whose interval excludes zero.

    Attributes
    ----------
    words
        What is compared.
    change, low, high
        Change of the predicted rate at the topic's mean rate, as a probability, and its interval,
        which holds for all effects of the page at once.
    much, little
        Example posts, those with the most views first.
    """

    property: str
    words: str
    change: float
    low: float
    high: float
    much: tuple[Example, ...]
    little: tuple[Example, ...]


@dataclass(frozen=True)
class Advice:
    """What is known for the authors of one topic; ``claims`` is empty where nothing is."""

    topic: str
    posts: int
    rate: float
    looked_at: int
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class _Contrast:
    """Posts of a topic with much and with little of a property."""

    topic: str
    name: str
    words: str
    much: Places
    little: Places


def advise(
    posts: Posts,
    activity: str,
    inputs: Inputs,
    goals: Goals,
    settings: TreeSettings,
    *,
    refits: int,
    rng: np.random.Generator,
    on_progress: Progress,
    confidence: float = 0.95,
) -> list[Advice]:
    """Find what goes with a higher or lower rate, for each topic.

    Parameters
    ----------
    goals
        The activity's rates, and what each post counts while trees learn.
    settings
        Depth and number of trees, chosen without the posts that are explained in each refit.
    refits
        How many models, each of posts drawn with replacement.
    """
    contrasts = _contrasts(inputs, len(posts))
    effects, gains = _refit(
        posts, activity, inputs, goals, settings, contrasts, refits, rng, on_progress
    )
    # Two conditions for each contrast, so each has half of what may be said wrongly.
    z = float(norm.ppf(1 - (1 - confidence) / 2 / max(len(contrasts), 1)))
    advice = []
    for topic in dict.fromkeys(_topics(inputs, len(posts))):
        here = np.flatnonzero(np.array(_topics(inputs, len(posts))) == topic)
        rate = float(posts.activities[activity][here].sum() / posts.views[here].sum())
        mine = [k for k, contrast in enumerate(contrasts) if contrast.topic == topic]
        claims = []
        for k in mine:
            claim = _claim(
                contrasts[k], effects[:, k], gains[:, k], z, rate, posts, activity, inputs
            )
            if claim is not None:
                claims.append(claim)
        claims.sort(key=lambda claim: -abs(claim.change))
        advice.append(Advice(topic, len(here), rate, len(mine), tuple(claims)))
    return advice


def _refit(
    posts: Posts,
    activity: str,
    inputs: Inputs,
    goals: Goals,
    settings: TreeSettings,
    contrasts: Sequence[_Contrast],
    refits: int,
    rng: np.random.Generator,
    on_progress: Progress,
) -> tuple[Floats, Floats]:
    """Return effects in log odds and gains in log loss per post: (refits, contrasts), with NaN."""
    effects = np.full((refits, len(contrasts)), np.nan)
    gains = effects.copy()
    count, views = posts.activities[activity], posts.views
    for b in range(refits):
        on_progress(b, refits)
        drawn = np.sort(rng.integers(len(posts), size=len(posts)))
        names, x = inputs.tree_columns(tuple(inputs.vectors), np.unique(drawn))
        model = fit_trees(x, goals, drawn, settings)
        unseen = np.setdiff1d(np.arange(len(posts)), drawn)
        shap = np.asarray(model.get_feature_importance(Pool(x[unseen]), type="ShapValues"))
        raw = shap.sum(axis=1)
        loss = log_loss(count[unseen], views[unseen], expit(raw)) / views[unseen]
        place = {post: i for i, post in enumerate(unseen.tolist())}
        without: dict[str, Floats] = {}
        for k, contrast in enumerate(contrasts):
            part = shap[:, names.index(contrast.name)]
            much = [place[i] for i in contrast.much.tolist() if i in place]
            little = [place[i] for i in contrast.little.tolist() if i in place]
            if not much or not little:
                continue
            if contrast.name not in without:
                kept = expit(raw - part + part.mean())
                without[contrast.name] = (
                    log_loss(count[unseen], views[unseen], kept) / views[unseen]
                )
            effects[b, k] = part[much].mean() - part[little].mean()
            both = much + little
            gains[b, k] = (without[contrast.name][both] - loss[both]).mean()
    on_progress(refits, refits)
    return effects, gains


def _claim(
    contrast: _Contrast,
    effects: Floats,
    gains: Floats,
    z: float,
    rate: float,
    posts: Posts,
    activity: str,
    inputs: Inputs,
) -> Claim | None:
    known = ~np.isnan(effects)
    if known.sum() < len(effects) / 2 or not 0 < rate < 1:
        return None
    mean, half = float(effects[known].mean()), z * float(effects[known].std(ddof=1))
    if abs(mean) <= half or float(gains[known].mean()) <= 0:
        return None
    change, low, high = (
        float(expit(logit(rate) + e) - rate) for e in (mean, mean - half, mean + half)
    )
    values = inputs.properties.column(contrast.name)
    return Claim(
        contrast.name, contrast.words, change, low, high,
        _examples(posts, activity, values, contrast.much),
        _examples(posts, activity, values, contrast.little),
    )  # fmt: skip


def _contrasts(inputs: Inputs, count: int) -> list[_Contrast]:
    topics = np.array(_topics(inputs, count))
    contrasts = []
    for topic in dict.fromkeys(topics.tolist()):
        here = np.flatnonzero(topics == topic)
        for name in inputs.properties.names:
            values = inputs.properties.column(name)[here]
            found = _parted(values)
            if found is None:
                continue
            much, little, how = found
            if min(much.sum(), little.sum()) >= _FEWEST_POSTS:
                words = _words(name, how)
                contrasts.append(_Contrast(topic, name, words, here[much], here[little]))
    return contrasts


def _words(name: str, how: str) -> str:
    if name.startswith(LANGUAGE):
        return f"language {name.removeprefix(LANGUAGE)} against others"
    return f"{_WORDS[name]}: {how}"


def _parted(values: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_], str] | None:
    """Part posts into those with much and little: any against none, or the outer thirds."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    if np.median(known) == 0 or np.isin(known, (0, 1)).all():
        return values > 0, values == 0, "some against none"
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    if low == high:
        return None
    return values >= high, values <= low, f"{high:.3g} or more against {low:.3g} or fewer"


def _examples(posts: Posts, activity: str, values: Floats, places: Places) -> tuple[Example, ...]:
    """Return the posts whose value is the middle one of their side, by views."""
    middle = places[np.argsort(np.abs(values[places] - np.median(values[places])), kind="stable")]
    chosen = middle[: 5 * _EXAMPLES]
    chosen = chosen[np.argsort(-posts.views[chosen], kind="stable")][:_EXAMPLES]
    rates = posts.rates(activity)
    return tuple(
        Example(
            posts.ids[i],
            _excerpt(posts.texts[i]),
            float(values[i]),
            float(rates[i]),
            int(posts.views[i]),
        )
        for i in chosen.tolist()
    )


def _excerpt(text: str) -> str:
    plain = clean_text(text)
    return plain if len(plain) <= _EXCERPT else plain[:_EXCERPT].rsplit(" ", 1)[0] + " …"


def _topics(inputs: Inputs, count: int) -> list[str]:
    return [ALL_POSTS] * count if inputs.topics is None else list(inputs.topics)

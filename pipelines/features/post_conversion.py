"""post_conversion: how often a post would be liked, by what its text, picture and topic tell.

Grain: one row per post. ``post_predicted_positive_rate`` double, likes per view. Models learn from
the views and likes before the first training cut, so ``event_timestamp`` is that cut, or when the
post became known if that is later. A post that models learn from is predicted by those that have
not seen it (five folds, equal texts in one), any other one by a model of them all; so the number
means the same for old posts and for new ones. Null only if nothing was viewed before the cut.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.definitions import columns as c
from pipelines.conversion.folds import folds
from pipelines.conversion.likelihood import RatePrior
from pipelines.conversion.models import (
    Goals,
    Inputs,
    Matrix,
    TreeSettings,
    fit_trees,
    predict_trees,
)
from pipelines.conversion.posts import Posts
from pipelines.conversion.properties import clean_text, properties
from pipelines.conversion.study import topic_means

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

_FOLDS = 5
# Below this trees say no more than the mean does.
_FEWEST_POSTS = 50
# Near what `feastrank conversion` finds on thousands of posts.
_TREES = TreeSettings(depth=4, trees=150)
_LIKE = "like"


@dataclass(frozen=True)
class Viewed:
    """Views and likes before the cut, int64 (n,) each; likes are views too."""

    views: Places
    likes: Places


def compute(
    posts: pa.Table,
    viewed: Viewed,
    vectors: dict[str, Matrix],
    *,
    cut: pa.TimestampScalar,
    seed: int,
) -> pa.Table:
    """Predict the rate of every post.

    Parameters
    ----------
    posts
        The lake's posts: ``post_id``, ``known_time``, ``text``, ``topics``.
    viewed
        Counts of the same posts.
    vectors
        Embeddings by name ("text", "image"), float32 (n, dimensions); a row of NaN: there is none.
    """
    rates = _rates(_described(posts, viewed), viewed, vectors, seed)
    known = posts["known_time"]
    since = pc.if_else(pc.less(known, cut), cut, known)
    return pa.table(
        {
            "post_id": posts["post_id"],
            "event_timestamp": since,
            c.PREDICTED_POSITIVE_RATE: pa.array(rates, from_pandas=True),
        }
    )


def _described(posts: pa.Table, viewed: Viewed) -> Posts:
    return Posts(
        ids=tuple(map(str, posts["post_id"].to_pylist())),
        texts=tuple(text or "" for text in posts["text"].to_pylist()),
        views=viewed.views,
        activities={_LIKE: viewed.likes},
        topics=tuple("|".join(sorted(names or ())) for names in posts["topics"].to_pylist()),
    )


def _rates(posts: Posts, viewed: Viewed, vectors: dict[str, Matrix], seed: int) -> Floats:
    """Return float64 (n,), NaN for all if nothing was viewed."""
    seen = np.flatnonzero(viewed.views > 0)
    if not len(seen):
        return np.full(len(posts), np.nan)
    mean = float(viewed.likes.sum() / viewed.views.sum())
    different = {clean_text(posts.texts[i]) or f"post {i}" for i in seen.tolist()}
    if len(different) < _FEWEST_POSTS or mean in (0.0, 1.0):
        return np.full(len(posts), mean)
    inputs = Inputs(properties(posts), posts.topics, vectors)
    rates = np.full(len(posts), mean)
    for part in folds(posts.take(seen), _FOLDS, np.random.default_rng(seed)):
        rates[seen[part.test]] = _fitted(posts, inputs, seen[part.train], seen[part.test], seed)
    new = np.setdiff1d(np.arange(len(posts)), seen)
    if len(new):
        rates[new] = _fitted(posts, inputs, seen, new, seed)
    return rates


def _fitted(posts: Posts, inputs: Inputs, train: Places, asked: Places, seed: int) -> Floats:
    views, likes = posts.views[train], posts.activities[_LIKE][train]
    values = posts.activities[_LIKE] / np.maximum(posts.views, 1)
    goals = Goals("rate", values, posts.views.astype(np.float64))
    expected = topic_means(goals, posts.topics, train, train)
    weights = np.zeros(len(posts))
    weights[train] = RatePrior.fit(likes, views, expected).effective_views(views)
    goals = Goals("rate", values, weights)
    _, x = inputs.tree_columns(tuple(inputs.vectors), train)
    settings = TreeSettings(_TREES.depth, _TREES.trees, seed)
    return predict_trees(fit_trees(x, goals, train, settings), x[asked], "rate")

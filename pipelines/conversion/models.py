"""Models of rates and of weighted targets: boosted trees and a linear baseline.

A model of rates maximises the binomial likelihood of aggregated counts: one row a post, its target
the observed rate and its weight the views (or the fewer that they are worth). That is the
likelihood of one row a view; see the tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from catboost import CatBoost, CatBoostError, Pool
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge

from pipelines.conversion.properties import Properties
from pipelines.errors import ConversionError

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Matrix = NDArray[np.float32]
Goal = Literal["rate", "value"]

# System F's reduction: trees gain nothing from hundreds of directions, and cost time by each.
_COMPONENTS = 50
_DEPTHS = (4, 6)
# The published rate; the rest only saves time.
_LEARNING_RATE = 0.1
_SPEED = {"rsm": 0.3, "border_count": 64}
_PATIENCE = 50
# Posts weigh hundreds: less than 1 would be no penalty at all, and slow to converge.
_PENALTIES = tuple(10.0**power for power in range(6))


@dataclass(frozen=True)
class Inputs:
    """What models see of n posts.

    Attributes
    ----------
    topics
        Names of the posts' topics; None without topics.
    vectors
        Embeddings by name ("text", "image"), float32 (n, dimensions); a row of NaN: there is none.
    """

    properties: Properties
    topics: Sequence[str] | None
    vectors: dict[str, Matrix]

    def tree_columns(self, use: Sequence[str], train: Places) -> tuple[list[str], Matrix]:
        """Return names and values for trees: topics, properties, principal components.

        The components are fitted on the training posts only.
        """
        names, blocks = self._topics(train)
        names += self.properties.names
        blocks.append(self.properties.values)
        for name in use:
            reduced = _components(self.vectors[name], train)
            names += [f"{name}_{k}" for k in range(reduced.shape[1])]
            blocks.append(reduced)
        return names, _joined(blocks, len(self.properties.values))

    def linear_columns(self, use: Sequence[str], train: Places) -> Matrix:
        """Return values for linear models: all of centred variance 1, embeddings as a whole."""
        _, blocks = self._topics(train)
        values = np.log1p(np.nan_to_num(self.properties.values))
        spread = values[train].std(axis=0)
        blocks.append((values - values[train].mean(axis=0)) / np.where(spread > 0, spread, 1))
        for name in use:
            vectors = self.vectors[name]
            known = vectors[train][~np.isnan(vectors[train, 0])]
            centred = vectors - (known.mean(axis=0) if len(known) else 0)
            scale = float(known.std(axis=0).mean()) if len(known) else 1.0
            blocks.append(np.nan_to_num(centred / (scale or 1.0)))
        return _joined(blocks, len(values))

    def _topics(self, train: Places) -> tuple[list[str], list[NDArray[Any]]]:
        if self.topics is None:
            return [], []
        values = np.asarray(self.topics)
        known = sorted(set(values[train].tolist()))
        return [f"topic {name}" for name in known], [values[:, None] == np.array(known)]


@dataclass(frozen=True)
class Goals:
    """What is predicted of n posts.

    Attributes
    ----------
    goal
        "rate": in [0, 1], judged by binomial likelihood; "value": judged by squared error.
    values, weights
        float64[n] each; weights are what posts count while models learn.
    views
        float64[n]; None for values. The pooled topic mean counts every view alike.
    """

    goal: Goal
    values: Floats
    weights: Floats
    views: Floats | None = None

    def loss(self, places: Places, predicted: Floats) -> float:
        """Return the weighted mean log loss or squared error at ``places``."""
        y, w = self.values[places], self.weights[places]
        if self.goal == "value":
            return float(np.average((y - predicted) ** 2, weights=w))
        p = np.clip(predicted, 1e-9, 1 - 1e-9)
        return float(np.average(-y * np.log(p) - (1 - y) * np.log1p(-p), weights=w))


@dataclass(frozen=True)
class TreeSettings:
    """How trees are grown; `choose_trees` finds depth and number."""

    depth: int = 6
    trees: int = 200
    seed: int = 42
    threads: int = -1
    parameters: dict[str, Any] = field(default_factory=dict)


def fit_trees(x: Matrix, goals: Goals, places: Places, settings: TreeSettings) -> CatBoost:
    """Fit CatBoost on the posts at ``places``.

    Raises
    ------
    ConversionError
        If CatBoost cannot learn from them.
    """
    return _grow(_pool(x, goals, places), None, goals.goal, settings)


def predict_trees(model: CatBoost, x: Matrix, goal: Goal) -> Floats:
    """Return predicted rates or values; float64 of the rows of ``x``."""
    raw = np.asarray(model.predict(Pool(x), prediction_type="RawFormulaVal"), dtype=np.float64)
    return np.asarray(expit(raw), np.float64) if goal == "rate" else raw


def choose_trees(
    x: Matrix, goals: Goals, fit: Places, check: Places, most: int, settings: TreeSettings
) -> TreeSettings:
    """Choose depth and number of trees: least loss on ``check`` after fitting on ``fit``."""
    if _constant(goals, fit):
        return settings
    best: tuple[float, TreeSettings] | None = None
    watched = _pool(x, goals, check)
    for depth in _DEPTHS:
        tried = TreeSettings(depth, most, settings.seed, settings.threads, settings.parameters)
        model = _grow(_pool(x, goals, fit), watched, goals.goal, tried)
        loss = goals.loss(check, predict_trees(model, x[check], goals.goal))
        found = TreeSettings(
            depth, max(1, model.tree_count_), settings.seed, settings.threads, settings.parameters
        )
        if best is None or loss < best[0]:
            best = loss, found
    assert best is not None
    return best[1]


def linear_predictions(x: Matrix, goals: Goals, fit: Places, check: Places, test: Places) -> Floats:
    """Predict ``test`` by ridge or logistic regression.

    The penalty is the one of least loss on ``check`` after fitting on ``fit``; the model that
    predicts is fitted on both.
    """
    predictor = _logistic if goals.goal == "rate" else _ridge
    losses = [
        goals.loss(check, predictor(x, goals, fit, penalty)(x[check])) for penalty in _PENALTIES
    ]
    penalty = _PENALTIES[int(np.argmin(losses))]
    return predictor(x, goals, np.concatenate([fit, check]), penalty)(x[test])


def _logistic(
    x: Matrix, goals: Goals, places: Places, penalty: float
) -> Callable[[Matrix], Floats]:
    if _constant(goals, places):
        rate = float(goals.values[places[0]])
        return lambda rows: np.full(len(rows), rate)
    y, w = goals.values[places], goals.weights[places]
    # A post is one row that happened and one that did not, weighted by how often.
    model = LogisticRegression(C=1 / penalty, max_iter=2000, tol=1e-4)
    doubled = np.concatenate([x[places], x[places]])
    label = np.repeat([1, 0], len(places))
    model.fit(doubled, label, sample_weight=np.concatenate([w * y, w * (1 - y)]))
    return lambda rows: np.asarray(model.predict_proba(rows)[:, 1], np.float64)


def _ridge(x: Matrix, goals: Goals, places: Places, penalty: float) -> Callable[[Matrix], Floats]:
    model = Ridge(alpha=penalty)
    model.fit(x[places], goals.values[places], sample_weight=goals.weights[places])
    return lambda rows: np.asarray(model.predict(rows), np.float64)


def _grow(pool: Pool, watched: Pool | None, goal: Goal, settings: TreeSettings) -> CatBoost:
    model = CatBoost(
        {
            "loss_function": "CrossEntropy" if goal == "rate" else "RMSE",
            "iterations": settings.trees,
            "depth": settings.depth,
            "learning_rate": _LEARNING_RATE,
            "boost_from_average": True,
            **_SPEED,
            "random_seed": settings.seed,
            "thread_count": settings.threads,
            "logging_level": "Silent",
            "allow_writing_files": False,
            **settings.parameters,
        }
    )
    try:
        if watched is None:
            model.fit(pool)
        else:
            model.fit(pool, eval_set=watched, early_stopping_rounds=_PATIENCE, use_best_model=True)
    except CatBoostError as error:
        raise ConversionError(f"catboost: {str(error).strip()[:300]}") from error
    return model


def _pool(x: Matrix, goals: Goals, places: Places) -> Pool:
    weights = goals.weights[places]
    return Pool(x[places], goals.values[places], weight=weights / weights.mean())


def _constant(goals: Goals, places: Places) -> bool:
    values = goals.values[places]
    return bool((values == values[0]).all())


def _components(vectors: Matrix, train: Places) -> Matrix:
    known = ~np.isnan(vectors[:, 0])
    fitted_on = vectors[train][known[train]]
    count = min(_COMPONENTS, vectors.shape[1], max(len(fitted_on) - 1, 0))
    reduced = np.full((len(vectors), count), np.nan, dtype=np.float32)
    if count:
        # The seed of the randomised solver, which is used where vectors are long.
        pca = PCA(count, random_state=0).fit(fitted_on)
        reduced[known] = pca.transform(vectors[known])
    return reduced


def _joined(blocks: Sequence[NDArray[Any]], rows: int) -> Matrix:
    if not blocks:
        return np.zeros((rows, 1), dtype=np.float32)
    return np.concatenate([np.asarray(block, np.float32) for block in blocks], axis=1)

"""Cross-validation: predictions for posts that a model has not seen, and how good they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.conversion import likelihood
from pipelines.conversion.folds import Fold
from pipelines.conversion.likelihood import RatePrior
from pipelines.conversion.models import (
    Goals,
    Inputs,
    Matrix,
    TreeSettings,
    choose_trees,
    fit_trees,
    linear_predictions,
    predict_trees,
)
from pipelines.conversion.posts import Counts
from pipelines.evaluation.bootstrap import Interval, mean_intervals
from pipelines.shards import Progress

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

GLOBAL_MEAN, TOPIC_MEAN, POOLED_MEAN = "global mean", "topic mean", "topic mean, pooled views"


@dataclass(frozen=True)
class Predictions:
    """Predictions for posts by models that have not seen them.

    Attributes
    ----------
    judged
        int64[m], ascending: places of the posts that were in a test fold.
    by_model
        float64[m] for each model's name.
    trees
        Settings that were chosen inside each fold, by model.
    """

    judged: Places
    by_model: dict[str, Floats]
    trees: dict[str, list[TreeSettings]]


def model_names(inputs: Inputs) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return what is fitted: by name, the kind ("trees" or "linear") and the embeddings it sees."""
    single = [(name,) for name in inputs.vectors]
    sets: list[tuple[str, ...]] = [(), *single]
    if len(single) > 1:
        sets.append(tuple(inputs.vectors))
    shown = {use: " + ".join(use) or "properties" for use in sets}
    trees = {f"CatBoost on {shown[use]}": ("trees", use) for use in sets}
    return trees | {f"linear on {shown[use]}": ("linear", use) for use in sets if use}


def cross_validate(
    inputs: Inputs,
    parts: Sequence[Fold],
    goals_of: Callable[[Fold], Goals],
    *,
    trees: TreeSettings,
    most_trees: int,
    on_progress: Progress,
) -> Predictions:
    """Predict every test fold by models of its training posts.

    Parameters
    ----------
    goals_of
        What is predicted, and how much posts count while models learn, which may depend on the
        fold's training posts.
    """
    names = model_names(inputs)
    # By time the first stretch is never a test.
    places = np.sort(np.concatenate([part.test for part in parts]))
    baselines = (GLOBAL_MEAN, TOPIC_MEAN, POOLED_MEAN)
    by_model = {name: np.full(len(places), np.nan) for name in (*baselines, *names)}
    chosen: dict[str, list[TreeSettings]] = {name: [] for name in names}
    for k, part in enumerate(parts):
        goals = goals_of(part)
        here = np.searchsorted(places, part.test)
        by_model[GLOBAL_MEAN][here] = _mean(goals, part.train)
        by_model[TOPIC_MEAN][here] = topic_means(goals, inputs.topics, part.train, part.test)
        pooled = goals if goals.views is None else replace(goals, weights=goals.views)
        by_model[POOLED_MEAN][here] = topic_means(pooled, inputs.topics, part.train, part.test)
        for j, (name, (kind, use)) in enumerate(names.items()):
            on_progress(k * len(names) + j, len(parts) * len(names))
            if kind == "linear":
                x = inputs.linear_columns(use, part.train)
                found = linear_predictions(x, goals, part.fit, part.check, part.test)
            else:
                x = inputs.tree_columns(use, part.train)[1]
                best = choose_trees(x, goals, part.fit, part.check, most_trees, trees)
                chosen[name].append(best)
                found = _trees(x, goals, part, best)
            by_model[name][here] = found
    on_progress(len(parts) * len(names), len(parts) * len(names))
    return Predictions(places, by_model, chosen)


def topic_means(goals: Goals, topics: Sequence[str] | None, train: Places, asked: Places) -> Floats:
    """Return the weighted mean of training posts of the same topic; of all, if there is none."""
    result = np.full(len(asked), _mean(goals, train))
    if topics is not None:
        names = np.asarray(topics)
        for name in set(names[train].tolist()):
            same = train[names[train] == name]
            result[names[asked] == name] = _mean(goals, same)
    return result


@dataclass(frozen=True)
class RateScore:
    """How good predicted rates are, over n posts.

    Attributes
    ----------
    log_loss_per_view
        Nats; every view counts alike, so posts that are shown often count most.
    log_loss_per_post
        The mean over posts of each post's own log loss per view: every post counts alike.
    deviance_per_post
        Mean binomial deviance; about 1 if only chance were left.
    mse, r2
        Of the rates, every post alike.
    explained
        Share of the deviance above the noise floor that the global mean leaves and this does not.
    gain_per_view, gain_per_post
        What the topic mean loses more, by the two log losses; intervals over posts. Of the two
        topic means, the one that is better by that log loss.
    """

    log_loss_per_view: float
    log_loss_per_post: float
    deviance_per_post: float
    mse: float
    r2: float
    explained: float
    gain_per_view: Interval
    gain_per_post: Interval


def score_rates(
    count: Counts,
    views: Counts,
    predicted: Mapping[str, Floats],
    floor: float,
    rng: np.random.Generator,
) -> dict[str, RateScore]:
    """Judge predicted rates against counts.

    Parameters
    ----------
    predicted
        float64[n] by model, the baselines among them.
    floor
        Mean deviance of a post if the true rates were known.
    """
    losses = {name: likelihood.log_loss(count, views, p) for name, p in predicted.items()}
    means = [losses[name] for name in (TOPIC_MEAN, POOLED_MEAN)]
    best = {
        "view": min(means, key=lambda loss: float(loss.sum())),
        "post": min(means, key=lambda loss: float((loss / views).sum())),
    }
    # Over the mean number of views, so that means over posts are sums over views by all views.
    gains = {
        (name, unit): (best[unit] - loss) / by
        for name, loss in losses.items()
        for unit, by in (("view", views.mean()), ("post", views))
    }
    intervals = mean_intervals({f"{unit} {name}": g for (name, unit), g in gains.items()}, rng=rng)
    rate = count / views
    least = float(likelihood.deviance(count, views, predicted[GLOBAL_MEAN]).mean()) - floor
    scores = {}
    for name, p in predicted.items():
        deviance = float(likelihood.deviance(count, views, p).mean())
        mse, r2 = squared_error(rate, p)
        scores[name] = RateScore(
            log_loss_per_view=float(losses[name].sum() / views.sum()),
            log_loss_per_post=float((losses[name] / views).mean()),
            deviance_per_post=deviance,
            mse=mse,
            r2=r2,
            explained=1 - (deviance - floor) / least if least > 0 else 0.0,
            gain_per_view=intervals[f"view {name}"],
            gain_per_post=intervals[f"post {name}"],
        )
    return scores


@dataclass(frozen=True)
class ValueScore:
    """How good predicted weighted targets are: squared error, and what the topic mean has more."""

    mse: float
    r2: float
    gain: Interval


def score_values(
    values: Floats, predicted: Mapping[str, Floats], rng: np.random.Generator
) -> dict[str, ValueScore]:
    """Judge predicted targets, float64[n] by model."""
    errors = {name: (values - p) ** 2 for name, p in predicted.items()}
    gains = {name: errors[TOPIC_MEAN] - error for name, error in errors.items()}
    intervals = mean_intervals(gains, rng=rng)
    return {
        name: ValueScore(*squared_error(values, p), intervals[name])
        for name, p in predicted.items()
    }


@dataclass(frozen=True)
class Predictable:
    """How much of what posts do can be known at all.

    Attributes
    ----------
    floor
        Mean binomial deviance of a post if its true rate were known.
    rate_variance, noise_variance
        Of the observed rates over posts, and the part of it that binomial noise makes.
    precision
        Views that the best model's prediction is worth: what scatter it leaves between posts.
    """

    floor: float
    rate_variance: float
    noise_variance: float
    precision: float

    @property
    def most_r2(self) -> float:
        """R2 of the true rates: the most that any model could have."""
        return 1 - self.noise_variance / self.rate_variance if self.rate_variance > 0 else 0.0


def predictable(
    count: Counts, views: Counts, expected: Floats, prior: RatePrior, rng: np.random.Generator
) -> Predictable:
    """Estimate the noise, taking the posterior mean rates for the true ones."""
    rate = prior.mean(count, views, expected)
    # Unbiased where a post has two views or more; with one view nothing is known of its noise.
    observed = count / views
    noise = observed * (1 - observed) / np.maximum(views - 1, 1)
    return Predictable(
        floor=float(likelihood.expected_deviance(views, rate, rng).mean()),
        rate_variance=float(observed.var()),
        noise_variance=float(noise.mean()),
        precision=prior.precision,
    )


def squared_error(values: Floats, predicted: Floats) -> tuple[float, float]:
    """Return the mean squared error and R2 (0 where the values do not vary)."""
    mse = float(((values - predicted) ** 2).mean())
    variance = float(values.var())
    return mse, 1 - mse / variance if variance > 0 else 0.0


def _mean(goals: Goals, places: Places) -> float:
    return float(np.average(goals.values[places], weights=goals.weights[places]))


def _trees(x: Matrix, goals: Goals, part: Fold, settings: TreeSettings) -> Floats:
    values = goals.values[part.train]
    if (values == values[0]).all():
        return np.full(len(part.test), values[0])
    return predict_trees(fit_trees(x, goals, part.train, settings), x[part.test], goals.goal)

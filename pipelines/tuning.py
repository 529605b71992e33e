"""Search for settings with optuna: resumable, seeded, and told nothing about test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pipelines.errors import TuningError


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole if both are whole numbers."""

    low: float
    high: float
    log: bool = False


Space: TypeAlias = Mapping[str, Range | tuple[Any, ...]]
"""Setting to the values it may take: a range, or the choices themselves."""

SPACES: dict[str, Space] = {
    "popular": {"half_life_days": Range(0.5, 120.0, log=True)},
    "als": {
        "factors": Range(8, 64, log=True),
        "regularization": Range(0.1, 50.0, log=True),
        "alpha": Range(0.5, 20.0, log=True),
        "iterations": Range(5, 25),
    },
    "item_to_item": {
        "similarity": ("cosine", "bm25"),
        "neighbours": Range(20, 1000, log=True),
        "latest_posts": Range(1, 300, log=True),
        "half_life_posts": Range(0.5, 300.0, log=True),
    },
    "ease": {
        "regularization": Range(20.0, 3000.0, log=True),
        "topic_weight": Range(0.0, 10.0),
        "popularity_exponent": Range(0.0, 1.0),
    },
    "mult_vae": {
        "hidden": (100, 200, 400),
        "latent": (32, 64, 128),
        "dropout": Range(0.3, 0.8),
        "kl_weight": Range(0.05, 1.0, log=True),
        "epochs": Range(15, 60),
        "learning_rate": Range(1e-3, 8e-3, log=True),
        "weight_decay": (0.0, 1e-5, 1e-4),
    },
    "sequential": {
        "regularization": Range(3.0, 3000.0, log=True),
        "past_posts": Range(3, 100, log=True),
        "past_half_life": Range(0.5, 100.0, log=True),
        "future_posts": Range(1, 100, log=True),
        "future_half_life": Range(0.3, 100.0, log=True),
        "popularity_exponent": Range(0.0, 0.5),
    },
    "user_knn": {
        "similarity": ("cosine", "bm25"),
        "neighbours": Range(20, 500, log=True),
        "power": Range(0.5, 4.0),
    },
    "word2vec": {
        "vector_size": (16, 32, 64, 128),
        "window": Range(1, 100, log=True),
        "epochs": Range(3, 60, log=True),
        "negative": Range(3, 20),
        "skip_gram": (False, True),
        "ns_exponent": Range(-3.0, 3.0),
        "min_count": Range(1, 20),
        "alpha": Range(0.005, 0.1, log=True),
        "latest_posts": (1, 3, 10, 1000),
    },
    "content": {
        "text_weight": Range(0.0, 1.0),
        "half_life_posts": Range(1.0, 300.0, log=True),
    },
    "segment_popular": {
        "half_life_days": Range(0.5, 120.0, log=True),
        "prior_likes": Range(10.0, 10_000.0, log=True),
    },
    "bpr": {
        "factors": Range(8, 128, log=True),
        "iterations": Range(30, 400, log=True),
        "learning_rate": Range(0.01, 0.2, log=True),
        "regularization": Range(1e-3, 0.2, log=True),
    },
    "two_tower": {
        "temperature": Range(0.05, 0.3, log=True),
        "dropout": Range(0.1, 0.5),
        "history_dropout": Range(0.0, 0.6),
        "short_half_life_posts": Range(0.5, 5.0, log=True),
        "long_half_life_posts": Range(5.0, 50.0, log=True),
        "future_posts": (1, 3, 10, 30),
        "user_balance": Range(0.0, 1.0),
        "example_half_life_days": (None, 7.0, 30.0, 90.0),
        "trend_half_life_days": (1.0, 3.0, 7.0, 20.0),
        "learning_rate": Range(1e-3, 5e-3, log=True),
        "weight_decay": Range(1e-3, 0.3, log=True),
        "epochs": Range(2, 12),
        "width": (64, 128),
        "uniform_negatives": (256, 2048),
        "batch_examples": (256, 512, 1024),
    },
    "lightgbm": {
        "objective": ("lambdarank", "rank_xendcg"),
        "rounds": Range(80, 250),
        "leaves": Range(3, 8),
        "learning_rate": Range(0.02, 0.08, log=True),
        "l2": Range(0.1, 100.0, log=True),
        "least_rows_a_leaf": Range(20, 1000, log=True),
        "feature_share": Range(0.1, 0.8),
        "truncation": Range(10, 40),
    },
    "catboost": {
        "objective": ("QuerySoftMax", "YetiRank", "Logloss"),
        "rounds": Range(80, 400, log=True),
        "depth": Range(2, 6),
        "learning_rate": Range(0.02, 0.15, log=True),
        "l2": Range(1.0, 30.0, log=True),
    },
}
"""What is searched for each generator and ranker; settings left out keep their defaults."""


def space_key(space: Space) -> str:
    """Return a short name of a space's content: trials under another one cannot go on with it."""
    return hashlib.sha256(repr(sorted(space.items())).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Tuned:
    """The best settings found, their value, and how many trials were finished for it.

    `leaders` are the settings of all finished trials without doubles, best first.
    """

    settings: dict[str, Any]
    value: float
    trials: int
    leaders: tuple[dict[str, Any], ...] = field(default=(), repr=False)


def tune(
    study: str,
    space: Space,
    objective: Callable[[dict[str, Any]], Iterable[float]],
    *,
    storage: Path,
    trials: int,
    seed: int = 0,
    first: Iterable[Mapping[str, Any]] = (),
    seconds: float | None = None,
    jobs: int = 1,
    progress: Callable[[int, float, Mapping[str, Any]], None] | None = None,
) -> Tuned:
    """Maximise the mean of an objective's values.

    Parameters
    ----------
    study
        Name under which trials are kept. Running it again goes on where it was left, so it
        must name everything that the objective depends on.
    space
        What is searched.
    objective
        Gets settings, yields one value for each validation slice; a trial that is below the
        median after some of them is stopped early.
    storage
        Journal file, made if there is none.
    trials
        In all, those of earlier runs included.
    seed
        Of the sampler (tree-structured Parzen estimator).
    first
        Settings tried first, such as the defaults; what the space does not allow is drawn.
    seconds
        No trial is begun after so long; running it again goes on.
    jobs
        Trials at a time, in threads; above 1 the order in which they end, and so what is tried
        next, is chance.
    progress
        Called after each trial with its number, value and settings.

    Raises
    ------
    TuningError
        No trial has been finished.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage.parent.mkdir(parents=True, exist_ok=True)
    found = optuna.create_study(
        study_name=study,
        storage=JournalStorage(JournalFileBackend(str(storage))),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        direction="maximize",
        load_if_exists=True,
    )
    if not found.trials:
        for settings in first:
            known = {
                key: settings[key]
                for key, allowed in space.items()
                if settings.get(key) is not None
                and (isinstance(allowed, Range) or settings[key] in allowed)
            }
            found.enqueue_trial(known)

    def one(trial: optuna.Trial) -> float:
        values: list[float] = []
        for value in objective(_suggest(trial, space)):
            values.append(value)
            mean = sum(values) / len(values)
            trial.report(mean, len(values))
            if trial.should_prune():
                raise optuna.TrialPruned
        return sum(values) / len(values)

    def report(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if progress and trial.value is not None:
            progress(trial.number, trial.value, trial.params)

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = trials - len(found.get_trials(deepcopy=False, states=ended))
    if left > 0:
        found.optimize(one, n_trials=left, timeout=seconds, n_jobs=jobs, callbacks=[report])
    complete = found.get_trials(deepcopy=False, states=ended[:1])
    if not complete:
        raise TuningError(f"study {study}: no trial was finished of {trials}; raise trials")
    best = found.best_trial
    ordered = sorted(complete, key=lambda trial: (-float(trial.value or 0.0), trial.number))
    leaders = {repr(sorted(trial.params.items())): dict(trial.params) for trial in ordered}
    return Tuned(
        dict(best.params), float(best.value or 0.0), len(complete), tuple(leaders.values())
    )


def _suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, allowed in space.items():
        if not isinstance(allowed, Range):
            settings[name] = trial.suggest_categorical(name, allowed)
        elif isinstance(allowed.low, int) and isinstance(allowed.high, int):
            settings[name] = trial.suggest_int(name, allowed.low, allowed.high, log=allowed.log)
        else:
            settings[name] = trial.suggest_float(name, allowed.low, allowed.high, log=allowed.log)
    return settings

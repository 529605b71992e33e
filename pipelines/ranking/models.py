"""Train rankers: LightGBM and CatBoost behind one protocol."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import RankerTrainingError
from serving.openmp import ensure_openmp
from serving.ranker import CatBoostColumns, CatBoostScorer, LightGBMScorer, Matrix, Scorer

Progress = Callable[[float], None]
"""Called with the share of the training that is done, from 0 to 1."""

# Below, LightGBM's threads wait for each other longer than they work.
_ROWS_FOR_THREADS = 1_000_000
_MOST_ROWS_A_GROUP = 10_000  # LightGBM's lambdarank goes no further.


class Ranker(Scorer, Protocol):
    """A ranker that can be trained; once it is, it scores like any `Scorer`."""

    name: ClassVar[str]

    def fit(
        self,
        matrix: Matrix,
        labels: NDArray[Any],
        group_sizes: NDArray[np.int64],
        feature_names: Sequence[str],
        categorical_indices: Sequence[int] = (),
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Learn to order the rows of each group.

        The same input and settings give the same model, whatever the number of threads.

        Parameters
        ----------
        matrix
            float32 or float64 (n, inputs), NaN for null.
        labels
            (n,), whole numbers from 0 to 30: higher is more relevant.
        group_sizes
            Rows of each group (one user's candidates), in order, summing to n.
        feature_names
            Name of each column, distinct.
        categorical_indices
            Columns whose values are codes 0, 1, ... of categories (NaN for null).

        Raises
        ------
        RankerTrainingError
            Shapes that do not fit, wrong labels or codes, or labels that leave nothing to order.
        """
        ...


@dataclass(frozen=True)
class LightGBMSettings:
    """Settings of `LightGBMRanker`.

    Attributes
    ----------
    objective
        ``lambdarank`` (pairs weighted by their NDCG), ``rank_xendcg`` (listwise) or ``binary``.
    rounds
        Trees.
    leaves
        Of each tree; few, because positives are few.
    learning_rate, l2
        Shrinkage of each tree; penalty on leaf values.
    least_rows_a_leaf
        A leaf has at least so many rows.
    feature_share
        Share of the inputs that each tree may use.
    truncation
        ``lambdarank`` looks at pairs whose better one is placed this high.
    seed, threads
        Threads change the time, not the model; 0: one for few rows, else all cores.
    """

    objective: Literal["lambdarank", "rank_xendcg", "binary"] = "lambdarank"
    rounds: int = 200
    leaves: int = 7
    learning_rate: float = 0.05
    l2: float = 1.0
    least_rows_a_leaf: int = 20
    feature_share: float = 0.8
    truncation: int = 30
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)


# Steps that leaf values are made of. CatBoost takes up to 100, most of the time of training; on a
# validation slice of MovieLens-100k NDCG@10 was 0.284 with 100 and 0.283 with 10.
_SOFTMAX_LEAVES = {"leaf_estimation_iterations": 10}


@dataclass(frozen=True)
class CatBoostSettings:
    """Settings of `CatBoostRanker`.

    Attributes
    ----------
    objective
        ``QuerySoftMax``, whose loss bounds mean reciprocal rank and NDCG where labels are 0 or
        1 (Bruch et al., "An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank
        with Binary Relevance", 2019), ``YetiRank`` (any labels) or ``Logloss``.
    rounds, depth, learning_rate, l2
        Trees, their depth (all are symmetric), shrinkage, penalty on leaf values.
    one_hot_up_to
        Categories of at most so many values are split one against the rest; others by
        statistics of the label, which cost several times more to train.
    seed, threads
        Threads change the time, not the model; -1: all cores.
    """

    objective: Literal["QuerySoftMax", "YetiRank", "Logloss"] = "QuerySoftMax"
    rounds: int = 200
    depth: int = 4
    learning_rate: float = 0.05
    l2: float = 3.0
    one_hot_up_to: int = 32
    seed: int = 0
    threads: int = -1

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)


@dataclass(frozen=True, eq=False)
class _Examples:
    matrix: Matrix
    labels: NDArray[np.float64]
    group_sizes: NDArray[np.int64]
    names: list[str]
    categorical: list[int]


class _Trainable:
    """What both rankers share: the checks before training, and the scorer after it."""

    name: ClassVar[str]
    _scorer_kind: ClassVar[type[Scorer]]
    _scorer: Scorer | None = None

    def fit(
        self,
        matrix: Matrix,
        labels: NDArray[Any],
        group_sizes: NDArray[np.int64],
        feature_names: Sequence[str],
        categorical_indices: Sequence[int] = (),
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Learn to order the rows of each group; see `Ranker`."""
        examples = _Examples(
            matrix,
            np.asarray(labels, dtype=np.float64),
            np.asarray(group_sizes, dtype=np.int64),
            list(feature_names),
            list(categorical_indices),
        )
        _check(examples)
        self._scorer = self._train(examples, progress or (lambda _share: None))
        return self

    def _train(self, examples: _Examples, progress: Progress) -> Scorer:
        raise NotImplementedError

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The inputs, in the order of the matrix's columns."""
        return self._trained().feature_names

    def predict(self, matrix: Matrix) -> NDArray[np.float32]:
        """Score n rows: float32 (n,); comparable within one group only."""
        return self._trained().predict(matrix)

    def contributions(self, matrix: Matrix) -> NDArray[np.float64]:
        """Explain n scores: float64 (n, inputs + 1) SHAP values, the last column the mean."""
        return self._trained().contributions(matrix)

    def importances(self) -> dict[str, float]:
        """Return each input's share of the model's gain, summing to 1."""
        return self._trained().importances()

    def save(self, path: Path) -> None:
        """Write the library's own file format."""
        self._trained().save(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; the settings it was trained with are not in the file."""
        ranker = cls()
        ranker._scorer = cls._scorer_kind.load(path)
        return ranker

    def _trained(self) -> Scorer:
        if self._scorer is None:
            raise RankerTrainingError(f"{self.name}: not trained; call fit or load first")
        return self._scorer


class LightGBMRanker(_Trainable):
    """Gradient-boosted trees of LightGBM, LambdaRank unless told otherwise."""

    name: ClassVar[str] = "lightgbm"
    suffix: ClassVar[str] = LightGBMScorer.suffix
    _scorer_kind = LightGBMScorer

    def __init__(self, settings: LightGBMSettings | None = None) -> None:
        self.settings = settings or LightGBMSettings()

    def _train(self, examples: _Examples, progress: Progress) -> Scorer:
        ensure_openmp()
        import lightgbm

        rounds = self.settings.rounds
        dataset = lightgbm.Dataset(
            examples.matrix,
            label=examples.labels,
            group=examples.group_sizes,
            feature_name=examples.names,
            categorical_feature=examples.categorical,
            params={"verbosity": -1},
        )
        try:
            booster = lightgbm.train(
                self._parameters(len(examples.labels)),
                dataset,
                rounds,
                callbacks=[lambda state: progress((state.iteration + 1) / rounds)],
            )
        except lightgbm.basic.LightGBMError as error:
            raise RankerTrainingError(
                f"lightgbm: {str(error).strip()}; check {self.settings}"
            ) from error
        return LightGBMScorer(booster)

    def _parameters(self, rows: int) -> dict[str, Any]:
        settings = self.settings
        threads = settings.threads or (1 if rows < _ROWS_FOR_THREADS else 0)
        return {
            "objective": settings.objective,
            "num_leaves": settings.leaves,
            "learning_rate": settings.learning_rate,
            "lambda_l2": settings.l2,
            "min_data_in_leaf": settings.least_rows_a_leaf,
            "feature_fraction": settings.feature_share,
            "lambdarank_truncation_level": settings.truncation,
            "seed": settings.seed,
            "num_threads": threads,
            # Without these two, sums depend on the number of threads.
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


class CatBoostRanker(_Trainable):
    """Gradient-boosted symmetric trees of CatBoost, QuerySoftMax unless told otherwise."""

    name: ClassVar[str] = "catboost"
    suffix: ClassVar[str] = CatBoostScorer.suffix
    _scorer_kind = CatBoostScorer

    def __init__(self, settings: CatBoostSettings | None = None) -> None:
        self.settings = settings or CatBoostSettings()

    def _train(self, examples: _Examples, progress: Progress) -> Scorer:
        import catboost

        codes = examples.matrix[:, examples.categorical]
        highest = -1 if np.isnan(codes).all() else int(np.nanmax(codes))
        columns = CatBoostColumns.of(examples.names, examples.categorical, highest)
        pool = catboost.Pool(
            columns.split(examples.matrix),
            label=examples.labels,
            group_id=np.repeat(np.arange(len(examples.group_sizes)), examples.group_sizes),
        )
        model = catboost.CatBoost(self._parameters())
        try:
            model.fit(pool, callbacks=[_Report(progress, self.settings.rounds)])
        except catboost.CatBoostError as error:
            raise RankerTrainingError(
                f"catboost: {str(error).strip()}; check {self.settings}"
            ) from error
        return CatBoostScorer(model, columns)

    def _parameters(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "loss_function": settings.objective,
            "iterations": settings.rounds,
            "depth": settings.depth,
            "learning_rate": settings.learning_rate,
            "l2_leaf_reg": settings.l2,
            "one_hot_max_size": settings.one_hot_up_to,
            **(_SOFTMAX_LEAVES if settings.objective == "QuerySoftMax" else {}),
            "max_ctr_complexity": 1,
            "random_seed": settings.seed,
            "thread_count": settings.threads,
            "allow_writing_files": False,
            "logging_level": "Silent",
        }


class _Report:
    """CatBoost's callback object."""

    def __init__(self, progress: Progress, rounds: int) -> None:
        self._progress = progress
        self._rounds = rounds

    def after_iteration(self, state: Any) -> bool:
        """Report; True means: go on."""
        self._progress(state.iteration / self._rounds)
        return True


RANKERS: dict[str, tuple[type[Any], type[Any]]] = {
    LightGBMRanker.name: (LightGBMRanker, LightGBMSettings),
    CatBoostRanker.name: (CatBoostRanker, CatBoostSettings),
}
"""Name to ranker and settings class."""


def make_ranker(name: str, settings: Mapping[str, Any] | None = None) -> Ranker:
    """Return an untrained ranker; settings left out keep their defaults.

    Raises
    ------
    RankerTrainingError
        An unknown ranker or setting.
    """
    if name not in RANKERS:
        raise RankerTrainingError(f"found ranker {name!r}, expected one of {sorted(RANKERS)}")
    kind, settings_kind = RANKERS[name]
    allowed = [field.name for field in dataclasses.fields(settings_kind)]
    unknown = sorted(set(settings or {}) - set(allowed))
    if unknown:
        raise RankerTrainingError(
            f"{name}: found unknown settings {unknown}, expected any of {allowed}"
        )
    ranker: Ranker = kind(settings_kind(**(settings or {})))
    return ranker


def prediction_cost_us(
    scorer: Scorer, matrix: Matrix, *, rows: int = 500, repeats: int = 200
) -> float:
    """Return the median time of scoring one request of `rows` rows, in microseconds.

    The rows are taken from `matrix` (repeated if it is shorter), another part for each repeat,
    so that no request finds its rows in the cache.
    """
    order = np.random.default_rng(0)
    requests = [matrix[order.integers(0, len(matrix), rows)] for _ in range(min(repeats, 50))]
    scorer.predict(requests[0])
    seconds = []
    for repeat in range(repeats):
        request = requests[repeat % len(requests)]
        start = time.perf_counter()
        scorer.predict(request)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e6


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise RankerTrainingError(f"ranker settings: found rounds = {rounds}, expected at least 1")


def _check(examples: _Examples) -> None:
    rows, inputs = examples.matrix.shape
    sizes, names = examples.group_sizes, examples.names
    if rows == 0 or len(examples.labels) != rows or sizes.sum() != rows:
        raise RankerTrainingError(
            f"training set: found {rows:,} rows, {len(examples.labels):,} labels and groups of "
            f"{sizes.sum():,} rows in all, expected the same number above 0; are there "
            "candidates whose users have events in the label slice?"
        )
    if len(names) != inputs or len(set(names)) != inputs:
        raise RankerTrainingError(
            f"training set: found {len(set(names))} distinct of {len(names)} names for {inputs} "
            "columns, expected one name a column"
        )
    if sizes.min() < 1 or sizes.max() > _MOST_ROWS_A_GROUP:
        raise RankerTrainingError(
            f"training set: found groups of {sizes.min()} to {sizes.max():,} rows, expected 1 to "
            f"{_MOST_ROWS_A_GROUP:,}; take fewer candidates a user"
        )
    _check_labels(examples.labels, sizes)
    for place in examples.categorical:
        codes = examples.matrix[:, place]
        wrong = ~np.isnan(codes) & ~((codes >= 0) & (codes == np.floor(codes)) & (codes < 2**24))
        if wrong.any():
            raise RankerTrainingError(
                f"training set: the category {names[place]!r} holds {codes[wrong][0]} "
                f"(row {int(np.argmax(wrong))}), expected codes 0, 1, ... or NaN; encode it first"
            )


def _check_labels(labels: NDArray[np.float64], group_sizes: NDArray[np.int64]) -> None:
    wrong = ~((labels >= 0) & (labels <= 30) & (labels == np.floor(labels)))
    if wrong.any():
        raise RankerTrainingError(
            f"training set: {int(wrong.sum()):,} labels are not whole numbers from 0 to 30 "
            f"(first: row {int(np.argmax(wrong))}, {labels[np.argmax(wrong)]})"
        )
    starts = np.cumsum(group_sizes) - group_sizes
    lowest, highest = np.minimum.reduceat(labels, starts), np.maximum.reduceat(labels, starts)
    if not (highest > lowest).any():
        raise RankerTrainingError(
            f"training set: no group of {len(group_sizes):,} has two different labels (all are "
            f"between {labels.min():g} and {labels.max():g}), so there is no order to learn; "
            "take more candidates a user or a longer label slice"
        )

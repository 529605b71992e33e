"""Score rows with a trained ranker: load, predict, explain. Training lives in the pipelines."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from serving.errors import RankerError
from serving.openmp import ensure_openmp

if TYPE_CHECKING:
    import catboost
    import lightgbm

INPUTS_KEY = "feastrank_inputs"
"""Key of CatBoost's metadata that keeps the order of the inputs."""

Matrix = NDArray[np.float32] | NDArray[np.float64]


class Scorer(Protocol):
    """A trained ranker: whatever wrote it, rows go in and scores come out."""

    suffix: ClassVar[str]
    """Ending of the model's file, which says the library."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The inputs, in the order of the matrix's columns."""
        ...

    def predict(self, matrix: Matrix) -> NDArray[np.float32]:
        """Score n rows: float32 (n,), higher is better; comparable within one user only.

        Parameters
        ----------
        matrix
            float32 or float64 (n, inputs), NaN for null; categories as whole numbers, NaN for
            those never seen.

        Raises
        ------
        RankerError
            The number of columns is not the model's.
        """
        ...

    def contributions(self, matrix: Matrix) -> NDArray[np.float64]:
        """Explain n scores: float64 (n, inputs + 1), the library's own SHAP values.

        The last column is the model's mean; a row's sum is its score (Lundberg et al.,
        "Consistent Individualized Feature Attribution for Tree Ensembles", 2018).
        """
        ...

    def importances(self) -> dict[str, float]:
        """Return each input's share of the model's gain, summing to 1.

        LightGBM: gain of the splits. CatBoost: PredictionValuesChange. All 0 for a model that
        never split.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the library's own file format.

        Raises
        ------
        RankerError
            `path` does not end in `suffix`, by which `load_ranker` knows the library.
        """
        ...

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the library's own file format.

        Raises
        ------
        RankerError
            No such file, or not such a model.
        """
        ...


def load_ranker(path: Path) -> Scorer:
    """Load a model by its ending: ``.txt`` is LightGBM's, ``.cbm`` CatBoost's.

    Raises
    ------
    RankerError
        Another ending, no such file, or an unreadable one.
    """
    kinds: dict[str, type[Scorer]] = {
        kind.suffix: kind for kind in (LightGBMScorer, CatBoostScorer)
    }
    if path.suffix not in kinds:
        raise RankerError(
            f"{path}: found the ending {path.suffix!r}, expected one of {sorted(kinds)}; "
            "publish again"
        )
    return kinds[path.suffix].load(path)


class LightGBMScorer:
    """A ranker in LightGBM's text format."""

    suffix: ClassVar[str] = ".txt"

    def __init__(self, booster: lightgbm.Booster) -> None:
        self._booster = booster
        self._names = tuple(booster.feature_name())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The inputs, in the order of the matrix's columns."""
        return self._names

    def predict(self, matrix: Matrix) -> NDArray[np.float32]:
        """Score n rows: float32 (n,), before any link function."""
        if not _checked_rows(matrix, self._names):
            return np.empty(0, dtype=np.float32)
        # A request's rows are scored faster than a second thread wakes up.
        scores = self._booster.predict(matrix, raw_score=True, num_threads=1)
        return np.asarray(scores, dtype=np.float32)

    def contributions(self, matrix: Matrix) -> NDArray[np.float64]:
        """Explain n scores: float64 (n, inputs + 1), the last column the mean."""
        if not _checked_rows(matrix, self._names):
            return np.empty((0, len(self._names) + 1))
        return np.asarray(self._booster.predict(matrix, pred_contrib=True), dtype=np.float64)

    def importances(self) -> dict[str, float]:
        """Return each input's share of the splits' gain, summing to 1."""
        return _shares(self._names, self._booster.feature_importance(importance_type="gain"))

    def save(self, path: Path) -> None:
        """Write LightGBM's text format."""
        _check_suffix(path, self.suffix)
        path.write_text(self._booster.model_to_string(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read LightGBM's text format."""
        ensure_openmp()
        import lightgbm

        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RankerError(f"{path}: cannot be read ({error}); publish again") from error
        # LightGBM takes a file that was cut short for a model with fewer trees.
        if "\nend of trees\n" not in text:
            raise RankerError(f"{path}: no whole LightGBM model (cut short?); publish again")
        try:
            booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise RankerError(f"{path}: no LightGBM model ({error}); publish again") from error
        return cls(booster)


@dataclass(frozen=True, eq=False)
class CatBoostColumns:
    """Where the matrix's columns go: CatBoost wants numbers and categories apart.

    Attributes
    ----------
    numbers, categories : int64
        Positions in the matrix; CatBoost's own order is numbers, then categories.
    labels : object[n]
        Text of the category codes 0, 1, ...; the last one stands for NaN and for higher codes.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    categories: NDArray[np.int64]
    labels: NDArray[np.object_]

    @classmethod
    def of(cls, names: Sequence[str], categorical: Collection[int], highest: int) -> Self:
        """Describe a matrix whose columns `categorical` hold codes from 0 to `highest`."""
        everything = np.arange(len(names))
        is_category = np.isin(everything, list(categorical))
        labels = [*(str(code).encode() for code in range(highest + 1)), b"missing"]
        return cls(
            tuple(names),
            everything[~is_category],
            everything[is_category],
            np.array(labels, dtype=object),
        )

    def split(self, matrix: Matrix) -> catboost.FeaturesData:
        """Turn the matrix into CatBoost's input."""
        import catboost

        missing = len(self.labels) - 1
        codes = matrix[:, self.categories]
        known = (codes >= 0) & (codes < missing)
        places = np.where(known, codes, missing).astype(np.int64)
        # Columns CatBoost takes as they are; rows it turns over, in a thread made for that.
        numbers = np.asfortranarray(matrix[:, self.numbers], dtype=np.float32)
        return catboost.FeaturesData(
            num_feature_data=numbers if len(self.numbers) else None,
            cat_feature_data=self.labels[places] if len(self.categories) else None,
            num_feature_names=[self.names[place] for place in self.numbers] or None,
            cat_feature_names=[self.names[place] for place in self.categories] or None,
        )

    def in_matrix_order(self, values: NDArray[Any]) -> NDArray[Any]:
        """Put the last axis from CatBoost's order into the matrix's; what follows it stays."""
        ordered = values.copy()
        ordered[..., np.concatenate([self.numbers, self.categories])] = values[
            ..., : len(self.names)
        ]
        return ordered

    def to_json(self) -> str:
        """Return what `from_json` needs; kept inside the model's file."""
        places = [int(place) for place in self.categories]
        return json.dumps([self.names, places, len(self.labels) - 2])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild what `to_json` wrote."""
        return cls.of(*json.loads(text))


class CatBoostScorer:
    """A ranker in CatBoost's binary format."""

    suffix: ClassVar[str] = ".cbm"

    def __init__(self, model: catboost.CatBoost, columns: CatBoostColumns) -> None:
        self._model = model
        self._columns = columns

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The inputs, in the order of the matrix's columns."""
        return self._columns.names

    def predict(self, matrix: Matrix) -> NDArray[np.float32]:
        """Score n rows: float32 (n,), before any link function."""
        if not _checked_rows(matrix, self.feature_names):
            return np.empty(0, dtype=np.float32)
        rows = self._columns.split(matrix)
        scores = self._model.predict(rows, prediction_type="RawFormulaVal", thread_count=1)
        return np.asarray(scores, dtype=np.float32)

    def contributions(self, matrix: Matrix) -> NDArray[np.float64]:
        """Explain n scores: float64 (n, inputs + 1), the last column the mean."""
        if not _checked_rows(matrix, self.feature_names):
            return np.empty((0, len(self.feature_names) + 1))
        import catboost

        pool = catboost.Pool(self._columns.split(matrix))
        values = self._model.get_feature_importance(pool, type="ShapValues", thread_count=1)
        return self._columns.in_matrix_order(np.asarray(values, dtype=np.float64))

    def importances(self) -> dict[str, float]:
        """Return each input's share of the change of predictions, summing to 1."""
        change = np.asarray(self._model.get_feature_importance(type="PredictionValuesChange"))
        return _shares(self.feature_names, self._columns.in_matrix_order(change))

    def save(self, path: Path) -> None:
        """Write CatBoost's binary format, with the order of our inputs in its metadata."""
        _check_suffix(path, self.suffix)
        metadata = self._model.get_metadata()
        metadata[INPUTS_KEY] = self._columns.to_json()
        # The same training twice shall give the same bytes.
        for key in ("train_finish_time", "model_guid"):
            if key in metadata.keys():  # noqa: SIM118 - it is no mapping, `in` would iterate
                del metadata[key]
        self._model.save_model(str(path), format="cbm")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read CatBoost's binary format, as `save` writes it."""
        import catboost

        model = catboost.CatBoost()
        try:
            model.load_model(str(path), format="cbm")
            columns = CatBoostColumns.from_json(model.get_metadata()[INPUTS_KEY])
        except (catboost.CatBoostError, KeyError, ValueError) as error:
            raise RankerError(
                f"{path}: no CatBoost model of ours ({error!r}); publish again"
            ) from error
        return cls(model, columns)


def _checked_rows(matrix: Matrix, names: Sequence[str]) -> int:
    """Return the number of rows of a matrix that fits the model."""
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise RankerError(
            f"ranker: found a matrix of shape {matrix.shape}, expected (n, {len(names)}) in the "
            f"order of the model's inputs ({', '.join(names[:3])}, ...); train and publish again"
        )
    return len(matrix)


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise RankerError(f"{path}: found the ending {path.suffix!r}, expected {suffix!r}")


def _shares(names: Sequence[str], gains: NDArray[Any]) -> dict[str, float]:
    total = float(gains.sum()) or 1.0
    return {name: float(gain) / total for name, gain in zip(names, gains, strict=True)}

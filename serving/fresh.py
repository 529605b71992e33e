"""Candidates computed at the request from a user's history as of this moment.

Two sources have a form that needs no training run: ALS, whose user vector follows from the post
vectors by one small system of equations (fold-in), and item-to-item, which is a sum over the
latest posts. What a bundle holds for them, and nothing else, is written and read here: one
``fresh.json`` and arrays that are opened memory-mapped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from serving.errors import BundleError, IndexUnavailableError
from serving.history import History
from serving.index import (
    Floats,
    Metric,
    Rows,
    VectorIndex,
    exact_search,
    recall,
    write_index,
)
from serving.lists import SourceList

DESCRIPTION = "fresh.json"
NO_INDEX = "index_unavailable"
INDEX_METRICS: tuple[Metric, ...] = ("ip", "cos")
# An approximate search for so large a share of the posts is no faster than an exact one.
_EXACT_SHARE = 0.1
_RECALL_QUERIES = 200
Ids = NDArray[np.int64]


class FreshSource(Protocol):
    """A source that can propose from a history."""

    def propose(self, history: History) -> SourceList:
        """Return the posts with the highest scores that the user has not seen, best first."""


def index_file(metric: Metric) -> str:
    """Return the name of the file that holds the index of ALS' post vectors."""
    return f"als_{metric}.index"


@dataclass(frozen=True)
class FoldInSettings:
    """How user vectors follow from post vectors, and how many posts are proposed."""

    alpha: float
    regularization: float
    candidates: int


@dataclass(frozen=True)
class NeighbourSettings:
    """How many latest posts count, how fast they fade, and how many posts are proposed."""

    latest_posts: int
    half_life_posts: float | None
    candidates: int


class FoldIn:
    """ALS with the posts' vectors as trained and the user's solved for at the request.

    Parameters
    ----------
    post_ids
        int64 (n,), ascending.
    factors
        float32 (n, d).
    gram
        float64 (d, d): the sum of all posts' outer products.
    indexes
        By metric; a missing one is replaced by exact search.
    """

    def __init__(
        self,
        settings: FoldInSettings,
        post_ids: Ids,
        factors: Floats,
        gram: NDArray[np.float64],
        indexes: Mapping[str, VectorIndex],
    ) -> None:
        self.settings = settings
        self.post_ids = post_ids
        self.factors = factors
        self._gram = gram
        self._indexes = indexes

    def vector(self, posts: Ids, weights: NDArray[np.float64]) -> Floats:
        """Return the user vector that ALS would find for a history, float32 (d,).

        With Y the post vectors, C the confidences alpha x weight and p = 1 where liked, it is
        (Y'Y + Y'(C - I)Y + regularization I)^-1 Y'Cp (Hu, Koren, Volinsky 2008, equation 4).
        Posts without a vector say nothing; zeros if none has one.
        """
        rows = _rows_of(posts, self.post_ids)
        known = rows >= 0
        liked = self.factors[rows[known]].astype(np.float64)
        confidence = self.settings.alpha * weights[known]
        ridge = self.settings.regularization * np.eye(len(self._gram))
        left = self._gram + ridge + (liked.T * (confidence - 1.0)) @ liked
        # Least squares: without regularization the equations may have many solutions.
        return np.linalg.lstsq(left, liked.T @ confidence, rcond=None)[0].astype(np.float32)

    def propose(self, history: History) -> SourceList:
        """Return the posts with the largest dot products that the user has not seen."""
        vector = self.vector(history.liked, history.weights)
        if not vector.any():
            return SourceList(np.empty(0, np.int32), np.empty(0, np.float32))
        wanted = self.settings.candidates
        rows = self._nearest(vector, wanted + len(history.seen), "ip")
        rows = rows[~np.isin(self.post_ids[rows], history.seen)]
        scores = self.factors[rows] @ vector
        order = np.lexsort((rows, -scores))[:wanted]
        return SourceList(self.post_ids[rows[order]].astype(np.int32), scores[order])

    def similar(self, post_id: int, k: int) -> SourceList:
        """Return up to `k` posts of the nearest direction, by cosine; none without a vector."""
        row = int(_rows_of(np.array([post_id]), self.post_ids)[0])
        own = self.factors[row]
        length = np.linalg.norm(own) if row >= 0 else 0.0
        if not length:
            return SourceList(np.empty(0, np.int32), np.empty(0, np.float32))
        rows = self._nearest(own, k + 1, "cos")
        rows = rows[rows != row][:k]
        found = self.factors[rows]
        cosines = (found @ own) / (np.linalg.norm(found, axis=1) * length)
        order = np.lexsort((rows, -cosines))
        return SourceList(self.post_ids[rows[order]].astype(np.int32), cosines[order])

    def _nearest(self, vector: Floats, k: int, metric: Metric) -> Rows:
        index = self._indexes.get(metric)
        if index is None or k > _EXACT_SHARE * len(self.post_ids):
            return exact_search(self.factors, vector, k, metric)
        return index.search(vector, k)

    @classmethod
    def open(
        cls, folder: Path, settings: FoldInSettings, indexes: Mapping[str, VectorIndex]
    ) -> Self:
        """Map the arrays that `write_fold_in` wrote."""
        posts, factors, gram = (_mapped(folder, f"als_{n}") for n in ("posts", "factors", "gram"))
        return cls(settings, posts, factors, gram, indexes)


class Neighbours:
    """Item-to-item over the latest posts of a history.

    Parameters
    ----------
    post_ids
        int64 (n,), ascending.
    bounds, columns, similarities
        Compressed rows: int64 (n + 1,), int32 and float32 (entries,).
    """

    def __init__(
        self,
        settings: NeighbourSettings,
        post_ids: Ids,
        bounds: Ids,
        columns: NDArray[np.int32],
        similarities: Floats,
    ) -> None:
        self.settings = settings
        self.post_ids = post_ids
        self._bounds, self._columns, self._similarities = bounds, columns, similarities

    def propose(self, history: History) -> SourceList:
        """Return the posts most similar to the latest ones that the user has not seen."""
        rows = _rows_of(history.liked, self.post_ids)
        latest = rows[rows >= 0][::-1][: self.settings.latest_posts]
        if not len(latest):
            return SourceList(np.empty(0, np.int32), np.empty(0, np.float32))
        half_life = self.settings.half_life_posts
        back = np.arange(len(latest))
        decay = np.ones(len(latest)) if half_life is None else np.exp2(-back / half_life)
        runs = [slice(*self._bounds[row : row + 2]) for row in latest]
        columns = np.concatenate([self._columns[run] for run in runs])
        parts = [
            weight * self._similarities[run]
            for weight, run in zip(decay.astype(np.float32), runs, strict=True)
        ]
        found, places = np.unique(columns, return_inverse=True)
        scores = np.bincount(places, np.concatenate(parts), len(found)).astype(np.float32)
        posts = self.post_ids[found]
        kept = (scores > 0) & ~np.isin(posts, history.seen)
        posts, scores = posts[kept], scores[kept]
        order = np.lexsort((posts, -scores))[: self.settings.candidates]
        return SourceList(posts[order].astype(np.int32), scores[order])

    @classmethod
    def open(cls, folder: Path, settings: NeighbourSettings) -> Self:
        """Map the arrays that `write_neighbours` wrote."""
        names = ("posts", "bounds", "columns", "similarities")
        return cls(settings, *(_mapped(folder, f"item_to_item_{name}") for name in names))


@dataclass(frozen=True)
class FreshSources:
    """The fresh forms that a bundle has, by source.

    Attributes
    ----------
    degraded
        Why they are slower than they should be.
    """

    sources: Mapping[str, FreshSource]
    degraded: tuple[str, ...] = ()

    @property
    def fold_in(self) -> FoldIn | None:
        """ALS' form, which also knows similar posts; None if the bundle has none."""
        found = self.sources.get("als")
        return found if isinstance(found, FoldIn) else None

    @classmethod
    def open(cls, folder: Path, is_whole: Mapping[str, bool]) -> Self:
        """Open what a generation holds.

        Parameters
        ----------
        is_whole
            By index file of the manifest: whether it is as it was published.

        Raises
        ------
        BundleError
            If an array is missing or unreadable; a missing or damaged index only degrades.
        """
        path = folder / DESCRIPTION
        if not path.exists():
            return cls({})
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sources: dict[str, FreshSource] = {}
        degraded: tuple[str, ...] = ()
        if "als" in described:
            shape = np.shape(_mapped(folder, "als_factors"))
            indexes, degraded = _open_indexes(folder, is_whole, (shape[0], shape[1]))
            sources["als"] = FoldIn.open(folder, FoldInSettings(**described["als"]), indexes)
        if "item_to_item" in described:
            settings = NeighbourSettings(**described["item_to_item"])
            sources["item_to_item"] = Neighbours.open(folder, settings)
        return cls(sources, degraded)


def write_fold_in(
    folder: Path, post_ids: Ids, factors: Floats, users: Floats, settings: FoldInSettings
) -> dict[str, dict[str, Any]]:
    """Write what `FoldIn` opens, with its indexes; return each index's measures.

    Parameters
    ----------
    users
        Vectors of users, to measure the recall of the index with; evenly spaced ones are taken.

    Returns
    -------
    dict
        By index file: metric, posts, dimensions, ``recall@10`` against exact search.
    """
    wide = factors.astype(np.float64)
    for name, array in (("posts", post_ids), ("factors", factors), ("gram", wide.T @ wide)):
        np.save(folder / f"als_{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
    _describe(folder, "als", asdict(settings))
    measures = {}
    for metric in INDEX_METRICS:
        path = folder / index_file(metric)
        write_index(path, factors, metric)
        asked = users if metric == "ip" else factors
        queries = asked[:: max(1, len(asked) // _RECALL_QUERIES)]
        index = VectorIndex.open(path, (factors.shape[0], factors.shape[1]), metric)
        measures[path.name] = {
            "metric": metric,
            "posts": factors.shape[0],
            "dimensions": factors.shape[1],
            "recall@10": round(recall(index, factors, queries, metric), 4),
        }
    return measures


def write_neighbours(
    folder: Path,
    post_ids: Ids,
    rows: tuple[Ids, NDArray[np.int32], Floats],
    settings: NeighbourSettings,
) -> None:
    """Write what `Neighbours` opens; `rows` are its bounds, columns and similarities."""
    bounds, columns, similarities = rows
    arrays: dict[str, NDArray[Any]] = {
        "posts": post_ids.astype(np.int64),
        "bounds": bounds.astype(np.int64),
        "columns": columns.astype(np.int32),
        "similarities": similarities.astype(np.float32),
    }
    for name, array in arrays.items():
        np.save(folder / f"item_to_item_{name}.npy", array, allow_pickle=False)
    _describe(folder, "item_to_item", asdict(settings))


def _open_indexes(
    folder: Path, is_whole: Mapping[str, bool], shape: tuple[int, int]
) -> tuple[dict[str, VectorIndex], tuple[str, ...]]:
    indexes: dict[str, VectorIndex] = {}
    for metric in INDEX_METRICS:
        name = index_file(metric)
        try:
            if is_whole.get(name, False):
                indexes[metric] = VectorIndex.open(folder / name, shape, metric)
        except IndexUnavailableError:
            continue
    return indexes, () if len(indexes) == len(INDEX_METRICS) else (NO_INDEX,)


def _describe(folder: Path, source: str, settings: dict[str, Any]) -> None:
    path = folder / DESCRIPTION
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, source: settings}, indent=1), encoding="utf-8")


def _mapped(folder: Path, name: str) -> Any:
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: unreadable ({error}); publish again") from error


def _rows_of(posts: Ids, post_ids: Ids) -> Ids:
    """Return each post's row, -1 where it has none."""
    if not len(post_ids):
        return np.full(len(posts), -1, np.int64)
    rows = np.minimum(np.searchsorted(post_ids, posts), len(post_ids) - 1)
    return np.where(post_ids[rows] == posts, rows, -1)

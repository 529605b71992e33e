"""Compute every feature view of a dataset and write each as one parquet file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import FeatureView
from numpy.typing import NDArray

from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from feature_repo.definitions.entities import key_of
from pipelines.features import (
    post_activity,
    post_profile,
    post_text,
    user_activity,
    user_profile,
    user_topic_affinity,
)
from pipelines.features.cluster_cards import ClusterReport, Counts, cluster_report
from pipelines.features.embedding import Progress
from pipelines.features.tables import LakeTables
from pipelines.features.text_clusters import TextClusters
from pipelines.features.text_encoders import TextModel

Compute = Callable[[LakeTables, Dataset], ir.Table]

EXPRESSIONS: dict[str, Compute] = {
    "user_profile": user_profile.compute,
    "user_activity": user_activity.compute,
    "user_topic_affinity": user_topic_affinity.compute,
    "post_profile": post_profile.compute,
    "post_activity": post_activity.compute,
}
"""Views that are Ibis expressions over the lake, by name; they run on any Ibis backend."""

IMAGE_VIEW = "post_image"
"""The view that an image encoder computes."""

CONVERSION_VIEW = "post_conversion"
"""The view that is predicted from the texts' and pictures' embeddings, and so comes after them."""

CLUSTERS_FILE = "text_clusters.npz"
"""Beside the feature tables: what was fitted, for the next run to apply."""

TEXT_VIEWS = ("post_text", "post_text_clusters")
"""Views that a text encoder computes."""


@dataclass(frozen=True)
class TextSettings:
    """How texts are embedded and clustered.

    Parameters
    ----------
    model, cache
        The encoder, and the folder of its cache.
    fit_before, seed, previous, refit
        See `post_text.compute`.
    ids
        The lake's file of the posts' ids in the source.
    """

    model: TextModel
    cache: Path
    fit_before: pa.TimestampScalar
    seed: int
    ids: Path
    previous: TextClusters | None
    refit: bool


def write_expressions(
    backend: ibis.BaseBackend,
    tables: LakeTables,
    dataset: Dataset,
    views: list[FeatureView],
    folder: Path,
) -> Iterator[tuple[str, int]]:
    """Compute the views that are expressions; yield each name and its rows once written.

    A table holds the entity key, ``event_timestamp`` and the view's fields in the view's order,
    sorted by key and time. DuckDB writes a file, Spark a folder of files of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        if view.name in EXPRESSIONS:
            key = key_of(view)
            names = [key, "event_timestamp", *(field.name for field in view.features)]
            expression = EXPRESSIONS[view.name](tables, dataset).select(*names)
            path = folder / f"{view.name}.parquet"
            backend.to_parquet(expression.order_by(key, "event_timestamp"), path)
            yield view.name, ds.dataset(path, format="parquet").count_rows()


@dataclass(frozen=True)
class ImageSettings:
    """How pictures are embedded: the encoder, its cache folder, and where paths start."""

    model: str
    cache: Path
    folder: Path


def write_image_view(
    tables: LakeTables, settings: ImageSettings, folder: Path, on_progress: Progress | None
) -> tuple[int, str]:
    """Compute post_image; return its rows, and in words which pictures were refused."""
    # torch takes seconds to import, which datasets without pictures need not pay.
    from pipelines.features import image

    posts = tables.posts.select("post_id", "known_time", "image").order_by("post_id").to_pyarrow()
    table, found = image.compute(
        posts,
        folder=settings.folder,
        cache=settings.cache,
        model=settings.model,
        on_progress=on_progress,
    )
    pq.write_table(table, folder / f"{IMAGE_VIEW}.parquet")
    return table.num_rows, found.summary


@dataclass(frozen=True)
class TextResult:
    """What became of the text views: rows of each, a note on what was embedded, the cards."""

    rows: dict[str, int]
    note: str
    cards: ClusterReport


def write_text_views(
    tables: LakeTables,
    dataset: Dataset,
    settings: TextSettings,
    folder: Path,
    on_progress: Progress | None,
) -> TextResult:
    """Compute the text views, and describe their clusters."""
    posts = tables.posts.select("post_id", "known_time", "text").order_by("post_id").to_pyarrow()
    made = post_text.compute(
        posts,
        fit_before=settings.fit_before,
        model=settings.model,
        cache=settings.cache,
        seed=settings.seed,
        previous=settings.previous,
        refit=settings.refit,
        on_progress=on_progress,
    )
    made.clusters.save(folder / CLUSTERS_FILE)
    views = dict(zip(TEXT_VIEWS, (made.post_text, made.post_text_clusters), strict=True))
    for name, table in views.items():
        pq.write_table(table, folder / f"{name}.parquet")
    described = posts.take(pa.array(made.found.places))
    cards = cluster_report(
        made.clusters,
        made.distances,
        described["text"].to_pylist(),
        _ids(settings.ids, described["post_id"]),
        made.in_window,
        _counts(tables, dataset, settings.fit_before, described["post_id"]),
        dataset=dataset.name,
        previous=settings.previous,
    )
    return TextResult({n: t.num_rows for n, t in views.items()}, made.found.summary, cards)


def write_conversion_view(
    tables: LakeTables, dataset: Dataset, cut: pa.TimestampScalar, seed: int, folder: Path
) -> int:
    """Compute post_conversion from the views of texts and pictures in ``folder``; return its rows.

    Parameters
    ----------
    cut
        Views and likes before it are learnt from.
    """
    # CatBoost and the language models take seconds to load, which other datasets need not pay.
    from pipelines.features import post_conversion

    columns = ("post_id", "known_time", "text", "topics")
    posts = tables.posts.select(*columns).order_by("post_id").to_pyarrow()
    counts = _counts(tables, dataset, cut, posts["post_id"])
    assert counts is not None, "the view is there with impressions only"
    vectors = {
        name: _embeddings(folder / f"{view}.parquet", column, posts["post_id"])
        for name, view, column, is_there in (
            ("text", "post_text", c.TEXT_EMBEDDING, dataset.has_text),
            ("image", IMAGE_VIEW, c.IMAGE_EMBEDDING, dataset.has_images),
        )
        if is_there
    }
    table = post_conversion.compute(
        posts, post_conversion.Viewed(*counts), vectors, cut=cut, seed=seed
    )
    pq.write_table(table, folder / f"{CONVERSION_VIEW}.parquet")
    return len(posts)


def _embeddings(path: Path, column: str, posts: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a view's vectors by post, float32 (posts, d); NaN where a post has none."""
    table = pq.read_table(path, columns=["post_id", column])
    table = table.filter(pc.is_valid(table[column]))
    flat = pc.list_flatten(table[column]).to_numpy().astype(np.float32)
    width = len(flat) // max(table.num_rows, 1)
    vectors = np.full((len(posts), max(width, 1)), np.nan, dtype=np.float32)
    places = pc.index_in(table["post_id"], posts).to_numpy()
    if width:
        vectors[places] = flat.reshape(-1, width)
    return vectors


def _ids(file: Path, posts: pa.ChunkedArray) -> list[str]:
    """Return the posts' ids in the source."""
    known = pq.read_table(file, columns=["post_id", "external_id"])
    names: list[str] = known["external_id"].take(pc.index_in(posts, known["post_id"])).to_pylist()
    return names


def _counts(
    tables: LakeTables, dataset: Dataset, before: pa.TimestampScalar, posts: pa.ChunkedArray
) -> tuple[Counts, Counts] | None:
    """Return each post's views and likes before a time; None without impressions."""
    if not dataset.has_impressions:
        return None
    events = tables.events.filter(tables.events.event_time < before.as_py())
    every = c.exposure(dataset) == "event_count"
    views = events.count() if every else events.is_impression.cast("int64").sum()
    found = (
        events.group_by("post_id")
        .agg(views=views.cast("int64"), likes=events.is_positive.cast("int64").sum())
        .to_pyarrow()
    )
    at = pc.index_in(posts, found["post_id"])
    of_views, of_likes = (
        found[name].take(at).fill_null(0).to_numpy().astype(np.int64) for name in ("views", "likes")
    )
    # A source without a row for each view has likes beyond them: these were views too.
    return np.maximum(of_views, of_likes), of_likes

"""Compute every feature view of a dataset and write each as one parquet file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView

from feature_repo.dataset import Dataset
from feature_repo.definitions.entities import key_of
from pipelines.features import (
    post_activity,
    post_profile,
    post_text,
    user_activity,
    user_profile,
    user_topic_affinity,
)
from pipelines.features.embedding import Progress
from pipelines.features.tables import LakeTables
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

TEXT_VIEWS = ("post_text", "post_text_clusters")
"""Views that a text encoder computes."""


@dataclass(frozen=True)
class TextSettings:
    """How texts are embedded: the encoder, its cache folder, and the seed of the clusters."""

    model: TextModel
    cache: Path
    fit_before: pa.TimestampScalar
    seed: int


def write_expressions(
    backend: ibis.BaseBackend,
    tables: LakeTables,
    dataset: Dataset,
    views: list[FeatureView],
    folder: Path,
) -> Iterator[tuple[str, int]]:
    """Compute the views that are expressions; yield each name and its rows once written.

    A file holds the entity key, ``event_timestamp`` and the view's fields in the view's order,
    sorted by key and time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        if view.name in EXPRESSIONS:
            key = key_of(view)
            names = [key, "event_timestamp", *(field.name for field in view.features)]
            expression = EXPRESSIONS[view.name](tables, dataset).select(*names)
            path = folder / f"{view.name}.parquet"
            backend.to_parquet(expression.order_by(key, "event_timestamp"), path)
            yield view.name, pq.ParquetFile(path).metadata.num_rows


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


def write_text_views(
    tables: LakeTables, settings: TextSettings, folder: Path, on_progress: Progress | None
) -> tuple[dict[str, int], str]:
    """Compute the text views; return the rows of each, and in words what was embedded."""
    posts = tables.posts.select("post_id", "known_time", "text").order_by("post_id").to_pyarrow()
    text, clusters, fitted, found = post_text.compute(
        posts,
        fit_before=settings.fit_before,
        model=settings.model,
        cache=settings.cache,
        seed=settings.seed,
        on_progress=on_progress,
    )
    fitted.save(folder / "text_clusters.npz")
    tables_of = dict(zip(TEXT_VIEWS, (text, clusters), strict=True))
    for name, table in tables_of.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return {name: table.num_rows for name, table in tables_of.items()}, found.summary

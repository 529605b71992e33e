"""Embeddings of posts' texts and pictures, shard by shard: here, in processes, or on Spark.

Whether a post must be embedded is decided by the cache of embeddings, which datasets share; a shard
whose posts are all as they were is not even looked up there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from feature_repo.dataset import Dataset
from pipelines.errors import FeatureError
from pipelines.features.build import IMAGE_VIEW, TEXT_VIEW
from pipelines.features.embedding import local_fingerprint
from pipelines.features.post_text import EmbedTexts
from pipelines.features.text_encoders import TextModel, loaded_encoder
from pipelines.job.context import Context, Progresses, open_context, progress_bars
from pipelines.job.in_shards import Done, in_shards, link
from pipelines.job.ingest import base_folder
from pipelines.job.profile import require_profile
from pipelines.settings import JobSettings
from pipelines.shards import Work

_WHAT = {TEXT_VIEW: "texts", IMAGE_VIEW: "pictures"}


@dataclass(frozen=True)
class Embedded:
    """A view in shards, and in words what was new and what was refused."""

    done: Done
    summary: str

    def place(self, path: Path, *, as_folder: bool) -> None:
        """Make the shards' files the view's table: a file, or a folder of files as Spark's are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if as_folder:
            path.mkdir()
            for file in self.done.files:
                link(file, path / file.name)
        elif len(self.done.files) == 1:
            link(self.done.files[0], path)
        else:
            with pq.ParquetWriter(path, pq.read_schema(self.done.files[0])) as writer:
                for file in self.done.files:
                    writer.write_table(pq.read_table(file))


def embed(context: Context, view: str, bars: Progresses) -> Embedded:
    """Compute post_text or post_image of the lake's posts.

    Raises
    ------
    FeatureError
        If the encoder cannot be loaded, or no post has anything that it could take.
    ShardError, feastpack.errors.SparkError
        If a process that did a shard died.
    """
    what, posts = _WHAT[view], context.workspace.lake / "posts"
    work, title = _work(context, view), f"{what} embedded"
    # torch uses all processors for one batch.
    done = in_shards(context, work, posts, "post_id", bars, title, workers=1)
    # The steps that follow need its memory.
    loaded_encoder.cache_clear()
    refused = _refused(done)
    if not done.rows:
        raise FeatureError(_nothing(view, done, refused))
    told = []
    if embedded := done.total("embedded", new=True):
        told.append(f"{embedded:,} new {what} embedded, {embedded / done.seconds:,.0f} posts/s")
    if refused:
        told.append(f"pictures refused: {refused}")
    return Embedded(done, "; ".join(told))


def embedding_views(dataset: Dataset) -> Iterator[str]:
    """Yield the views of a dataset that encoders compute."""
    if dataset.has_text:
        yield TEXT_VIEW
    if dataset.has_images:
        yield IMAGE_VIEW


def text_model_of(settings: JobSettings) -> TextModel:
    """Return the text encoder that the settings name."""
    return TextModel(settings.text_model, settings.text_pooling)


def command(settings: JobSettings, console: Console) -> None:
    """Embed all texts and pictures of a dataset; say how many and how fast."""
    context = open_context(settings, console)
    require_profile(context)
    context.record("ingest")
    views = list(embedding_views(context.dataset))
    if not views:
        raise FeatureError(
            f"{context.dataset.name}: its posts have neither texts nor pictures to embed"
        )
    for view in views:
        with progress_bars(console) as bars:
            made = embed(context, view, bars)
        console.print(
            f"[bold]{view:<12}[/] {made.done.seconds:>8.1f} s  {made.done.rows:,} rows in "
            f"{made.done.shards}; {made.summary or 'nothing new to embed'}",
            highlight=False,
            soft_wrap=True,
        )


def _work(context: Context, view: str) -> Work:
    settings, cache = context.settings, context.workspace.home / "embeddings"
    if view == TEXT_VIEW:
        model = text_model_of(settings)
        return EmbedTexts(model, local_fingerprint(model), cache)
    # torch takes seconds to import, which datasets without pictures need not pay.
    from pipelines.features.image import EmbedImages

    return EmbedImages(settings.image_model, cache, base_folder(context))


def _refused(done: Done) -> str:
    """Return in words which pictures were refused; empty if none was."""
    given = [one.facts["refused"] for one in done.reports if one.facts.get("refused")]
    if not given:
        return ""
    from pipelines.features.image import in_words, merged

    reasons: dict[str, Any] = {}
    for one in given:
        reasons = merged(reasons, one)
    return in_words(reasons)


def _nothing(view: str, done: Done, refused: str) -> str:
    posts = sum(report.read for report in done.reports)
    if view == TEXT_VIEW:
        return (
            f"texts: none of {posts:,} posts has anything to read; correct posts.text in the "
            "description, or leave it out"
        )
    return (
        f"pictures: none of {posts:,} posts has one that can be used ({done.total('absent'):,} "
        f"have none; refused: {refused or 'none'}); correct posts.image in the description"
    )

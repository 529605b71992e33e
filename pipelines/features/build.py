"""Compute every feature view of a dataset and write each as one parquet file."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
from pipelines.features.tables import LakeTables
from pipelines.features.text_clusters import TextClusters
from pipelines.shards import Progress

Compute = Callable[[LakeTables, Dataset], ir.Table]

EXPRESSIONS: dict[str, Compute] = {
    "user_profile": user_profile.compute,
    "user_activity": user_activity.compute,
    "user_topic_affinity": user_topic_affinity.compute,
    "post_profile": post_profile.compute,
    "post_activity": post_activity.compute,
}
"""Views that are Ibis expressions over the lake, by name; they run on any Ibis backend."""

OF_EVENTS = ("user_activity", "user_topic_affinity", "post_activity")
"""Those of them that look at events: a row takes no other events than those of its entity, but
for what `LakeTables.daily_totals` says of everybody."""

EVENTS_AT_ONCE = 6_000_000
"""What DuckDB computes a view for in some 2 GB, without spilling to disk."""

_EVENT_COLUMNS = ("user_id", "post_id", "event_time", "is_impression", "is_positive")

_BATCH_ROWS = 1 << 17

IMAGE_VIEW = "post_image"
"""The view that an image encoder computes."""

CONVERSION_VIEW = "post_conversion"
"""The view that is predicted from the texts' and pictures' embeddings, and so comes after them."""

CLUSTERS_FILE = "text_clusters.npz"
"""Beside the feature tables: what was fitted, for the next run to apply."""

TEXT_VIEW = "post_text"
"""The view that a text encoder computes."""

CLUSTERS_VIEW = "post_text_clusters"
"""The view that is fitted on the texts' embeddings, and so comes after them."""

EMBEDDINGS = (TEXT_VIEW, IMAGE_VIEW)
"""Views that are computed shard by shard, on any engine; see `pipelines.shards`."""


@dataclass(frozen=True)
class ClusterSettings:
    """How texts are clustered.

    Parameters
    ----------
    encoder, fit_before, seed, previous, refit
        See `post_text.cluster`.
    ids
        The lake's file of the posts' ids in the source.
    """

    encoder: str
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
    events_at_once: int = EVENTS_AT_ONCE,
    on_range: Progress | None = None,
) -> Iterator[tuple[str, int]]:
    """Compute the views that are expressions; yield each name and its rows once written.

    A table holds the entity key, ``event_timestamp`` and the view's fields in the view's order,
    sorted by key and time. DuckDB writes a file, Spark a folder of files of that name.

    Parameters
    ----------
    events_at_once
        DuckDB computes views of events for one range of users or posts after another, each with
        about so many events (more only where one user or post has more).
    on_range
        Told of every view how many ranges are written, and of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies, by_key = folder / ".events", dict[str, list[LakeTables]]()
    for view in (one for one in views if one.name in EXPRESSIONS):
        key = key_of(view)
        names = [key, "event_timestamp", *(field.name for field in view.features)]
        path = folder / f"{view.name}.parquet"
        parts = [tables]
        if backend.name == "duckdb" and view.name in OF_EVENTS:
            if key not in by_key:
                by_key[key] = _parts(backend, tables, key, copies, events_at_once)
            parts = by_key[key]
        ordered = [
            EXPRESSIONS[view.name](part, dataset).select(*names).order_by(key, "event_timestamp")
            for part in parts
        ]
        if len(ordered) == 1:
            backend.to_parquet(ordered[0], path)
        else:
            _write_one_after_another(backend, ordered, path, on_range)
        yield view.name, ds.dataset(path, format="parquet").count_rows()
    shutil.rmtree(copies, ignore_errors=True)


def _parts(
    backend: ibis.BaseBackend, tables: LakeTables, key: str, copies: Path, events_at_once: int
) -> list[LakeTables]:
    """Cut the events into ranges of ids, each about so large; one part if there are no more."""
    ranges = id_ranges(tables, key, events_at_once)
    if len(ranges) == 1:
        return [tables]
    # Each range in files of its own: in the lake's order every range is in all row groups. Not
    # by sorting, which costs more the more events there are.
    folder, totals = copies / key, copies / "totals.parquet"
    folder.mkdir(parents=True)
    events = tables.events.select(*_EVENT_COLUMNS)
    later = [(events[key] >= first, at) for at, (first, _) in enumerate(ranges) if at > 0]
    numbered = events.mutate(range=ibis.cases(*reversed(later), else_=0))
    backend.to_parquet(numbered, folder, partition_by="range")
    if not totals.exists():
        backend.to_parquet(tables.daily_totals(), totals)
    counted = replace(tables, totals=backend.read_parquet(totals))
    return [
        replace(counted, events=backend.read_parquet(folder / f"range={at}" / "*.parquet"))
        for at in range(len(ranges))
    ]


def id_ranges(tables: LakeTables, key: str, events_at_once: int) -> list[tuple[int, int]]:
    """Cut the ids that have events into ranges, ascending, of about equally many events each."""
    counted = tables.events.group_by(key).agg(events=tables.events.count()).order_by(key)
    found = counted.to_pyarrow()
    ids, upto = found[key].to_numpy(), np.cumsum(found["events"].to_numpy())
    wanted = max(1, -(-int(upto[-1]) // events_at_once))
    cuts = np.searchsorted(upto, upto[-1] * np.arange(1, wanted + 1) / wanted)
    ends = np.unique(np.minimum(cuts, len(ids) - 1))
    starts = np.append([0], ends[:-1] + 1)
    return [(int(ids[a]), int(ids[b])) for a, b in zip(starts, ends, strict=True)]


def _write_one_after_another(
    backend: ibis.BaseBackend,
    expressions: list[ir.Table],
    path: Path,
    on_table: Progress | None,
) -> None:
    """Write tables below each other into one file."""
    with ExitStack() as closing:
        writer = None
        for done, expression in enumerate(expressions, start=1):
            # Ibis 12 reads batches by a name that DuckDB 2 has dropped.
            query = str(ibis.to_sql(expression, dialect="duckdb"))
            for batch in backend.con.sql(query).to_arrow_reader(_BATCH_ROWS):
                if writer is None:
                    opened = pq.ParquetWriter(path, batch.schema, compression="snappy")
                    writer = closing.enter_context(opened)
                writer.write_batch(batch)
            if on_table is not None:
                on_table(done, len(expressions))


def read_view(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a view's table, a file or a folder of files."""
    # The folder's name, which looks like a file's, must not be taken for a partition's.
    return pq.read_table(path, columns=columns, partitioning=None)


def write_clusters(
    tables: LakeTables, dataset: Dataset, settings: ClusterSettings, folder: Path
) -> tuple[int, ClusterReport]:
    """Cluster the texts of post_text in ``folder``; return the rows, and cards of the clusters."""
    made = post_text.cluster(
        read_view(folder / f"{TEXT_VIEW}.parquet").sort_by("post_id"),
        fit_before=settings.fit_before,
        encoder=settings.encoder,
        seed=settings.seed,
        previous=settings.previous,
        refit=settings.refit,
    )
    made.clusters.save(folder / CLUSTERS_FILE)
    pq.write_table(made.table, folder / f"{CLUSTERS_VIEW}.parquet")
    ids = made.table["post_id"]
    texts = tables.posts.select("post_id", "text").to_pyarrow()
    cards = cluster_report(
        made.clusters,
        made.distances,
        texts["text"].take(pc.index_in(ids, texts["post_id"])).to_pylist(),
        _ids(settings.ids, ids),
        made.in_window,
        _counts(tables, dataset, settings.fit_before, ids),
        dataset=dataset.name,
        previous=settings.previous,
    )
    return made.table.num_rows, cards


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
    # From Spark, whose session is in UTC, times come without a zone.
    times = posts["known_time"].cast(cut.type)
    posts = posts.set_column(columns.index("known_time"), "known_time", times)
    counts = _counts(tables, dataset, cut, posts["post_id"])
    assert counts is not None, "the view is there with impressions only"
    vectors = {
        name: _embeddings(folder / f"{view}.parquet", column, posts["post_id"])
        for name, view, column, is_there in (
            ("text", TEXT_VIEW, c.TEXT_EMBEDDING, dataset.has_text),
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
    table = read_view(path, ["post_id", column])
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

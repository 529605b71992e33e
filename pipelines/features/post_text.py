"""post_text and post_text_clusters: the meaning of a post's text.

Grain of both: one row per post with text; ``event_timestamp`` is when the post became known.

post_text
    ``post_text_embedding`` list<float32> of length 1, as many numbers as the encoder gives.
post_text_clusters
    ``text_cluster`` int64, ``distance_to_cluster_0..14`` float32 (Euclidean, in the space of the
    principal components; null for clusters that a tiny catalogue does not have),
    ``post_text_pca`` list<float32>; see `text_clusters`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.definitions import columns as c
from pipelines.features.embedding import cache_name, embed_texts
from pipelines.features.embedding_rows import add_facts, embedding_rows, embedding_schema
from pipelines.features.text_clusters import Floats, TextClusters, clusters_for
from pipelines.features.text_encoders import TextModel
from pipelines.features.vector_files import vector_array
from pipelines.shards import Facts, Progress, rows_key
from pipelines.steps import content_key


@dataclass(frozen=True)
class EmbedTexts:
    """Makes the rows of post_text of a shard of the lake's posts; see `pipelines.shards.Work`.

    Its facts: ``embedded`` (distinct texts that were not in the cache).

    Parameters
    ----------
    model
        The encoder.
    fingerprint
        Of the encoder, see `embedding.local_fingerprint`.
    cache
        Folder of the cache, shared by datasets and models.
    """

    model: TextModel
    fingerprint: str
    cache: Path

    name: ClassVar[str] = "post_text"
    columns: ClassVar[tuple[str, ...]] = ("known_time", "text")
    together: ClassVar[int] = 1
    schema: ClassVar[pa.Schema] = embedding_schema(c.TEXT_EMBEDDING)

    def key(self, rows: pa.Table) -> str:
        """Return the hash of encoder and texts."""
        return content_key(self.name, cache_name(self.fingerprint), rows_key(rows))

    def __call__(
        self, batches: Iterable[pa.RecordBatch], facts: Facts, on_progress: Progress | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield a row for each post with anything to read."""
        for posts in batches:
            found = embed_texts(
                posts["text"].to_pylist(),
                model=self.model,
                cache=self.cache,
                on_progress=on_progress,
            )
            add_facts(facts, embedded=found.embedded)
            yield embedding_rows(posts, found.places, found.vectors, self.schema)


@dataclass(frozen=True)
class Clustered:
    """What `cluster` makes of m posts with text.

    Attributes
    ----------
    table
        The view post_text_clusters, m rows.
    clusters
        Fitted in this run, or as they were stored.
    distances
        To the clusters' centres, shape (m, k).
    in_window
        Which of the m posts the clusters are fitted on.
    """

    table: pa.Table
    clusters: TextClusters
    distances: Floats
    in_window: NDArray[np.bool_]


def cluster(
    texts: pa.Table,
    *,
    fit_before: pa.TimestampScalar,
    encoder: str,
    seed: int,
    previous: TextClusters | None = None,
    refit: bool = False,
) -> Clustered:
    """Cluster posts.

    Parameters
    ----------
    texts
        The view post_text, at least one row.
    fit_before
        Clusters are fitted on posts known before this time, or at the dataset's beginning.
    encoder
        The encoder's fingerprint.
    previous
        The stored clusters, applied as they are while the cut and the encoder stay.
    refit
        Fit the clusters anew in any case.
    """
    flat = pc.list_flatten(texts[c.TEXT_EMBEDDING]).to_numpy()
    embeddings, times = flat.reshape(texts.num_rows, -1), texts["event_timestamp"]
    early = pc.less_equal(times, pc.min(times))
    known = pc.or_(early, pc.less(times, fit_before)).to_numpy()
    clusters = clusters_for(
        embeddings[known],
        previous,
        seed=seed,
        encoder=encoder,
        fitted_before=f"{fit_before.as_py():%Y-%m-%d %H:%M:%S.%f} UTC",
        refit=refit,
    )
    keys = {"post_id": texts["post_id"], "event_timestamp": times}
    reduced = clusters.reduce(embeddings)
    distances = clusters.distances(reduced)
    table = pa.table({**keys, **_cluster_columns(reduced, distances)})
    return Clustered(table, clusters, distances, known)


def _cluster_columns(reduced: Floats, distances: Floats) -> dict[str, pa.Array]:
    missing = pa.nulls(len(reduced), pa.float32())
    columns = {c.TEXT_CLUSTER: pa.array(distances.argmin(axis=1).astype(np.int64))}
    for k in range(c.TEXT_CLUSTERS):
        here = k < distances.shape[1]
        columns[c.distance_to_cluster(k)] = pa.array(distances[:, k]) if here else missing
    columns[c.TEXT_PCA] = vector_array(reduced)
    return columns

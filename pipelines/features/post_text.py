"""post_text and post_text_clusters: the meaning of a post's text.

Grain of both: one row per post with text; ``event_timestamp`` is when the post became known.

post_text
    ``post_text_embedding`` list<float32> of length 1, as many numbers as the encoder gives.
post_text_clusters
    ``text_cluster`` int64, ``distance_to_cluster_0..14`` float32 (Euclidean, in the space of the
    principal components; null for clusters that a tiny catalogue does not have),
    ``post_text_pca`` list<float32>; see `text_clusters`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.definitions import columns as c
from pipelines.errors import FeatureError
from pipelines.features.embedding import Progress, TextEmbeddings, embed_texts
from pipelines.features.text_clusters import Floats, TextClusters, clusters_for
from pipelines.features.text_encoders import TextModel
from pipelines.features.vector_files import vector_array


@dataclass(frozen=True)
class TextViews:
    """What `compute` makes of n posts, m of which have something to read.

    Attributes
    ----------
    post_text, post_text_clusters
        The views' tables, m rows.
    clusters
        Fitted in this run, or as they were stored.
    distances
        To the clusters' centres, shape (m, k).
    in_window
        Which of the m posts the clusters are fitted on.
    found
        What was embedded.
    """

    post_text: pa.Table
    post_text_clusters: pa.Table
    clusters: TextClusters
    distances: Floats
    in_window: NDArray[np.bool_]
    found: TextEmbeddings


def compute(
    posts: pa.Table,
    *,
    fit_before: pa.TimestampScalar,
    model: TextModel,
    cache: Path,
    seed: int,
    previous: TextClusters | None = None,
    refit: bool = False,
    on_progress: Progress | None = None,
) -> TextViews:
    """Embed and cluster posts.

    Parameters
    ----------
    posts
        The lake's posts (post_id, known_time, text); rows without anything to read are left out.
    fit_before
        Clusters are fitted on posts known before this time, or at the dataset's beginning.
    previous
        The stored clusters, applied as they are while the cut and the encoder stay.
    refit
        Fit the clusters anew in any case.

    Raises
    ------
    FeatureError
        If the model cannot be loaded, or no post has anything to read.
    """
    found = embed_texts(
        posts["text"].to_pylist(), model=model, cache=cache, on_progress=on_progress
    )
    if not len(found.places):
        raise FeatureError(
            f"texts: none of {len(posts):,} posts has anything to read; correct posts.text in the "
            "description, or leave it out"
        )
    embeddings, texts = found.vectors, posts.take(pa.array(found.places))
    early = pc.less_equal(texts["known_time"], pc.min(texts["known_time"]))
    known = pc.or_(early, pc.less(texts["known_time"], fit_before)).to_numpy()
    clusters = clusters_for(
        embeddings[known],
        previous,
        seed=seed,
        encoder=model.fingerprint() or model.name,
        fitted_before=f"{fit_before.as_py():%Y-%m-%d %H:%M:%S.%f} UTC",
        refit=refit,
    )
    keys = {"post_id": texts["post_id"], "event_timestamp": texts["known_time"]}
    reduced = clusters.reduce(embeddings)
    distances = clusters.distances(reduced)
    return TextViews(
        pa.table({**keys, c.TEXT_EMBEDDING: vector_array(embeddings)}),
        pa.table({**keys, **_cluster_columns(reduced, distances)}),
        clusters,
        distances,
        known,
        found,
    )


def _cluster_columns(reduced: Floats, distances: Floats) -> dict[str, pa.Array]:
    missing = pa.nulls(len(reduced), pa.float32())
    columns = {c.TEXT_CLUSTER: pa.array(distances.argmin(axis=1).astype(np.int64))}
    for k in range(c.TEXT_CLUSTERS):
        here = k < distances.shape[1]
        columns[c.distance_to_cluster(k)] = pa.array(distances[:, k]) if here else missing
    columns[c.TEXT_PCA] = vector_array(reduced)
    return columns

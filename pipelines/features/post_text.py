"""post_text and post_text_clusters: the meaning of a post's text.

Grain of both: one row per post with text; ``event_timestamp`` is when the post became known.

post_text
    ``post_text_embedding`` list<float32> of length 1, as many numbers as the encoder gives.
post_text_clusters
    ``text_cluster`` int64, ``distance_to_cluster_0..14`` float32 (Euclidean, in the space of the
    principal components; null for clusters that a tiny catalogue does not have),
    ``post_text_pca`` list<float32>. Centring, PCA and KMeans are fitted on the posts known before
    the first training cut and applied to all.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from feature_repo.definitions import columns as c
from pipelines.errors import FeatureError
from pipelines.features.embedding import Progress, TextEmbeddings, embed_texts
from pipelines.features.text_encoders import TextModel
from pipelines.features.vector_files import vector_array

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextClusters:
    """Centring, principal components and cluster centres, fitted once and then applied.

    Parameters
    ----------
    mean
        Shape (d,).
    components
        Shape (p, d), p at most 50.
    centres
        Shape (k, p), k at most 15.
    """

    mean: Floats
    components: Floats
    centres: Floats

    @classmethod
    def fit(cls, embeddings: Floats, *, seed: int) -> "TextClusters":
        """Fit on embeddings of shape (n, d), n at least 1."""
        rows = len(embeddings)
        pca = PCA(n_components=min(c.TEXT_PCA_COMPONENTS, rows), random_state=seed).fit(embeddings)
        reduced = pca.transform(embeddings)
        distinct = len(np.unique(reduced.round(6), axis=0))
        means = KMeans(min(c.TEXT_CLUSTERS, distinct), n_init=4, random_state=seed).fit(reduced)
        return cls(
            pca.mean_.astype(np.float32),
            pca.components_.astype(np.float32),
            means.cluster_centers_.astype(np.float32),
        )

    def reduce(self, embeddings: Floats) -> Floats:
        """Return principal components, shape (n, p)."""
        reduced: Floats = ((embeddings - self.mean) @ self.components.T).astype(np.float32)
        return reduced

    def distances(self, reduced: Floats) -> Floats:
        """Return Euclidean distances to the centres, shape (n, k)."""
        distances: Floats = cdist(reduced, self.centres).astype(np.float32)
        return distances

    def save(self, path: Path) -> None:
        """Write to ``path`` (npz)."""
        with path.open("wb") as file:
            np.savez(file, mean=self.mean, components=self.components, centres=self.centres)


def compute(
    posts: pa.Table,
    *,
    fit_before: pa.TimestampScalar,
    model: TextModel,
    cache: Path,
    seed: int,
    on_progress: Progress | None = None,
) -> tuple[pa.Table, pa.Table, TextClusters, TextEmbeddings]:
    """Embed and cluster posts.

    Parameters
    ----------
    posts
        The lake's posts (post_id, known_time, text); rows without anything to read are left out.
    fit_before
        Clusters are fitted on posts known before this time, or at the dataset's beginning.

    Returns
    -------
    the tables post_text and post_text_clusters, the fitted clusters, and what was embedded.

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
    clusters = TextClusters.fit(embeddings[known], seed=seed)
    keys = {"post_id": texts["post_id"], "event_timestamp": texts["known_time"]}
    text = pa.table({**keys, c.TEXT_EMBEDDING: vector_array(embeddings)})
    return text, pa.table({**keys, **_cluster_columns(clusters, embeddings)}), clusters, found


def _cluster_columns(clusters: TextClusters, embeddings: Floats) -> dict[str, pa.Array]:
    reduced = clusters.reduce(embeddings)
    distances = clusters.distances(reduced)
    missing = pa.nulls(len(embeddings), pa.float32())
    columns = {c.TEXT_CLUSTER: pa.array(distances.argmin(axis=1).astype(np.int64))}
    for k in range(c.TEXT_CLUSTERS):
        here = k < distances.shape[1]
        columns[c.distance_to_cluster(k)] = pa.array(distances[:, k]) if here else missing
    columns[c.TEXT_PCA] = vector_array(reduced)
    return columns

"""Clusters of posts by the meaning of their text: fitted once, kept, and applied to new posts.

Centring, principal components and KMeans, as in a social feed's ranker. Fitted on the posts known
before the first training cut; a later run applies what is stored, and fits anew only when that cut
moves, another encoder is used, or it is told to. A new fit's clusters take the numbers of the old
ones that they lie next to (Kuhn 1955: the assignment with the least sum of distances), so that a
number keeps its meaning.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from feature_repo.definitions import columns as c
from pipelines.errors import FeatureError

Floats = NDArray[np.float32]

_SAVED = ("mean", "components", "centres", "shares", "encoder", "fitted_before")


@dataclass(frozen=True)
class TextClusters:
    """Centring, principal components and cluster centres.

    Parameters
    ----------
    mean
        Shape (d,).
    components
        Shape (p, d), p at most 50.
    centres
        Shape (k, p), k at most 15. A cluster's number is its place here.
    shares
        Share of the posts fitted on that each cluster has, shape (k,).
    encoder
        Fingerprint of the text encoder whose vectors these are.
    fitted_before
        The cut: posts known before it were fitted on (ISO time).
    """

    mean: Floats
    components: Floats
    centres: Floats
    shares: Floats
    encoder: str
    fitted_before: str

    @classmethod
    def fit(
        cls, embeddings: Floats, *, seed: int, encoder: str = "", fitted_before: str = ""
    ) -> "TextClusters":
        """Fit on embeddings of shape (n, d), n at least 1."""
        # They take seconds to import, which commands that fit nothing need not pay.
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        count = min(c.TEXT_PCA_COMPONENTS, *embeddings.shape)
        pca = PCA(n_components=count, random_state=seed).fit(embeddings)
        reduced = pca.transform(embeddings)
        distinct = len(np.unique(reduced.round(6), axis=0))
        means = KMeans(min(c.TEXT_CLUSTERS, distinct), n_init=4, random_state=seed).fit(reduced)
        sizes = np.bincount(means.labels_, minlength=means.n_clusters)
        return cls(
            pca.mean_.astype(np.float32),
            pca.components_.astype(np.float32),
            means.cluster_centers_.astype(np.float32),
            (sizes / len(embeddings)).astype(np.float32),
            encoder,
            fitted_before,
        )

    def reduce(self, embeddings: Floats) -> Floats:
        """Return principal components, shape (n, p)."""
        reduced: Floats = ((embeddings - self.mean) @ self.components.T).astype(np.float32)
        return reduced

    def distances(self, reduced: Floats) -> Floats:
        """Return Euclidean distances to the centres, shape (n, k)."""
        distances: Floats = cdist(reduced, self.centres).astype(np.float32)
        return distances

    @property
    def points(self) -> Floats:
        """The centres in the encoder's own space, shape (k, d): comparable between fits."""
        points: Floats = self.centres @ self.components + self.mean
        return points

    def comparable(self, previous: "TextClusters") -> bool:
        """Whether numbers can be taken over: vectors of another encoder lie in another space."""
        return self.encoder == previous.encoder and len(self.centres) >= len(previous.centres)

    def like(self, previous: "TextClusters") -> "TextClusters":
        """Return the same clusters, numbered as those of ``previous`` that they lie next to.

        ``previous`` is `comparable`; clusters beyond the number of its own come last.
        """
        mine, theirs = linear_sum_assignment(cdist(self.points, previous.points))
        order = [*mine[np.argsort(theirs)], *np.setdiff1d(np.arange(len(self.centres)), mine)]
        return replace(self, centres=self.centres[order], shares=self.shares[order])

    def shifts(self, previous: "TextClusters") -> Floats:
        """Return how far each centre lies from the one of its number before, shape (k,).

        In the encoder's space, where posts have length 1; NaN for a number that is new.
        ``previous`` is `comparable`.
        """
        shared = len(previous.centres)
        moved = np.full(len(self.centres), np.nan, dtype=np.float32)
        moved[:shared] = np.linalg.norm(self.points[:shared] - previous.points[:shared], axis=1)
        return moved

    def save(self, path: Path) -> None:
        """Write to ``path`` (npz)."""
        arrays = {name: getattr(self, name) for name in _SAVED}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "TextClusters | None":
        """Read what `save` wrote; None if there is nothing, or it is of an earlier version.

        Raises
        ------
        FeatureError
            If the file is damaged.
        """
        if not path.exists():
            return None
        try:
            with np.load(path) as found:
                if not set(_SAVED) <= set(found.files):
                    return None
                return cls(
                    mean=found["mean"],
                    components=found["components"],
                    centres=found["centres"],
                    shares=found["shares"],
                    encoder=str(found["encoder"]),
                    fitted_before=str(found["fitted_before"]),
                )
        except (OSError, ValueError, EOFError) as error:
            raise FeatureError(
                f"text clusters {path}: cannot be read ({error}); delete the file, and they are "
                "fitted anew"
            ) from error


def clusters_for(
    embeddings: Floats,
    previous: TextClusters | None,
    *,
    seed: int,
    encoder: str,
    fitted_before: str,
    refit: bool = False,
) -> TextClusters:
    """Return the stored clusters where they hold, or new ones numbered like them.

    Parameters
    ----------
    embeddings
        Of the posts in the training window, shape (n, d).
    previous
        What is stored; None if nothing is.
    refit
        Fit anew even if the stored clusters hold.
    """
    if (
        previous is not None
        and not refit
        and (previous.encoder, previous.fitted_before) == (encoder, fitted_before)
    ):
        return previous
    fitted = TextClusters.fit(embeddings, seed=seed, encoder=encoder, fitted_before=fitted_before)
    if previous is None or not fitted.comparable(previous):
        return fitted
    return fitted.like(previous)

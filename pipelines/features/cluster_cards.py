"""A readable card for each cluster of posts: how large, what about, liked how much, and drift.

Shares and rates are as of the training cut; drift compares the posts known since then with those
that the clusters were fitted on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipelines.features.plain_text import plain_text
from pipelines.features.text_clusters import TextClusters
from pipelines.pages import rendered, write_whole

CLUSTERS_PAGE = "clusters.html"

Counts = NDArray[np.int64]

_TERMS, _POSTS, _EXCERPT = 8, 3, 90
_MAX_TERMS = 20_000


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NearPost(_Content):
    """A post near a cluster's centre: its id in the source, its beginning, its distance."""

    post: str
    beginning: str
    distance: float


class ClusterCard(_Content):
    """One cluster.

    Attributes
    ----------
    posts
        Of all posts with text.
    share_fitted, share_new
        Share of the posts fitted on, and of the posts known since; None without any since.
    centre_shift
        How far the centre moved in the last fit, in the encoder's space (posts have length 1);
        None if these clusters were fitted first, or are applied as stored.
    terms
        Words that are frequent here and rare elsewhere, the most telling first.
    nearest
        The posts nearest to the centre.
    views, likes, like_rate
        Before the training cut; None where the source has no impressions. The rate is None
        without a view.
    """

    cluster: int
    posts: int
    share_fitted: float
    share_new: float | None
    centre_shift: float | None
    terms: tuple[str, ...]
    nearest: tuple[NearPost, ...]
    views: int | None
    likes: int | None
    like_rate: float | None


class ClusterReport(_Content):
    """All cards of a dataset.

    Attributes
    ----------
    refitted
        False if stored clusters were applied as they are.
    new_posts
        Posts with text known since the cut.
    drift
        Total variation between shares then and since, 0 (none) to 1; None without new posts.
    like_rate
        Of all posts with text before the cut; None without impressions or views.
    """

    dataset: str
    fitted_before: str
    refitted: bool
    new_posts: int
    drift: float | None
    like_rate: float | None
    cards: tuple[ClusterCard, ...]

    def write(self, folder: Path) -> None:
        """Write `clusters.json` and `clusters.html`, each whole or not at all."""
        page = rendered(Path(__file__).parent, "clusters.html", report=self)
        contents = {"clusters.json": self.model_dump_json(indent=2) + "\n", CLUSTERS_PAGE: page}
        for name, content in contents.items():
            write_whole(folder / name, content)


def cluster_report(
    clusters: TextClusters,
    distances: NDArray[np.float32],
    texts: Sequence[str],
    ids: Sequence[str],
    in_window: NDArray[np.bool_],
    counts: tuple[Counts, Counts] | None,
    *,
    dataset: str,
    previous: TextClusters | None,
) -> ClusterReport:
    """Describe clusters.

    Parameters
    ----------
    distances
        Of n posts to k centres, shape (n, k).
    texts, ids
        The posts' texts and their ids in the source.
    in_window
        Which of the posts the clusters are fitted on, shape (n,).
    counts
        Views and likes of each post before the cut, both shape (n,); None if the source has no
        impressions.
    previous
        The stored clusters before this run; `clusters` itself if they are applied as they are.
    """
    labels = distances.argmin(axis=1)
    k = len(clusters.centres)
    terms = telling_terms([plain_text(text) for text in texts], labels, k)
    refitted = previous is not clusters
    compared = refitted and previous is not None and clusters.comparable(previous)
    moved = clusters.shifts(previous) if compared and previous is not None else None
    new = labels[~in_window]
    since = np.bincount(new, minlength=k) / len(new) if len(new) else None
    views = likes = None
    if counts is not None:
        views, likes = (np.bincount(labels, one, k).astype(np.int64) for one in counts)
    cards = tuple(
        ClusterCard(
            cluster=number,
            posts=int((labels == number).sum()),
            share_fitted=float(clusters.shares[number]),
            share_new=None if since is None else float(since[number]),
            centre_shift=None if moved is None or np.isnan(moved[number]) else float(moved[number]),
            terms=terms[number],
            nearest=_nearest(distances[:, number], labels == number, texts, ids),
            views=None if views is None else int(views[number]),
            likes=None if likes is None else int(likes[number]),
            like_rate=_rate(likes, views, number),
        )
        for number in range(k)
    )
    return ClusterReport(
        dataset=dataset,
        fitted_before=clusters.fitted_before,
        refitted=refitted,
        new_posts=len(new),
        drift=None if since is None else float(np.abs(since - clusters.shares).sum() / 2),
        like_rate=_rate(likes, views, slice(None)),
        cards=cards,
    )


def telling_terms(
    texts: Sequence[str], labels: NDArray[np.int64], clusters: int
) -> list[tuple[str, ...]]:
    """Return each cluster's most telling words, by class-based TF-IDF.

    A word's weight is its share of the cluster's words times log(1 + A / f), f its count in all
    texts and A the mean number of words of a cluster (Grootendorst 2022, BERTopic).
    """
    # It takes seconds to import, which commands that compute no features need not pay.
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(
        stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{2,}\b", max_features=_MAX_TERMS
    )
    try:
        matrix = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's answer to texts without a single word
        return [()] * clusters
    sums = np.zeros((clusters, matrix.shape[1]))
    for number in range(clusters):
        sums[number] = np.asarray(matrix[labels == number].sum(axis=0)).ravel()
    words = sums.sum(axis=1, keepdims=True)
    weights = sums / np.maximum(words, 1) * np.log1p(words.mean() / sums.sum(axis=0))
    names = counter.get_feature_names_out()
    best = np.argsort(-weights, axis=1, kind="stable")[:, :_TERMS]
    return [
        tuple(str(names[place]) for place in row if weights[number, place] > 0)
        for number, row in enumerate(best)
    ]


def _nearest(
    distances: NDArray[np.float32],
    members: NDArray[np.bool_],
    texts: Sequence[str],
    ids: Sequence[str],
) -> tuple[NearPost, ...]:
    places = np.flatnonzero(members)
    nearest = places[np.argsort(distances[places], kind="stable")][:_POSTS].tolist()
    return tuple(
        NearPost(
            post=ids[place],
            beginning=plain_text(texts[place])[:_EXCERPT],
            distance=float(distances[place]),
        )
        for place in nearest
    )


def _rate(likes: Counts | None, views: Counts | None, which: int | slice) -> float | None:
    if likes is None or views is None or not np.sum(views[which]):
        return None
    return float(np.sum(likes[which]) / np.sum(views[which]))

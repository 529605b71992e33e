"""The command ``vectors``: pictures of what a generator's vectors of users and posts tell apart.

The generator is fitted on what lies before the test slice. Drawn are the distances of pairs that
users liked afterwards against random pairs of the same users, and a map of the posts in two
dimensions, coloured by topic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from rich.console import Console

from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.errors import PipelineError
from pipelines.evaluation import plots
from pipelines.evaluation.bootstrap import mean_intervals
from pipelines.evaluation.page import render_vectors
from pipelines.job.context import Context, open_context, progress_bars
from pipelines.job.features import slices_of_lake
from pipelines.job.lake_events import LakeEvents
from pipelines.job.slices import sampled
from pipelines.job.sources import generators
from pipelines.settings import VectorsSettings

Floats = NDArray[np.float32]


class HasVectors(CandidateGenerator, Protocol):
    """A generator whose scores are dot products of a user's and a post's vector."""

    def post_vectors(self) -> tuple[Ids, Floats]:
        """Return the catalogue's ids, ascending, and vectors, float32 (n_posts, d)."""
        ...

    def user_vectors(self, user_ids: ArrayLike) -> tuple[Ids, Floats]:
        """Return the known users among those asked for, and their vectors, float32 (n, d)."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Cosine distances (0 the same direction, 2 opposite) of pairs, ordered by user.

    Attributes
    ----------
    users : int64[n]
    liked, random : float64[n]
        Of the user with a post liked later, and with one drawn at random.
    """

    users: Ids
    liked: NDArray[np.float64]
    random: NDArray[np.float64]

    def nearer(self) -> dict[str, NDArray[np.float64]]:
        """Return each user's share of pairs where the liked post is nearer; half for a tie."""
        wins = (self.liked < self.random) + 0.5 * (self.liked == self.random)
        _, rows = np.unique(self.users, return_inverse=True)
        return {"nearer": np.bincount(rows, wins) / np.bincount(rows)}


def draw(settings: VectorsSettings, console: Console) -> None:
    """Fit the generator, write the page of its vectors and say where it lies."""
    context = open_context(settings, console)
    context.record("features")
    lake = context.workspace.lake
    test = slices_of_lake(lake, settings).test
    with LakeEvents(lake) as events:
        past = events.interactions(test.start)
        liked = sampled(events.recommendable(test), settings.test_users, settings.seed)
    (unfitted,) = generators(context, [settings.generator])
    with progress_bars(console) as bars:
        bar = bars.bar(f"fit {settings.generator}")
        generator = cast(
            HasVectors, unfitted.fit(past, progress=lambda share: bar(round(100 * share), 100))
        )
    pairs = pair_distances(generator, liked, past, np.random.default_rng(settings.seed))
    path = context.workspace.reports / f"vectors_{settings.generator}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(context, settings, generator, past, pairs, test.start), encoding="utf-8")
    (share,) = pairs.nearer().values()
    console.print(
        f"{settings.generator}: of {len(pairs.users):,} posts liked in the test slice, "
        f"{share.mean():.1%} are nearer to their user than a random post (mean over users)\n{path}",
        highlight=False,
    )


def pair_distances(
    generator: HasVectors, liked: pa.Table, past: Interactions, rng: np.random.Generator
) -> Pairs:
    """Measure pairs liked later beside random pairs of the same users.

    Parameters
    ----------
    liked
        user_id, post_id, new to the user; pairs without both vectors are left out.
    past
        What the generator was fitted on: random posts are drawn among those that the user has no
        event with there, and did not like later.

    Raises
    ------
    PipelineError
        If no pair has both vectors.
    """
    post_ids, posts = generator.post_vectors()
    known, vectors = generator.user_vectors(np.unique(liked["user_id"].to_numpy()))
    order = np.argsort(known)
    known, vectors = known[order], vectors[order]
    users = positions(liked["user_id"].to_numpy(), known)
    columns = positions(liked["post_id"].to_numpy(), post_ids)
    both = (users >= 0) & (columns >= 0)
    if not both.any():
        raise PipelineError(
            "vectors: no post liked in the test slice is known to the generator, nor its user; "
            "raise --test-share, or choose another generator"
        )
    users, columns = users[both], columns[both]
    rows = np.argsort(users, kind="stable")
    users, columns = users[rows], columns[rows]
    unseen = _unseen(past, known, post_ids, users, columns)
    drawn = np.concatenate(
        [rng.choice(unseen(row), int(count)) for row, count in enumerate(np.bincount(users))]
    )
    return Pairs(
        known[users],
        _cosine_distances(vectors[users], posts[columns]),
        _cosine_distances(vectors[users], posts[drawn]),
    )


def _unseen(
    past: Interactions, known: Ids, post_ids: Ids, users: Ids, liked: Ids
) -> Callable[[int], Ids]:
    """Return what gives the columns that a user has no event with and did not like later."""
    seen = past.seen_matrix(post_ids)
    rows = positions(known, past.user_ids)

    def columns(row: int) -> Ids:
        free = np.ones(len(post_ids), dtype=bool)
        free[seen[rows[row]].indices] = False
        free[liked[users == row]] = False
        # Somebody who has seen everything is compared with everything.
        return np.flatnonzero(free) if free.any() else np.arange(len(post_ids))

    return columns


def _cosine_distances(a: Floats, b: Floats) -> NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    distances: NDArray[np.float64] = 1.0 - products / np.maximum(lengths, 1e-30)
    return distances


def _page(
    context: Context,
    settings: VectorsSettings,
    generator: HasVectors,
    past: Interactions,
    pairs: Pairs,
    before: datetime,
) -> str:
    post_ids, vectors = generator.post_vectors()
    likes = np.bincount(past.event_posts, minlength=len(past.post_ids))
    most = np.sort(np.argsort(-likes, kind="stable")[: settings.map_posts])
    chosen = np.intersect1d(past.post_ids[most], post_ids)
    points = _laid_out(vectors[positions(chosen, post_ids)], settings.seed)
    topics = _topics(context, chosen)
    share = pairs.nearer()
    interval = mean_intervals(share, rng=np.random.default_rng(settings.seed))["nearer"]
    content: dict[str, Any] = {
        "dataset": context.dataset.name,
        "generator": settings.generator,
        "events": len(past.event_users),
        "before": before,
        "users": len(past.user_ids),
        "posts": len(post_ids),
        "dimensions": vectors.shape[1],
        "nearer": float(share["nearer"].mean()),
        "nearer_low": interval.low,
        "nearer_high": interval.high,
        "pairs": len(pairs.users),
        "shown": len(chosen),
        "has_topics": context.dataset.has_topics,
    }
    figures = {
        "pairs": plots.density_plot(
            {"liked later": pairs.liked, "random": pairs.random},
            title="Distance from user to post",
            x_label="cosine distance of the two vectors",
        ),
        "map": plots.map_plot(points, topics, title="Posts by their vectors"),
    }
    return render_vectors(**content, figures=figures)


def _laid_out(vectors: Floats, seed: int) -> NDArray[np.float64]:
    """Return two coordinates for each vector, by t-SNE of their directions."""
    from sklearn.manifold import TSNE

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, max(2.0, (len(vectors) - 1) / 3))
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=750)
    points: NDArray[np.float64] = layout.fit_transform(unit).astype(np.float64)
    return points


def _topics(context: Context, posts: Ids) -> list[str]:
    """Return each post's topic, of several the one that most posts have; "none" without."""
    lake = context.workspace.lake
    if not context.dataset.has_topics:
        return ["none"] * len(posts)
    ordered = pq.read_table(lake / "topics.parquet")["topic"].to_pylist()
    place = {topic: number for number, topic in enumerate(ordered)}
    table = pq.read_table(lake / "posts", columns=["post_id", "topics"])
    of = dict(zip(table["post_id"].to_pylist(), table["topics"].to_pylist(), strict=True))
    return [min(of[post] or ["none"], key=lambda t: place.get(t, len(place))) for post in posts]

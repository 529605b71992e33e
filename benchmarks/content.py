"""Content candidates on a large catalogue: ``python -m benchmarks.content``.

One million posts with 1 to 4 of 150 topics each, in some thousand combinations, as tracks take
their genres from their artists; ``--combinations`` sets how many. The peer is the original way:
for one user at a time, the mean of the topic vectors of the posts he liked, a dense cosine with
every post, a full sort. Both sides answer with the same scores.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pyarrow as pa

from pipelines.candidates.content import Content
from pipelines.candidates.interactions import Interactions
from pipelines.candidates.topics import topic_matrix

N_TOPICS, K, LIKES = 150, 100, 20
START_US = 1_700_000_000_000_000


def catalogue(n_posts: int, combinations: int, rng: np.random.Generator) -> pa.Table:
    """Make posts whose topics are as unevenly popular as genres are."""
    popularity = 1.0 / np.arange(1, N_TOPICS + 1)
    popularity /= popularity.sum()
    drawn = rng.choice(N_TOPICS, size=(combinations, 4), p=popularity)
    counts = rng.integers(1, 5, size=combinations)
    of_post = rng.integers(combinations, size=n_posts)
    drawn, counts = drawn[of_post], counts[of_post]
    names = np.array([f"t{topic:03d}" for topic in range(N_TOPICS)])
    kept = np.arange(4) < counts[:, None]
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(bounds), pa.array(names[drawn[kept]]))
    return pa.table({"post_id": pa.array(np.arange(n_posts)), "topics": lists})


def likes(n_posts: int, n_users: int, rng: np.random.Generator) -> Interactions:
    """Make every post known by one like, and give each asked user some likes."""
    users = np.concatenate([np.repeat(np.arange(n_users), LIKES), np.full(n_posts, n_users)])
    posts = np.concatenate([rng.integers(n_posts, size=n_users * LIKES), np.arange(n_posts)])
    times = pa.array(START_US + np.arange(len(users)), pa.timestamp("us", tz="UTC"))
    table = {"user_id": users, "post_id": posts, "event_time": times, "weight": np.ones(len(users))}
    return Interactions.from_table(pa.table(table))


def original(liked: np.ndarray, shares: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return one user's scores of all posts, dense, and order them all."""
    taste = shares[liked].mean(axis=0)
    scores = shares @ taste / lengths / np.linalg.norm(taste)
    scores[liked] = -np.inf
    order = np.argsort(-scores)[:K]
    best: np.ndarray = scores[order]
    return best


def main() -> None:
    """Measure both ways and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--combinations", type=int, default=5_000)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    posts = catalogue(chosen.posts, chosen.combinations, rng)
    interactions = likes(chosen.posts, chosen.users, rng)
    generator = Content(posts=posts).fit(interactions)
    users = np.arange(chosen.users)
    start = time.perf_counter()
    table = generator.recommend(users, K)
    ours = chosen.users / (time.perf_counter() - start)

    matrix, _ = topic_matrix(posts, interactions.post_ids)
    shares = matrix.toarray().astype(np.float32)
    shares /= shares.sum(axis=1, keepdims=True)
    lengths = np.linalg.norm(shares, axis=1)
    bounds = interactions.history_bounds
    start = time.perf_counter()
    for user in range(5):
        liked = interactions.event_posts[bounds[user] : bounds[user + 1]]
        scores = original(liked, shares, lengths)
        found = np.asarray(table["score"])[np.asarray(table["user_id"]) == user]
        np.testing.assert_allclose(found, scores, rtol=1e-4)
    theirs = 5 / (time.perf_counter() - start)
    print(f"ours {ours:,.0f} users/s, one user at a time {theirs:.2f} users/s")
    figures = {"posts": chosen.posts, "users": chosen.users, "combinations": chosen.combinations}
    rates = {"users_per_second": round(ours, 1), "original_users_per_second": round(theirs, 2)}
    print(json.dumps({**figures, **rates, "speedup": round(ours / theirs, 1)}))


if __name__ == "__main__":
    main()

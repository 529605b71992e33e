"""Posts like those a user liked, by topics and by the meaning of their text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, diags

from pipelines.candidates.interactions import Ids, Interactions, positions
from pipelines.candidates.protocol import Progress, csr_arrays, csr_from, fitted
from pipelines.candidates.scored import Arrays, ScoredGenerator
from pipelines.candidates.topics import distinct_rows, topic_matrix
from pipelines.candidates.topk import DEFAULT_BLOCK_BYTES, TopK, top_k
from pipelines.errors import GeneratorError


@dataclass(frozen=True)
class ContentSettings:
    """Settings of `Content`.

    Attributes
    ----------
    text_weight
        Share of the text's cosine in the score, the topics' cosine has the rest; from 0 to 1.
        At 0 posts of the same topics are scored once, whatever their number.
    half_life_posts
        After how many posts back a liked post counts half; above 0. None: all count the same.
    """

    text_weight: float = 0.0
    half_life_posts: float | None = None

    def __post_init__(self) -> None:
        half_life = self.half_life_posts
        if not 0 <= self.text_weight <= 1 or (half_life is not None and half_life <= 0):
            raise GeneratorError(
                f"content: found {self}, expected text_weight from 0 to 1 and half_life_posts "
                "above 0 (or None)"
            )


class Content(ScoredGenerator[ContentSettings]):
    """Scores are cosines between a user's mean vector of liked posts and the posts' vectors.

    A post without topics (without text) has a cosine of zero, as has one at right angles; a
    post that scores no more than zero is not proposed.

    Parameters
    ----------
    settings
        See `ContentSettings`.
    posts
        ``post_id`` int64, ``topics`` list<string> and, if ``text_weight`` is above 0,
        ``post_text_embedding`` list<float> (null: no text).
    """

    name: ClassVar[str] = "content"
    settings_kind: ClassVar[type[Any]] = ContentSettings

    def __init__(
        self, settings: ContentSettings | None = None, *, posts: pa.Table | None = None
    ) -> None:
        super().__init__(settings)
        self._posts = posts

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        """Average the vectors of each user's liked posts."""
        profile = _profile(interactions, self.settings.half_life_posts)
        topics, _ = topic_matrix(self._posts, interactions.post_ids)
        shares = _unit_sums(topics)
        vectors, kind = distinct_rows(shares)
        arrays = {
            **csr_arrays("vectors", _unit_lengths(vectors)),
            "kind": kind,
            # A user's taste in topics is the mean of his posts' shares.
            **csr_arrays("tastes", _unit_lengths(csr_matrix(profile @ shares))),
        }
        if self.settings.text_weight > 0:
            texts = text_vectors(self._posts, interactions.post_ids)
            means = np.asarray(profile @ texts, dtype=np.float32)
            length = np.linalg.norm(means, axis=1, keepdims=True)
            arrays |= {"texts": texts, "text_tastes": means / np.maximum(length, 1e-12)}
        return arrays

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return the posts most like the liked ones; users without a positive get none."""
        if self.settings.text_weight > 0:
            return super().recommend(user_ids, k, exclude_seen=exclude_seen)
        audience = fitted(self._audience, self.name)
        users, rows = audience.asked_warm(user_ids, k)
        seen = audience.seen_by(rows) if exclude_seen else None
        top = _top_by_kind(fitted(self._arrays, self.name), rows, seen, k)
        return audience.candidates(users, top, self.name)

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        vectors = csr_from("vectors", arrays).T.tocsr()
        topics = (csr_from("tastes", arrays)[rows] @ vectors).toarray()[:, arrays["kind"]]
        weight = self.settings.text_weight
        texts = arrays["text_tastes"][rows] @ arrays["texts"].T
        scores: NDArray[np.float32] = ((1 - weight) * topics + weight * texts).astype(np.float32)
        scores[scores <= 0] = -np.inf
        return scores


def _top_by_kind(arrays: Arrays, rows: Ids, seen: csr_matrix | None, k: int) -> TopK:
    """Score each distinct topic vector once, then take posts from the best ones."""
    kind = arrays["kind"]
    members = np.argsort(kind, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(kind))])
    vectors = csr_from("vectors", arrays).T.tocsr()
    tastes = csr_from("tastes", arrays)[rows]
    parts = []
    block = max(1, DEFAULT_BLOCK_BYTES // (8 * max(1, vectors.shape[1])))
    for start in range(0, len(rows), block):
        scores = (tastes[start : start + block] @ vectors).toarray().astype(np.float32)
        for row, of_kinds in enumerate(scores, start):
            hidden = None if seen is None else seen[row].indices
            columns, found = _best_members(of_kinds, members, bounds, hidden, k)
            parts.append((np.full(len(columns), row), columns, found))
    if not parts:
        return top_k(lambda block: np.empty((0, 0), np.float32), (0, 0), k)
    ranks = [np.arange(1, len(part[0]) + 1, dtype=np.int32) for part in parts]
    rows_of, columns_of, scores_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TopK(rows_of, columns_of, scores_of, np.concatenate(ranks))


def _best_members(
    scores: NDArray[np.float32],
    members: Ids,
    bounds: Ids,
    hidden: NDArray[Any] | None,
    k: int,
) -> tuple[Ids, NDArray[np.float32]]:
    """Return the k best posts of one user: kinds by score, ties among posts to the lower one.

    `members` are the posts ordered by kind, kind i's from ``bounds[i]`` to ``bounds[i + 1]``.
    """
    wanted = k + (0 if hidden is None else len(hidden))
    least = np.partition(scores, -wanted)[-wanted] if wanted < len(scores) else 0.0
    # A kind has at least one member, so no kind beyond the best `wanted` can be needed.
    kinds = np.flatnonzero((scores >= least) & (scores > 0))
    kinds = kinds[np.argsort(-scores[kinds], kind="stable")]
    filled = np.cumsum(bounds[kinds + 1] - bounds[kinds])
    enough = int(np.searchsorted(filled, wanted))
    if enough < len(kinds):
        # All kinds that tie with the last one needed take part.
        kinds = kinds[scores[kinds] >= scores[kinds[enough]]]
    # Members ascend within a kind, so no more than the first `wanted` can be needed.
    taken = [members[bounds[i] : min(bounds[i + 1], bounds[i] + wanted)] for i in kinds]
    if not taken:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    columns = np.concatenate(taken)
    found = np.repeat(scores[kinds], [len(part) for part in taken])
    if hidden is not None and len(hidden):
        shown = ~np.isin(columns, hidden)
        columns, found = columns[shown], found[shown]
    order = np.lexsort((columns, -found))[:k]
    return columns[order], found[order]


def _profile(interactions: Interactions, half_life: float | None) -> csr_matrix:
    """Return how much each post counts for each user, csr (n_users, n_posts), rows summing to 1."""
    bounds = interactions.history_bounds
    back = np.repeat(bounds[1:], np.diff(bounds)) - np.arange(bounds[-1]) - 1
    decay = np.ones(len(back)) if half_life is None else np.exp2(-back / half_life)
    weights = csr_matrix(
        (decay, (interactions.event_users, interactions.event_posts)),
        shape=(len(interactions.user_ids), len(interactions.post_ids)),
    )
    weights.sum_duplicates()
    return _unit_sums(weights)


def _unit_sums(matrix: csr_matrix) -> csr_matrix:
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return csr_matrix(diags(1 / np.where(sums > 0, sums, 1)) @ matrix)


def _unit_lengths(matrix: csr_matrix) -> csr_matrix:
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return csr_matrix(diags(1 / np.where(lengths > 0, lengths, 1)) @ matrix)


def text_vectors(posts: pa.Table | None, post_ids: Ids) -> NDArray[np.float32]:
    """Return unit vectors, float32 (n_posts, d); zeros for posts without text."""
    if posts is None or "post_text_embedding" not in posts.column_names:
        raise GeneratorError(
            "content: text_weight is above 0 but the table of posts has no column "
            "post_text_embedding; join the post_text features to it, or set text_weight to 0"
        )
    known = posts.filter(posts["post_text_embedding"].is_valid())
    rows = positions(np.asarray(known["post_id"]), post_ids)
    lists = known["post_text_embedding"].combine_chunks()
    flat = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(lists), -1)
    vectors = np.zeros((len(post_ids), flat.shape[1]), dtype=np.float32)
    vectors[rows[rows >= 0]] = flat[rows >= 0]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return unit

"""Quality of ranked lists, for each user, so that means can be bootstrapped.

Relevance is binary. Users evaluated are those with at least one relevant post; one of
them without a list counts as zero in every accuracy metric. For a cutoff k, with
hit(i) = 1 if the post at rank i is relevant and n = number of relevant posts:

hit_rate     1 if any hit(i), i <= k
precision    sum hit(i) / k
recall       sum hit(i) / n
map          sum hit(i) precision@i / min(k, n)
map_over_k   sum hit(i) precision@i / k: the definition behind the published word2vec
             figures on MovieLens-100k; never comparable with `map`
ndcg         sum hit(i) / log2(i + 1), over the same sum for min(k, n) hits in front
             (Jarvelin and Kekalainen 2002)
mrr          1 / rank of the first hit, 0 without one
novelty      share of the list's posts that the user has no event with in train
inverse_user_frequency
             mean over the list of log2(train users / train users of the post), a post
             unseen in train counting as seen by one (Zhou et al. 2010)
coverage     share of the catalogue that appears in any list
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.evaluation.errors import MetricsError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ACCURACY = ("hit_rate", "precision", "recall", "map", "map_over_k", "ndcg", "mrr")
BEYOND_ACCURACY = ("novelty", "inverse_user_frequency")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model's lists.

    Attributes
    ----------
    user_ids : int64[n]
        The users evaluated, ascending. Two evaluations against the same relevant posts
        have the same users, so their per-user values pair up.
    per_user : mapping of "metric@k" to float64[n]
        Aligned with `user_ids`. NaN only in `novelty` and `inverse_user_frequency`, for
        users without a list.
    means : mapping of "metric@k" to float
        Means over users (over users with a list where NaN may occur), and `coverage@k`.
        NaN where no user has a list.
    users_without_list : int
        How many of the users evaluated were recommended nothing.
    """

    user_ids: Ints
    per_user: Mapping[str, Floats]
    means: Mapping[str, float]
    users_without_list: int


@dataclass(frozen=True, eq=False)
class KnownPairs:
    """What happened before the lists were made, as far as measures beyond accuracy ask.

    Parameters
    ----------
    users
        How many users had an event.
    post_ids, seen_by
        int64: posts with an event, ascending, and how many users each had.
    pairs
        ``user_id``, ``post_id`` int64: events, at least those of the users that have lists.
    """

    users: int
    post_ids: npt.NDArray[np.int64]
    seen_by: npt.NDArray[np.int64]
    pairs: pa.Table

    @classmethod
    def of(cls, pairs: pa.Table) -> Self:
        """Count every event's pair once."""
        users, user = np.unique(_column(pairs, "user_id", "train pairs"), return_inverse=True)
        posts, post = np.unique(_column(pairs, "post_id", "train pairs"), return_inverse=True)
        keys = np.unique(user * posts.size + post)
        seen_by = np.bincount(keys % max(posts.size, 1), minlength=posts.size)
        return cls(users.size, posts, seen_by, pairs)


def evaluate_lists(
    recommended: pa.Table,
    relevant: pa.Table,
    *,
    cutoffs: Sequence[int] = (5, 10, 100),
    catalogue_size: int | None = None,
    train_pairs: pa.Table | KnownPairs | None = None,
) -> Evaluation:
    """Measure ranked lists against the posts that turned out relevant.

    Parameters
    ----------
    recommended
        user_id int64, post_id int64, rank int (1 = best); one row per (user, post) and
        per (user, rank), any order. Ranks may have gaps: an unfilled place is a miss.
        Users without a relevant post are ignored.
    relevant
        user_id int64, post_id int64; repeated pairs count once.
    cutoffs
        Each k of "metric@k".
    catalogue_size
        Number of posts that could have been recommended; None leaves out `coverage`.
    train_pairs
        user_id int64, post_id int64: events before the lists were made; repeated pairs
        count once. Or what was found out of them. None leaves out `novelty` and
        `inverse_user_frequency`.

    Raises
    ------
    MetricsError
        If nothing is relevant, a column is missing or has nulls, a list repeats a post
        or a rank, a rank or cutoff is below 1, or more distinct posts are recommended
        than `catalogue_size`.
    """
    _check_cutoffs(cutoffs)
    pairs = _Pairs.of(recommended, relevant)
    pairs.check_lists()
    per_user = _accuracy(pairs, cutoffs)
    means = {name: float(values.mean()) for name, values in per_user.items()}
    if train_pairs is not None:
        known = KnownPairs.of(train_pairs) if isinstance(train_pairs, pa.Table) else train_pairs
        beyond = _beyond_accuracy(pairs, known, cutoffs)
        means |= {name: _mean_of_known(values) for name, values in beyond.items()}
        per_user |= beyond
    if catalogue_size is not None:
        means |= _coverage(pairs, catalogue_size, cutoffs)
    with_list = np.unique(pairs.user).size
    return Evaluation(
        user_ids=pairs.user_ids,
        per_user=MappingProxyType(per_user),
        means=MappingProxyType(means),
        users_without_list=pairs.user_ids.size - with_list,
    )


def average_precision_over_k(relevance: npt.NDArray[np.bool_], k: int) -> float:
    """Sum precision@i over the hit ranks i <= k and divide by k, for one list.

    Parameters
    ----------
    relevance
        bool[list length], best rank first.
    k
        Cutoff and divisor; shorter lists are not excused.
    """
    hits = np.asarray(relevance[:k], dtype=np.float64)
    precision = hits.cumsum() / np.arange(1, hits.size + 1)
    return float((precision * hits).sum() / k)


def recall_curve(recommended: pa.Table, relevant: pa.Table, max_k: int = 100) -> Floats:
    """Recall at every k from 1 to `max_k`, mean over the users with a relevant post.

    Unlike `evaluate_lists` this allows several posts of a user at one rank, so it also
    takes the union of sources that `union_of_sources` makes.

    Parameters
    ----------
    recommended
        user_id int64, post_id int64, rank int (1 = best); one row per (user, post).
    relevant
        user_id int64, post_id int64.

    Returns
    -------
    float64[max_k]
        Element k - 1 is recall@k; never falls.

    Raises
    ------
    MetricsError
        As in `evaluate_lists`, ties in rank aside.
    """
    _check_cutoffs([max_k])
    pairs = _Pairs.of(recommended, relevant)
    pairs.check_pairs_distinct()
    counted = pairs.hit & (pairs.rank <= max_k)
    share = 1.0 / pairs.relevant_count[pairs.user[counted]]
    found = np.bincount(pairs.rank[counted], weights=share, minlength=max_k + 1)
    # Rounding must not lift a sum of shares over the whole.
    return np.minimum(found[1:].cumsum() / pairs.user_ids.size, 1.0)


def union_of_sources(sources: Sequence[pa.Table]) -> pa.Table:
    """Merge candidate lists; a post's rank is its best rank in any source.

    Cut at rank k, this is the union of the sources' first k posts.

    Parameters
    ----------
    sources
        Tables with at least user_id int64, post_id int64, rank int.

    Returns
    -------
    pa.Table
        user_id int64, post_id int64, rank int64; one row per (user, post), unordered.
    """
    schema = pa.schema([("user_id", pa.int64()), ("post_id", pa.int64()), ("rank", pa.int64())])
    rows = pa.concat_tables([table.select(schema.names).cast(schema) for table in sources])
    merged = rows.group_by(["user_id", "post_id"]).aggregate([("rank", "min")])
    return merged.rename_columns({"rank_min": "rank"}).select(schema.names)


@dataclass(frozen=True)
class _Pairs:
    """Recommended rows of the evaluated users, by user and rank, and which are hits."""

    user_ids: Ints  # [n], ascending
    relevant_count: Ints  # [n], at least 1
    user: Ints  # [rows], index into user_ids
    post_id: Ints  # [rows]
    rank: Ints  # [rows]
    hit: npt.NDArray[np.bool_]  # [rows]

    @classmethod
    def of(cls, recommended: pa.Table, relevant: pa.Table) -> _Pairs:
        listed_user, listed_post, listed_rank = (
            _column(recommended, name, "recommended") for name in ("user_id", "post_id", "rank")
        )
        true_user, true_post = (
            _column(relevant, name, "relevant") for name in ("user_id", "post_id")
        )
        user_ids, true_index = np.unique(true_user, return_inverse=True)
        if not user_ids.size:
            raise MetricsError(
                "relevant: found no rows, expected at least one (user, post); "
                "widen the test slice, or check which actions count as positive"
            )
        user, evaluated = _positions(listed_user, user_ids)
        user, listed_post, listed_rank = (
            values[evaluated] for values in (user, listed_post, listed_rank)
        )
        # Sorting makes the sums below independent of the input's row order to the last bit.
        order = np.lexsort((listed_post, listed_rank, user))
        user, listed_post, listed_rank = user[order], listed_post[order], listed_rank[order]
        posts = np.unique(true_post)
        true_keys = np.unique(true_index * posts.size + _positions(true_post, posts)[0])
        position, known = _positions(listed_post, posts)
        hit = known & _positions(user * posts.size + position, true_keys)[1]
        counts = np.bincount(true_keys // posts.size, minlength=user_ids.size)
        return cls(user_ids, counts, user, listed_post, listed_rank, hit)

    def check_lists(self) -> None:
        """Refuse lists that repeat a post or a rank."""
        repeated = np.flatnonzero(
            (self.user[1:] == self.user[:-1]) & (self.rank[1:] == self.rank[:-1])
        )
        if repeated.size:
            row = repeated[0]
            raise MetricsError(
                f"recommended: {repeated.size} rows repeat a rank of their user (first: user "
                f"{self.user_ids[self.user[row]]}, rank {self.rank[row]}); rank each list 1, 2, 3 …"
            )
        self.check_pairs_distinct()

    def check_pairs_distinct(self) -> None:
        """Refuse lists that repeat a post, or have a rank below 1."""
        if self.rank.size and self.rank.min() < 1:
            raise MetricsError(
                f"recommended: found rank {self.rank.min()}, expected 1 for the best post"
            )
        order = np.lexsort((self.post_id, self.user))
        user, post = self.user[order], self.post_id[order]
        repeated = np.flatnonzero((user[1:] == user[:-1]) & (post[1:] == post[:-1]))
        if repeated.size:
            row = repeated[0]
            raise MetricsError(
                f"recommended: {repeated.size} rows repeat a post of their user (first: user "
                f"{self.user_ids[user[row]]}, post {post[row]}); remove duplicates before ranking"
            )

    def sum_by_user(self, values: Floats, k: int) -> Floats:
        """Sum a value of each row over the rows with rank <= k, for each user."""
        weights = np.where(self.rank <= k, values, 0.0)
        return np.bincount(self.user, weights, self.user_ids.size).astype(np.float64)


def _accuracy(pairs: _Pairs, cutoffs: Sequence[int]) -> dict[str, Floats]:
    hit = pairs.hit.astype(np.float64)
    hits_so_far = hit.cumsum()
    first_row = np.searchsorted(pairs.user, pairs.user, side="left")
    hits_so_far -= (hits_so_far - hit)[first_row]
    precision_at_hit = hit * hits_so_far / pairs.rank
    first_hit = hit * (hits_so_far == 1) / pairs.rank
    gain = hit / np.log2(pairs.rank + 1.0)
    ideal = np.concatenate([[0.0], (1.0 / np.log2(np.arange(2, max(cutoffs) + 2))).cumsum()])
    result: dict[str, Floats] = {}
    for k in cutoffs:
        hits = pairs.sum_by_user(hit, k)
        best = np.minimum(k, pairs.relevant_count)
        precision_sum = pairs.sum_by_user(precision_at_hit, k)
        values = {
            "hit_rate": (hits > 0).astype(np.float64),
            "precision": hits / k,
            "recall": hits / pairs.relevant_count,
            "map": precision_sum / best,
            "map_over_k": precision_sum / k,
            "ndcg": pairs.sum_by_user(gain, k) / ideal[best],
            "mrr": pairs.sum_by_user(first_hit, k),
        }
        result |= {f"{name}@{k}": value for name, value in values.items()}
    return result


def _beyond_accuracy(pairs: _Pairs, known: KnownPairs, cutoffs: Sequence[int]) -> dict[str, Floats]:
    posts, popularity = known.post_ids, known.seen_by
    train_user = _column(known.pairs, "user_id", "train pairs")
    users = np.unique(train_user)
    user_index = np.searchsorted(users, train_user)
    post_index = np.searchsorted(posts, _column(known.pairs, "post_id", "train pairs"))
    keys = np.unique(user_index * posts.size + post_index)

    post, post_known = _positions(pairs.post_id, posts)
    user, user_known = _positions(pairs.user_ids[pairs.user], users)
    seen = post_known & user_known & _positions(user * posts.size + post, keys)[1]
    seen_by = np.ones(post.size)
    seen_by[post_known] = popularity[post[post_known]]
    frequency = np.log2(max(known.users, 1) / seen_by)
    result = {}
    for k in cutoffs:
        length = pairs.sum_by_user(np.ones(pairs.user.size), k)
        length[length == 0] = np.nan
        result[f"novelty@{k}"] = pairs.sum_by_user((~seen).astype(np.float64), k) / length
        result[f"inverse_user_frequency@{k}"] = pairs.sum_by_user(frequency, k) / length
    return result


def _coverage(pairs: _Pairs, catalogue_size: int, cutoffs: Sequence[int]) -> dict[str, float]:
    result = {}
    for k in cutoffs:
        distinct = np.unique(pairs.post_id[pairs.rank <= k]).size
        if distinct > catalogue_size:
            raise MetricsError(
                f"coverage: {distinct} distinct posts are recommended from a catalogue of "
                f"{catalogue_size}; pass the number of posts that could be recommended"
            )
        result[f"coverage@{k}"] = distinct / catalogue_size
    return result


def _mean_of_known(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _positions(values: Ints, ordered: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Find each value in a sorted, distinct array: its position, and whether it is there."""
    if not ordered.size:
        return np.zeros(values.size, dtype=np.int64), np.zeros(values.size, dtype=np.bool_)
    position = np.minimum(np.searchsorted(ordered, values), ordered.size - 1)
    return position, ordered[position] == values


def _check_cutoffs(cutoffs: Sequence[int]) -> None:
    if not cutoffs or min(cutoffs) < 1:
        raise MetricsError(f"cutoffs: found {tuple(cutoffs)}, expected one or more, all at least 1")


def _column(table: pa.Table, name: str, what: str) -> Ints:
    if name not in table.column_names:
        raise MetricsError(
            f"{what}: column {name} is missing; found {', '.join(table.column_names) or 'none'}"
        )
    column = table[name]
    if column.null_count or not pa.types.is_integer(column.type):
        raise MetricsError(
            f"{what}: column {name} is {column.type} with {column.null_count} nulls, "
            "expected integers without nulls; drop these rows before evaluating"
        )
    return np.asarray(column.to_numpy(), dtype=np.int64)

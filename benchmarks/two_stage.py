"""Candidates of all sources with features and labels, and rankers learnt from earlier slices."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.protocols import Data, interactions_of, settings_for, users_of
from pipelines.candidates.groups import Groups, are_among, standard_scores
from pipelines.candidates.interactions import Interactions, positions
from pipelines.candidates.merge import merge_candidates
from pipelines.candidates.registry import make_generator
from pipelines.evaluation.split import PairSplit
from pipelines.ranking.models import Ranker, make_ranker
from pipelines.ranking.protocol_features import Past, features

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

LIST_LENGTH = 300
"""Posts asked of each source; beyond it scores and ranks are null."""
BLEND = "blend"
BLEND_OFFSET = 10
"""Of the blend's reciprocal ranks; less than RRF's 60, as weights do its work."""
UNION_RANK = 40
"""A post that any source ranks this high is a candidate."""
RRF_SOURCES = ("popular", "als", "item_to_item", "ease", "sequential", "user_knn", "mult_vae")
SOURCES = RRF_SOURCES
"""The generators whose candidates the second stage ranks, unless the settings name others."""


@dataclass(frozen=True)
class Lists:
    """What the generators proposed for the users of one slice, and how long that took."""

    by_source: Mapping[str, pa.Table]
    fit_seconds: Mapping[str, float]
    predict_seconds: Mapping[str, float]

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Return each source's seconds to fit and to make lists."""
        return {
            name: (self.fit_seconds[name], self.predict_seconds[name]) for name in self.by_source
        }


@dataclass(frozen=True)
class Slice:
    """Candidates of one slice: rows ordered by user, then post.

    Attributes
    ----------
    users, posts : int64[n]
    matrix : float32[n, inputs]
        NaN for null.
    names : the inputs, in the matrix's order
    labels : int32[n]
        1 if the post is in the slice's test.
    """

    users: Ints
    posts: Ints
    matrix: Floats
    names: tuple[str, ...]
    labels: npt.NDArray[np.int32]

    @property
    def groups(self) -> Groups:
        """Rows of each user."""
        return Groups.of(self.users)


def propose(
    split: PairSplit,
    data: Data,
    settings: Mapping[str, Any],
    *,
    seen: pa.Table | None = None,
    sources: Sequence[str] = SOURCES,
) -> Lists:
    """Fit every source on the slice's train and ask for lists of its test users."""
    interactions = interactions_of(split, seen)
    users = users_of(split.test)
    lists, fits, predictions = {}, {}, {}
    for name in sources:
        chosen = settings_for(name, settings)
        generator = make_generator(name, chosen, posts=data.posts, users=data.users)
        start = time.perf_counter()
        generator.fit(interactions)
        fitted = time.perf_counter()
        lists[name] = generator.recommend(users, LIST_LENGTH)
        fits[name] = fitted - start
        predictions[name] = time.perf_counter() - fitted
    return Lists(lists, fits, predictions)


def candidates(split: PairSplit, lists: Lists, data: Data, protocol: str) -> Slice:
    """Join the lists, features and labels of one slice's warm users."""
    interactions = interactions_of(split)
    merged = merge_candidates(list(lists.by_source.values()))
    ranks = [merged[f"{name}_rank"].fill_null(LIST_LENGTH + 1) for name in lists.by_source]
    best = np.min([np.asarray(rank) for rank in ranks], axis=0)
    users, posts = np.asarray(merged["user_id"]), np.asarray(merged["post_id"])
    warm = np.isin(users, users_of(split.train))
    merged = merged.filter(pa.array(warm & (best <= UNION_RANK)))
    merged = merged.sort_by([("user_id", "ascending"), ("post_id", "ascending")])
    users, posts = np.asarray(merged["user_id"]), np.asarray(merged["post_id"])
    past = Past(interactions, _moments(interactions, split, protocol), data.posts, data.users)
    columns = _source_columns(merged, list(lists.by_source))
    columns |= features(
        past, positions(users, interactions.user_ids), positions(posts, interactions.post_ids)
    )
    labels = are_among(users, posts, split.test).astype(np.int32)
    return Slice(users, posts, np.column_stack(list(columns.values())), tuple(columns), labels)


def _moments(interactions: Interactions, split: PairSplit, protocol: str) -> Ints:
    """Return the time for which each user's list is made.

    By global time that is the cut; otherwise the user's last event in train, as the time of the
    event that is held out is not known.
    """
    n_users = len(interactions.user_ids)
    if protocol == "global_time":
        cut = pc.min(split.test["event_time"]).cast(pa.int64()).as_py()
        return np.full(n_users, cut, dtype=np.int64)
    last = np.zeros(n_users, dtype=np.int64)
    np.maximum.at(last, interactions.event_users, interactions.event_times)
    return last


def _source_columns(merged: pa.Table, names: Sequence[str]) -> dict[str, Floats]:
    """Return each source's score, as a share of the user's best, and rank; and how they agree."""
    groups = Groups.of(np.asarray(merged["user_id"]))
    columns: dict[str, Floats] = {}
    for name in names:
        score = np.asarray(merged[f"{name}_score"].cast(pa.float32()).fill_null(np.nan))
        rank = np.asarray(merged[f"{name}_rank"].cast(pa.float32()).fill_null(np.nan))
        best = np.maximum.reduceat(np.nan_to_num(score, nan=-np.inf), groups.starts)
        columns[f"{name}_score"] = score
        columns[f"{name}_below_best"] = groups.spread(best).astype(np.float32) - score
        columns[f"{name}_rank"] = rank
    ranks = np.column_stack([columns[f"{name}_rank"] for name in names])
    columns["rrf_score"] = np.asarray(merged["rrf_score"], dtype=np.float32)
    columns["sources_in_top_10"] = (ranks <= 10).sum(axis=1).astype(np.float32)
    columns["sources_in_top_40"] = (ranks <= 40).sum(axis=1).astype(np.float32)
    columns["best_rank"] = np.nanmin(ranks, axis=1)
    return columns


def learn(ranker: Ranker, slices: Sequence[Slice]) -> Ranker:
    """Train on the groups of all slices that hold a hit among their candidates."""
    matrices, labels, sizes = [], [], []
    for part in slices:
        groups = part.groups
        useful = groups.having(part.labels > 0)
        rows = groups.spread(useful)
        matrices.append(part.matrix[rows])
        labels.append(part.labels[rows])
        sizes.append(groups.sizes[useful])
    return ranker.fit(
        np.concatenate(matrices), np.concatenate(labels), np.concatenate(sizes), slices[0].names
    )


def learnt_members(
    members: Sequence[Mapping[str, Any]], slices: Sequence[Slice]
) -> list[Ranker | None]:
    """Train the rankers of an ensemble, equal ones once; None stands for the blend.

    Parameters
    ----------
    members
        ``ranker`` and ``settings`` of each; the ranker ``blend`` has nothing to learn.
    """
    trained: dict[str, Ranker | None] = {}
    for member in members:
        if repr(member) not in trained:
            name = member["ranker"]
            settings = {"threads": 1, **member.get("settings", {})}
            is_blend = name == BLEND
            trained[repr(member)] = None if is_blend else learn(make_ranker(name, settings), slices)
    return [trained[repr(member)] for member in members]


def vote(member: Ranker | None, target: Slice, weights: Mapping[str, float]) -> Floats:
    """Return what an ensemble's member says of `target`: z-scores within each user.

    Parameters
    ----------
    member
        None: `blend_scores` with `weights`.
    """
    scores = blend_scores(target, weights) if member is None else member.predict(target.matrix)
    return standard_scores(target.groups, scores)


def blend_scores(part: Slice, weights: Mapping[str, float]) -> Floats:
    """Return weighted reciprocal ranks; a source that did not propose a post adds nothing."""
    total = np.zeros(len(part.users), dtype=np.float32)
    for name, weight in weights.items():
        ranks = part.matrix[:, part.names.index(f"{name}_rank")]
        total += weight * np.nan_to_num(1.0 / (BLEND_OFFSET + ranks))
    return total


def shift(before: Slice, after: Slice, count: int = 5) -> dict[str, float]:
    """Return the inputs whose means moved most, in standard deviations."""
    spread = np.nanstd(before.matrix, axis=0)
    moved = np.nanmean(after.matrix, axis=0) - np.nanmean(before.matrix, axis=0)
    size = np.abs(moved) / np.where(spread > 0, spread, 1.0)
    largest = np.argsort(-size)[:count]
    return {before.names[i]: round(float(size[i]), 2) for i in largest}

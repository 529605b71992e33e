"""Which posts a model learns from and which it is judged on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.conversion.posts import Posts
from pipelines.conversion.properties import clean_text
from pipelines.errors import ConversionError

Places = NDArray[np.int64]
_CHECKED_SHARE = 0.2
_FEWEST_POSTS = 4


@dataclass(frozen=True)
class Fold:
    """Places of the posts of one fold, ascending.

    Attributes
    ----------
    fit, check
        Parts of the training posts: settings are chosen by what models of `fit` do on `check`.
    test
        Judged with a model of all training posts; never looked at before.
    """

    fit: Places
    check: Places
    test: Places

    @property
    def train(self) -> Places:
        """All training posts."""
        return np.sort(np.concatenate([self.fit, self.check]))


def folds(posts: Posts, count: int, rng: np.random.Generator) -> list[Fold]:
    """Part posts for cross-validation.

    With times, fold k is the k-th of ``count`` later stretches of equal size, and what is before it
    trains. Without, folds are drawn by chance, and posts of the same text share one, so that no
    test post was learnt by heart.

    Raises
    ------
    ConversionError
        If there are too few posts (or times, or texts) for so many folds.
    """
    if posts.times is not None:
        return _by_time(posts.times, count)
    groups = _groups([clean_text(text) for text in posts.texts])
    if groups.max() + 1 < _FEWEST_POSTS * count:
        raise ConversionError(
            f"{groups.max() + 1:,} different texts are too few for {count} folds; expected "
            f"{_FEWEST_POSTS * count:,} or more: give more posts, or fewer --folds"
        )
    number = rng.permutation(groups.max() + 1) % count
    parts = []
    for k in range(count):
        train_groups = rng.permutation(np.flatnonzero(number != k))
        checked = train_groups[: int(len(train_groups) * _CHECKED_SHARE)]
        parts.append(
            Fold(
                np.flatnonzero((number[groups] != k) & ~np.isin(groups, checked)),
                np.flatnonzero(np.isin(groups, checked)),
                np.flatnonzero(number[groups] == k),
            )
        )
    return parts


def _by_time(times: NDArray[np.datetime64], count: int) -> list[Fold]:
    ordered = np.sort(times)
    starts = [ordered[len(ordered) * k // (count + 1)] for k in range(1, count + 1)]
    ends = [*starts[1:], ordered[-1] + np.timedelta64(1, "us")]
    parts = []
    for start, end in zip(starts, ends, strict=True):
        before = ordered[ordered < start]
        if len(before) < _FEWEST_POSTS or end <= start:
            raise ConversionError(
                f"{len(times):,} posts at {len(np.unique(times)):,} times are too few for {count} "
                "folds by time: give more posts, or fewer --folds"
            )
        cut = before[int(len(before) * (1 - _CHECKED_SHARE))]
        parts.append(
            Fold(
                np.flatnonzero(times < cut),
                np.flatnonzero((times >= cut) & (times < start)),
                np.flatnonzero((times >= start) & (times < end)),
            )
        )
        if not len(parts[-1].fit):
            raise ConversionError(f"all posts before {start} are of one time; leave out --time")
    return parts


def _groups(texts: Sequence[str]) -> Places:
    """Return a number for each distinct text; posts without text are each on their own."""
    known: dict[str, int] = {}
    return np.array(
        [known.setdefault(text or f"\0{i}", len(known)) for i, text in enumerate(texts)],
        dtype=np.int64,
    )

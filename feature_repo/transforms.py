"""Request-time features: what depends on the user, the post and the moment of the request.

Pure functions of arrays. The same function runs in training and in serving, inside Feast's
on-demand feature view (`feature_repo.definitions.views`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.definitions import columns as c

SECONDS_PER_DAY = 86_400.0
STORED_INPUTS = frozenset([*c.DAYS_SINCE.values(), *c.TOPIC_MATCHES.values(), c.POST_TOPICS])
"""The stored features that request-time features are made from."""

Floats = NDArray[np.float64]
Array = NDArray[Any]


def days_between(earlier_unix_s: Floats, later_unix_s: Floats) -> Floats:
    """Return days (float) from one time to another; NaN where either is unknown."""
    return (later_unix_s - earlier_unix_s) / SECONDS_PER_DAY


def dot(left: Sequence[object] | Array, right: Sequence[object] | Array) -> Floats:
    """Return the row-wise dot product of two columns of vectors.

    Parameters
    ----------
    left, right
        n vectors each, or one that holds for all; a row is NaN where either vector is null or
        their lengths differ (one of them was computed under an older topic vocabulary).
    """
    if not _are_vectors(left) or not _are_vectors(right):
        return _dot_of_objects(left, right)
    x, y = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if x.shape[1] != y.shape[1]:
        return np.full(max(len(x), len(y)), np.nan)
    products: Floats = np.einsum("ij,ij->i", *np.broadcast_arrays(x, y))
    return products


def _are_vectors(column: Sequence[object] | Array) -> bool:
    return isinstance(column, np.ndarray) and column.ndim == 2


def _dot_of_objects(left: Sequence[object] | Array, right: Sequence[object] | Array) -> Floats:
    count = max(len(left), len(right))
    result = np.full(count, np.nan)
    lefts = list(left) * (count if len(left) == 1 else 1)
    rights = list(right) * (count if len(right) == 1 else 1)
    rows: dict[int, list[int]] = {}
    for row, (a, b) in enumerate(zip(lefts, rights, strict=True)):
        if a is not None and b is not None and np.ndim(a) == 1 and np.shape(a) == np.shape(b):
            rows.setdefault(np.shape(a)[0], []).append(row)
    for of_one_length in rows.values():
        x = np.array([lefts[row] for row in of_one_length], dtype=np.float64)
        y = np.array([rights[row] for row in of_one_length], dtype=np.float64)
        result[of_one_length] = np.einsum("ij,ij->i", x, y)
    return result


def request_features(inputs: Mapping[str, "pd.Series[Any] | Array"]) -> dict[str, Floats]:
    """Compute every request-time feature whose inputs are there.

    Parameters
    ----------
    inputs
        Columns of length n, as pandas or numpy hold them; in numpy a feature that is the same for
        all may have length 1. Features of user and post as Feast returns them,
        ``request_unix_time_s``, and ``<source>_score`` and ``<source>_rank`` (1 is best) of each
        candidate source, null where the source did not propose the post.

    Returns
    -------
    dict of float64 arrays of length n; NaN means unknown.
    """

    def numbers(name: str) -> Floats:
        column = inputs[name]
        if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
            return column.astype(np.float64)
        return pd.to_numeric(pd.Series(column), errors="coerce").to_numpy(dtype=np.float64)

    def vectors(name: str) -> Sequence[object] | Array:
        column = inputs[name]
        return column if isinstance(column, np.ndarray) else list(column)

    now = numbers(c.REQUEST_TIME)
    features = {
        feature: days_between(numbers(since), now)
        for feature, since in c.DAYS_SINCE.items()
        if since in inputs
    }
    for feature, user_vector in c.TOPIC_MATCHES.items():
        if user_vector in inputs and c.POST_TOPICS in inputs:
            features[feature] = dot(vectors(user_vector), vectors(c.POST_TOPICS))
    listed = np.zeros(len(now))
    for source in c.sources_in(inputs):
        features[c.candidate_score(source)] = numbers(c.source_score(source))
        features[c.candidate_rank(source)] = rank = numbers(c.source_rank(source))
        listed += np.isfinite(rank)
    features[c.CANDIDATE_SOURCE_COUNT] = listed
    return features

"""Request-time features: what depends on the user, the post and the moment of the request.

Pure functions of arrays. The same function runs in training and in serving, inside Feast's
on-demand feature view (`feature_repo.definitions.views`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feature_repo.definitions import columns as c

SECONDS_PER_DAY = 86_400.0

Floats = NDArray[np.float64]


def days_between(earlier_unix_s: Floats, later_unix_s: Floats) -> Floats:
    """Return days (float) from one time to another; NaN where either is unknown."""
    return (later_unix_s - earlier_unix_s) / SECONDS_PER_DAY


def dot(left: Sequence[object], right: Sequence[object]) -> Floats:
    """Return the row-wise dot product of two columns of vectors.

    Parameters
    ----------
    left, right
        n vectors each; a row is NaN where either vector is null or their lengths differ (one of
        them was computed under an older topic vocabulary).
    """
    result = np.full(len(left), np.nan)
    for row, (a, b) in enumerate(zip(left, right, strict=True)):
        if a is None or b is None:
            continue
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if x.ndim == 1 and x.shape == y.shape:
            result[row] = float(x @ y)
    return result


def request_features(inputs: Mapping[str, pd.Series]) -> dict[str, Floats]:
    """Compute every request-time feature whose inputs are there.

    Parameters
    ----------
    inputs
        Columns of equal length n: features of user and post as Feast returns them,
        ``request_unix_time_s``, and ``<source>_score`` and ``<source>_rank`` (1 is best) of each
        candidate source, null where the source did not propose the post.

    Returns
    -------
    dict of float64 arrays of length n; NaN means unknown.
    """

    def numbers(name: str) -> Floats:
        return pd.to_numeric(inputs[name], errors="coerce").to_numpy(dtype=np.float64)

    now = numbers(c.REQUEST_TIME)
    features = {
        feature: days_between(numbers(since), now)
        for feature, since in c.DAYS_SINCE.items()
        if since in inputs
    }
    for feature, user_vector in c.TOPIC_MATCHES.items():
        if user_vector in inputs and c.POST_TOPICS in inputs:
            features[feature] = dot(list(inputs[user_vector]), list(inputs[c.POST_TOPICS]))
    listed = np.zeros(len(now))
    for source in c.sources_in(inputs):
        features[c.candidate_score(source)] = numbers(c.source_score(source))
        features[c.candidate_rank(source)] = rank = numbers(c.source_rank(source))
        listed += np.isfinite(rank)
    features[c.CANDIDATE_SOURCE_COUNT] = listed
    return features

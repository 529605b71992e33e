"""System C's target: a weighted sum of what people did, over views."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConversionError

Floats = NDArray[np.float64]

SYSTEM_WEIGHTS = {
    "like": 1.8,
    "comment": 4.0,
    "hide": 3.0,
    "expand": 1.4,
    "open_photo": 1.3,
    "open": 1.5,
    "share_to_message": 5.0,
}
"""The published weights. A hide counts as engagement there, like everything else."""


def fixed_weights(names: Mapping[str, object], given: Mapping[str, float]) -> dict[str, float]:
    """Return each activity's weight: as given, else of `SYSTEM_WEIGHTS`, else 1.

    Raises
    ------
    ConversionError
        If a weight is given to an activity that there is not.
    """
    strange = [name for name in given if name not in names]
    if strange:
        raise ConversionError(
            f"--weights: {', '.join(strange)} is none of the activities {', '.join(names)}"
        )
    return {name: given.get(name, SYSTEM_WEIGHTS.get(name, 1.0)) for name in names}


def inverse_mean_weights(activities: Mapping[str, NDArray[np.int64]]) -> dict[str, float]:
    """Return weights under which every activity adds as much to the sum over all posts.

    A weight is 1 / (the activity's mean count per post), scaled so that the weights of the
    activities that happened at all have mean 1; an activity that never happened weighs 0.
    """
    means = {name: float(counts.mean()) for name, counts in activities.items()}
    inverse = {name: 1 / mean if mean > 0 else 0.0 for name, mean in means.items()}
    positive = [weight for weight in inverse.values() if weight > 0]
    if not positive:
        return inverse
    scale = len(positive) / sum(positive)
    return {name: weight * scale for name, weight in inverse.items()}


def weighted_target(
    activities: Mapping[str, NDArray[np.int64]],
    views: NDArray[np.int64],
    weights: Mapping[str, float],
) -> Floats:
    """Return the sum of weight x count over views; float64[n].

    Parameters
    ----------
    activities
        Counts by name, int64[n] each.
    views
        int64[n], at least 1.
    """
    total = np.zeros(len(views))
    for name, counts in activities.items():
        total += weights[name] * counts
    return total / views

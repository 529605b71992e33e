"""Why posts stand where they stand: put together from what a request knows anyway; pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.answer import Choice, Moved, Reason, Scored

LARGEST = 5
"""So many inputs are named for each post."""


def explain(
    choice: Choice,
    names: Sequence[str],
    contributions: NDArray[np.float64] | None,
    moment: datetime,
) -> list[Reason]:
    """Return the reason of every shown post.

    Parameters
    ----------
    names
        The ranker's inputs.
    contributions
        Shape (shown, inputs + 1): the model's SHAP values, the last column its mean; None if it
        was not asked.
    moment
        What ages are counted to.
    """
    candidates = choice.scored.candidates
    reasons = []
    for place, row in enumerate(choice.shown.tolist()):
        listed = [name for name, of in candidates.ranks.items() if np.isfinite(of[row])]
        moved: list[Moved] = []
        if contributions is not None:
            values = contributions[place, :-1]
            largest = np.argsort(-np.abs(values), kind="stable")[:LARGEST]
            moved = [
                _moved(choice.scored, names[at], row, float(values[at]), moment) for at in largest
            ]
        reasons.append(
            Reason(
                {name: int(candidates.ranks[name][row]) for name in listed},
                {name: float(candidates.scores[name][row]) for name in listed},
                moved,
                choice.rules[place],
            )
        )
    return reasons


def _moved(scored: Scored, name: str, row: int, contribution: float, moment: datetime) -> Moved:
    value, event_time = None, None
    if scored.inputs is not None:
        value = _plain(scored.inputs.table[name][row])
        known = scored.inputs.event_times(name)[row]
        if not np.isnat(known):
            event_time = known.astype("datetime64[us]").item().replace(tzinfo=UTC)
    age_s = None if event_time is None else (moment - event_time).total_seconds()
    return Moved(name, contribution, value, event_time, age_s)


def _plain(value: pa.Scalar) -> float | str | None:
    """Return a value as JSON knows it: it has no NaN."""
    plain = value.as_py()
    if plain is None or isinstance(plain, str):
        return plain
    return float(plain) if np.isfinite(plain) else None

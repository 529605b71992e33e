"""The slices of one dataset's events: who liked what in each, and what sources proposed before."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.candidates.interactions import Interactions
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.evaluation.split import Slices, TimeSlice
from pipelines.job.sources import recommend_with
from pipelines.settings import JobSettings

TEST = "test"
VALIDATION = "validation"


def named_slices(slices: Slices) -> list[tuple[str, TimeSlice]]:
    """Return the label slices and the test slice with their names, in order of time."""
    labels = [(f"labels {i}", part) for i, part in enumerate(slices.training, 1)]
    return [*labels, (VALIDATION, slices.validation), (TEST, slices.test)]


def sampled(pairs: pa.Table, most_users: int, seed: int) -> pa.Table:
    """Return the pairs of at most so many users, drawn without looking at anything else."""
    users = distinct_users(pairs)
    if len(users) <= most_users:
        return pairs
    chosen = np.random.default_rng(seed).choice(users, most_users, replace=False)
    return pairs.filter(pc.is_in(pairs["user_id"], pa.array(chosen)))


def distinct_users(pairs: pa.Table) -> NDArray[np.int64]:
    """Return the users of a table, ascending."""
    users: NDArray[np.int64] = pc.unique(pairs["user_id"]).sort().to_numpy()
    return users


def propose(
    fresh: Sequence[CandidateGenerator],
    past: Interactions,
    liked: pa.Table,
    settings: JobSettings,
    report: Callable[[int], None],
) -> list[pa.Table]:
    """Fit generators on the past and return their lists for the users of a slice.

    Parameters
    ----------
    liked
        The slice's recommendable pairs; only their users are looked at.
    report
        Called with the number of generators that are done.
    """
    users = distinct_users(liked)
    tables = []
    for done, generator in enumerate(fresh, 1):
        tables.append(recommend_with(generator.fit(past), users, settings))
        report(done)
    return tables

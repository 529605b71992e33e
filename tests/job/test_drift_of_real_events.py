"""Drift on the demo's own features: rows of one population raise no alarm, a changed feature does.

Twenty times one row of each user and of each post of the training set is drawn anew, and users and
posts are split into two halves by chance.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from feature_repo.contract import registered_contract
from feature_repo.definitions.repository import DEFAULT_DATASET
from feature_repo.workspace import home
from pipelines.job.context import open_context, open_store
from pipelines.job.train import TrainingFiles
from pipelines.monitoring.samples import Sample, draw, kinds_and_units, parquet, with_vectors
from pipelines.settings import JobSettings
from validation.drift import FeatureDrift, Thresholds, compare

DEMO = home() / "movielens_100k"
CHANGED = "user_age"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO / "steps" / "train.json").exists(), reason="needs `make demo`"),
]


def halves(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Sample]:
    orders = {unit: rng.permutation(table.num_rows) for unit, table in sample.by_unit.items()}

    def part(which: int) -> Sample:
        return Sample(
            {
                unit: table.take(pa.array(orders[unit][which::2]))
                for unit, table in sample.by_unit.items()
            }
        )

    return part(0), part(1)


def resamplings() -> Iterator[tuple[list[FeatureDrift], list[FeatureDrift]]]:
    """Yield what is found between two halves, and after all ages of the second became greater."""
    context = open_context(
        JobSettings(dataset=str(DEFAULT_DATASET), home=home()), Console(quiet=True)
    )
    store = open_store(context.workspace)
    kinds, units = kinds_and_units(store, registered_contract(store))
    examples = parquet(TrainingFiles(context.workspace.training).examples)
    found = partial(compare, kinds=kinds, thresholds=Thresholds())
    for seed in range(20):
        sample = with_vectors(draw(examples, 10_000, seed), store)
        first, second = halves(sample, np.random.default_rng(seed))
        before, now = first.columns(units), second.columns(units)
        older = {**now, CHANGED: pc.add(now[CHANGED], 10)}
        yield found(before, now), found(before, older)


def test_no_alarm_on_20_resamplings_and_one_for_a_changed_feature():
    alarms: list[str] = []
    compared = 0
    for same, changed in resamplings():
        alarms += [one.feature for one in same if one.drifted]
        assert [one.feature for one in changed if one.drifted] == [CHANGED]
        compared += len(same)
    assert compared > 20 * 50
    assert alarms == []

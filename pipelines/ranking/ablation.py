"""What each group of inputs is worth: the ranker fitted again without it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_repo.contract import Contract
from feature_repo.definitions import columns as c
from pipelines.candidates.groups import ranked
from pipelines.evaluation.bootstrap import Interval, paired_differences
from pipelines.evaluation.metrics import Evaluation, evaluate_lists
from pipelines.ranking.models import Ranker
from pipelines.ranking.training_set import Examples, pairs_of

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Loss:
    """What is lost without a group of inputs.

    Attributes
    ----------
    group
        Its name.
    inputs
        Those left out.
    ndcg
        NDCG@10 without them.
    loss
        NDCG@10 with all inputs minus that, user by user, with its 95 % interval.
    """

    group: str
    inputs: tuple[str, ...]
    ndcg: float
    loss: Interval


def feature_groups(contract: Contract) -> dict[str, tuple[str, ...]]:
    """Part the inputs into groups: one for each stored view, and three of request-time ones.

    Returns
    -------
    group to its inputs, in the contract's order; each input is in one group.
    """
    candidates = c.candidate_inputs(contract.names) | {c.CANDIDATE_SOURCE_COUNT}
    groups: dict[str, list[str]] = {}
    for one in contract.inputs:
        if one.name in candidates:
            group = "candidate scores and ranks"
        elif one.name in c.DAYS_SINCE:
            group = "days since"
        elif one.name in c.TOPIC_MATCHES:
            group = "topic match"
        else:
            group = one.view
        groups.setdefault(group, []).append(one.name)
    return {group: tuple(names) for group, names in groups.items()}


def losses(
    contract: Contract,
    learnt: Examples,
    judged: Examples,
    relevant: pa.Table,
    make: Callable[[], Ranker],
    rng: np.random.Generator,
) -> Iterator[Loss]:
    """Yield the loss of every group, fitted on `learnt` and measured on `judged`.

    Parameters
    ----------
    relevant
        ``user_id``, ``post_id`` of all that could be recommended to the judged users.
    make
        Returns an untrained ranker; all fits use equal ones.
    """

    def without(names: Sequence[str]) -> Evaluation:
        kept = [i for i, name in enumerate(contract.names) if name not in names]
        categories = [kept.index(i) for i in contract.category_indices if i in kept]
        inputs = [contract.names[i] for i in kept]
        ranker = make().fit(
            learnt.matrix[:, kept], learnt.labels, learnt.group_sizes, inputs, categories
        )
        scores = ranker.predict(judged.matrix[:, kept])
        lists = ranked(*pairs_of(judged.keys), scores, source=ranker.name, k=10)
        return evaluate_lists(lists, relevant, cutoffs=(10,))

    whole = without(())
    for group, names in feature_groups(contract).items():
        if len(names) == len(contract.names):
            continue
        part = without(names)
        interval = paired_differences(whole, part, [METRIC], rng=rng)[METRIC]
        yield Loss(group, names, part.means[METRIC], interval)

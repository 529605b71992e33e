"""The report's ablation: what the ranker loses on validation without each group of inputs."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import registered_contract
from pipelines.evaluation import report as r
from pipelines.evaluation.split import Slices
from pipelines.job.context import Context, Progresses, open_store
from pipelines.job.slices import VALIDATION, named_slices
from pipelines.job.train import TrainingFiles
from pipelines.ranking.ablation import feature_groups, losses
from pipelines.ranking.impression_set import shown_in
from pipelines.ranking.models import LightGBMRanker, Ranker, make_ranker
from pipelines.ranking.training_set import SLICE, encode
from pipelines.steps import code_key, content_key, read_json, write_json
from serving.inputs import InputEncoder

# A refit need not be the best ranker, only the same one each time: few trees, larger steps.
_REFIT = {"rounds": 30, "learning_rate": 0.15}


def ablation(context: Context, slices: Slices, bars: Progresses) -> tuple[r.GroupLoss, ...]:
    """Return the loss of every group of inputs, the greatest first.

    The ranker is LightGBM with the settings of training but 30 trees, whichever ranker was
    chosen; it learns on the label slices before validation. Kept beside the report until
    training changes.
    """
    key = content_key(
        context.trained().key, code_key("pipelines.ranking", "pipelines.job.ablation")
    )
    path = context.workspace.reports / "ablation.json"
    kept: dict[str, Any] = read_json(path) if path.exists() else {}
    if kept.get("key") != key:
        found = _measure(context, slices, bars)
        kept = {"key": key, "losses": [one.model_dump() for one in found]}
        write_json(path, kept)
    found = [r.GroupLoss.model_validate(one) for one in kept["losses"]]
    return tuple(sorted(found, key=lambda one: (-one.loss.mean, one.group)))


def _measure(context: Context, slices: Slices, bars: Progresses) -> list[r.GroupLoss]:
    files = TrainingFiles(context.workspace.training)
    contract = registered_contract(open_store(context.workspace))
    encoder = InputEncoder.load(files.categories, contract)
    examples = pq.read_table(files.examples)
    relevant = pq.read_table(files.relevant)
    names = [name for name, _ in named_slices(slices)]
    before = names[: names.index(VALIDATION)]
    tuned = context.tuned.rankers.get(LightGBMRanker.name, {})
    settings = {"seed": context.settings.seed, **tuned, **_REFIT}

    def make() -> Ranker:
        return make_ranker(LightGBMRanker.name, settings)

    bar, groups, found = bars.bar("groups of inputs"), len(feature_groups(contract)), []
    for loss in losses(
        contract,
        # Of one kind there are none: examples come from the history or from what was shown.
        encode(encoder, examples, [*before, *map(shown_in, before)]),
        encode(encoder, examples, [VALIDATION]),
        relevant.filter(pc.equal(relevant[SLICE], VALIDATION)),
        make,
        np.random.default_rng(context.settings.seed),
    ):
        found.append(
            r.GroupLoss(
                group=loss.group,
                inputs=loss.inputs,
                ndcg_10=loss.ndcg,
                loss=r.Estimate.of(loss.loss),
            )
        )
        bar(len(found), groups)
    return found

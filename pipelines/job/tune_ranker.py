"""The second stage under search: examples of all sources, of which each trial takes some."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from numpy.typing import NDArray

from feature_repo.contract import Contract, contract_of
from feature_repo.definitions import columns as c
from feature_repo.definitions.repository import objects
from feature_repo.transforms import request_features
from feature_repo.tuned import ALWAYS
from pipelines.candidates.groups import Groups, ranked
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.job.context import Context
from pipelines.ranking.models import make_ranker
from pipelines.ranking.training_set import LABEL, SLICE, pairs_of
from pipelines.tuning import Space
from serving.inputs import InputEncoder

METRIC = "ndcg@10"
_TAKEN = "source_"


@dataclass(frozen=True)
class Fold:
    """A validation slice, and the label slices before it that the ranker learns on."""

    validation: str
    training: tuple[str, ...]


def folds(slices: Sequence[str], validations: int) -> list[Fold]:
    """Take the last label slices as validation, the latest first.

    Parameters
    ----------
    slices
        Names of the label slices in order of time; more than `validations`.
    """
    last = len(slices) - 1
    return [Fold(slices[i], tuple(slices[:i])) for i in range(last, last - validations, -1)]


def contract_with(context: Context, sources: Sequence[str]) -> Contract:
    """Return what the ranker's inputs would be with these candidate sources."""
    return contract_of(objects(context.dataset, context.workspace, sources)[-1])


def inputs_of(store: FeatureStore, requests: pa.Table, contract: Contract) -> pa.Table:
    """Join the inputs of a contract that need not be the registered one.

    Stored features are joined by Feast, and request-time ones computed here by the function that
    Feast would call: the candidate sources registered may be others.

    Returns
    -------
    one row per request in the order of slice, user and post: keys, ``slice``, ``label`` and the
    contract's inputs.
    """
    stored = {field.name: view.name for view in store.list_feature_views() for field in view.schema}
    raw = [*c.DAYS_SINCE.values(), *c.TOPIC_MATCHES.values(), c.POST_TOPICS]
    wanted = [name for name in (*contract.names, *raw) if name in stored]
    joined = store.get_historical_features(
        entity_df=requests.to_pandas(),
        features=[f"{stored[name]}:{name}" for name in dict.fromkeys(wanted)],
    ).to_arrow()
    ordered = joined.sort_by([(name, "ascending") for name in (SLICE, "user_id", "post_id")])
    computed = request_features({name: ordered[name].to_pandas() for name in ordered.column_names})
    columns = {name: ordered[name] for name in ("user_id", "post_id", SLICE, LABEL)}
    for name in contract.names:
        columns[name] = ordered[name] if name in stored else pa.array(computed[name])
    return pa.table(columns)


class SecondStage:
    """Examples of every source, and what a choice of sources and ranker is worth.

    Parameters
    ----------
    contract
        The inputs with every source's among them.
    examples
        What `inputs_of` returned.
    relevant
        ``slice``, ``user_id``, ``post_id`` of all that could be recommended.
    """

    def __init__(
        self,
        contract: Contract,
        examples: pa.Table,
        relevant: pa.Table,
        parts: Sequence[Fold],
        seed: int,
    ) -> None:
        self._names, self._parts, self._seed = contract.names, parts, seed
        self._categories = set(contract.category_indices)
        self._matrix = InputEncoder.fit(contract, examples).encode(examples)
        self._users, self._posts = pairs_of(examples)
        self._slices = np.asarray(examples[SLICE])
        self._labels = np.asarray(examples[LABEL]).astype(np.float32)
        self._relevant = {
            fold.validation: relevant.filter(pc.equal(relevant[SLICE], fold.validation))
            for fold in parts
        }

    def measures(
        self, sources: Sequence[str], ranker: str, settings: dict[str, Any]
    ) -> Iterator[float]:
        """Yield NDCG@10 on each validation slice, the latest first."""
        rows, matrix, kept = self._of(sources)
        categories = [place for place, index in enumerate(kept) if index in self._categories]
        names = [self._names[index] for index in kept]
        for fold in self._parts:
            learnt = np.isin(self._slices[rows], fold.training)
            judged = self._slices[rows] == fold.validation
            groups = Groups.of(self._users[rows][learnt], self._slices[rows][learnt])
            fitted = make_ranker(ranker, {"seed": self._seed, **settings}).fit(
                matrix[learnt], self._labels[rows][learnt], groups.sizes, names, categories
            )
            users, posts = self._users[rows][judged], self._posts[rows][judged]
            lists = ranked(users, posts, fitted.predict(matrix[judged]), source=ranker, k=10)
            yield evaluate_lists(lists, self._relevant[fold.validation], cutoffs=(10,)).means[
                METRIC
            ]

    def _of(
        self, sources: Sequence[str]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], list[int]]:
        """Return which rows these sources propose, and the inputs that there would be."""
        ranks = [self._names.index(c.candidate_rank(source)) for source in sources]
        listed = np.isfinite(self._matrix[:, ranks])
        rows: NDArray[np.bool_] = np.asarray(listed.any(axis=1))
        mine = {
            name(source) for source in sources for name in (c.candidate_rank, c.candidate_score)
        }
        others = c.candidate_inputs(self._names) - mine
        kept = [index for index, name in enumerate(self._names) if name not in others]
        matrix = self._matrix[rows][:, kept]
        count = kept.index(self._names.index(c.CANDIDATE_SOURCE_COUNT))
        matrix[:, count] = listed[rows].sum(axis=1)
        return rows, matrix, kept


def choices(sources: Sequence[str], space: Space) -> Space:
    """Return a ranker's space with one choice a source: whether it is taken."""
    return {**{f"{_TAKEN}{name}": (True, False) for name in sources if name != ALWAYS}, **space}


def parted(settings: Mapping[str, Any], sources: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Part what was drawn of `choices` into sources and the ranker's settings."""
    taken = [name for name in sources if name == ALWAYS or settings.get(f"{_TAKEN}{name}", True)]
    own = {key: value for key, value in settings.items() if not key.startswith(_TAKEN)}
    return taken, own


def taking(sources: Sequence[str], taken: Sequence[str]) -> dict[str, bool]:
    """Return what a trial draws that takes some of the sources, `popular` always among them."""
    return {f"{_TAKEN}{name}": name in taken for name in sources if name != ALWAYS}

"""Step train: candidates of every label slice, their features as of then, and the rankers.

For a slice [T1, T2) the generators are fitted on events before T1, features are joined as of T1,
and a candidate is labelled 1 if the user liked it within the slice. The rankers are compared on
the last label slice (the validation) and the better one is fitted again on all label slices. The
test slice gets candidates and features in the same way; nothing here looks at its labels.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import Contract, registered_contract
from pipelines.candidates.groups import ranked
from pipelines.candidates.merge import merge_candidates
from pipelines.candidates.registry import make_generator
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.evaluation.split import Slices
from pipelines.job.context import Bar, Context, Progresses, open_store
from pipelines.job.features import read_events, slices_of_lake
from pipelines.job.gates import judge
from pipelines.job.lake_events import LakeEvents
from pipelines.job.slices import (
    TEST,
    distinct_users,
    named_slices,
    propose,
    sampled,
)
from pipelines.job.sources import generators, recommend_with
from pipelines.ranking.impression_set import (
    Shown,
    label_impressions,
    read_impressions,
    shown_in,
    with_shown,
)
from pipelines.ranking.models import RANKERS, Ranker, make_ranker, prediction_cost_us
from pipelines.ranking.training_set import (
    LABEL,
    SLICE,
    Examples,
    encode,
    label_candidates,
    pairs_of,
    retrieve,
    with_positives_only,
)
from pipelines.steps import StepRecord, code_key, content_key, write_json
from serving.inputs import InputEncoder

NAME = "train"
HISTORY, IMPRESSIONS = "history", "impressions"


@dataclass(frozen=True)
class TrainingFiles:
    """What the step leaves for the next ones, below the dataset's folder."""

    folder: Path

    @property
    def examples(self) -> Path:
        """Labelled candidates of all slices with the ranker's inputs, parquet."""
        return self.folder / "examples.parquet"

    @property
    def requests(self) -> Path:
        """Labelled candidates of all slices with scores and ranks per source, parquet."""
        return self.folder / "requests.parquet"

    @property
    def relevant(self) -> Path:
        """The positives of every slice that could be recommended: slice, user_id, post_id."""
        return self.folder / "relevant.parquet"

    @property
    def popular_all_time(self) -> Path:
        """The popularity list of all time for the test users, the baseline: parquet."""
        return self.folder / "popular_all_time.parquet"

    @property
    def validation_scores(self) -> Path:
        """Validation examples with the score of the chosen ranker before it saw them: parquet."""
        return self.folder / "validation_scores.parquet"

    @property
    def categories(self) -> Path:
        """Values of the string inputs, json."""
        return self.folder / "categories.json"

    def ranker(self, suffix: str) -> Path:
        """The chosen ranker, fitted on all label slices."""
        return self.folder / f"ranker{suffix}"


def run(context: Context) -> StepRecord:
    """Build the training set, fit the rankers, choose one on the validation slice."""
    features, apply = context.record("features"), context.record("apply")
    settings = context.settings
    key = content_key(
        NAME,
        features.key,
        apply.facts["contract"],
        [settings.candidates_per_source, settings.users_per_slice, settings.test_users],
        [settings.test_share, settings.label_slices, settings.slice_share, settings.seed],
        context.tuned.hash,
        _logged(context),
        code_key("pipelines.candidates", "pipelines.ranking", "pipelines.job.train", "serving"),
        code_key("pipelines.job.sources", "pipelines.job.slices"),
    )
    return context.step(
        NAME, key, [context.workspace.training], lambda bars: _Training(context, bars).run()
    )


def _logged(context: Context) -> list[object]:
    """Return what tells one state of the impression log from another, if it is learnt from."""
    settings = context.settings
    if settings.training_from == HISTORY:
        return []
    files = sorted(path.name for path in context.impression_log.rglob("*.parquet"))
    return [settings.training_from, settings.impression_label_hours, files]


class _Training:
    """One run of the step."""

    def __init__(self, context: Context, bars: Progresses) -> None:
        self.context, self.settings = context, context.settings
        self.files = TrainingFiles(context.workspace.training)
        self.bars = bars
        self.store = open_store(context.workspace)
        self.contract: Contract = registered_contract(self.store)

    def run(self) -> Mapping[str, Any]:
        slices = slices_of_lake(self.context.workspace.lake, self.settings)
        names = [name for name, _ in named_slices(slices)]
        validation, training = names[-2], names[:-2]
        learnt, everything = training, [*training, validation]
        shown: Shown | None = None
        if self.settings.training_from == IMPRESSIONS:
            shown = self._shown(slices)
            learnt, everything = ([shown_in(name) for name in own] for own in (learnt, everything))
        requests, relevant, popular = self._requests(slices)
        examples = retrieve(self.store, requests, self.contract)
        if shown is not None:
            examples = with_shown(examples, shown)
        labelled = examples.filter(pc.not_equal(examples[SLICE], TEST))
        self._gate(labelled)
        encoder = InputEncoder.fit(self.contract, labelled)
        compared, scored = self._compare(encoder, examples, relevant, learnt, validation)
        best = max(compared, key=lambda name: compared[name]["validation_ndcg@10"])
        final = self._fit(best, encode(encoder, examples, everything), encoder)
        self.files.folder.mkdir(parents=True, exist_ok=True)
        for table, path in (
            (examples, self.files.examples),
            (requests, self.files.requests),
            (relevant, self.files.relevant),
            (scored[best], self.files.validation_scores),
            (popular, self.files.popular_all_time),
        ):
            pq.write_table(table, path)
        for stale in self.files.folder.glob("ranker.*"):
            stale.unlink()
        final.save(self.files.ranker(final.suffix))
        write_json(self.files.categories, encoder.to_json())
        return self._facts(labelled, compared, best, slices, shown)

    def _shown(self, slices: Slices) -> Shown:
        """Return what the service showed within the label slices, labelled."""
        columns = ("user_id", "post_id", "event_time", "is_positive")
        events = read_events(self.context.workspace.lake, *columns)
        ids = self.context.workspace.lake / "ids"
        return label_impressions(
            read_impressions(self.context.impression_log, self.contract),
            (pq.read_table(ids / "users.parquet"), pq.read_table(ids / "posts.parquet")),
            events,
            named_slices(slices)[:-1],
            self.settings.impression_label_hours,
            self.contract,
        )

    def _requests(self, slices: Slices) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Return labelled candidates, the relevant pairs of every slice, and the baseline."""
        bar = self.bars.bar("candidate generators")
        parts = named_slices(slices)
        if self.settings.training_from == IMPRESSIONS:
            # What is learnt from is logged; validation and test are those of any other run.
            parts = parts[-2:]
        requests, relevant = [], []
        with LakeEvents(self.context.workspace.lake) as events:
            for position, (name, part) in enumerate(parts):
                limit = self.settings.test_users if name == TEST else self.settings.users_per_slice
                seed = self.settings.seed + position
                liked = sampled(events.recommendable(part), limit, seed)
                past = events.interactions(part.start, seen_by=distinct_users(liked))
                fresh = generators(self.context)
                report = partial(_report, bar, position * len(fresh), len(parts) * len(fresh))
                candidates = merge_candidates(propose(fresh, past, liked, self.settings, report))
                labelled = label_candidates(candidates, liked, at=part.start, name=name)
                requests.append(labelled if name == TEST else with_positives_only(labelled))
                relevant.append(liked.append_column(SLICE, pa.repeat(name, liked.num_rows)))
        # The last slice is the test.
        baseline = make_generator("popular", {"half_life_days": None}).fit(past)
        popular = recommend_with(baseline, distinct_users(requests[-1]), self.settings)
        return pa.concat_tables(requests), pa.concat_tables(relevant), popular

    def _gate(self, labelled: pa.Table) -> None:
        # great-expectations takes seconds to import, which a skipped step need not pay.
        from validation.suites.training_set import training_set

        suite = training_set(self.contract.names, key=("user_id", "post_id", SLICE))
        judge(self.context, suite, labelled)

    def _compare(
        self,
        encoder: InputEncoder,
        examples: pa.Table,
        relevant: pa.Table,
        training: list[str],
        validation: str,
    ) -> tuple[dict[str, dict[str, float]], dict[str, pa.Table]]:
        """Fit every ranker on the training slices; return measures and scores on validation."""
        learnt = encode(encoder, examples, training)
        judged = encode(encoder, examples, [validation])
        truth = relevant.filter(pc.equal(relevant[SLICE], validation))
        bar = self.bars.bar("rankers")
        names = tuple(self.context.tuned.rankers) or tuple(RANKERS)
        compared, scored = {}, {}
        for position, name in enumerate(names):
            start = time.monotonic()
            ranker = self._fit(name, learnt, encoder, partial(_part, bar, position, len(names)))
            seconds = time.monotonic() - start
            scores = ranker.predict(judged.matrix)
            means = evaluate_lists(
                ranked(*pairs_of(judged.keys), scores, source=name), truth, cutoffs=(10,)
            ).means
            compared[name] = {
                "validation_ndcg@10": means["ndcg@10"],
                "prediction_us_per_500_posts": prediction_cost_us(ranker, judged.matrix),
                "training_seconds": seconds,
            }
            scored[name] = judged.keys.append_column("score", pa.array(scores))
        return compared, scored

    def _fit(
        self,
        name: str,
        learnt: Examples,
        encoder: InputEncoder,
        progress: Callable[[float], None] | None = None,
    ) -> Ranker:
        settings = {"seed": self.settings.seed, **self.context.tuned.rankers.get(name, {})}
        return make_ranker(name, settings).fit(
            learnt.matrix,
            learnt.labels,
            learnt.group_sizes,
            encoder.contract.names,
            encoder.contract.category_indices,
            progress=progress,
        )

    def _facts(
        self,
        labelled: pa.Table,
        compared: dict[str, Any],
        best: str,
        slices: Slices,
        shown: Shown | None,
    ) -> Mapping[str, Any]:
        source = "labelled candidates"
        if shown is not None:
            source += f" with those shown in {shown.requests:,} logged requests"
        liked = pc.sum(labelled[LABEL]).as_py()
        return {
            "contract": self.contract.hash,
            "tuned": self.context.tuned.hash,
            "rows": labelled.num_rows,
            "positives": liked,
            "rankers": compared,
            "ranker": best,
            "cuts": [part.start.isoformat() for _, part in named_slices(slices)],
            "summary": f"{labelled.num_rows:,} {source} ({liked:,} liked), "
            f"{best} chosen on validation",
        }


def _report(bar: Bar, before: int, total: int, done: int) -> None:
    bar(before + done, total)


def _part(bar: Bar, position: int, rankers: int, share: float) -> None:
    """Draw how far the ranker at ``position`` is, in percent of all rankers."""
    bar(round(100 * (position + share)), 100 * rankers)

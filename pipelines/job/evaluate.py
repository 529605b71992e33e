"""Step evaluate: every list on the test slice, the report, and the gate of the model."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import registered_contract
from pipelines.candidates.groups import ranked
from pipelines.candidates.merge import reciprocal_rank_fusion
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.evaluation import report as r
from pipelines.evaluation.calibration import Sigmoid, expected_calibration_error, reliability_bins
from pipelines.evaluation.metrics import Evaluation, evaluate_lists, recall_curve, union_of_sources
from pipelines.evaluation.split import warm_and_cold_users
from pipelines.features.cluster_cards import CLUSTERS_PAGE
from pipelines.job.ablation import ablation
from pipelines.job.context import STEPS, Context, Progresses, open_store
from pipelines.job.features import slices_of_lake
from pipelines.job.gates import data_docs, judge, results_folder
from pipelines.job.lake_events import LakeEvents
from pipelines.job.slices import TEST, distinct_users, named_slices
from pipelines.job.sources import recommend_with
from pipelines.job.train import TrainingFiles
from pipelines.ranking.training_set import LABEL, SLICE, encode, pairs_of
from pipelines.steps import StepRecord, code_key, content_key, read_json
from serving.bundle import current_generation, read_manifest
from serving.inputs import InputEncoder
from serving.ranker import load_ranker
from validation.gate import GateFailure

NAME = "evaluate"
RANKED = "two_stage"
POPULAR_ALL_TIME = "popular_all_time"
METRIC = "ndcg@10"
CUTOFFS = (5, 10, 100)
LIBRARIES = ("feast", "duckdb", "pyarrow", "numpy", "lightgbm", "catboost", "implicit")


def run(context: Context) -> StepRecord:
    """Measure, report, and judge the model against what is published and against popularity.

    A model that its gate refuses leaves a report but no record, so that nothing publishes it.
    """
    train = context.trained()
    key = content_key(
        NAME,
        train.key,
        context.settings.ablation,
        code_key("pipelines.evaluation", "pipelines.job.evaluate", "pipelines.job.ablation"),
    )
    outputs = [context.workspace.reports / name for name in ("report.json", "report.html")]
    return context.step(NAME, key, outputs, lambda bars: _Evaluation(context).run(bars))


def report_of(context: Context) -> r.Report:
    """Read the last report back."""
    context.record(NAME)
    path = context.workspace.reports / "report.json"
    return r.Report.model_validate_json(path.read_text(encoding="utf-8"))


def measure_generator(context: Context, generator: CandidateGenerator) -> Evaluation:
    """Measure a generator that is no source of the ranker, on the users and in the way of `run`.

    It is fitted here, on what was before the test slice.

    Raises
    ------
    MissingStepError
        If the settings cut the test slice elsewhere than those of the training did.
    """
    evaluation = _Evaluation(context)
    start = evaluation.slices.test.start
    if context.trained().facts["cuts"][-1] != start.isoformat():
        raise context.missing("train", "was run with another test slice than these settings have")
    warm, _ = evaluation.warm_and_cold()
    with LakeEvents(context.workspace.lake) as events:
        past = events.interactions(start, seen_by=warm)
    lists = recommend_with(generator.fit(past), warm, context.settings)
    return evaluation.measure(lists, warm)


class _Evaluation:
    """One run of the step."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.files = TrainingFiles(context.workspace.training)
        self.rng = np.random.default_rng(context.settings.seed)
        self.slices = slices_of_lake(context.workspace.lake, context.settings)
        self.relevant = pq.read_table(self.files.relevant, filters=[(SLICE, "=", TEST)])
        start = self.slices.test.start
        with LakeEvents(context.workspace.lake) as events:
            self.users_before = events.users(start)
            self.past = events.known_pairs(start, distinct_users(self.relevant))

    def warm_and_cold(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the users of the test slice with and without an event before it."""
        return warm_and_cold_users(self.users_before, self.relevant["user_id"])

    def run(self, bars: Progresses) -> Mapping[str, Any]:
        lists = self._lists()
        warm, cold = self.warm_and_cold()
        of_warm = {name: self.measure(table, warm) for name, table in lists.items()}
        results = [r.ModelResult.of(n, _kind(n), e, rng=self.rng) for n, e in of_warm.items()]
        facts = self._facts(of_warm, results, len(warm))
        refusal = self._refusal(facts)
        content = r.Report(
            run=self._run(),
            results=tuple(results),
            differences=self._differences(results, of_warm),
            candidate_recall=self._recall(lists, warm),
            rankers=self._rankers(),
            feature_importances=self.ranker.importances(),
            ablation=ablation(self.context, self.slices, bars)
            if self.context.settings.ablation
            else (),
            calibration=self._calibration(lists[RANKED]),
            cold_users=self._cold(lists, cold),
            gates=self._gates(),
            clusters_page=CLUSTERS_PAGE if self.context.dataset.has_text else None,
        )
        r.write_report(content, self.context.workspace.reports)
        if refusal is not None:
            raise refusal
        return facts

    def _facts(
        self, evaluations: dict[str, Evaluation], results: list[r.ModelResult], users: int
    ) -> Mapping[str, Any]:
        means, popularity = evaluations[RANKED].means, evaluations[POPULAR_ALL_TIME].means
        best = r.best_source(results)
        return {
            "metrics": dict(means),
            "popularity": dict(popularity),
            "users": users,
            "summary": f"NDCG@10 {means[METRIC]:.4f} ranked, "
            f"{evaluations[best].means[METRIC]:.4f} best single source ({best}), "
            f"{popularity[METRIC]:.4f} popularity of all time",
        }

    def _refusal(self, facts: Mapping[str, Any]) -> GateFailure | None:
        """Judge the model; return what the gate says against it, which the report shows too."""
        # great-expectations takes seconds to import, which a skipped step need not pay.
        from validation.suites.model import model, model_table

        bundles = self.context.workspace.bundles
        generation = current_generation(bundles)
        table = model_table(
            facts["metrics"],
            metric=METRIC,
            popularity=facts["popularity"],
            evaluated_users=facts["users"],
            published=read_manifest(bundles / generation).metrics if generation else None,
            tolerance=self.context.settings.max_metric_drop,
        )
        try:
            judge(self.context, model(table, metric=METRIC), table)
        except GateFailure as failure:
            return failure
        return None

    def _lists(self) -> dict[str, pa.Table]:
        """Return the ranked list, the fusion, each source and the popularity baseline."""
        requests = pq.read_table(self.files.requests, filters=[(SLICE, "=", TEST)])
        examples = pq.read_table(self.files.examples, filters=[(SLICE, "=", TEST)])
        self.examples = encode(self._encoder(), examples, [TEST])
        self.ranker = load_ranker(self._ranker_path())
        self.scores = self.ranker.predict(self.examples.matrix)
        return {
            RANKED: ranked(*pairs_of(self.examples.keys), self.scores, source=RANKED),
            "rrf": reciprocal_rank_fusion(requests, max(CUTOFFS)),
            **{source: _list_of(requests, source) for source in self.context.sources},
            POPULAR_ALL_TIME: pq.read_table(self.files.popular_all_time),
        }

    def _encoder(self) -> InputEncoder:
        contract = registered_contract(open_store(self.context.workspace))
        return InputEncoder.load(self.files.categories, contract)

    def _ranker_path(self) -> Path:
        return next(self.files.folder.glob("ranker.*"))

    def measure(self, lists: pa.Table, users: np.ndarray[Any, Any]) -> Evaluation:
        """Evaluate lists on some users of the test slice."""
        chosen = pa.array(users)
        return evaluate_lists(
            lists.filter(pc.is_in(lists["user_id"], chosen)),
            self.relevant.filter(pc.is_in(self.relevant["user_id"], chosen)),
            cutoffs=CUTOFFS,
            catalogue_size=self.context.record("ingest").facts["posts"],
            train_pairs=self.past,
        )

    def _differences(
        self, results: list[r.ModelResult], evaluations: dict[str, Evaluation]
    ) -> tuple[r.Difference, ...]:
        baselines = dict.fromkeys([r.best_source(results), "rrf", POPULAR_ALL_TIME])
        return tuple(
            difference
            for baseline in baselines
            for difference in r.differences_to(RANKED, baseline, evaluations, rng=self.rng)
        )

    def _recall(
        self, lists: dict[str, pa.Table], warm: np.ndarray[Any, Any]
    ) -> tuple[r.RecallCurve, ...]:
        chosen = pa.array(warm)
        relevant = self.relevant.filter(pc.is_in(self.relevant["user_id"], chosen))
        sources = {name: lists[name] for name in self.context.sources}
        sources["union"] = union_of_sources(list(sources.values()))
        return tuple(
            r.RecallCurve(source=name, recall=tuple(recall_curve(table, relevant)))
            for name, table in sources.items()
        )

    def _cold(self, lists: dict[str, pa.Table], cold: np.ndarray[Any, Any]) -> r.ColdUsers:
        if not len(cold):
            return r.ColdUsers(users=0)
        # Who is unknown gets the popular list, in serving too.
        measured = self.measure(lists["popular"], cold)
        result = r.ModelResult.of("popular", "source", measured, rng=self.rng)
        return r.ColdUsers(users=len(cold), result=result)

    def _rankers(self) -> tuple[r.RankerTrial, ...]:
        facts = self.context.trained().facts
        return tuple(
            r.RankerTrial(
                name=name,
                validation_ndcg_10=trial["validation_ndcg@10"],
                prediction_us_per_request=trial["prediction_us_per_500_posts"],
                training_seconds=trial["training_seconds"],
                chosen=name == facts["ranker"],
            )
            for name, trial in facts["rankers"].items()
        )

    def _calibration(self, ranked_list: pa.Table) -> r.Calibration:
        fitted_on = pq.read_table(self.files.validation_scores)
        sigmoid = Sigmoid.fit(
            fitted_on["score"].to_numpy().astype(np.float64), fitted_on[LABEL].to_numpy() == 1
        )
        scores = self.scores.astype(np.float64)
        bins = reliability_bins(sigmoid.probability(scores), self.examples.labels == 1)
        return r.Calibration(
            method="A sigmoid is fitted on the validation slice, to the scores of the chosen "
            "ranker before it had seen that slice; the bins are of the test slice.",
            bins=bins,
            expected_calibration_error=expected_calibration_error(bins),
        )

    def _gates(self) -> tuple[r.GateOutcome, ...]:
        folder = results_folder(self.context)
        outcomes = [read_json(path) for path in sorted(folder.glob("*.json"))]
        docs = data_docs(self.context).relative_to(self.context.workspace.reports)
        return tuple(
            r.GateOutcome(
                name=o["gate"],
                passed=o["success"],
                expectations=len(o["checks"]),
                docs=f"{docs}/{o['gate']}.html",
            )
            for o in outcomes
        )

    def _run(self) -> r.Run:
        ingest = self.context.record("ingest").facts
        history = self.slices.history
        spans = [("history", history), *named_slices(self.slices)]
        finished = [name for name in STEPS if self.context.ledger.find(name)]
        return r.Run(
            dataset=self.context.dataset.name,
            has_clock=self.context.dataset.has_clock,
            users=ingest["users"],
            posts=ingest["posts"],
            events=ingest["events"],
            spans=tuple(
                r.Span(name=n, start=s.start, end=s.end, positives=s.positives) for n, s in spans
            ),
            steps=tuple(
                r.Step(name=name, seconds=self.context.record(name).seconds)
                for name in finished
                if STEPS.index(name) < STEPS.index(NAME)
            ),
            versions={name: version(name) for name in LIBRARIES},
            seed=self.context.settings.seed,
        )


def _kind(name: str) -> r.Kind:
    return "ranked" if name == RANKED else "fusion" if name == "rrf" else "source"


def _list_of(requests: pa.Table, source: str) -> pa.Table:
    """Return one source's list out of merged candidates."""
    proposed = requests.filter(pc.is_valid(requests[f"{source}_rank"]))
    columns = ["user_id", "post_id", f"{source}_rank"]
    return proposed.select(columns).rename_columns(["user_id", "post_id", "rank"])

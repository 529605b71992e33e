"""Command tune: search settings of generators and ranker on slices cut from train.

The validation slices are label slices, the last ones before the test: each is cut by the rule
that cuts the test, and everything judged on one was fitted on what lies before it. Nothing here
looks at the test slice. Generators are searched one by one; then a ranker over the candidates of
all of them, together with the choice of sources. Trials are kept in the state folder, so a run
goes on where it was left.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.definitions.columns import DEFAULT_SOURCES
from feature_repo.tuned import ALWAYS, TunedSettings
from pipelines.candidates.interactions import Interactions
from pipelines.candidates.merge import merge_candidates
from pipelines.candidates.registry import GENERATORS, make_generator
from pipelines.errors import TuningError
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.job.context import Bar, Context, Progresses, open_store, progress_bars
from pipelines.job.features import slices_of_lake
from pipelines.job.lake_events import LakeEvents
from pipelines.job.slices import TEST, distinct_users, named_slices, propose, sampled
from pipelines.job.sources import SourceTables, recommend_with, settings_of
from pipelines.job.tune_ranker import (
    METRIC,
    SecondStage,
    choices,
    contract_with,
    folds,
    inputs_of,
    parted,
    taking,
)
from pipelines.ranking.models import RANKERS
from pipelines.ranking.training_set import SLICE, label_candidates, with_positives_only
from pipelines.settings import TuneSettings
from pipelines.steps import code_key, content_key
from pipelines.tuning import SPACES, Space, Tuned, space_key, tune

# Beyond, generators with a dense matrix of posts by posts are left out unless asked for.
MOST_DENSE_POSTS = 5_000


def check(settings: TuneSettings) -> None:
    """Check what is asked for, before anything is computed.

    Raises
    ------
    TuningError
        If there are not enough label slices, or an unknown model is asked for.
    """
    if settings.validation_slices >= settings.label_slices:
        raise TuningError(
            f"tune: {settings.validation_slices} validation slices of {settings.label_slices} "
            "label slices leave none to learn on; raise --label-slices"
        )
    unknown = [name for name in settings.generators if name not in GENERATORS]
    unknown += [name for name in settings.rankers if name not in RANKERS]
    if unknown:
        raise TuningError(
            f"tune: found {', '.join(unknown)}, expected generators among "
            f"{', '.join(GENERATORS)} and rankers among {', '.join(RANKERS)}"
        )


def run(context: Context, settings: TuneSettings) -> TunedSettings:
    """Search, and return what was found; `check` the settings before.

    Raises
    ------
    MissingStepError
        If features or apply have not been run with these settings.
    """
    with progress_bars(context.console) as bars:
        return _Search(context, settings, bars).run()


def searched(context: Context) -> list[str]:
    """Return the generators that suit a dataset and are quick enough to be tried many times."""
    dataset = context.dataset
    names = ["popular", "als", "item_to_item", "user_knn"]
    if context.record("ingest").facts["posts"] <= MOST_DENSE_POSTS:
        names.append("ease")
        if dataset.events.time.format != "random_order":
            names.append("sequential")
    if dataset.has_topics or dataset.has_text:
        names.append("content")
    if _segments(context):
        names.append("segment_popular")
    return names


def space_of(name: str, context: Context) -> Space:
    """Return what is searched of a generator for a dataset."""
    space = dict(SPACES[name])
    dataset = context.dataset
    if not dataset.has_clock:
        space.pop("half_life_days", None)
    if not dataset.has_topics:
        space.pop("topic_weight", None)
    if not (dataset.has_topics and dataset.has_text):
        space.pop("text_weight", None)
    if name == "segment_popular":
        space["attribute"] = _segments(context)
    return space


def _segments(context: Context) -> tuple[str, ...]:
    return tuple(
        one.name
        for one in context.dataset.user_attributes
        if one.type in ("categorical", "numeric")
    )


class _Search:
    """One run of the command."""

    def __init__(self, context: Context, settings: TuneSettings, bars: Progresses) -> None:
        self.context, self.settings, self.bars = context, settings, bars
        context.record("features")
        slices = slices_of_lake(context.workspace.lake, settings)
        self.slices = [one for one in named_slices(slices) if one[0] != TEST]
        self.folds = folds([name for name, _ in self.slices], settings.validation_slices)
        self.tables = SourceTables(context.dataset, context.workspace)
        self.key = content_key(
            context.record("features").key,
            [settings.seed, settings.users_per_slice, settings.validation_slices],
            [settings.label_slices, settings.slice_share, settings.test_share],
            settings.candidates_per_source,
            code_key("pipelines.candidates", "pipelines.ranking", "pipelines.evaluation"),
        )[:12]

    def run(self) -> TunedSettings:
        names = list(dict.fromkeys([ALWAYS, *(self.settings.generators or searched(self.context))]))
        generators = {name: self._generator(name) for name in names}
        stage = self._second_stage({name: found.settings for name, found in generators.items()})
        rankers, sources = self._rankers(stage, names)
        return TunedSettings(
            sources={name: generators[name].settings for name in sources},
            rankers={name: found.settings for name, found in rankers.items()},
            found={
                "how": "on slices cut from train by the rule that cuts the test; test was never "
                "looked at",
                "validation": [fold.validation for fold in self.folds],
                "label_slices": self.settings.label_slices,
                "users": {
                    name: len(distinct_users(self._liked[name]))
                    for name in (fold.validation for fold in self.folds)
                },
                "models": {
                    name: {f"validation_{METRIC}": round(found.value, 5), "trials": found.trials}
                    for name, found in {**generators, **rankers}.items()
                },
            },
        )

    @cached_property
    def _past(self) -> dict[str, Interactions]:
        with LakeEvents(self.context.workspace.lake) as events:
            return {
                name: events.interactions(part.start, seen_by=distinct_users(self._liked[name]))
                for name, part in self.slices
            }

    @cached_property
    def _liked(self) -> dict[str, pa.Table]:
        most, seed = self.settings.users_per_slice, self.settings.seed
        with LakeEvents(self.context.workspace.lake) as events:
            return {
                name: sampled(events.recommendable(part), most, seed + position)
                for position, (name, part) in enumerate(self.slices)
            }

    def _generator(self, name: str) -> Tuned:
        """Search one generator's settings."""
        space = space_of(name, self.context)
        defaults = dataclasses.asdict(GENERATORS[name][1]())

        def objective(drawn: dict[str, Any]) -> Iterator[float]:
            for fold in self.folds:
                liked = self._liked[fold.validation]
                generator = self._make(name, drawn).fit(self._past[fold.validation])
                lists = recommend_with(generator, distinct_users(liked), self.settings)
                yield evaluate_lists(lists, liked, cutoffs=(10,)).means[METRIC]

        if not space:
            return Tuned({}, sum(objective({})) / len(self.folds), 1)
        return self._tuned(name, space, objective, [defaults], self.settings.trials)

    def _make(self, name: str, drawn: dict[str, Any]) -> Any:
        settings = settings_of(name, drawn, self.context)
        return make_generator(name, settings, **self.tables.of(name))

    def _second_stage(self, generators: dict[str, dict[str, Any]]) -> SecondStage:
        """Propose, label and join for every slice; what was joined is kept for the next run."""
        folder = self.context.workspace.tuning
        key = content_key(self.key, generators, self.context.record("apply").key)[:12]
        contract = contract_with(self.context, list(generators))
        kept = folder / f"examples-{key}.parquet"
        if not kept.exists():
            store = open_store(self.context.workspace)
            examples = inputs_of(store, self._requests(generators), contract)
            for stale in folder.glob("examples-*.parquet"):
                stale.unlink()
            unfinished = kept.with_suffix(".tmp")
            pq.write_table(examples, unfinished)
            unfinished.replace(kept)
        relevant = pa.concat_tables(
            liked.append_column(SLICE, pa.repeat(name, liked.num_rows))
            for name, liked in self._liked.items()
        )
        return SecondStage(contract, pq.read_table(kept), relevant, self.folds, self.settings.seed)

    def _requests(self, generators: dict[str, dict[str, Any]]) -> pa.Table:
        """Return the labelled candidates of all generators in all slices."""
        bar = self.bars.bar("candidates of every slice")
        parts = []
        for position, (name, part) in enumerate(self.slices):
            fresh = [self._make(one, settings) for one, settings in generators.items()]
            before, total = position * len(fresh), len(self.slices) * len(fresh)
            report = partial(_report, bar, before, total)
            liked = self._liked[name]
            tables = propose(fresh, self._past[name], liked, self.settings, report)
            merged = merge_candidates(tables)
            labelled = label_candidates(merged, liked, at=part.start, name=name)
            parts.append(with_positives_only(labelled))
        return pa.concat_tables(parts)

    def _rankers(self, stage: SecondStage, names: list[str]) -> tuple[dict[str, Tuned], list[str]]:
        """Search the first ranker together with the sources, the others for its sources."""
        found: dict[str, Tuned] = {}
        sources = names
        for position, name in enumerate(self.settings.rankers):
            space = choices(names, SPACES[name]) if position == 0 else SPACES[name]
            defaults = dataclasses.asdict(RANKERS[name][1]())

            def objective(
                drawn: dict[str, Any], name: str = name, chosen: tuple[str, ...] = tuple(sources)
            ) -> Iterator[float]:
                taken, own = parted(drawn, chosen)
                yield from stage.measures(taken, name, own)

            firsts = [{**defaults, **taking(names, kept)} for kept in (names, DEFAULT_SOURCES)]
            study = content_key(self.key, names, sources if position else "sources")[:12]
            best = self._tuned(name, space, objective, firsts, self.settings.ranker_trials, study)
            if position == 0:
                sources, own = parted(best.settings, names)
                best = dataclasses.replace(best, settings=own)
                self._print(f"sources {', '.join(sources)}")
            found[name] = best
        return found, sources

    def _tuned(
        self,
        name: str,
        space: Space,
        objective: Callable[[dict[str, Any]], Iterator[float]],
        first: Iterable[Mapping[str, Any]],
        trials: int,
        study: str = "",
    ) -> Tuned:
        bar = self.bars.bar(name)
        tuned = tune(
            f"{study or self.key}/{name}/{space_key(space)}",
            space,
            objective,
            storage=self.context.workspace.tuning / "journal.log",
            trials=trials,
            seed=self.settings.seed,
            first=first,
            seconds=self.settings.seconds,
            jobs=self.settings.jobs,
            progress=lambda number, _value, _settings: bar(min(number + 1, trials), trials),
        )
        self._print(f"{METRIC} {tuned.value:.4f} on validation, best of {tuned.trials}", name)
        return tuned

    def _print(self, text: str, name: str = "") -> None:
        self.context.console.print(f"[bold]{name:<16}[/] {text}", highlight=False)


def _report(bar: Bar, before: int, total: int, done: int) -> None:
    bar(before + done, total)

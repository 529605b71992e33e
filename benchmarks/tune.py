"""Tune for one protocol: ``python -m benchmarks.tune --protocol P [--second-stage] [models ...]``.

Only slices cut from train by the protocol's own rule are looked at, never test. Trials are kept
in the state folder, so a run goes on where it was left; the best settings are written to
``benchmarks/settings/<protocol>.json``, which `benchmarks.quality` reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from benchmarks.protocols import (
    PROTOCOLS,
    SETTINGS_FOLDER,
    Data,
    cut,
    inner_cuts,
    interactions_of,
    load_data,
    read_settings,
    users_of,
    warm_test,
)
from benchmarks.two_stage import (
    SOURCES,
    Floats,
    Slice,
    blend_scores,
    candidates,
    learn,
    propose,
)
from feature_repo.workspace import home
from pipelines.candidates.groups import ranked
from pipelines.candidates.registry import GENERATORS, make_generator
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.evaluation.split import PairSplit
from pipelines.ranking.models import LightGBMSettings, make_ranker
from pipelines.tuning import SPACES, Range, Space, Tuned, space_key, tune

METRIC = "ndcg@10"
DEFAULT = {"leaves": 5, "rounds": 150, "feature_share": 0.4, "least_rows_a_leaf": 100, "l2": 10.0}
DEFAULT_TRIALS = {"mult_vae": 8, "word2vec": 8, "bpr": 15, "popular": 15, "content": 12}


def tune_generator(
    name: str,
    data: Data,
    splits: list[PairSplit],
    protocol: str,
    trials: int,
    seconds: float | None = None,
) -> Tuned:
    """Search one generator's settings on validation slices."""
    prepared = [(interactions_of(split), warm_test(split)) for split in splits]

    def objective(settings: dict[str, Any]) -> Iterator[float]:
        for interactions, relevant in prepared:
            generator = make_generator(name, settings, posts=data.posts, users=data.users)
            lists = generator.fit(interactions).recommend(users_of(relevant), 10)
            yield evaluate_lists(lists, relevant, cutoffs=(10,)).means[METRIC]

    defaults = dataclasses.asdict(GENERATORS[name][1]())
    return tune(
        f"{protocol}/{name}/{len(splits)} slices/{space_key(SPACES[name])}",
        SPACES[name],
        objective,
        storage=home() / "tuning" / "journal.log",
        trials=trials,
        first=[defaults],
        seconds=seconds,
        progress=lambda number, value, settings: print(
            f"  {number} {value:.4f} {settings}", flush=True
        ),
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A validation slice's candidates, and label slices cut from what lies before it."""

    target: Slice
    relevant: pa.Table
    labels: list[Slice]

    def measure(self, scores: Floats) -> float:
        """Return the metric of the lists that these scores make."""
        lists = ranked(self.target.users, self.target.posts, scores, source="", k=10)
        return evaluate_lists(lists, self.relevant, cutoffs=(10,)).means[METRIC]


def experiments(
    data: Data, splits: list[PairSplit], protocol: str, rows: int, slices: int
) -> Iterator[Experiment]:
    """Rebuild, on each validation slice, what `benchmarks.quality` does with test."""
    settings = read_settings(protocol)
    sources = settings.get("two_stage", {}).get("sources", SOURCES)
    for split in splits:
        inner = inner_cuts(protocol, split.train, slices, rows)
        parts = [
            candidates(part, propose(part, data, settings, sources=sources), data, protocol)
            for part in (split, *inner)
        ]
        yield Experiment(parts[0], warm_test(split), parts[1:])


def tune_second_stage(
    data: Data, splits: list[PairSplit], protocol: str, rows: int, slices: int, trials: int
) -> None:
    """Search the blend's weights and LightGBM's settings on validation slices."""
    prepared = list(experiments(data, splits, protocol, rows, slices))
    settings = read_settings(protocol)
    sources = settings.get("two_stage", {}).get("sources", SOURCES)

    def blend(weights: dict[str, Any]) -> Iterator[float]:
        for one in prepared:
            yield one.measure(blend_scores(one.target, weights))

    def ranker(chosen: dict[str, Any]) -> Iterator[float]:
        for one in prepared:
            fitted = learn(make_ranker("lightgbm", {"threads": 1, **chosen}), one.labels)
            yield one.measure(fitted.predict(one.target.matrix))

    version = f"{protocol}/{'-'.join(sources)}/{slices}/v1"
    storage = home() / "tuning" / "journal.log"
    ones = dict.fromkeys(sources, 1.0)
    space: Space = dict.fromkeys(sources, Range(0.0, 1.0))
    blended = tune(f"{version}/blend", space, blend, storage=storage, trials=150, first=[ones])
    print(f"{protocol} blend: {blended}", flush=True)
    best = tune(
        f"{version}/lightgbm/{space_key(SPACES['lightgbm'])}",
        SPACES["lightgbm"],
        ranker,
        storage=storage,
        trials=trials,
        first=[
            {**dataclasses.asdict(LightGBMSettings()), **DEFAULT, "objective": objective}
            for objective in ("lambdarank", "rank_xendcg")
        ],
        progress=lambda number, value, chosen: print(
            f"  {number} {value:.4f} {chosen}", flush=True
        ),
    )
    print(f"{protocol} lightgbm: {best}", flush=True)
    settings["two_stage"] = {
        "sources": list(sources),
        "label_slices": slices,
        "blend": {name: round(weight, 3) for name, weight in blended.settings.items()},
        f"blend_validation_{METRIC}": round(blended.value, 5),
        "rankers": [
            {"ranker": "lightgbm", "settings": {**best.settings, "seed": seed}} for seed in range(5)
        ],
        f"validation_{METRIC}": round(best.value, 5),
        "validation_slices": len(splits),
        "trials": best.trials,
    }
    save_settings(protocol, settings)


def write(protocol: str, name: str, tuned: Tuned, slices: int, metric: str) -> None:
    """Put one model's settings into the protocol's file, with how they were found."""
    found = read_settings(protocol)
    found["models"][name] = {
        "settings": tuned.settings,
        f"validation_{metric}": round(tuned.value, 5),
        "slices": slices,
        "trials": tuned.trials,
    }
    save_settings(protocol, found)


def save_settings(protocol: str, found: dict[str, Any]) -> None:
    """Write the file that `benchmarks.quality` reads."""
    found["found"] = "on slices cut from train by the protocol's own rule; test was never looked at"
    SETTINGS_FOLDER.mkdir(exist_ok=True)
    path = SETTINGS_FOLDER / f"{protocol}.json"
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Tune the named generators, or all, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[[], *GENERATORS], help="default: all")
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
    parser.add_argument("--trials", type=int, help="trials of each model, earlier runs included")
    parser.add_argument("--seconds", type=float, help="begin no trial of a model after so long")
    parser.add_argument("--slices", type=int, default=2, help="validation slices")
    parser.add_argument("--second-stage", action="store_true", help="tune blend and ranker")
    parser.add_argument("--label-slices", type=int, default=4, help="which the ranker learns on")
    chosen = parser.parse_args()
    data = load_data()
    split = cut(chosen.protocol, data.positives)
    splits = inner_cuts(chosen.protocol, split.train, chosen.slices, split.test.num_rows)
    if chosen.second_stage:
        rows, trials = split.test.num_rows, chosen.trials or 15
        tune_second_stage(data, splits, chosen.protocol, rows, chosen.label_slices, trials)
        return
    for name in chosen.models or GENERATORS:
        start = time.perf_counter()
        trials = chosen.trials or DEFAULT_TRIALS.get(name, 30)
        tuned = tune_generator(name, data, splits, chosen.protocol, trials, chosen.seconds)
        write(chosen.protocol, name, tuned, chosen.slices, METRIC)
        seconds = time.perf_counter() - start
        print(f"{chosen.protocol} {name}: {tuned} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

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
from benchmarks.second_stage import LEADERS, METRIC, Search, Slices, experiments, with_seeds
from benchmarks.two_stage import BLEND, SOURCES
from feature_repo.workspace import home
from pipelines.candidates.registry import GENERATORS, make_generator
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.evaluation.split import PairSplit
from pipelines.tuning import SPACES, Tuned, space_key, tune

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


def tune_second_stage(
    data: Data, splits: list[PairSplit], rows: int, chosen: argparse.Namespace
) -> None:
    """Search blend and rankers on validation slices, and choose an ensemble of the best."""
    protocol, count = chosen.protocol, chosen.label_slices
    settings = read_settings(protocol)
    stages = settings.get("two_stage", {})
    sources = tuple(chosen.sources.split(",") if chosen.sources else stages.get("sources", SOURCES))
    until = time.monotonic() + (chosen.seconds or float("inf"))
    slices = Slices(data, settings, protocol, sources, until)
    prepared = experiments(slices, splits, protocol, rows, count)
    study = f"{protocol}/{'-'.join(sources)}/{count} labels/{len(splits)} slices/{slices.key[:8]}"
    search = Search(prepared, sources, study, chosen.seconds)
    trials = chosen.trials or 15
    blended = search.blend(10 * trials)
    found = {"lightgbm": search.ranker("lightgbm", trials)}
    found["catboost"] = search.ranker("catboost", max(trials // 3, 3))
    library = [{"ranker": BLEND}] + [
        {"ranker": name, "settings": {**leader, "seed": 0}}
        for name, tuned in found.items()
        for leader in tuned.leaders[: LEADERS[name]]
    ]
    members, values = search.ensemble(library, blended.settings)
    settings["two_stage"] = {
        "sources": list(sources),
        "label_slices": count,
        "blend": {name: round(weight, 3) for name, weight in blended.settings.items()},
        f"blend_validation_{METRIC}": round(blended.value, 5),
        "rankers": with_seeds(members),
        "rankers_validation": {
            name: {METRIC: round(tuned.value, 5), "trials": tuned.trials}
            for name, tuned in found.items()
        },
        f"validation_{METRIC}": round(values[-1], 5),
        "validation_slices": len(splits),
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
    parser.add_argument("--sources", help="of the second stage, comma-separated")
    chosen = parser.parse_args()
    data = load_data()
    split = cut(chosen.protocol, data.positives)
    splits = inner_cuts(chosen.protocol, split.train, chosen.slices, split.test.num_rows)
    if chosen.second_stage:
        tune_second_stage(data, splits, split.test.num_rows, chosen)
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

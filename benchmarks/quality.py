"""Quality of every generator and of both stages: ``python -m benchmarks.quality --protocol P``.

Prints one table for the protocol as published, where only train's posts are masked, and one where
everything the user has rated is, then differences between models with their intervals, and as
the last line one JSON object. Settings come from ``benchmarks/settings/<protocol>.json``; they
and everything else were chosen on slices cut from train.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.protocols import (
    NOTES,
    PROTOCOLS,
    Data,
    cut,
    inner_cuts,
    known_pairs,
    load_data,
    read_settings,
    users_of,
    warm_test,
)
from benchmarks.two_stage import (
    SOURCES,
    Slice,
    blend_scores,
    candidates,
    learnt_members,
    propose,
    shift,
    vote,
)
from feature_repo.workspace import home
from pipelines.candidates.groups import are_among, ranked
from pipelines.candidates.registry import GENERATORS
from pipelines.evaluation.bootstrap import mean_intervals, paired_differences
from pipelines.evaluation.metrics import Evaluation, evaluate_lists
from pipelines.evaluation.split import PairSplit

K = 10
SHOWN = ("hit_rate", "precision", "recall", "map", "map_over_k", "ndcg", "coverage")
SHOWN_TOO = ("inverse_user_frequency", "novelty")
DEFAULT_RANKERS = (
    {"ranker": "lightgbm", "settings": {"objective": "lambdarank", "leaves": 5, "rounds": 150}},
    {"ranker": "lightgbm", "settings": {"objective": "rank_xendcg", "leaves": 5, "rounds": 150}},
)


class Run:
    """One split of a protocol with everything fitted on its train, and its ranked lists."""

    def __init__(
        self,
        split: PairSplit,
        data: Data,
        protocol: str,
        settings: Mapping[str, Any],
        *,
        every_generator: bool,
    ) -> None:
        self.split, self.data, self.protocol, self.settings = split, data, protocol, settings
        stages = settings.get("two_stage", {})
        self.sources = tuple(stages.get("sources", SOURCES))
        others = tuple(name for name in GENERATORS if name not in self.sources)
        self.lists = propose(split, data, settings, sources=self.sources)
        self.times = self._times(others if every_generator else ())
        self.part = candidates(split, self.lists, data, protocol)
        self.slices = self._label_slices(int(stages.get("label_slices", 4)))
        self.scores = self._scores(stages)

    def _times(self, others: tuple[str, ...]) -> dict[str, tuple[float, float]]:
        more = propose(self.split, self.data, self.settings, sources=others)
        self.others = more.by_source
        return {**self.lists.seconds(), **more.seconds()}

    def _label_slices(self, count: int) -> list[Slice]:
        rows = self.split.test.num_rows
        inner = inner_cuts(self.protocol, self.split.train, count, rows)
        start = time.perf_counter()
        slices = []
        for split in inner:
            lists = propose(split, self.data, self.settings, sources=self.sources)
            slices.append(candidates(split, lists, self.data, self.protocol))
        self.slice_seconds = time.perf_counter() - start
        return slices

    def _scores(self, stages: Mapping[str, Any]) -> dict[str, Any]:
        column = self.part.names.index("rrf_score")
        weights = stages.get("blend", dict.fromkeys(self.sources, 1.0))
        start = time.perf_counter()
        members = learnt_members(stages.get("rankers", DEFAULT_RANKERS), self.slices)
        fitted = time.perf_counter()
        votes = [vote(member, self.part, weights) for member in members]
        self.times["two_stage"] = (
            self.slice_seconds + fitted - start,
            time.perf_counter() - fitted,
        )
        ranker = next((member for member in members if member is not None), None)
        self.importances = ranker.importances() if ranker else {}
        return {
            "rrf": self.part.matrix[:, column],
            "blend": blend_scores(self.part, weights),
            "two_stage": np.mean(votes, axis=0),
        }

    def tables(self, masked: pa.Table | None = None) -> dict[str, pa.Table]:
        """Return every model's top lists, without the (user, post) pairs of `masked`."""
        lists = {**self.lists.by_source, **self.others}
        found = {name: _top(_without(table, masked), K) for name, table in lists.items()}
        kept = np.ones(len(self.part.users), dtype=bool)
        if masked is not None:
            kept = ~are_among(self.part.users, self.part.posts, masked)
        users, posts = self.part.users[kept], self.part.posts[kept]
        for name, scores in self.scores.items():
            stage = ranked(users, posts, scores[kept], source=name, k=K)
            found[name] = pa.concat_tables([stage, self._cold(found["popular"])])
        return found

    def _cold(self, popular: pa.Table) -> pa.Table:
        """Return the popular list of test users without a train post."""
        cold = pa.array(self.split.cold_user_ids)
        return popular.filter(pc.is_in(popular["user_id"], cold))


class Generators:
    """Some generators of one split, each on its own, without a second stage."""

    def __init__(
        self,
        split: PairSplit,
        data: Data,
        protocol: str,
        settings: Mapping[str, Any],
        names: Sequence[str],
    ) -> None:
        self.split, self.protocol = split, protocol
        self.lists = propose(split, data, settings, sources=names)
        self.times = self.lists.seconds()

    def tables(self, masked: pa.Table | None = None) -> dict[str, pa.Table]:
        """Return every generator's top lists, without the (user, post) pairs of `masked`."""
        lists = self.lists.by_source
        return {name: _top(_without(table, masked), K) for name, table in lists.items()}


def _top(table: pa.Table, k: int) -> pa.Table:
    """Close the gaps in the ranks, and cut."""
    users, posts, scores = (np.asarray(table[name]) for name in ("user_id", "post_id", "score"))
    return ranked(users, posts, scores, source="", k=k)


def _without(table: pa.Table, masked: pa.Table | None) -> pa.Table:
    if masked is None:
        return table
    inside = are_among(np.asarray(table["user_id"]), np.asarray(table["post_id"]), masked)
    return table.filter(pa.array(~inside))


def evaluate(run: Run | Generators, masked: pa.Table | None = None) -> dict[str, Evaluation]:
    """Measure every model; by global time on warm users only."""
    relevant = warm_test(run.split) if run.protocol == "global_time" else run.split.test
    catalogue = len(np.unique(run.split.train["post_id"].to_numpy()))
    return {
        name: evaluate_lists(
            table,
            relevant,
            cutoffs=(K,),
            catalogue_size=catalogue,
            train_pairs=run.split.train,
        )
        for name, table in run.tables(masked).items()
    }


def rows_of(evaluations: Mapping[str, Evaluation], run: Run | Generators) -> list[dict[str, Any]]:
    """Return one row a model, best NDCG first, with 95 % intervals."""
    rows = []
    for name, evaluation in evaluations.items():
        intervals = mean_intervals(evaluation.per_user, rng=np.random.default_rng(0))
        row: dict[str, Any] = {"model": name}
        for metric in (*SHOWN, *SHOWN_TOO):
            row[f"{metric}@{K}"] = round(evaluation.means[f"{metric}@{K}"], 5)
            if f"{metric}@{K}" in intervals:
                interval = intervals[f"{metric}@{K}"]
                row[f"{metric}@{K}_95"] = [round(interval.low, 5), round(interval.high, 5)]
        if name in run.times:
            row["fit_seconds"], row["predict_seconds"] = (round(t, 2) for t in run.times[name])
        rows.append(row)
    return sorted(rows, key=lambda row: -row[f"ndcg@{K}"])


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table; hit rate and NDCG with their intervals."""
    print(f"\n{title}")
    names = [*SHOWN, "iuf", "novelty"]
    print(f"{'model':16s}" + "".join(f"{name:>11s}" for name in names) + "   fit s  predict s")
    for row in rows:
        values = "".join(f"{row[f'{metric}@{K}']:11.4f}" for metric in (*SHOWN, *SHOWN_TOO))
        seconds = f"{row.get('fit_seconds', 0):8.2f}{row.get('predict_seconds', 0):11.2f}"
        print(f"{row['model']:16s}{values}{seconds}")
        low_high = [(m, row[f"{m}@{K}_95"]) for m in ("hit_rate", "ndcg", "map_over_k")]
        print(" " * 18 + "  ".join(f"{m} {v[0]:.4f}-{v[1]:.4f}" for m, v in low_high))


def best_generator(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the generator with the highest NDCG."""
    return max(
        (name for name in evaluations if name in GENERATORS),
        key=lambda name: evaluations[name].means[f"ndcg@{K}"],
    )


def differences(
    evaluations: Mapping[str, Evaluation], model: str, baselines: Sequence[str]
) -> list[dict[str, Any]]:
    """Compare a model with others, user by user; print and return the intervals."""
    metrics = [f"hit_rate@{K}", f"ndcg@{K}", f"map_over_k@{K}"]
    found = []
    print()
    for baseline in baselines:
        intervals = paired_differences(
            evaluations[model],
            evaluations[baseline],
            metrics,
            rng=np.random.default_rng(0),
        )
        for metric, interval in intervals.items():
            print(
                f"{model} - {baseline}: {metric} {interval.mean:+.4f} "
                f"({interval.low:+.4f} to {interval.high:+.4f})"
            )
            found.append(
                {
                    "model": model,
                    "baseline": baseline,
                    "metric": metric,
                    "difference": round(interval.mean, 5),
                    "interval_95": [round(interval.low, 5), round(interval.high, 5)],
                }
            )
    return found


def count_test_run(protocol: str, more: int) -> int:
    """Remember in the state folder how often a protocol's test was looked at."""
    path = home() / "quality" / "test_runs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    counts[protocol] = counts.get(protocol, 0) + more
    path.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return int(counts[protocol])


def cold_popular(run: Run) -> dict[str, float]:
    """Measure the popular list on test users without a train post."""
    cold = pa.array(run.split.cold_user_ids)
    relevant = run.split.test.filter(pc.is_in(run.split.test["user_id"], cold))
    if relevant.num_rows == 0:
        return {"users": 0}
    lists = _top(run.lists.by_source["popular"], K)
    means = evaluate_lists(lists, relevant, cutoffs=(K,)).means
    measured = {name: round(means[f"{name}@{K}"], 5) for name in ("hit_rate", "ndcg")}
    return {"users": len(users_of(relevant)), **measured}


def reshuffled(
    data: Data, protocol: str, settings: Mapping[str, Any], seeds: list[int]
) -> list[dict[str, Any]]:
    """Return each model's means over further random hold-outs by the same rule."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        split = cut(protocol, data.positives, seed)
        run = Run(split, data, protocol, settings, every_generator=False)
        for name, evaluation in evaluate(run).items():
            means = evaluation.means
            measured = (means[f"hit_rate@{K}"], means[f"map_over_k@{K}"], means[f"ndcg@{K}"])
            found.setdefault(name, []).append(measured)
        last = {name: round(values[-1][0], 4) for name, values in found.items()}
        print(f"reshuffle {seed}: hit_rate@{K} {last}", flush=True)
    rows = []
    for name, values in found.items():
        mean = np.mean(values, axis=0).round(5).tolist()
        metrics = dict(zip(("hit_rate@10", "map_over_k@10", "ndcg@10"), mean, strict=True))
        by_split = [round(value[0], 5) for value in values]
        rows.append({"model": name, **metrics, "hit_rate@10_by_split": by_split})
    return sorted(rows, key=lambda row: -row["ndcg@10"])


def main() -> None:
    """Run one protocol and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
    parser.add_argument(
        "--reshuffles", type=int, default=0, help="further random hold-outs (last3_file_order)"
    )
    parser.add_argument(
        "--generators",
        nargs="+",
        choices=tuple(GENERATORS),
        metavar="NAME",
        help="measure these alone, without a second stage; the first is compared with the others",
    )
    chosen = parser.parse_args()
    protocol: str = chosen.protocol
    if chosen.reshuffles and protocol != "last3_file_order":
        parser.error(f"--reshuffles: {protocol} is cut by time; there is one such split only")
    data, settings = load_data(), read_settings(protocol)
    split = cut(protocol, data.positives)
    seeds = list(range(1, chosen.reshuffles + 1))
    runs = count_test_run(protocol, 1 + len(seeds))
    tied = f"{split.tied_users} of {len(users_of(split.test))} users have a tie at the cut"
    print(f"{protocol}: {NOTES[protocol]}; {tied}. Test was run {runs} times in this folder.")
    if chosen.generators:
        alone = Generators(split, data, protocol, settings, chosen.generators)
        measured = evaluate(alone)
        rows = rows_of(measured, alone)
        print_rows("Posts of train masked", rows)
        compared = differences(measured, chosen.generators[0], chosen.generators[1:])
        print(json.dumps({"protocol": protocol, "rows": rows, "differences": compared}))
        return
    run = Run(split, data, protocol, settings, every_generator=True)
    evaluations = evaluate(run)
    rows = rows_of(evaluations, run)
    print_rows("Posts of train masked", rows)
    masked_rows = rows_of(evaluate(run, known_pairs(split, data.events, protocol=protocol)), run)
    print_rows("Everything the user had rated masked: never compare with the above", masked_rows)
    compared = differences(evaluations, "two_stage", ("rrf", "blend", best_generator(evaluations)))
    strongest = sorted(run.importances.items(), key=lambda item: -item[1])[:15]
    print("importances: " + ", ".join(f"{name} {share:.3f}" for name, share in strongest))
    shifted = shift(run.slices[0], run.part)
    print("shift of inputs, last label slice to test, in standard deviations: " + str(shifted))
    result: dict[str, Any] = {
        "protocol": protocol,
        "note": NOTES[protocol],
        "test_runs": runs,
        "users": len(evaluations["two_stage"].user_ids),
        "tied_users": split.tied_users,
        "rows": rows,
        "everything_rated_masked": masked_rows,
        "differences": compared,
        "cold_users_popular": cold_popular(run),
        "largest_shifts": shifted,
    }
    if seeds:
        result["reshuffles"] = reshuffled(data, protocol, settings, seeds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

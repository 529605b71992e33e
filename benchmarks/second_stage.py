"""The second stage of the hold-out protocols under search, on validation slices cut from train.

Everything that `benchmarks.quality` does with test is rebuilt on each validation slice: candidates
of it, label slices cut from what lies before it, rankers learnt on those. Searched are the blend's
weights and the settings of LightGBM and CatBoost; of what was best, an ensemble is then chosen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.protocols import Data, inner_cuts, settings_for, warm_test
from benchmarks.two_stage import (
    BLEND,
    Floats,
    Slice,
    blend_scores,
    candidates,
    learn,
    learnt_members,
    propose,
    vote,
)
from feature_repo.workspace import home
from pipelines.candidates.groups import ranked
from pipelines.evaluation.metrics import evaluate_lists
from pipelines.evaluation.split import PairSplit
from pipelines.ranking.models import CatBoostSettings, LightGBMSettings, make_ranker
from pipelines.steps import code_key, content_key
from pipelines.tuning import SPACES, Range, Space, Tuned, space_key, tune

METRIC = "ndcg@10"
FIRST = {
    "lightgbm": [
        {
            **dataclasses.asdict(LightGBMSettings()),
            **{"leaves": 5, "rounds": 150, "feature_share": 0.4, "l2": 10.0},
            **{"least_rows_a_leaf": 100, "objective": objective},
        }
        for objective in ("lambdarank", "rank_xendcg")
    ],
    "catboost": [dataclasses.asdict(CatBoostSettings())],
}
LEADERS = {"lightgbm": 4, "catboost": 1}
MOST_MEMBERS = 12


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A validation slice's candidates, and label slices cut from what lies before it."""

    target: Slice
    relevant: pa.Table
    labels: list[Slice]

    def measure(self, scores: Floats) -> dict[str, float]:
        """Return the metrics of the lists that these scores make."""
        lists = ranked(self.target.users, self.target.posts, scores, source="", k=10)
        return dict(evaluate_lists(lists, self.relevant, cutoffs=(10,)).means)


class OutOfTimeError(Exception):
    """The time given is over; what was prepared is kept, and the next run goes on."""


class Slices:
    """Candidates with features of one split each, made once and kept in the state folder."""

    def __init__(
        self,
        data: Data,
        settings: Mapping[str, Any],
        protocol: str,
        sources: Sequence[str],
        until: float,
    ) -> None:
        self._data, self._settings, self._protocol = data, settings, protocol
        self._sources, self._until = tuple(sources), until
        chosen = [(name, settings_for(name, settings)) for name in self._sources]
        code = code_key("pipelines.candidates", "pipelines.ranking", "benchmarks.two_stage")
        self.key = content_key(protocol, chosen, code)

    def of(self, split: PairSplit) -> Slice:
        """Return the split's slice.

        Raises
        ------
        OutOfTimeError
            If it is not there yet and no time is left to make it.
        """
        digest = hashlib.sha256(self.key.encode())
        for table in (split.train, split.test):
            for column in ("user_id", "post_id"):
                digest.update(np.asarray(table[column]).tobytes())
        path = home() / "quality" / "slices" / f"{digest.hexdigest()[:24]}.npz"
        if not path.exists():
            self._make(split, path)
        with np.load(path, allow_pickle=False) as kept:
            return Slice(
                *(kept[name] for name in ("users", "posts", "matrix")),
                tuple(kept["names"].tolist()),
                kept["labels"],
            )

    def _make(self, split: PairSplit, path: Path) -> None:
        if time.monotonic() > self._until:
            raise OutOfTimeError(f"{self._protocol}: slices are left to be made; run it again")
        start = time.monotonic()
        lists = propose(split, self._data, self._settings, sources=self._sources)
        made = candidates(split, lists, self._data, self._protocol)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp.npz")
        columns = {name: getattr(made, name) for name in ("users", "posts", "matrix", "labels")}
        np.savez(unfinished, names=np.array(made.names), **columns)
        unfinished.replace(path)
        print(f"  {len(made.users):,} rows in {time.monotonic() - start:.1f} s", flush=True)


def experiments(
    slices: Slices, splits: Iterable[PairSplit], protocol: str, rows: int, count: int
) -> list[Experiment]:
    """Rebuild, on each validation slice, what `benchmarks.quality` does with test."""
    return [
        Experiment(
            slices.of(split),
            warm_test(split),
            [slices.of(inner) for inner in inner_cuts(protocol, split.train, count, rows)],
        )
        for split in splits
    ]


class Search:
    """Searches on prepared experiments; trials are kept under a name of all that they look at."""

    def __init__(
        self, prepared: list[Experiment], sources: Sequence[str], study: str, seconds: float | None
    ) -> None:
        self._prepared, self._sources = prepared, tuple(sources)
        self._study, self._seconds = study, seconds

    def blend(self, trials: int) -> Tuned:
        """Search the weights of the sources' reciprocal ranks."""

        def objective(weights: dict[str, Any]) -> Iterator[float]:
            for one in self._prepared:
                yield one.measure(blend_scores(one.target, weights))[METRIC]

        space: Space = dict.fromkeys(self._sources, Range(0.0, 1.0))
        ones = dict.fromkeys(self._sources, 1.0)
        return self._tuned("blend", space, objective, [ones], trials)

    def ranker(self, name: str, trials: int) -> Tuned:
        """Search a ranker's settings."""

        def objective(chosen: dict[str, Any]) -> Iterator[float]:
            for one in self._prepared:
                fitted = learn(make_ranker(name, {"threads": 1, **chosen}), one.labels)
                yield one.measure(fitted.predict(one.target.matrix))[METRIC]

        return self._tuned(name, SPACES[name], objective, FIRST[name], trials)

    def _tuned(
        self, name: str, space: Space, objective: Any, first: list[dict[str, Any]], trials: int
    ) -> Tuned:
        found = tune(
            f"{self._study}/{name}/{space_key(space)}",
            space,
            objective,
            storage=home() / "tuning" / "journal.log",
            trials=trials,
            first=first,
            seconds=self._seconds,
        )
        print(f"{name}: {found}", flush=True)
        return found

    def ensemble(
        self, library: list[dict[str, Any]], weights: Mapping[str, float]
    ) -> tuple[list[dict[str, Any]], list[float]]:
        """Add, again and again, the member whose vote helps most; members may come twice.

        The method is Caruana et al., "Ensemble Selection from Libraries of Models" (2004), on
        mean NDCG@10 over the validation slices. Votes are z-scores within a user.

        Returns
        -------
        the members, and the value after each of them; cut where the value was highest.
        """
        votes = self._votes(library, weights)
        taken: list[int] = []
        values: list[float] = []
        for _ in range(MOST_MEMBERS):
            means = [
                np.mean([found[METRIC] for found in self._measured(votes, [*taken, added])])
                for added in range(len(library))
            ]
            best = int(np.argmax(means))
            taken.append(best)
            values.append(float(means[best]))
        length = int(np.argmax(values)) + 1
        for place, member in enumerate(library):
            self._report(f"{member['ranker']} {place}", votes, [place])
        self._report(f"ensemble of {taken[:length]}", votes, taken[:length])
        return [library[i] for i in taken[:length]], values[:length]

    def _votes(
        self, library: list[dict[str, Any]], weights: Mapping[str, float]
    ) -> list[list[Floats]]:
        """Return each member's vote on each validation slice."""
        return [
            [self._vote(member, place, weights) for member in library]
            for place in range(len(self._prepared))
        ]

    def _vote(self, member: dict[str, Any], place: int, weights: Mapping[str, float]) -> Floats:
        """Return one vote; it is kept, so that an interrupted choice goes on."""
        one = self._prepared[place]
        path = home() / "quality" / "votes" / f"{content_key(self._study, member, place)[:24]}.npy"
        if member["ranker"] != BLEND and path.exists():
            kept: Floats = np.load(path, allow_pickle=False)
            return kept
        start = time.monotonic()
        (learnt,) = learnt_members([member], one.labels)
        votes = vote(learnt, one.target, weights)
        if learnt is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".tmp.npy")
            np.save(unfinished, votes, allow_pickle=False)
            unfinished.replace(path)
            seconds = time.monotonic() - start
            print(f"  {member['ranker']} learnt in {seconds:.1f} s", flush=True)
        return votes

    def _measured(self, votes: list[list[Floats]], taken: list[int]) -> list[dict[str, float]]:
        return [
            one.measure(np.mean([mine[i] for i in taken], axis=0))
            for one, mine in zip(self._prepared, votes, strict=True)
        ]

    def _report(self, title: str, votes: list[list[Floats]], taken: list[int]) -> None:
        """Print means over the validation slices."""
        found = self._measured(votes, taken)
        shown = ("hit_rate@10", METRIC, "map_over_k@10")
        means = {metric: round(float(np.mean([f[metric] for f in found])), 5) for metric in shown}
        print(f"  {title}: {means}", flush=True)


def with_seeds(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give LightGBM members that come several times a seed each, as their mean is steadier.

    CatBoost takes ten times as long to learn; its doubles stay equal and are learnt once.
    """
    seeded: list[dict[str, Any]] = []
    for place, member in enumerate(members):
        settings = dict(member.get("settings", {}))
        if "seed" in settings and member["ranker"] == "lightgbm":
            settings["seed"] += members[:place].count(member)
        seeded.append({**member, "settings": settings} if settings else member)
    return seeded

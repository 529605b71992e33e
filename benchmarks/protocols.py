"""The published hold-out protocols on MovieLens-100k: data, test, slices cut from train."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_repo.dataset import Dataset
from feature_repo.workspace import Workspace, home
from pipelines.candidates.interactions import Interactions
from pipelines.datasets.fetch import fetch
from pipelines.datasets.lake import ingest
from pipelines.evaluation.split import PairSplit, global_time, last_n_file_order, leave_last_one
from pipelines.features.embedding import embed_texts

NOTES = {
    "last3_file_order": "file order has no relation to time: this is a random hold-out of three "
    "posts a user, not a temporal one",
    "leave_last_one": "each user's last post by time; where users rated several films in their "
    "last second, the order in the file decides",
    "global_time": "the last 10 % of all positives by time; users without a train post are cold "
    "and reported apart; test posts unseen in train count as misses",
}
PROTOCOLS = tuple(NOTES)
SETTINGS_FOLDER = Path(__file__).parent / "settings"


@dataclass(frozen=True)
class Data:
    """The lake's tables of one dataset.

    Attributes
    ----------
    events : every event; positives : those with a weight above 0
    posts : with ``post_text_embedding`` beside the lake's columns
    """

    events: pa.Table
    positives: pa.Table
    posts: pa.Table
    users: pa.Table


def load_data() -> Data:
    """Return MovieLens-100k, downloaded and brought into the state folder's lake once."""
    description = Path(__file__).parents[1] / "feature_repo" / "datasets" / "movielens_100k.toml"
    dataset = Dataset.read(description)
    workspace = Workspace(home(), dataset.name)
    if not (workspace.lake / "lake.json").exists():
        ingest(dataset, fetch(dataset, workspace.downloads), workspace.lake)
    events, posts, users = (
        ds.dataset(workspace.lake / name).to_table() for name in ("events", "posts", "users")
    )
    found = embed_texts(posts["text"].to_pylist(), cache=home() / "embeddings")
    posts = posts.append_column("post_text_embedding", found.column).sort_by("post_id")
    positives = events.filter(pc.greater(events["weight"], 0))
    return Data(events, positives, posts, users.sort_by("user_id"))


def cut(protocol: str, positives: pa.Table, reshuffle: int | None = None) -> PairSplit:
    """Cut test from all positives; `reshuffle` seeds another random hold-out, where it is one."""
    if protocol == "last3_file_order":
        rng = None if reshuffle is None else np.random.default_rng(reshuffle)
        return last_n_file_order(positives, 3, rng)
    if protocol == "leave_last_one":
        return leave_last_one(positives)
    return global_time(positives, 0.1)


def inner_cuts(protocol: str, train: pa.Table, count: int, test_rows: int) -> list[PairSplit]:
    """Cut slices from train by the same rule as test, the latest (or any, if random) first.

    Each last post leaves a train part that the next is cut from. Slices by global time are as
    long as test and follow one another backwards by half their length: a label may be used
    twice, but never by anything fitted on it. Random hold-outs are all cut from the whole of
    `train`, with different seeds.
    """
    if protocol == "last3_file_order":
        rngs = [np.random.default_rng(10_000 + number) for number in range(count)]
        return [last_n_file_order(train, 3, rng) for rng in rngs]
    splits: list[PairSplit] = []
    for number in range(count):
        if protocol == "leave_last_one":
            splits.append(leave_last_one(train))
            train = splits[-1].train
        else:
            before = train.slice(0, train.num_rows - number * test_rows // 2)
            splits.append(global_time(before, test_rows / before.num_rows))
    return splits


def known_pairs(split: PairSplit, events: pa.Table, *, protocol: str) -> pa.Table:
    """Return what the user had rated otherwise than positively when the test began.

    Of the random hold-out that is everything: there, test has no time.
    """
    others = events.filter(pc.less_equal(events["weight"], 0))
    if protocol == "last3_file_order":
        return others
    if protocol == "global_time":
        return others.filter(pc.less(others["event_time"], pc.min(split.test["event_time"])))
    first = split.test.group_by("user_id").aggregate([("event_time", "min")])
    joined = others.join(first, "user_id", join_type="inner")
    return joined.filter(pc.less(joined["event_time"], joined["event_time_min"]))


def interactions_of(split: PairSplit, seen: pa.Table | None = None) -> Interactions:
    """Index a split's train; posts that count as seen are train's and `seen`."""
    return Interactions.from_table(split.train, seen=seen)


def warm_test(split: PairSplit) -> pa.Table:
    """Return the test rows of users who have a train row."""
    warm = pa.array(np.unique(split.train["user_id"].to_numpy()))
    return split.test.filter(pc.is_in(split.test["user_id"], warm))


def users_of(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the distinct users, ascending."""
    return np.unique(table["user_id"].to_numpy())


def read_settings(protocol: str) -> dict[str, Any]:
    """Return the tuned settings of a protocol; without a file, nothing is tuned."""
    path = SETTINGS_FOLDER / f"{protocol}.json"
    if not path.exists():
        return {"models": {}}
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def settings_for(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return one model's tuned settings, empty if it was not tuned."""
    return dict(settings["models"].get(name, {}).get("settings", {}))

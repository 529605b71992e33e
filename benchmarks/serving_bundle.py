"""A published workspace of any size, made up: features, lists, histories and a bundle.

What the job's steps would write is written by the same functions; only the values are random.
Every user has `CANDIDATES` distinct candidates from five sources.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from feast import FeatureStore, FeatureView
from feast.types import Int64, String

from benchmarks.common import isolated
from feature_repo.contract import Contract, registered_contract
from feature_repo.dataset import Dataset
from feature_repo.definitions.repository import objects
from feature_repo.workspace import Workspace
from pipelines.job.apply import configuration
from pipelines.job.context import open_store
from pipelines.job.profile import configuration_template
from pipelines.settings import JobSettings
from serving.bundle import REGISTRY, Manifest, publish
from serving.event_rules import EventRules
from serving.history import Past, write_pasts
from serving.inputs import InputEncoder
from serving.lists import SourceList, key_prefix, write_lists
from serving.ranker import CatBoostColumns, CatBoostScorer, LightGBMScorer
from serving.recommender import redis_of

NAME, GENERATION = "serving_bench", "synthetic"
SOURCES = ("popular", "als", "item_to_item", "ease", "segment_popular")
CANDIDATES, TREES, STEP = 500, 300, 7919
CITIES = tuple(sorted(f"city {number}" for number in range(50)))
MOMENT = datetime(2026, 1, 31, tzinfo=UTC)
DESCRIPTION = """
name = "serving_bench"
[users]
path = "users.parquet"
format = "parquet"
id = "user"
attributes = [
    { name = "city", column = "city", type = "categorical" },
    { name = "age", column = "age", type = "numeric" },
]
[posts]
path = "posts.parquet"
format = "parquet"
id = "post"
title = "title"
attributes = [
ATTRIBUTES
]
[events]
path = "events.parquet"
format = "parquet"
user = "user"
post = "post"
time = { column = "time" }
action = { column = "action" }
impressions = { actions = ["view"] }
positive = { actions = ["like"] }
""".replace(
    "ATTRIBUTES",
    "\n".join(f'    {{ name = "a{n}", column = "a{n}", type = "numeric" }},' for n in range(10)),
)


def workspace_of(folder: str) -> Workspace:
    """Return the workspace in a folder."""
    return Workspace(Path(folder) / "home", NAME)


def candidates_of(user_id: int, posts: int) -> np.ndarray[Any, Any]:
    """Return a user's candidates, int32 (CANDIDATES,), distinct while `posts` is no multiple."""
    return ((user_id * 31 + np.arange(CANDIDATES, dtype=np.int64) * STEP) % posts).astype(np.int32)


def lists_of(user_id: int, posts: int) -> list[SourceList]:
    """Return a user's lists: each source proposes its share of the candidates."""
    each = CANDIDATES // len(SOURCES)
    scores = np.linspace(1, 0, each, dtype=np.float32)
    everything = candidates_of(user_id, posts)
    return [
        SourceList(everything[at * each : (at + 1) * each], scores) for at in range(len(SOURCES))
    ]


def feature_table(view: FeatureView, ids: np.ndarray[Any, Any]) -> pa.Table:
    """Return random rows of a view, the same for the same ids."""
    rng = np.random.default_rng(len(view.name))
    columns: dict[str, Any] = {view.join_keys[0]: ids}
    for field in view.features:
        if field.dtype == String:
            columns[field.name] = pa.array(np.array(CITIES)[ids % len(CITIES)].tolist())
        elif field.dtype == Int64:
            table = rng.integers(0, 1000, 1 << 20)
            columns[field.name] = table[ids % len(table)]
        else:
            table = rng.random(1 << 20)
            columns[field.name] = table[ids % len(table)]
    times = pa.array(np.full(len(ids), int(MOMENT.timestamp() * 1e6)), pa.timestamp("us", "UTC"))
    return pa.table({**columns, "event_timestamp": times})


def write(folder: str, redis_port: int, users: int, posts: int) -> dict[str, Any]:
    """Write everything into a Redis server and a folder; return what was written."""
    os.environ["REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
    workspace = workspace_of(folder)
    workspace.root.mkdir(parents=True)
    workspace.dataset_toml.write_text(DESCRIPTION, encoding="utf-8")
    dataset = Dataset.parse(DESCRIPTION)
    workspace.feature_store_yaml.write_text(
        configuration(workspace, configuration_template(JobSettings())), encoding="utf-8"
    )
    workspace.bundles.mkdir()
    workspace.online_namespace.write_text(GENERATION, encoding="utf-8")
    workspace.features.mkdir()
    for view in ("user_profile", "user_activity", "post_profile", "post_activity"):
        pq.write_table(
            pa.table({"event_timestamp": pa.array([MOMENT])}), workspace.feature_table(view)
        )
    store = open_store(workspace)
    store.apply(objects(dataset, workspace, SOURCES))
    online = store._get_provider().online_store
    rows = 0
    for view in store.list_feature_views():
        count = users if view.join_keys == ["user_id"] else posts
        for first in range(0, count, 20_000):
            table = feature_table(view, np.arange(first, min(first + 20_000, count)))
            rows += online.online_write_arrow(store.config, view, table)
        # Without it the view is as old as can be, and every answer is degraded.
        online.note_materialized(store.config, view, MOMENT, MOMENT)
    client = redis_of(store)
    lists = ((user, lists_of(user, posts)) for user in range(users))
    for _ in write_lists(client, key_prefix(NAME, GENERATION), lists):
        pass
    for _ in write_pasts(client, NAME, GENERATION, _pasts(users, posts)):
        pass
    contract = registered_contract(store)
    models = train(contract, folder)
    publish(
        workspace.bundles,
        GENERATION,
        lambda target: _write_files(target, workspace, users, posts, models, contract),
        lambda files: _manifest(contract, files),
    )
    return {"rows": rows, "inputs": len(contract.inputs)}


def written_once(folder: str, redis_port: int, size: dict[str, int]) -> dict[str, Any]:
    """Write in a process of its own and save Redis, unless the folder holds it all already.

    Returns
    -------
    dict
        As of `write`.
    """
    record = Path(folder) / "written.json"
    if not record.exists():
        where = {"folder": folder, "redis_port": redis_port}
        facts = isolated("benchmarks.serving_bundle:write", **where, **size)
        # A save in the background would stop Redis for a moment while requests are timed.
        redis.Redis(port=redis_port).save()
        record.write_text(json.dumps(facts), encoding="utf-8")
    return dict(json.loads(record.read_text(encoding="utf-8")))


def _pasts(users: int, posts: int) -> Iterator[tuple[int, Past]]:
    weights = np.ones(30)
    for user in range(users):
        liked = (user * 17 + np.arange(30) * 101 + 1) % posts
        yield user, Past(liked, weights, np.unique(liked))


def train(contract: Contract, folder: str) -> CatBoostScorer:
    """Train both rankers on random rows; LightGBM's is saved for the usual service."""
    rng = np.random.default_rng(0)
    matrix = rng.random((4000, len(contract.names)), dtype=np.float32)
    city = contract.names.index("user_city")
    matrix[:, city] = rng.integers(0, len(CITIES), len(matrix))
    target = matrix[:, :8].sum(axis=1) + rng.random(len(matrix), dtype=np.float32)
    columns = CatBoostColumns.of(contract.names, [city], len(CITIES) - 1)
    model = catboost.CatBoost(
        {
            "iterations": TREES,
            "depth": 6,
            "thread_count": 1,
            "verbose": False,
            "random_seed": 1,
            "allow_writing_files": False,
        }
    )
    model.fit(catboost.Pool(columns.split(matrix), target))
    names = [name.replace(" ", "_") for name in contract.names]
    booster = lightgbm.train(
        {"objective": "regression", "num_threads": 1, "verbose": -1, "seed": 1},
        lightgbm.Dataset(matrix, target, feature_name=names, categorical_feature=[city]),
        num_boost_round=TREES,
    )
    LightGBMScorer(booster).save(Path(folder) / "usual.txt")
    return CatBoostScorer(model, columns)


def _write_files(
    target: Path,
    workspace: Workspace,
    users: int,
    posts: int,
    model: CatBoostScorer,
    contract: Contract,
) -> None:
    (target / REGISTRY).write_bytes(workspace.registry.read_bytes())
    model.save(target / "ranker.cbm")
    encoder = InputEncoder(contract, {"user_city": CITIES})
    (target / "categories.json").write_text(json.dumps(encoder.to_json()), encoding="utf-8")
    popular = np.arange(CANDIDATES, dtype=np.int32)
    with (target / "popular.npz").open("wb") as file:
        np.savez(file, post_ids=popular, scores=np.linspace(1, 0, CANDIDATES, dtype=np.float32))
    for name, count in (("user", users), ("post", posts)):
        columns: dict[str, Any] = {
            "external_id": [f"{name[0]}{number}" for number in range(count)],
            f"{name}_id": np.arange(count),
        }
        if name == "post":
            columns["title"] = [f"Post number {number}" for number in range(count)]
        pq.write_table(pa.table(columns), target / f"{name}s.parquet")
    EventRules(Dataset.parse(DESCRIPTION).events).save(target)


def _manifest(contract: Contract, files: dict[str, str]) -> Manifest:
    return Manifest(
        generation=GENERATION,
        project=NAME,
        created=MOMENT.isoformat(),
        contract=contract.to_json(),
        contract_hash=contract.hash,
        namespace=GENERATION,
        feature_tables={},
        sources=list(SOURCES),
        ranker="ranker.cbm",
        as_of=MOMENT.isoformat(),
        data_window=[MOMENT.isoformat()] * 2,
        metrics={},
        versions={},
        files=files,
    )


def stock_store(folder: str, address: str, *, apply: bool = False) -> FeatureStore:
    """Return stock Feast on its own Redis store, with the same objects."""
    from feast import RepoConfig

    workspace = workspace_of(folder)
    config = RepoConfig(
        project=NAME,
        provider="local",
        registry=str(Path(folder) / "stock.db"),
        online_store={"type": "redis", "connection_string": address},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    if apply:
        store.apply(objects(Dataset.parse(DESCRIPTION), workspace, SOURCES))
    return store


def write_stock(folder: str, address: str, users: list[int], posts: int) -> int:
    """Write some users and all their candidates to stock Feast's store; return the rows."""
    from feast.utils import _convert_arrow_to_proto

    store = stock_store(folder, address, apply=True)
    wanted = np.unique(np.concatenate([candidates_of(user, posts) for user in users]))
    rows = 0
    for view in store.list_feature_views():
        ids = np.array(users) if view.join_keys == ["user_id"] else wanted.astype(np.int64)
        keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        messages = _convert_arrow_to_proto(feature_table(view, ids), view, keys)
        store._get_provider().online_store.online_write_batch(store.config, view, messages, None)
        rows += len(ids)
    return rows

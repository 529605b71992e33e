"""The published ranker's order of what all sources propose, as the online answers have it.

`FinalLists` is one process's; `RankUsers` makes them of a shard of users, in any process that sees
the state folder. It asks nothing but files: fitted generators, a Feast registry whose sources are
the feature tables as they lie there, and the bundle.
"""

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore, RepoConfig
from numpy.typing import NDArray

from feature_repo.definitions.sources import feature_table
from feature_repo.workspace import Workspace
from pipelines.candidates.groups import ranked
from pipelines.candidates.interactions import Ids, positions
from pipelines.candidates.merge import merge_candidates
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.candidates.registry import load_generator
from pipelines.ranking.training_set import label_candidates, pairs_of, retrieve
from pipelines.shards import Facts, Progress, rows_key
from pipelines.steps import content_key
from serving.bundle import Manifest, read_manifest
from serving.generation import generation_contract
from serving.inputs import InputEncoder
from serving.ranker import load_ranker

# Their candidates and features are held at once.
USERS_PER_BATCH = 1_000

_REGISTRY, _STORE = "registry.db", "store.json"


class FinalLists:
    """Ranks what fitted sources propose with the ranker of a generation.

    Parameters
    ----------
    store
        The feature store as the generation saw it.
    folder, manifest
        The generation, verified.
    sources
        Fitted, in the manifest's order.
    moment
        That features and answers are for.
    candidates
        Posts that each source proposes for a user.
    """

    def __init__(
        self,
        store: FeatureStore,
        folder: Path,
        manifest: Manifest,
        sources: Sequence[CandidateGenerator],
        moment: datetime,
        candidates: int,
    ) -> None:
        self.store, self.sources = store, sources
        self.moment, self.candidates = moment, candidates
        self.contract = generation_contract(store, manifest)
        self.encoder = InputEncoder.load(folder / "categories.json", self.contract)
        self.ranker = load_ranker(folder / manifest.ranker)

    def of(self, users: Ids, top: int) -> pa.Table:
        """Return up to ``top`` posts of each user: user_id, post_id, score, rank."""
        proposed = [source.recommend(users, self.candidates) for source in self.sources]
        # Nobody knows yet what will be liked; the join wants the training set's shape.
        unlabelled = pa.table({"user_id": users[:0], "post_id": users[:0]})
        candidates = merge_candidates(proposed)
        requests = label_candidates(candidates, unlabelled, at=self.moment, name="final")
        rows = retrieve(self.store, requests, self.contract)
        scores = self.ranker.predict(self.encoder.encode(rows))
        return ranked(*pairs_of(rows), scores, source="final", k=top)


class Outside:
    """Dense ids to the source's ids and titles."""

    def __init__(self, lake: Path) -> None:
        self.users = pq.read_table(lake / "ids" / "users.parquet").sort_by("user_id")
        self.posts = pq.read_table(lake / "ids" / "posts.parquet").sort_by("post_id")
        titles = pq.read_table(lake / "posts", columns=["post_id", "title"]).sort_by("post_id")
        has_titles = titles["title"].null_count < titles.num_rows
        self.titles = titles if has_titles else None

    def named(self, lists: pa.Table) -> pa.Table:
        """Return lists with ids and titles of the source; see `pipelines.job.lists`."""
        columns: dict[str, Any] = {}
        if "user_id" in lists.column_names:
            columns["user_id"] = _taken(self.users, "user_id", "external_id", lists["user_id"])
        columns["item_id"] = _taken(self.posts, "post_id", "external_id", lists["post_id"])
        shown = lists["post_id"]
        if "similar_post_id" in lists.column_names:
            shown = lists["similar_post_id"]
            columns["similar_item_id"] = _taken(self.posts, "post_id", "external_id", shown)
        columns |= {"score": lists["score"], "rank": lists["rank"]}
        if self.titles is not None:
            columns["name"] = _taken(self.titles, "post_id", "title", shown)
        return pa.table(columns)


def _taken(table: pa.Table, key: str, column: str, wanted: pa.ChunkedArray) -> pa.ChunkedArray:
    """Look values up in a table that is sorted by its key; null where the key is not there."""
    known: NDArray[np.int64] = np.asarray(table[key])
    places = positions(np.asarray(wanted), known)
    return table[column].take(pa.array(places, mask=places < 0))


@dataclass(frozen=True)
class RankUsers:
    """Makes the final lists of a shard of the lake's users; see `pipelines.shards.Work`.

    Columns: user_id and item_id (the source's), score float32, rank int32 (from 1), name (the
    post's title; null where the source has none); ordered by dense user id, then rank.

    Parameters
    ----------
    fitted
        What `freeze` wrote.
    generation
        The bundle's folder.
    lake
        The lake's folder.
    sources
        Names of the candidate sources, in the manifest's order.
    moment
        That features and answers are for, ISO 8601.
    candidates
        Posts that each source proposes for a user.
    top
        Posts of a list at most.
    together
        Ids that are ranked at once. Scores of the same users together are the same, bit by bit,
        however shards are cut; in other company last bits differ, and with them the order of ties.
    """

    fitted: Path
    generation: Path
    lake: Path
    sources: tuple[str, ...]
    moment: str
    candidates: int
    top: int
    together: int = USERS_PER_BATCH

    name: ClassVar[str] = "scores"
    columns: ClassVar[tuple[str, ...]] = ()
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("score", pa.float32()),
            ("rank", pa.int32()),
            ("name", pa.string()),
        ]
    )

    def key(self, rows: pa.Table) -> str:
        """Return the hash of what was fitted, the generation, the settings and the users."""
        settings = [self.sources, self.moment, self.candidates, self.top, self.together]
        return content_key(self.fitted.name, self.generation.name, settings, rows_key(rows))

    def __call__(
        self, batches: Iterable[pa.RecordBatch], facts: Facts, on_progress: Progress | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the lists of users, so many ids at a time as are ranked together."""
        users: Ids = np.concatenate([np.asarray(batch["user_id"]) for batch in batches])
        facts["users"] = len(users)
        starts = np.flatnonzero(np.diff(users // self.together, prepend=-1))
        for first, end in pairwise([*starts.tolist(), len(users)]):
            yield from self._lists(users[first:end])
            if on_progress is not None:
                on_progress(end, len(users))

    def _lists(self, users: Ids) -> list[pa.RecordBatch]:
        final, outside = _opened(self)
        named = outside.named(final.of(users, self.top))
        if "name" not in named.column_names:
            named = named.append_column("name", pa.nulls(named.num_rows, pa.string()))
        batches: list[pa.RecordBatch] = named.cast(self.schema).to_batches()
        return batches


@lru_cache(maxsize=1)
def _opened(work: RankUsers) -> tuple[FinalLists, Outside]:
    """Open once, in a process that does shard after shard, what a work's lists are made from."""
    config = RepoConfig(**json.loads((work.fitted / _STORE).read_text(encoding="utf-8")))
    final = FinalLists(
        FeatureStore(config=config),
        work.generation,
        read_manifest(work.generation),
        [load_generator(work.fitted / name) for name in work.sources],
        datetime.fromisoformat(work.moment),
        work.candidates,
    )
    return final, Outside(work.lake)


def freeze(
    folder: Path, store: FeatureStore, workspace: Workspace, fitted: dict[str, CandidateGenerator]
) -> None:
    """Write what `RankUsers` needs beside the bundle; the folder appears whole or not at all.

    Parameters
    ----------
    store
        The feature store as the generation saw it, of any profile: what is written reads the
        feature tables with DuckDB, wherever that runs.
    fitted
        The candidate sources by name.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    partial.mkdir(parents=True)
    for name, generator in fitted.items():
        generator.save(partial / name)
    config = store.config
    shutil.copyfile(config.registry.path, partial / _REGISTRY)
    # While it is filled the registry lies elsewhere than where it will be read.
    own = _own_config(config, partial)
    local = FeatureStore(config=RepoConfig(**own))
    for view in local.list_feature_views():
        view.batch_source = feature_table(workspace, view.name)
        local.registry.apply_feature_view(view, config.project, commit=True)
    text = json.dumps(_own_config(config, folder), indent=1)
    (partial / _STORE).write_text(text, encoding="utf-8")
    partial.replace(folder)


def _own_config(config: RepoConfig, folder: Path) -> dict[str, Any]:
    return {
        "project": config.project,
        "provider": "local",
        "registry": str(folder / _REGISTRY),
        "offline_store": {"type": "feastpack.AsofDuckDBOfflineStore"},
        # Never opened: features come from the tables.
        "online_store": None,
        "entity_key_serialization_version": config.entity_key_serialization_version,
        "repo_path": str(folder),
    }

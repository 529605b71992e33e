"""Step publish: final candidates into Redis, then one bundle, then one pointer flipped."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from feastpack.cluster import send
from feastpack.writer import delete_namespace
from feature_repo.contract import registered_contract
from feature_repo.definitions.columns import TEXT_EMBEDDING, has_created_time
from feature_repo.workspace import Workspace
from pipelines.candidates.als import ALS
from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.candidates.segment_popular import SegmentPopular
from pipelines.job.context import Context, Progresses, open_store
from pipelines.job.evaluate import LIBRARIES
from pipelines.job.fresh import has_fresh_form, pasts, write_fresh_sources
from pipelines.job.lake_events import LakeEvents
from pipelines.job.materialize import is_complete, marker_of, namespaces
from pipelines.job.published_gates import judge_files, judge_lists
from pipelines.job.sources import generators, recommend_with
from pipelines.job.train import TrainingFiles
from pipelines.monitoring import drift
from pipelines.monitoring.overview import note_publication
from pipelines.steps import StepRecord, code_key, content_key
from pipelines.storage.mirror import Mirror
from serving import bundle
from serving.bundle import Manifest, current_generation, publish, switch_namespace
from serving.errors import BundleError
from serving.event_rules import EventRules
from serving.history import write_pasts
from serving.lists import SourceList, delete_generations, key_prefix, write_lists
from serving.post_facts import CREATED, write_post_facts
from serving.recommender import redis_of
from serving.segments import write_segments

NAME = "publish"
POPULAR = "popular"
# Key after a generation's prefix; written once all its lists are.
COMPLETE = "complete"
_USERS_AT_ONCE = 20_000


def run(context: Context) -> StepRecord:
    """Fit the generators on all events, write their lists, publish the judged ranker with them."""
    evaluate, materialize = context.record("evaluate"), context.record("materialize")
    contract = registered_contract(open_store(context.workspace))
    if context.trained().facts["contract"] != contract.hash:
        raise context.missing("train", "was run for other ranker inputs than are applied now")
    key = content_key(
        NAME,
        evaluate.key,
        materialize.key,
        code_key(
            *(
                "pipelines.job.publish",
                "pipelines.job.published_gates",
                "pipelines.job.fresh",
                "serving.bundle",
                "serving.lists",
            ),
            *("serving.history", "serving.fresh", "serving.index", "serving.event_rules"),
            *("serving.post_facts", "serving.segments"),
        ),
    )
    publication = _Publication(context, generation=key[:12])
    return context.step(
        NAME, key, [publication.folder], publication.run, is_there=publication.is_current
    )


def roll_back(workspace: Workspace, mirror: Mirror | None = None) -> tuple[str, Manifest]:
    """Serve the generation before the current one; see `serving.bundle.roll_back`.

    Its lists and the online features that it was published with are served again.

    Parameters
    ----------
    mirror
        Object storage that it is published to again; None: there is none.

    Raises
    ------
    MissingStepError, serving.errors.BundleError, StorageError, PublishedElsewhereError
        If there is nothing to go back to; the current generation stays.
    """
    if mirror is not None:
        mirror.check()
    redis = redis_of(open_store(workspace))

    def missing(manifest: Manifest) -> str | None:
        if not redis.exists(f"{key_prefix(manifest.project, manifest.generation)}{COMPLETE}"):
            return "candidate lists"
        if not is_complete(redis, manifest.project, manifest.namespace):
            return "online features"
        return None

    announce = (lambda generation: None) if mirror is None else mirror.point_back
    with nullcontext() if mirror is None else mirror.bundles_held():
        left, manifest = bundle.roll_back(workspace.bundles, missing, announce)
        switch_namespace(workspace.online_namespace, manifest.namespace)
    return left, manifest


class _Publication:
    """One generation on its way out."""

    def __init__(self, context: Context, generation: str) -> None:
        self.context = context
        self.generation = generation
        self.folder = context.workspace.bundles / generation
        self.store = open_store(context.workspace)
        self.redis = redis_of(self.store)
        self.prefix = key_prefix(context.dataset.name, generation)
        self.materialized = context.record("materialize").facts
        self.namespace = str(self.materialized["namespace"])
        self.fresh: dict[str, CandidateGenerator] = {}
        self.indexes: dict[str, dict[str, Any]] = {}
        self.segments: tuple[str, list[dict[str, Any]]] | None = None
        self.mirror = context.mirror

    def is_current(self) -> bool:
        """Whether the generation is the published one and its lists are in Redis."""
        switched = self.context.workspace.online_namespace
        return (
            current_generation(self.context.workspace.bundles) == self.generation
            and self.redis.get(f"{self.prefix}{COMPLETE}") is not None
            and switched.exists()
            and switched.read_text(encoding="utf-8") == self.namespace
            and (self.mirror is None or self.mirror.is_published(self.generation))
        )

    def run(self, bars: Progresses) -> Mapping[str, Any]:
        """Write lists first and the pointer last: until then nobody reads this generation."""
        self._check_base()
        drift.gate(self.context)
        lake = self.context.workspace.lake
        with LakeEvents(lake) as events:
            interactions = events.interactions()
        users = pc.unique(pq.read_table(lake / "users", columns=["user_id"])["user_id"])
        ascending: Ids = users.sort().to_numpy()
        fitted, strangers = self._fit(interactions, bars)
        written = bars.bar("lists into Redis")
        for done in write_lists(self.redis, self.prefix, self._lists(fitted, ascending)):
            written(done, len(users))
        histories = bars.bar("histories into Redis")
        name = self.context.dataset.name
        for done in write_pasts(self.redis, name, self.generation, pasts(interactions)):
            histories(done, len(interactions.user_ids))
        # Whoever has published meanwhile has removed these lists.
        self._check_base()
        judge_lists(self.context, self.redis, self.prefix, ascending)
        complete = f"{self.prefix}{COMPLETE}"
        send(self.redis, [(complete, ("SET", complete, len(users)))])
        with nullcontext() if self.mirror is None else self.mirror.bundles_held():
            self._publish(strangers)
        return {
            "generation": self.generation,
            "summary": f"generation {self.generation}: lists of {len(users):,} users, "
            "ranker and manifest",
        }

    def _check_base(self) -> None:
        if self.mirror is not None:
            self.mirror.check()

    def _publish(self, strangers: pa.Table) -> None:
        """Publish the bundle, here and in object storage; remove what nobody reads any more."""
        previous = current_generation(self.context.workspace.bundles)

        def announce() -> None:
            if self.mirror is not None:
                self.mirror.publish(self.generation, self._kept(previous))

        publish(
            self.context.workspace.bundles,
            self.generation,
            lambda folder: self._write_files(folder, strangers),
            self._manifest,
            lambda folder, manifest: judge_files(self.context, folder, manifest),
            announce,
        )
        switch_namespace(self.context.workspace.online_namespace, self.namespace)
        self._note_materialization()
        note_publication(self.context.workspace, bundle.read_manifest(self.folder))
        self._collect(previous)

    def _note_materialization(self) -> None:
        """Tell the registry until when views are materialized, as `feast materialize` does."""
        begin, end = (
            datetime.fromisoformat(self.materialized[name]) for name in ("first", "moment")
        )
        registry, project = self.store.registry, self.context.dataset.name
        for view in self.store.list_feature_views():
            registry.apply_materialization(view, project, begin, end, commit=False)
        registry.commit()

    def _fit(
        self, interactions: Interactions, bars: Progresses
    ) -> tuple[list[CandidateGenerator], pa.Table]:
        """Return the fitted sources, and the popular list of somebody who has seen nothing."""
        bar = bars.bar("final generators")
        fresh = generators(self.context)
        for position, generator in enumerate(fresh):
            fitted = generator.fit(interactions)
            if has_fresh_form(fitted):
                self.fresh[generator.name] = fitted
            if isinstance(fitted, SegmentPopular):
                self.segments = (fitted.settings.attribute, self._segment_lists(fitted))
            if generator.name == POPULAR:
                strangers = recommend_with(fitted, np.array([-1]), self.context.settings)
            bar(position + 1, len(fresh))
        if ALS.name not in self.fresh:
            # Similar posts are asked for whatever the sources are.
            (als,) = generators(self.context, [ALS.name])
            self.fresh[ALS.name] = als.fit(interactions)
        return fresh, strangers

    def _lists(
        self, fitted: list[CandidateGenerator], users: Ids
    ) -> Iterator[tuple[int, list[SourceList]]]:
        """Yield each user with his lists, in memory for some users at once."""
        for start in range(0, len(users), _USERS_AT_ONCE):
            some = users[start : start + _USERS_AT_ONCE]
            proposed = {
                one.name: recommend_with(one, some, self.context.settings) for one in fitted
            }
            yield from _by_user(proposed)

    def _write_files(self, folder: Path, popular: pa.Table) -> None:
        shutil.copyfile(self.context.workspace.staged_registry, folder / bundle.REGISTRY)
        lake, training = self.context.workspace.lake, TrainingFiles(self.context.workspace.training)
        ranker = next(training.folder.glob("ranker.*"))
        shutil.copyfile(ranker, folder / ranker.name)
        shutil.copyfile(training.categories, folder / "categories.json")
        with (folder / "popular.npz").open("wb") as file:
            np.savez(
                file,
                post_ids=popular["post_id"].to_numpy().astype(np.int32),
                scores=popular["score"].to_numpy(),
            )
        pq.write_table(pq.read_table(lake / "ids" / "users.parquet"), folder / "users.parquet")
        titles = pq.read_table(lake / "posts", columns=["post_id", "title"])
        posts = pq.read_table(lake / "ids" / "posts.parquet").join(titles, "post_id")
        pq.write_table(posts.sort_by("post_id"), folder / "posts.parquet")

        self._write_post_facts(folder)
        if self.segments is not None:
            write_segments(folder, *self.segments)
        EventRules(self.context.dataset.events).save(folder)
        candidates = self.context.settings.candidates_per_source
        self.indexes = write_fresh_sources(folder, self.fresh, candidates)

    def _segment_lists(self, fitted: SegmentPopular) -> list[dict[str, Any]]:
        """Return the list of each segment with the values that belong to it."""
        users = pq.read_table(self.context.workspace.lake / "users")
        count = self.context.settings.candidates_per_source
        segments = []
        for user_id, described in fitted.examples(users):
            # Of a segment every user has the same list, but for what he has seen.
            table = fitted.recommend(np.array([user_id]), count, exclude_seen=False)
            posts, scores = table["post_id"].to_pylist(), table["score"].to_pylist()
            segments.append({**described, "post_ids": posts, "scores": scores})
        return segments

    def _write_post_facts(self, folder: Path) -> None:
        """Write what rules need to know of posts."""
        dataset, workspace = self.context.dataset, self.context.workspace
        names = [attribute.name for attribute in dataset.post_attributes]
        posts = pq.read_table(workspace.lake / "posts")
        created = posts["known_time"]
        if not has_created_time(dataset):
            created = pa.nulls(posts.num_rows, created.type)
        facts = posts.select(["post_id", "topics", *names]).add_column(1, CREATED, created)
        embeddings = None
        if dataset.has_text:
            columns = ["post_id", TEXT_EMBEDDING]
            embeddings = pq.read_table(workspace.feature_table("post_text"), columns=columns)
        write_post_facts(folder, facts, embeddings)

    def _manifest(self, files: dict[str, str]) -> Manifest:
        contract = registered_contract(self.store)
        ingest = self.context.record("ingest").facts
        return Manifest(
            generation=self.generation,
            project=self.context.dataset.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            contract=contract.to_json(),
            contract_hash=contract.hash,
            namespace=self.namespace,
            feature_tables=self._feature_tables(),
            sources=list(self.context.sources),
            ranker=next(name for name in files if name.startswith("ranker.")),
            as_of=self.materialized["as_of"],
            data_window=[str(ingest["first_time"]), str(ingest["last_time"])],
            metrics=self.context.record("evaluate").facts["metrics"],
            versions={name: version(name) for name in LIBRARIES},
            files=files,
            indexes=self.indexes,
            materialized_until=str(self.materialized["moment"]),
        )

    def _feature_tables(self) -> dict[str, dict[str, Any]]:
        """Return what identifies each feature table that this generation was made from."""
        tables = sorted(self.context.workspace.features.glob("*.parquet"))
        return {
            table.stem: {
                "rows": ds.dataset(table, format="parquet").count_rows(),
                "sha256": bundle.checksum(table),
            }
            for table in tables
        }

    def _collect(self, previous: str | None) -> None:
        """Remove the generations that nobody reads any more: folders, lists and online rows."""
        bundles, project = self.context.workspace.bundles, self.context.dataset.name
        kept = self._kept(previous)
        # Folders first: one whose lists are partly gone must not be rolled back to.
        for folder in bundles.iterdir():
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder)
        delete_generations(self.redis, project, kept)
        used = {bundle.read_manifest(bundles / name).namespace for name in kept}
        for namespace in set(namespaces(self.redis, project)) - used:
            delete_namespace(self.redis, project, namespace)
            self.redis.delete(marker_of(project, namespace))
        # What `feast materialize` wrote while nothing was published yet.
        delete_namespace(self.redis, project, "")

    def _kept(self, previous: str | None) -> list[str]:
        """Return the published generation, the one before it, and the latest of the others."""
        first = [self.generation, *([previous] if previous else [])]
        folders = self.context.workspace.bundles.glob(f"[!.]*/{bundle.MANIFEST}")
        created = {f.parent.name: _created(f.parent) for f in folders}
        others = sorted((c, name) for name, c in created.items() if c and name not in first)
        kept = [*first, *(name for _, name in reversed(others))]
        # The generation before may be the very one that is published again, or be damaged.
        readable = [name for name in dict.fromkeys(kept) if created.get(name)]
        return readable[: self.context.settings.keep_generations]


def _created(folder: Path) -> str | None:
    """Return when a generation was published; None if it is damaged, so that nobody can use it."""
    try:
        return bundle.read_manifest(folder).created
    except BundleError:
        return None


def _by_user(lists: dict[str, pa.Table]) -> Iterator[tuple[int, list[SourceList]]]:
    """Yield each user with his lists in the order of the sources, best first."""
    columns = {}
    for source, proposed in lists.items():
        table = proposed.sort_by([("user_id", "ascending"), ("rank", "ascending")])
        columns[source] = (
            table["user_id"].to_numpy(),
            table["post_id"].to_numpy().astype(np.int32),
            table["score"].to_numpy(),
        )
    users = np.unique(np.concatenate([users for users, _, _ in columns.values()]))
    bounds = {
        source: (np.searchsorted(own, users, "left"), np.searchsorted(own, users, "right"))
        for source, (own, _, _) in columns.items()
    }
    for position, user in enumerate(users):
        packed = []
        for source, (_, posts, scores) in columns.items():
            start, end = bounds[source][0][position], bounds[source][1][position]
            packed.append(SourceList(posts[start:end], scores[start:end]))
        yield int(user), packed

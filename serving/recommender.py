"""One request, from a user to a ranked list; reads Redis and the published bundle, nothing else."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore
from numpy.typing import NDArray

from feastpack import FeatureReader
from feature_repo.contract import registered_contract
from feature_repo.definitions.columns import REQUEST_TIME
from serving.bundle import Manifest, open_current
from serving.candidates import Candidates, union
from serving.errors import UnknownIdError
from serving.inputs import InputEncoder
from serving.lists import SourceList, key_prefix, read_list
from serving.ranker import Scorer, load_ranker


@dataclass(frozen=True)
class Reason:
    """Why a post stands where it stands.

    Parameters
    ----------
    sources
        Rank (1 is best) of the post in each candidate source that proposed it.
    contributions
        The inputs that moved the score most, with their SHAP values; largest first.
    """

    sources: dict[str, int]
    contributions: list[tuple[str, float]]


@dataclass(frozen=True)
class Recommendation:
    """One recommended post.

    Parameters
    ----------
    post
        The source's id.
    title
        Its title; None if the source has none.
    score
        The ranker's score: comparable within one answer only.
    reason
        Why; None unless asked for.
    """

    post: str
    title: str | None
    score: float
    reason: Reason | None


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Parameters
    ----------
    user
        The source's id.
    is_known
        Whether the bundle knows the user; an unknown one gets the popular list, ranked.
    generation
        The bundle that answered.
    recommendations
        Best first.
    milliseconds
        Wall time.
    """

    user: str
    is_known: bool
    generation: str
    recommendations: list[Recommendation]
    milliseconds: float


class Recommender:
    """Answers requests from one published bundle.

    Parameters
    ----------
    bundles
        Folder of the published generations.
    store
        The dataset's feature store, on a `feastpack.PackedRedisOnlineStore`.

    Raises
    ------
    BundleError, ContractError
        If there is no bundle that fits the feature repository.
    """

    def __init__(self, bundles: Path, store: FeatureStore) -> None:
        folder, manifest = open_current(bundles, registered_contract(store).hash)
        self.manifest: Manifest = manifest
        self._reader = FeatureReader(store)
        self._redis = redis_of(store)
        self._prefix = key_prefix(manifest.project, manifest.generation)
        self._encoder = InputEncoder.load(folder / "categories.json", registered_contract(store))
        self._ranker: Scorer = load_ranker(folder / manifest.ranker)
        self._users = IdMap.read(folder / "users.parquet", "user_id")
        self._posts = IdMap.read(folder / "posts.parquet", "post_id")
        titles = pq.read_table(folder / "posts.parquet").sort_by("post_id")
        self._post_ids = titles["post_id"].to_numpy()
        self._external = titles["external_id"]
        self._titles = titles["title"]
        with np.load(folder / "popular.npz", allow_pickle=False) as popular:
            self._popular = SourceList(popular["post_ids"], popular["scores"])

    def recommend(
        self, user: str, k: int = 10, *, now: datetime | None = None, explain: bool = False
    ) -> Answer:
        """Return the best posts for a user.

        Parameters
        ----------
        user
            The source's id of the user; an unknown one is answered too.
        k
            How many posts, at least 1.
        now
            The moment of the request; by default the moment that the bundle was made for, or
            the current time if it was made for live data.
        explain
            Whether each post comes with its reason.
        """
        start = time.perf_counter()
        user_id = self._users.find(user)
        candidates = self._candidates(user_id)
        matrix = self._inputs(user_id, candidates, now or self._moment())
        scores = self._ranker.predict(matrix)
        best = np.lexsort((candidates.post_ids, -scores))[:k]
        reasons = self._reasons(candidates, matrix, best) if explain else [None] * len(best)
        recommendations = [
            self._recommendation(int(candidates.post_ids[i]), float(scores[i]), reason)
            for i, reason in zip(best, reasons, strict=True)
        ]
        elapsed = 1000 * (time.perf_counter() - start)
        return Answer(user, user_id is not None, self.manifest.generation, recommendations, elapsed)

    def rank(self, user: str, posts: Sequence[str], *, now: datetime | None = None) -> Answer:
        """Order given posts for a user; parameters as of `recommend`.

        Raises
        ------
        UnknownIdError
            If a post is not in the bundle.
        """
        start = time.perf_counter()
        user_id = self._users.find(user)
        wanted = np.unique([self._known_post(post) for post in posts]).astype(np.int64)
        candidates = self._candidates(user_id).about(wanted)
        scores = self._ranker.predict(self._inputs(user_id, candidates, now or self._moment()))
        order = np.lexsort((candidates.post_ids, -scores))
        ordered = [
            self._recommendation(int(candidates.post_ids[i]), float(scores[i]), None) for i in order
        ]
        elapsed = 1000 * (time.perf_counter() - start)
        return Answer(user, user_id is not None, self.manifest.generation, ordered, elapsed)

    def features(self, user: str, posts: Sequence[str], *, now: datetime | None = None) -> pa.Table:
        """Return the ranker's inputs for a user and posts, one row per post, as served.

        Raises
        ------
        UnknownIdError
            If a post is not in the bundle.
        """
        user_id = self._users.find(user)
        wanted = np.array([self._known_post(post) for post in posts], dtype=np.int64)
        distinct = self._candidates(user_id).about(np.unique(wanted))
        table = self._columns(user_id, distinct, now or self._moment())
        return table.take(pa.array(np.searchsorted(distinct.post_ids, wanted)))

    def _candidates(self, user_id: int | None) -> Candidates:
        sources = self.manifest.sources
        nothing = SourceList(np.empty(0, np.int32), np.empty(0, np.float32))
        lists = [nothing] * len(sources)
        if user_id is not None:
            lists = read_list(self._redis, self._prefix, user_id, len(sources))
        found = dict(zip(sources, lists, strict=True))
        if all(not len(one.post_ids) for one in lists):
            found["popular"] = self._popular
        return union(found)

    def _columns(self, user_id: int | None, candidates: Candidates, now: datetime) -> pa.Table:
        rows = len(candidates.post_ids)
        request: dict[str, Any] = {REQUEST_TIME: np.full(rows, int(now.timestamp()), np.int64)}
        for source in self.manifest.sources:
            request[f"{source}_score"] = candidates.scores[source]
            request[f"{source}_rank"] = candidates.ranks[source]
        # No entity has a negative id: an unknown user has null features, not another's.
        entities = {"user_id": -1 if user_id is None else user_id, "post_id": candidates.post_ids}
        frame = self._reader.read(self.manifest.contract["service"], entities, request_data=request)
        return frame.to_arrow()

    def _inputs(
        self, user_id: int | None, candidates: Candidates, now: datetime
    ) -> NDArray[np.float32]:
        return self._encoder.encode(self._columns(user_id, candidates, now))

    def _moment(self) -> datetime:
        as_of = self.manifest.as_of
        return datetime.now(UTC) if as_of is None else datetime.fromisoformat(as_of)

    def _reasons(
        self, candidates: Candidates, matrix: NDArray[np.float32], best: NDArray[np.int64]
    ) -> list[Reason]:
        names = self._encoder.contract.names
        reasons = []
        for row, values in zip(best, self._ranker.contributions(matrix[best]), strict=True):
            largest = np.argsort(-np.abs(values[:-1]), kind="stable")[:3]
            ranks = {source: candidates.ranks[source][row] for source in self.manifest.sources}
            reasons.append(
                Reason(
                    {source: int(rank) for source, rank in ranks.items() if np.isfinite(rank)},
                    [(names[i], float(values[i])) for i in largest],
                )
            )
        return reasons

    def _recommendation(self, post_id: int, score: float, reason: Reason | None) -> Recommendation:
        row = int(np.searchsorted(self._post_ids, post_id))
        return Recommendation(self._external[row].as_py(), self._titles[row].as_py(), score, reason)

    def _known_post(self, post: str) -> int:
        post_id = self._posts.find(post)
        if post_id is None:
            raise UnknownIdError(
                f"post {post!r}: not among the {len(self._post_ids):,} posts of bundle "
                f"{self.manifest.generation}; publish again if it is new"
            )
        return post_id


class IdMap:
    """The source's ids to dense ids, by binary search in Arrow memory.

    Parameters
    ----------
    external
        Distinct strings in ascending order of their UTF-8 bytes.
    dense
        int64, aligned.
    """

    def __init__(self, external: pa.StringArray, dense: NDArray[np.int64]) -> None:
        self._external = external
        self._dense = dense

    @classmethod
    def read(cls, path: Path, column: str) -> "IdMap":
        """Read the columns ``external_id`` and ``column`` of a parquet file."""
        table = pq.read_table(path, columns=["external_id", column]).sort_by("external_id")
        return cls(table["external_id"].combine_chunks(), table[column].to_numpy())

    def find(self, external: str) -> int | None:
        """Return the dense id; None if there is none."""
        position = pc.search_sorted(self._external, external).as_py()
        if position == len(self._external) or self._external[position].as_py() != external:
            return None
        return int(self._dense[position])


def redis_of(store: FeatureStore) -> Any:
    """Return the client of the store's Redis; candidate lists lie beside the features."""
    provider = store._get_provider()
    return provider.online_store.client(store.config)

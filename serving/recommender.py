"""One request, from a user to a ranked list; reads Redis and the published bundle, nothing else."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from feast import FeatureStore
from numpy.typing import NDArray

from feastpack import FeatureReader
from feastpack.errors import FeastpackError
from feature_repo.definitions.columns import REQUEST_TIME
from serving.answer import Answer, Reason, Recommendation
from serving.bundle import Manifest, open_current
from serving.candidates import Candidates, union
from serving.connection import limit_waiting
from serving.errors import ContractError, OnlineStateError, UnknownIdError
from serving.generation import generation_contract, generation_store
from serving.ids import IdMap
from serving.inputs import InputEncoder
from serving.lists import SourceList, key_prefix, read_list
from serving.ranker import Scorer, load_ranker
from serving.rules import admitted, by_popularity

logger = logging.getLogger(__name__)

_NOTHING = SourceList(np.empty(0, np.int32), np.empty(0, np.float32))


class Recommender:
    """Answers requests from one published bundle.

    Parameters
    ----------
    bundles
        Folder of the published generations.
    store
        The dataset's feature store, on a `feastpack.PackedRedisOnlineStore`: where Redis is.
        What the features are comes from the bundle.
    redis_timeout_s
        Deadline of each call of Redis; None waits as the connection string says.

    Raises
    ------
    BundleError, ContractError
        If there is no bundle that could answer.
    """

    def __init__(
        self, bundles: Path, store: FeatureStore, *, redis_timeout_s: float | None = None
    ) -> None:
        folder, manifest = open_current(bundles)
        self.manifest: Manifest = manifest
        store = generation_store(store, folder, manifest)
        contract = generation_contract(store, manifest)
        self._redis = redis_of(store)
        if redis_timeout_s is not None:
            limit_waiting(self._redis, redis_timeout_s)
        self._reader = FeatureReader(store)
        self._reader.prepare(manifest.contract["service"])
        self._prefix = key_prefix(manifest.project, manifest.generation)
        self._encoder = InputEncoder.load(folder / "categories.json", contract)
        self._ranker: Scorer = load_ranker(folder / manifest.ranker)
        self._users = IdMap.read(folder / "users.parquet", "user_id")
        self._posts = IdMap.read(folder / "posts.parquet", "post_id")
        titles = pq.read_table(folder / "posts.parquet").sort_by("post_id")
        self._post_ids = titles["post_id"].to_numpy()
        self._external = titles["external_id"]
        self._titles = titles["title"]
        with np.load(folder / "popular.npz", allow_pickle=False) as popular:
            self._popular = SourceList(popular["post_ids"], popular["scores"])
        self._popular_ids = self._popular.post_ids.astype(np.int64)
        self._reported: str | None = None

    def recommend(
        self,
        user: str,
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        only: Sequence[str] | None = None,
        now: datetime | None = None,
        explain: bool = False,
    ) -> Answer:
        """Return the best posts for a user; never fails because of Redis, see `Answer`.

        Parameters
        ----------
        user
            The source's id of the user; an unknown one is answered too.
        k
            How many posts, at least 1.
        exclude, only
            Posts left out, and posts that alone may be in the answer, see `serving.rules`; ids
            that the bundle does not know change nothing.
        now
            The moment of the request; by default the moment that the bundle was made for, or
            the current time if it was made for live data.
        explain
            Whether each post comes with its reason.
        """
        start = time.perf_counter()
        user_id = self._users.find(user)
        rule = self._dense(exclude), None if only is None else self._dense(only)
        try:
            proposed, degraded = self._candidates(user_id)
            candidates = proposed.about(admitted(proposed.post_ids, *rule))
            best = self._best(user_id, candidates, now or self._moment(), k, explain)
            self._report(None)
        except OnlineStateError as error:
            self._report(error)
            best = self._most_popular(admitted(self._popular_ids, *rule)[:k], explain)
            degraded = (error.reason,)
        return self._answer(user, user_id, best, degraded, start)

    def rank(self, user: str, posts: Sequence[str], *, now: datetime | None = None) -> Answer:
        """Order given posts for a user, each once; parameters as of `recommend`.

        Raises
        ------
        UnknownIdError
            If a post is not in the bundle.
        """
        start = time.perf_counter()
        user_id = self._users.find(user)
        wanted = np.array([self._known_post(post) for post in dict.fromkeys(posts)], np.int64)
        try:
            proposed, degraded = self._candidates(user_id)
            candidates = proposed.about(np.sort(wanted))
            ordered = self._best(user_id, candidates, now or self._moment(), len(wanted), False)
            self._report(None)
        except OnlineStateError as error:
            self._report(error)
            ordered = self._most_popular(by_popularity(wanted, self._popular_ids), explain=False)
            degraded = (error.reason,)
        return self._answer(user, user_id, ordered, degraded, start)

    def features(self, user: str, posts: Sequence[str], *, now: datetime | None = None) -> pa.Table:
        """Return the ranker's inputs for a user and posts, one row per post, as served.

        Raises
        ------
        UnknownIdError
            If a post is not in the bundle.
        OnlineStateError
            If Redis fails; there are no features then.
        """
        user_id = self._users.find(user)
        wanted = np.array([self._known_post(post) for post in posts], dtype=np.int64)
        proposed, _ = self._candidates(user_id)
        distinct = proposed.about(np.unique(wanted))
        table = self._columns(user_id, distinct, now or self._moment())
        return table.take(pa.array(np.searchsorted(distinct.post_ids, wanted)))

    def is_redis_reachable(self) -> bool:
        """Whether Redis answers within the deadline."""
        try:
            return bool(self._redis.ping())
        except redis.exceptions.RedisError:
            return False

    def _report(self, error: OnlineStateError | None) -> None:
        """Log when answers begin and cease to be degraded, not every one in between."""
        reason = None if error is None else error.reason
        if reason != self._reported:
            self._reported = reason
            if error is None:
                logger.info("answers are ranked again")
            else:
                logger.warning("answers are degraded (%s): %s", reason, error)

    def _candidates(self, user_id: int | None) -> tuple[Candidates, tuple[str, ...]]:
        """Return what the sources propose, and why that is less than it should be."""
        sources = self.manifest.sources
        lists = [_NOTHING] * len(sources) if user_id is None else self._lists(user_id)
        found = dict(zip(sources, lists, strict=True))
        if any(len(one.post_ids) for one in lists):
            return union(found), ()
        found["popular"] = self._popular
        return union(found), () if user_id is None else ("lists_missing",)

    def _lists(self, user_id: int) -> list[SourceList]:
        try:
            return read_list(self._redis, self._prefix, user_id, len(self.manifest.sources))
        except redis.exceptions.RedisError as error:
            raise OnlineStateError("lists_unavailable", f"candidate lists: {error}") from error
        except ValueError as error:
            message = f"candidate lists of generation {self.manifest.generation}: {error}; publish"
            raise OnlineStateError("lists_damaged", f"{message} again") from error

    def _best(
        self, user_id: int | None, candidates: Candidates, now: datetime, k: int, explain: bool
    ) -> list[Recommendation]:
        """Return the k candidates that the ranker likes most."""
        if not len(candidates.post_ids):
            return []
        matrix = self._inputs(user_id, candidates, now)
        scores = self._ranker.predict(matrix)
        best = np.lexsort((candidates.post_ids, -scores))[:k]
        reasons = self._reasons(candidates, matrix, best) if explain else [None] * len(best)
        return [
            self._recommendation(int(candidates.post_ids[i]), float(scores[i]), reason)
            for i, reason in zip(best, reasons, strict=True)
        ]

    def _most_popular(self, post_ids: NDArray[np.int64], explain: bool) -> list[Recommendation]:
        """Return posts as they stand, without the ranker and without Redis."""
        places = {int(post_id): place for place, post_id in enumerate(self._popular_ids, 1)}
        reasons = [
            Reason({"popular": places[post_id]}, []) if explain else None
            for post_id in post_ids.tolist()
        ]
        return [
            self._recommendation(int(post_id), None, reason)
            for post_id, reason in zip(post_ids, reasons, strict=True)
        ]

    def _answer(
        self,
        user: str,
        user_id: int | None,
        recommendations: list[Recommendation],
        degraded: tuple[str, ...],
        start: float,
    ) -> Answer:
        generation = self.manifest.generation
        elapsed = 1000 * (time.perf_counter() - start)
        return Answer(user, user_id is not None, generation, recommendations, elapsed, degraded)

    def _dense(self, posts: Sequence[str]) -> NDArray[np.int64]:
        found = [self._posts.find(post) for post in posts]
        return np.array([post_id for post_id in found if post_id is not None], dtype=np.int64)

    def _columns(self, user_id: int | None, candidates: Candidates, now: datetime) -> pa.Table:
        rows = len(candidates.post_ids)
        request: dict[str, Any] = {REQUEST_TIME: np.full(rows, int(now.timestamp()), np.int64)}
        for source in self.manifest.sources:
            request[f"{source}_score"] = candidates.scores[source]
            request[f"{source}_rank"] = candidates.ranks[source]
        # No entity has a negative id: an unknown user has null features, not another's.
        entities = {"user_id": -1 if user_id is None else user_id, "post_id": candidates.post_ids}
        service = self.manifest.contract["service"]
        try:
            return self._reader.read(service, entities, request_data=request).to_arrow()
        except FeastpackError as error:
            raise OnlineStateError("features_unavailable", f"{service}: {error}") from error

    def _inputs(
        self, user_id: int | None, candidates: Candidates, now: datetime
    ) -> NDArray[np.float32]:
        columns = self._columns(user_id, candidates, now)
        try:
            return self._encoder.encode(columns)
        except ContractError as error:
            # The feature repository was changed under a running service.
            raise OnlineStateError("features_unavailable", str(error)) from error

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

    def _recommendation(
        self, post_id: int, score: float | None, reason: Reason | None
    ) -> Recommendation:
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


def redis_of(store: FeatureStore) -> Any:
    """Return the client of the store's Redis; candidate lists lie beside the features."""
    provider = store._get_provider()
    return provider.online_store.client(store.config)

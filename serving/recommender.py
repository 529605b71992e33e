"""One request, from a user to a ranked list; reads Redis and the published bundle, nothing else."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from feast import FeatureStore
from numpy.typing import NDArray

from feastpack import FeatureReader
from feastpack.errors import FeastpackError
from feature_repo.definitions.columns import REQUEST_TIME
from serving.answer import Answer, Reason, Recommendation
from serving.bundle import Manifest, open_current, whole_files
from serving.candidates import Candidates, union
from serving.catalogue import Catalogue
from serving.connection import limit_waiting
from serving.errors import BundleError, ContractError, OnlineStateError
from serving.event_rules import EventRules
from serving.events import Event, EventLog, Outcome
from serving.fresh import FreshSources
from serving.generation import generation_contract, generation_store
from serving.history import without
from serving.inputs import InputEncoder
from serving.ranker import Scorer, load_ranker
from serving.rules import admitted, by_popularity
from serving.user_state import UserState, read_user_state

logger = logging.getLogger(__name__)


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
    event_space
        Under which name events are kept; None: the project's. What is kept under another name
        changes the answers of those who use that name, and is never drained.
    event_room
        How many events may wait in Redis to be drained; beyond it, events are refused.

    Raises
    ------
    BundleError, ContractError
        If there is no bundle that could answer.
    """

    def __init__(
        self,
        bundles: Path,
        store: FeatureStore,
        *,
        redis_timeout_s: float | None = None,
        event_room: int = 1_000_000,
        event_space: str | None = None,
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
        self._encoder = InputEncoder.load(folder / "categories.json", contract)
        self._ranker: Scorer = load_ranker(folder / manifest.ranker)
        self._catalogue = Catalogue(folder)
        self._fresh = FreshSources.open(folder, whole_files(folder, manifest, manifest.indexes))
        self._event_space = event_space or manifest.project
        self._events = self._open_events(EventRules.load(folder), event_room)
        self._reported: str | None = None

    def _open_events(self, rules: EventRules | None, room: int) -> EventLog | None:
        if rules is None:
            return None
        users, posts = self._catalogue.users, self._catalogue.posts
        return EventLog(self._redis, self._event_space, rules, users, posts, room)

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
        user_id = self._catalogue.users.find(user)
        allowed = None if only is None else self._catalogue.known(only)
        rule = self._catalogue.known(exclude), allowed
        try:
            state, proposed, degraded = self._candidates(user_id)
            candidates = proposed.about(admitted(proposed.post_ids, *rule))
            best = self._best(state, candidates, now or self.moment(), k, explain)
            self._report(None)
        except OnlineStateError as error:
            self._report(error)
            popular = admitted(self._catalogue.popular_ids, *rule)[:k]
            best = self._catalogue.most_popular(popular, explain)
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
        user_id = self._catalogue.users.find(user)
        wanted = np.array([self._catalogue.post(post) for post in dict.fromkeys(posts)], np.int64)
        try:
            state, proposed, degraded = self._candidates(user_id)
            candidates = proposed.about(np.sort(wanted))
            ordered = self._best(state, candidates, now or self.moment(), len(wanted), False)
            self._report(None)
        except OnlineStateError as error:
            self._report(error)
            popular = by_popularity(wanted, self._catalogue.popular_ids)
            ordered = self._catalogue.most_popular(popular, explain=False)
            degraded = (error.reason,)
        return self._answer(user, user_id, ordered, degraded, start)

    def similar(self, post: str, k: int = 10) -> tuple[list[Recommendation], tuple[str, ...]]:
        """Return the posts liked by the same people as one post, and why that took longer.

        They are those whose ALS vectors have the nearest directions; the score is the cosine.
        Redis is not asked. A post that nobody liked has no vector, and nothing is similar to it.

        Raises
        ------
        UnknownIdError
            If the post is not in the bundle.
        """
        post_id = self._catalogue.post(post)
        fold_in = self._fresh.fold_in
        if fold_in is None:
            return [], ("index_unavailable",)
        found = fold_in.similar(post_id, k)
        posts = [
            self._catalogue.recommendation(int(one), float(score), None)
            for one, score in zip(found.post_ids, found.scores, strict=True)
        ]
        return posts, self._fresh.degraded

    def record(self, events: Sequence[Event]) -> list[Outcome]:
        """Keep what users did; the next answer to them reflects it.

        Raises
        ------
        BundleError
            If the bundle does not say what events mean, because an older version published it.
        EventsRefusedError
            If they cannot be kept now.
        """
        if self._events is None:
            raise BundleError(
                f"bundle {self.manifest.generation}: does not say what events mean; publish again"
            )
        return self._events.keep(events, self.moment())

    def features(self, user: str, posts: Sequence[str], *, now: datetime | None = None) -> pa.Table:
        """Return the ranker's inputs for a user and posts, one row per post, as served.

        Raises
        ------
        UnknownIdError
            If a post is not in the bundle.
        OnlineStateError
            If Redis fails; there are no features then.
        """
        user_id = self._catalogue.users.find(user)
        wanted = np.array([self._catalogue.post(post) for post in posts], dtype=np.int64)
        state, proposed, _ = self._candidates(user_id)
        distinct = proposed.about(np.unique(wanted))
        table = self._columns(state, distinct, now or self.moment())
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

    def _candidates(self, user_id: int | None) -> tuple[UserState, Candidates, tuple[str, ...]]:
        """Return a user's state, what the sources propose, and why that is less than it should."""
        state = read_user_state(self._reader, self.manifest, user_id, self._event_space)
        found = state.proposals(self.manifest.sources, self._fresh)
        degraded = self._fresh.degraded if state.history.is_fresh else ()
        if not any(len(one.post_ids) for one in state.lists):
            found["popular"] = without(self._catalogue.popular, state.history.seen)
            degraded = (*degraded, *(() if user_id is None else ("lists_missing",)))
        return state, union(found), degraded

    def _best(
        self, state: UserState, candidates: Candidates, now: datetime, k: int, explain: bool
    ) -> list[Recommendation]:
        """Return the k candidates that the ranker likes most."""
        if not len(candidates.post_ids):
            return []
        matrix = self._inputs(state, candidates, now)
        scores = self._ranker.predict(matrix)
        best = np.lexsort((candidates.post_ids, -scores))[:k]
        reasons = self._reasons(candidates, matrix, best) if explain else [None] * len(best)
        return [
            self._catalogue.recommendation(int(candidates.post_ids[i]), float(scores[i]), reason)
            for i, reason in zip(best, reasons, strict=True)
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

    def _columns(self, state: UserState, candidates: Candidates, now: datetime) -> pa.Table:
        rows = len(candidates.post_ids)
        request: dict[str, Any] = {REQUEST_TIME: np.full(rows, int(now.timestamp()), np.int64)}
        for source in self.manifest.sources:
            request[f"{source}_score"] = candidates.scores[source]
            request[f"{source}_rank"] = candidates.ranks[source]
        # No entity has a negative id: an unknown user has null features, not another's.
        user_id = -1 if state.user_id is None else state.user_id
        entities = {"user_id": user_id, "post_id": candidates.post_ids}
        service = self.manifest.contract["service"]
        try:
            frame = self._reader.read(service, entities, request, begun=state.features)
            return frame.to_arrow()
        except FeastpackError as error:
            raise OnlineStateError("features_unavailable", f"{service}: {error}") from error

    def _inputs(
        self, state: UserState, candidates: Candidates, now: datetime
    ) -> NDArray[np.float32]:
        columns = self._columns(state, candidates, now)
        try:
            return self._encoder.encode(columns)
        except ContractError as error:
            # The feature repository was changed under a running service.
            raise OnlineStateError("features_unavailable", str(error)) from error

    def moment(self) -> datetime:
        """Return the moment that requests and events are of, unless they say another one."""
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


def redis_of(store: FeatureStore) -> Any:
    """Return the client of the store's Redis; candidate lists lie beside the features."""
    provider = store._get_provider()
    return provider.online_store.client(store.config)

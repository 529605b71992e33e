"""One request, from a user to a ranked list; reads Redis and the published bundle, nothing else."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore
from numpy.typing import NDArray

from feastpack import FeatureReader
from feastpack.errors import FeastpackError
from feature_repo.definitions.columns import REQUEST_TIME
from serving.answer import Answer, Choice, Reason, Recommendation, Request, Scored
from serving.assembly import Assembler, Inputs
from serving.bundle import Manifest, open_current, whole_files
from serving.candidates import Candidates, union
from serving.catalogue import Catalogue
from serving.connection import is_reachable, limit_waiting
from serving.errors import BundleError, ContractError, NotAssembledError, OnlineStateError
from serving.event_rules import EventRules
from serving.events import Event, EventLog, Outcome
from serving.explanations import explain as explain_choice
from serving.fresh import FreshSources
from serving.freshness import FreshnessMonitor
from serving.generation import generation_contract, generation_store
from serving.history import without
from serving.impressions import Impression, ImpressionLog, Origin, new_request_id
from serving.inputs import InputEncoder
from serving.ranker import Scorer, load_ranker
from serving.rule_settings import Rules
from serving.rulebook import RuleBook
from serving.rules import admitted, by_popularity
from serving.segments import SOURCE as SEGMENTS
from serving.segments import Attributes, Segments, with_attributes
from serving.user_state import UserState, read_user_state

logger = logging.getLogger(__name__)
NO_ATTRIBUTES: Attributes = MappingProxyType({})
_WARM_UP_USERS = 10


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
    impressions
        Where answers are logged; None: nowhere. It stays open when the recommender is done with.
    rules
        What decides on answers beside the ranker.
    warm_up
        Whether to answer a few requests before anybody asks: the first answers of a process take
        many times as long as later ones. Nobody gets these answers, and none of them is logged.

    Raises
    ------
    BundleError, ContractError, RulesError
        If there is no bundle that could answer, or it does not have what a rule needs.
    """

    def __init__(
        self,
        bundles: Path,
        store: FeatureStore,
        *,
        redis_timeout_s: float | None = None,
        event_room: int = 1_000_000,
        event_space: str | None = None,
        impressions: ImpressionLog | None = None,
        rules: Rules | None = None,
        warm_up: bool = False,
    ) -> None:
        folder, manifest = open_current(bundles)
        self.manifest: Manifest = manifest
        store = generation_store(store, folder, manifest)
        contract = generation_contract(store, manifest)
        self._redis = redis_of(store)
        if redis_timeout_s is not None:
            limit_waiting(self._redis, redis_timeout_s)
        self._reader = FeatureReader(store, dtype=np.float32)
        self._reader.prepare(manifest.contract["service"])
        self._encoder = InputEncoder.load(folder / "categories.json", contract)
        self._assembler = _assembler(self._reader, self._encoder)
        self._ranker: Scorer = load_ranker(folder / manifest.ranker)
        self._catalogue = Catalogue(folder)
        self._segments = Segments.open(folder)
        self._fresh = FreshSources.open(folder, whole_files(folder, manifest, manifest.indexes))
        self.freshness = FreshnessMonitor(
            store, contract, self._redis, manifest.namespace, self.moment
        )
        self._event_space = event_space or manifest.project
        self._events = self._open_events(EventRules.load(folder), event_room)
        self._rules = RuleBook(rules or Rules(), folder, self._catalogue, self._fresh.fold_in)
        self._impressions: ImpressionLog | None = None
        self._origin = Origin(manifest, self._catalogue.external)
        self._reported: str | None = None
        if warm_up:
            self._warm_up()
        self._impressions = impressions

    def _open_events(self, rules: EventRules | None, room: int) -> EventLog | None:
        if rules is None:
            return None
        users, posts = self._catalogue.users, self._catalogue.posts
        return EventLog(self._redis, self._event_space, rules, users, posts, room)

    def _warm_up(self) -> None:
        for user in self._catalogue.users.first(_WARM_UP_USERS):
            answer = self.recommend(user, explain=True)
            posts = [one.post for one in answer.recommendations]
            if posts:
                self.rank(user, posts)
                self.similar(posts[0])

    def recommend(
        self,
        user: str,
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        only: Sequence[str] | None = None,
        now: datetime | None = None,
        attributes: Attributes | None = None,
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
        attributes
            What is known of a user whom the bundle does not know, by the names of the dataset's
            user attributes: inputs of the ranker, and the segment whose popular list is ranked.
            Of a known user they change nothing.
        explain
            Whether each post comes with its reason.
        """
        request = self._begin("recommend", user, now)
        told = _told(request, attributes)
        allowed = None if only is None else self._catalogue.known(only)
        rule = self._catalogue.known(exclude), allowed
        moment, popular = request.moment, self._catalogue.popular_ids
        try:
            state, proposed, degraded = self._candidates(request.user_id, told)
            degraded = (*degraded, *self.freshness.check())
            wanted = self._rules.candidates(proposed.post_ids, moment, state.history.seen)
            admissible = admitted(wanted, *rule)
            scored = self._scored(state, proposed.about(admissible), moment, told)
            self._report(None)
        except OnlineStateError as error:
            self._report(error)
            admissible = admitted(self._rules.candidates(popular, moment, popular[:0]), *rule)
            scored, degraded = self._unscored(admissible), (error.reason,)
        order = self._rules.arrange(admissible, scored.preference(popular), k, request.id)
        choice = Choice(scored, order.rows, order.propensities, order.rules)
        return self._answer(request, choice, degraded, explain)

    def rank(
        self,
        user: str,
        posts: Sequence[str],
        *,
        now: datetime | None = None,
        attributes: Attributes | None = None,
        explain: bool = False,
    ) -> Answer:
        """Order given posts for a user, each once; parameters as of `recommend`.

        Raises
        ------
        UnknownIdError
            If a post is not in the bundle.
        """
        request = self._begin("rank", user, now)
        told = _told(request, attributes)
        wanted = np.array([self._catalogue.post(post) for post in dict.fromkeys(posts)], np.int64)
        try:
            state, proposed, degraded = self._candidates(request.user_id, told)
            degraded = (*degraded, *self.freshness.check())
            scored = self._scored(state, proposed.about(np.sort(wanted)), request.moment, told)
            shown = np.argsort(-scored.preference(wanted), kind="stable")
            self._report(None)
        except OnlineStateError as error:
            self._report(error)
            scored, degraded = self._unscored(wanted), (error.reason,)
            popular = by_popularity(wanted, self._catalogue.popular_ids)
            shown = np.searchsorted(scored.candidates.post_ids, popular)
        choice = Choice(scored, shown, np.ones(len(shown)), [()] * len(shown))
        return self._answer(request, choice, degraded, explain)

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
        table = self._inputs(state, distinct, now or self.moment()).table
        return table.take(pa.array(np.searchsorted(distinct.post_ids, wanted)))

    def is_redis_reachable(self) -> bool:
        """Whether Redis answers within the deadline."""
        return is_reachable(self._redis)

    def _report(self, error: OnlineStateError | None) -> None:
        """Log when answers begin and cease to be degraded, not every one in between."""
        reason = None if error is None else error.reason
        if reason != self._reported:
            self._reported = reason
            if error is None:
                logger.info("answers are ranked again")
            else:
                logger.warning("answers are degraded (%s): %s", reason, error)

    def _candidates(
        self, user_id: int | None, attributes: Attributes = NO_ATTRIBUTES
    ) -> tuple[UserState, Candidates, tuple[str, ...]]:
        """Return a user's state, what the sources propose, and why that is less than it should."""
        state = read_user_state(
            self._reader, self._features, self.manifest, user_id, self._event_space
        )
        found = state.proposals(self.manifest.sources, self._fresh)
        degraded = self._fresh.degraded if state.history.is_fresh else ()
        if not any(len(one.post_ids) for one in state.lists):
            found["popular"] = without(self._catalogue.popular, state.history.seen)
            degraded = (*degraded, *(() if user_id is None else ("lists_missing",)))
            segment = self._segments.list_for(attributes)
            if segment is not None and SEGMENTS in self.manifest.sources:
                found[SEGMENTS] = segment
        return state, union(found), degraded

    def _scored(
        self,
        state: UserState,
        candidates: Candidates,
        now: datetime,
        attributes: Attributes = NO_ATTRIBUTES,
    ) -> Scored:
        """Ask the ranker, if there is anything to ask."""
        if not len(candidates.post_ids):
            return Scored(candidates)
        inputs = self._inputs(state, candidates, now)
        if attributes:
            table = with_attributes(inputs.table, attributes, self.manifest)
            inputs = Inputs(self._encoder.encode(table), lambda: table, inputs.event_times)
        return Scored(candidates, self._ranker.predict(inputs.matrix), inputs)

    def _unscored(self, posts: NDArray[np.int64]) -> Scored:
        """Return what is known of posts without the ranker and without Redis."""
        return Scored(union({"popular": self._catalogue.popular}).about(np.sort(posts)))

    def _begin(self, endpoint: str, user: str, now: datetime | None) -> Request:
        user_id = self._catalogue.users.find(user)
        moment = now or self.moment()
        return Request(new_request_id(), endpoint, user, user_id, moment, time.perf_counter())

    def _answer(
        self, request: Request, choice: Choice, degraded: tuple[str, ...], explain: bool
    ) -> Answer:
        reasons: Sequence[Reason | None] = [None] * len(choice.shown)
        if explain:
            reasons = self._reasons(choice, request.moment)
        scores, post_ids = choice.scored.scores, choice.scored.candidates.post_ids
        posts = [
            self._catalogue.recommendation(
                int(post_ids[row]), None if scores is None else float(scores[row]), reason
            )
            for row, reason in zip(choice.shown, reasons, strict=True)
        ]
        self._log(request, choice, degraded)
        return Answer(
            request.user,
            request.user_id is not None,
            self.manifest.generation,
            posts,
            1000 * (time.perf_counter() - request.start),
            degraded,
            request.id,
        )

    def _log(self, request: Request, choice: Choice, degraded: tuple[str, ...]) -> None:
        if self._impressions is None or not self._impressions.wants(request.id):
            return
        self._impressions.add(
            Impression(
                origin=self._origin,
                request_id=request.id,
                time_us=time.time_ns() // 1000,
                endpoint=request.endpoint,
                user=request.user,
                user_id=request.user_id,
                moment=request.moment,
                degraded=degraded,
                choice=choice,
            )
        )

    @property
    def _features(self) -> str | Sequence[str]:
        """What is read of a request's user and posts."""
        if self._assembler is None:
            return str(self.manifest.contract["service"])
        return self._assembler.features

    def _inputs(self, state: UserState, candidates: Candidates, now: datetime) -> Inputs:
        rows = len(candidates.post_ids)
        request: dict[str, Any] = {REQUEST_TIME: np.full(rows, int(now.timestamp()), np.int64)}
        for source in self.manifest.sources:
            request[f"{source}_score"] = candidates.scores[source]
            request[f"{source}_rank"] = candidates.ranks[source]
        # No entity has a negative id: an unknown user has null features, not another's.
        user_id = -1 if state.user_id is None else state.user_id
        entities = {"user_id": user_id, "post_id": candidates.post_ids}
        try:
            if self._assembler is not None:
                inputs = self._assembler.read(entities, request, state.features)
                return self.freshness.defaulted(inputs)
            service = self.manifest.contract["service"]
            frame = self._reader.read(service, entities, request, begun=state.features)
            table = frame.to_arrow()
            inputs = Inputs(self._encoder.encode(table), lambda: table, frame.event_times)
            return self.freshness.defaulted(inputs)
        except (FeastpackError, ContractError) as error:
            # Redis failed, or the feature repository was changed under a running service.
            raise OnlineStateError("features_unavailable", f"features: {error}") from error

    def _reasons(self, choice: Choice, moment: datetime) -> list[Reason]:
        inputs, contributions = choice.scored.inputs, None
        if inputs is not None:
            contributions = self._ranker.contributions(inputs.matrix[choice.shown])
        return explain_choice(choice, self._encoder.contract.names, contributions, moment)

    def moment(self) -> datetime:
        """Return the moment that requests and events are of, unless they say another one."""
        as_of = self.manifest.as_of
        return datetime.now(UTC) if as_of is None else datetime.fromisoformat(as_of)


def _told(request: Request, attributes: Attributes | None) -> Attributes:
    """Return what the caller may tell of the user: nothing of one that the bundle knows."""
    return NO_ATTRIBUTES if attributes is None or request.user_id is not None else attributes


def _assembler(reader: FeatureReader, encoder: InputEncoder) -> Assembler | None:
    try:
        return Assembler(reader, encoder)
    except NotAssembledError as error:
        logger.warning("answers take longer: the ranker's inputs go through a table (%s)", error)
        return None


def redis_of(store: FeatureStore) -> Any:
    """Return the client of the store's Redis; candidate lists lie beside the features."""
    provider = store._get_provider()
    return provider.online_store.client(store.config)

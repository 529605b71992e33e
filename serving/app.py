"""The HTTP service: transport around `serving.recommender.Recommender`, and nothing else."""

import math
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

import pyarrow as pa
import uvicorn
from fastapi import FastAPI, Query
from fastapi import Path as FastPath
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from serving.access import ApiKeys, Guarded, TokenBuckets
from serving.answer import Answer
from serving.errors import EventsRefusedError, NotReadyError, OnlineStateError
from serving.events import Status
from serving.freshness import STALE, ViewAge
from serving.impressions import ImpressionLog
from serving.messages import (
    MAX_LISTED,
    MAX_RECOMMENDED,
    Context,
    EventBatch,
    EventResult,
    EventsAnswer,
    EventsRequest,
    ExternalId,
    FeaturesAnswer,
    Health,
    PostFeatures,
    Problem,
    RankedAnswer,
    RankRequest,
    Readiness,
    RecommendRequest,
    SimilarAnswer,
    SimilarPost,
    Version,
    ViewFreshness,
)
from serving.metrics import Metrics
from serving.problems import answer_errors, documented
from serving.published import RecommenderProvider
from serving.settings import HttpSettings
from serving.transport import Limited, Measured

_INVALID, _UNKNOWN, _TOO_LARGE, _NOT_NOW = (
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


def create_app(
    recommenders: RecommenderProvider,
    settings: HttpSettings,
    impressions: ImpressionLog | None = None,
) -> FastAPI:
    """Return the ASGI application.

    Parameters
    ----------
    recommenders
        Where each request finds its recommender; started and closed with the application.
    settings
        Limits; where to listen is `serve`'s matter.
    impressions
        The recommenders' log; closed, so written, with the application.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        recommenders.start()
        yield
        recommenders.close()
        if impressions is not None:
            impressions.close()

    app = FastAPI(
        title="feastrank",
        summary="Recommendations from your Feast feature store.",
        version=version("feastrank"),
        lifespan=lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    service = _Service(recommenders, impressions)
    service.add_to(app)
    answer_errors(app)
    keys = ApiKeys.of(settings)
    if keys:
        rate = settings.key_rate
        buckets = TokenBuckets(rate, settings.key_burst) if rate else None
        app.add_middleware(Guarded, keys=keys, buckets=buckets, open_paths=settings.open_paths)
    app.add_middleware(Limited, max_bytes=1024 * settings.max_body_kib)
    app.add_middleware(Measured, metrics=service.metrics)
    _describe_problems(app, settings.open_paths if keys else None)
    return app


def serve(app: FastAPI, settings: HttpSettings) -> None:
    """Answer requests until told to stop (SIGINT or SIGTERM), then finish those under way."""
    # uvicorn raises the signal again once it has stopped; by then there is nothing left to end,
    # and who ends by a signal leaves without closing what it holds.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: None)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


class _Service:
    """The endpoints. They are plain functions: FastAPI runs each request in a thread."""

    def __init__(
        self, recommenders: RecommenderProvider, impressions: ImpressionLog | None
    ) -> None:
        self.recommenders = recommenders
        self.metrics = Metrics(
            lambda: _generation(recommenders), lambda: _ages(recommenders), impressions
        )

    def add_to(self, app: FastAPI) -> None:
        """Register the endpoints."""
        invalid = documented(_INVALID, _TOO_LARGE, _NOT_NOW)
        either = documented(_INVALID, _TOO_LARGE, _UNKNOWN, _NOT_NOW)
        ranked = RankedAnswer
        app.post("/recommend", responses=invalid, response_model=ranked)(self.recommend)
        app.post("/rank", responses=either, response_model=ranked)(self.rank)
        app.get("/similar/{post_id:path}", responses=either)(self.similar)
        app.post("/events", responses=documented(_INVALID, _TOO_LARGE, _NOT_NOW))(self.events)
        app.get("/features", responses=documented(_INVALID, _UNKNOWN, _NOT_NOW))(self.features)
        app.get("/health")(self.health)
        app.get("/ready", responses=documented(_NOT_NOW))(self.ready)
        app.get("/version", responses=documented(_NOT_NOW))(self.version)
        content = {"text/plain": {"schema": {"type": "string"}}}
        app.get("/metrics", response_class=Response, responses={200: {"content": content}})(
            self.prometheus
        )

    def recommend(self, request: RecommendRequest) -> Response:
        """Return the best posts for a user."""
        answer = self.recommenders.current().recommend(
            request.user_id,
            request.k,
            exclude=request.exclude,
            only=request.only,
            explain=request.explain,
            **_circumstances(request.context),
        )
        return self._ranked(answer)

    def rank(self, request: RankRequest) -> Response:
        """Return given posts in the order that suits a user."""
        answer = self.recommenders.current().rank(
            request.user_id,
            request.post_ids,
            explain=request.explain,
            **_circumstances(request.context),
        )
        return self._ranked(answer)

    def similar(
        self,
        post_id: Annotated[ExternalId, FastPath(examples=["50"])],
        k: Annotated[int, Query(ge=1, le=MAX_RECOMMENDED)] = 10,
    ) -> SimilarAnswer:
        """Return the posts that the same people like."""
        recommender = self.recommenders.current()
        found, degraded = recommender.similar(post_id, k)
        degraded = (*degraded, *self.recommenders.degraded)
        self.metrics.count_degraded(degraded)
        posts = [
            SimilarPost(post_id=one.post, title=one.title, score=one.score or 0.0) for one in found
        ]
        generation = recommender.manifest.generation
        return SimilarAnswer(
            post_id=post_id, bundle=generation, degraded=list(degraded), posts=posts
        )

    def events(self, request: EventsRequest) -> EventsAnswer:
        """Keep what users did; the next answer to them reflects it."""
        recommender = self.recommenders.current()
        sent = request.events if isinstance(request, EventBatch) else [request]
        try:
            outcomes = recommender.record([one.event() for one in sent])
        except EventsRefusedError as error:
            self.metrics.count_degraded((error.reason,))
            raise
        self.metrics.count_events(one.status for one in outcomes)
        results = [
            EventResult(event_id=one.event_id, status=one.status, detail=one.detail)
            for one in outcomes
        ]
        accepted = sum(one.status == Status.ACCEPTED for one in outcomes)
        generation = recommender.manifest.generation
        return EventsAnswer(bundle=generation, accepted=accepted, results=results)

    def features(
        self,
        user_id: Annotated[ExternalId, Query(examples=["42"])],
        post_id: Annotated[
            list[ExternalId], Query(min_length=1, max_length=MAX_LISTED, examples=[["50"]])
        ],
    ) -> FeaturesAnswer:
        """Return the ranker's inputs for a user and posts, as served."""
        recommender = self.recommenders.current()
        degraded = self.recommenders.degraded
        rows: list[PostFeatures] = []
        try:
            table = recommender.features(user_id, post_id)
            inputs = [one["name"] for one in recommender.manifest.contract["inputs"]]
            rows = _rows(table.select(inputs), post_id)
        except OnlineStateError as error:
            degraded = (error.reason, *degraded)
        self.metrics.count_degraded(degraded)
        generation = recommender.manifest.generation
        return FeaturesAnswer(
            user_id=user_id, bundle=generation, degraded=list(degraded), rows=rows
        )

    def health(self) -> Health:
        """Say that the process is alive."""
        return Health(status="ok")

    def ready(self) -> Readiness:
        """Say that requests are answered, and whether Redis is there to answer them well."""
        recommender = self.recommenders.current()
        lost = () if recommender.is_redis_reachable() else ("redis_unreachable",)
        views = [ViewFreshness.of(one) for one in recommender.freshness.ages()]
        stale = [f"{STALE}{one.view}" for one in views if one.is_stale]
        return Readiness(
            ready=True, degraded=[*lost, *self.recommenders.degraded, *stale], views=views
        )

    def version(self) -> Version:
        """Say which bundle and which contract answer."""
        manifest = self.recommenders.current().manifest
        return Version(
            feastrank=version("feastrank"),
            project=manifest.project,
            bundle=manifest.generation,
            created=manifest.created,
            contract_hash=manifest.contract_hash,
            as_of=manifest.as_of,
            data_window=manifest.data_window,
            ranker=manifest.ranker,
        )

    def prometheus(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _ranked(self, answer: Answer) -> Response:
        message = RankedAnswer.of(answer, self.recommenders.degraded)
        self.metrics.count_degraded(message.degraded)
        # FastAPI would check and convert a message once more, in a thread of its own.
        return Response(message.model_dump_json(), media_type="application/json")


def _generation(recommenders: RecommenderProvider) -> str | None:
    """Return the generation that answers; None while there is none."""
    try:
        return recommenders.current().manifest.generation
    except NotReadyError:
        return None


def _ages(recommenders: RecommenderProvider) -> list[ViewAge]:
    """Return how old the views are; none while there is no generation."""
    try:
        return recommenders.current().freshness.ages()
    except NotReadyError:
        return []


def _circumstances(context: Context | None) -> dict[str, Any]:
    """Return what the recommender calls the parts of a context."""
    return {} if context is None else {"now": context.time, "attributes": context.attributes}


def _rows(table: pa.Table, posts: list[str]) -> list[PostFeatures]:
    return [
        PostFeatures(post_id=post, values={name: _json(value) for name, value in row.items()})
        for post, row in zip(posts, table.to_pylist(), strict=True)
    ]


def _json(value: Any) -> Any:
    """Return a value that JSON knows: it has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe_problems(app: FastAPI, open_paths: Collection[str] | None) -> None:
    """Add the problem's schema to the OpenAPI document; no endpoint returns it as its model.

    With keys, all but the open paths need one.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, summary=app.summary, version=app.version, routes=app.routes
            )
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document["components"]["schemas"]
            schemas.update(schema.pop("$defs"))
            schemas["Problem"] = schema
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            if open_paths is not None:
                _describe_keys(document, open_paths)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_keys(document: dict[str, Any], open_paths: Collection[str]) -> None:
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refused = documented(HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)
    for path, operations in document["paths"].items():
        for operation in operations.values() if path not in open_paths else ():
            operation["security"] = [{"key": []}]
            operation["responses"].update({str(one): what for one, what in refused.items()})

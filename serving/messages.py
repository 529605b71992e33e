"""Requests and answers of the HTTP service, as its OpenAPI document shows them."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    Tag,
)

from serving.answer import Answer, Reason
from serving.events import Event, Status
from serving.freshness import ViewAge

MAX_RECOMMENDED = 1000
MAX_LISTED = 1000
MAX_EVENTS = 500
_LARGEST = 1e15
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

ExternalId = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]
ShortText = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
# Whole numbers beyond the largest would not survive being stored as floating-point ones.
Finite = (
    Annotated[StrictInt, Field(ge=-_LARGEST, le=_LARGEST)]
    | Annotated[StrictFloat, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
)


class Context(BaseModel):
    """Circumstances of a request."""

    model_config = ConfigDict(extra="forbid")

    time: AwareDatetime | None = Field(
        None,
        ge=_EARLIEST,
        lt=_LATEST,
        description="Moment that the answer is for; by default the bundle's, or now.",
    )
    attributes: dict[ExternalId, Finite | ShortText] = Field(
        default_factory=dict,
        max_length=20,
        description="Of a user whom the bundle does not know: the dataset's user attributes by "
        "name. One that it does not know, or of another type, changes nothing.",
    )


class RecommendRequest(BaseModel):
    """Asks for the best posts for a user."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "42", "k": 3},
                {"user_id": "42", "k": 3, "exclude": ["50"], "explain": True},
                {"user_id": "new", "k": 3, "context": {"attributes": {"gender": "F", "age": 30}}},
            ]
        },
    )

    user_id: ExternalId = Field(description="The source's id; unknown users are answered too.")
    k: int = Field(
        10, strict=True, ge=1, le=MAX_RECOMMENDED, description="How many posts, at most."
    )
    context: Context | None = Field(None, description="Circumstances of the request.")
    exclude: list[ExternalId] = Field(
        default_factory=list,
        max_length=MAX_LISTED,
        description="Posts that must not be in the answer.",
    )
    only: list[ExternalId] | None = Field(
        None,
        max_length=MAX_LISTED,
        description="Posts that alone may be in the answer. It adds none: to order posts of "
        "your own choice, use /rank.",
    )
    explain: StrictBool = Field(False, description="Whether each post comes with its reason.")


class RankRequest(BaseModel):
    """Asks for the order of given posts."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "42", "post_ids": ["50", "100", "181"]},
                {"user_id": "42", "post_ids": ["50", "100"], "explain": True},
                {"user_id": "new", "post_ids": ["50"], "context": {"attributes": {"age": 30}}},
            ]
        },
    )

    user_id: ExternalId = Field(description="The source's id; unknown users are answered too.")
    post_ids: list[ExternalId] = Field(
        min_length=1, max_length=MAX_LISTED, description="Posts of the bundle."
    )
    context: Context | None = Field(None, description="Circumstances of the request.")
    explain: StrictBool = Field(False, description="Whether each post comes with its reason.")


class ServedInput(BaseModel):
    """One input of the ranker as it was served."""

    value: float | str | None = Field(description="Null: there is none.")
    event_time: datetime | None = Field(
        description="Since when the stored value holds; null: computed at the request."
    )
    age_seconds: float | None = Field(description="From then to the moment of the request.")


class Explanation(BaseModel):
    """Why a post stands where it stands."""

    sources: dict[str, int] = Field(description="Rank in each source that proposed the post.")
    source_scores: dict[str, float] = Field(description="The score that each of them gave it.")
    contributions: dict[str, float] = Field(
        description="The inputs that moved the score most, with their SHAP values."
    )
    features: dict[str, ServedInput] = Field(description="These inputs as they were served.")
    rules: list[str] = Field(
        description="Rules that gave the post its place: pinned, exploration, diversity, cap; "
        "empty: its score did."
    )

    @classmethod
    def of(cls, reason: Reason) -> "Explanation":
        """Put a reason into a message."""
        return cls(
            sources=reason.sources,
            source_scores=reason.source_scores,
            contributions=dict(reason.contributions),
            features={
                one.name: ServedInput(
                    value=one.value, event_time=one.event_time, age_seconds=one.age_s
                )
                for one in reason.moved
            },
            rules=list(reason.rules),
        )


class RankedPost(BaseModel):
    """One post of an answer."""

    post_id: str = Field(description="The source's id.")
    title: str | None = Field(description="Its title, if the source has one.")
    score: float | None = Field(
        description="Comparable within one answer; null where the order is popularity."
    )
    reason: Explanation | None = Field(None, description="Only if asked for.")


class RankedAnswer(BaseModel):
    """A ranked list."""

    request_id: str = Field(description="Names the request in the impression log.")
    user_id: str = Field(description="As asked.")
    is_known: bool = Field(description="Whether the bundle knows the user.")
    bundle: str = Field(description="The generation that answered.")
    degraded: list[str] = Field(
        description="Why the answer is worse than it should be: lists_missing, "
        "lists_unavailable, lists_damaged, features_unavailable, index_unavailable, "
        "bundle_outdated, stale_ and a feature view's name. Empty when all is well."
    )
    milliseconds: float = Field(description="Time taken, transport aside.")
    posts: list[RankedPost] = Field(description="Best first.")

    @classmethod
    def of(cls, answer: Answer, degraded: tuple[str, ...]) -> "RankedAnswer":
        """Put the recommender's answer, and why the service itself is degraded, into a message."""
        posts = [
            RankedPost(
                post_id=one.post,
                title=one.title,
                score=one.score,
                reason=None if one.reason is None else Explanation.of(one.reason),
            )
            for one in answer.recommendations
        ]
        return cls(
            request_id=answer.request_id,
            user_id=answer.user,
            is_known=answer.is_known,
            bundle=answer.generation,
            degraded=[*answer.degraded, *degraded],
            milliseconds=round(answer.milliseconds, 3),
            posts=posts,
        )


class PostFeatures(BaseModel):
    """The ranker's inputs for one post."""

    post_id: str = Field(description="The source's id.")
    values: dict[str, Any] = Field(description="By feature; null where there is no value.")


class FeaturesAnswer(BaseModel):
    """The ranker's inputs, as served."""

    user_id: str = Field(description="As asked.")
    bundle: str = Field(description="The generation that answered.")
    degraded: list[str] = Field(description="As of /recommend; without Redis there are no rows.")
    rows: list[PostFeatures] = Field(description="One per post, in the order asked.")


class SimilarPost(BaseModel):
    """One similar post."""

    post_id: str = Field(description="The source's id.")
    title: str | None = Field(description="Its title, if the source has one.")
    score: float = Field(description="Cosine of the angle between both posts' vectors.")


class SimilarAnswer(BaseModel):
    """Posts that the same people like."""

    post_id: str = Field(description="As asked.")
    bundle: str = Field(description="The generation that answered.")
    degraded: list[str] = Field(description="index_unavailable: found by exact search, slower.")
    posts: list[SimilarPost] = Field(description="Most similar first; none without likes.")


class NewEvent(BaseModel):
    """One thing that a user did to a post."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"event_id": "e-1", "user_id": "42", "post_id": "50", "value": 5}]
        },
    )

    event_id: ExternalId = Field(description="Chosen by the sender; one id is kept once.")
    user_id: ExternalId = Field(description="The source's id.")
    post_id: ExternalId = Field(description="The source's id.")
    action: ExternalId | None = Field(
        None, description="As in the source; to be left out where the dataset has only one."
    )
    value: Finite | None = Field(
        None, description="The dataset's value (rating, seconds), where it has one."
    )
    time: AwareDatetime | None = Field(
        None,
        ge=_EARLIEST,
        lt=_LATEST,
        description="When it happened; by default the bundle's moment, or now.",
    )
    fields: dict[ExternalId, StrictBool | Finite | ShortText] = Field(
        default_factory=dict,
        max_length=20,
        description="Values of further columns that the dataset's rules read.",
    )

    def event(self) -> Event:
        """Return the event as serving knows it."""
        return Event(
            event_id=self.event_id,
            user=self.user_id,
            post=self.post_id,
            action=self.action,
            value=self.value,
            time=self.time,
            fields=dict(self.fields),
        )


class EventBatch(BaseModel):
    """Several events; all that are new and valid are kept at once."""

    model_config = ConfigDict(extra="forbid")

    events: list[NewEvent] = Field(min_length=1, max_length=MAX_EVENTS)


EventsRequest = Annotated[
    Annotated[NewEvent, Tag("event")] | Annotated[EventBatch, Tag("batch")],
    Discriminator(lambda body: "batch" if isinstance(body, dict) and "events" in body else "event"),
]


class EventResult(BaseModel):
    """What became of one event."""

    event_id: str = Field(description="As sent.")
    status: Status = Field(
        description="accepted; duplicate: the id was kept before; unknown_user, unknown_post: the "
        "bundle does not know it; invalid: see detail. Only accepted ones are kept."
    )
    detail: str | None = Field(None, description="What is wrong with an invalid event.")


class EventsAnswer(BaseModel):
    """What became of the events, in the order sent."""

    bundle: str = Field(description="The generation that knows the ids.")
    accepted: int = Field(description="How many events were kept now.")
    results: list[EventResult] = Field(description="One per event.")


class Health(BaseModel):
    """The process is alive."""

    status: str = Field(examples=["ok"])


class ViewFreshness(BaseModel):
    """How old one feature view is, counted to the moment that answers are for."""

    view: str = Field(description="The feature view.")
    materialized: datetime | None = Field(description="Until when; null: never.")
    newest_event: datetime | None = Field(description="Latest event time of its rows, if known.")
    age_seconds: float | None = Field(description="Since it was materialized.")
    event_age_seconds: float | None = Field(description="Since its newest event.")
    max_age_seconds: float | None = Field(description="Greatest age allowed; null: any.")
    max_event_age_seconds: float | None = Field(description="The same for the newest event.")
    when_stale: str = Field(
        description="flag: answers say so; default: its features are null as well; fallback: the "
        "popular list answers."
    )
    is_stale: bool = Field(description="Whether it is older than allowed.")

    @classmethod
    def of(cls, age: ViewAge) -> "ViewFreshness":
        """Put a view's age into a message."""
        return cls(
            view=age.view,
            materialized=age.materialized,
            newest_event=age.newest_event,
            age_seconds=age.age_s,
            event_age_seconds=age.event_age_s,
            max_age_seconds=age.limits.max_age_s,
            max_event_age_seconds=age.limits.max_event_age_s,
            when_stale=age.limits.when_stale,
            is_stale=age.is_stale,
        )


class Readiness(BaseModel):
    """The service answers requests."""

    ready: bool = Field(description="True as soon as the service answers at all.")
    degraded: list[str] = Field(
        description="redis_unreachable, bundle_outdated, stale_ and a feature view's name; it "
        "answers all the same."
    )
    views: list[ViewFreshness] = Field(description="How old the served features are.")


class Version(BaseModel):
    """What answers."""

    feastrank: str = Field(description="Version of the service.")
    project: str = Field(description="The Feast project.")
    bundle: str = Field(description="The generation that answers.")
    created: str = Field(description="When it was published.")
    contract_hash: str = Field(description="Hash of the ranker's ordered inputs.")
    as_of: str | None = Field(description="The moment that it answers for; null: the present.")
    data_window: list[str] = Field(description="First and last event that it learned from.")
    ranker: str = Field(description="The model's file.")


class FieldProblem(BaseModel):
    """One part of a request that is not as it should be."""

    field: str = Field(description="Where, for instance body.k.")
    message: str = Field(description="What is expected.")


class Problem(BaseModel):
    """What went wrong, as RFC 9457 describes it."""

    type: str = Field(description="Kind of problem.")
    title: str = Field(description="The same for all problems of the status.")
    status: int = Field(description="The HTTP status.")
    detail: str | None = Field(None, description="This occurrence, and what to do.")
    errors: list[FieldProblem] | None = Field(None, description="The first parts at fault.")

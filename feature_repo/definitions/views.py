"""The feature views of a dataset; which exist, and their fields, follow from its description."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import FunctionType

import pandas as pd
from feast import Entity, FeatureView, Field
from feast.on_demand_feature_view import OnDemandFeatureView, on_demand_feature_view
from feast.types import Array, FeastType, Float32, Float64, Int64, String

from feature_repo.dataset import Dataset, DatasetError, Freshness
from feature_repo.dataset_columns import Attribute
from feature_repo.definitions import columns as c
from feature_repo.definitions.entities import post, user
from feature_repo.definitions.sources import feature_table, request
from feature_repo.workspace import Workspace

# Values hold until the next row: windows that empty are written as rows of their own.
FOREVER = timedelta(0)
# A field with this tag is a category, whatever its type.
CATEGORY = {"kind": "category"}
_MOVING_DAILY = ("user_activity", "post_activity", "user_topic_affinity")
_ATTRIBUTE_TYPES: dict[str, FeastType] = {
    "categorical": String,
    "numeric": Float64,
    "list": Array(String),
}


def feature_views(
    dataset: Dataset, workspace: Workspace, *, spark: bool = False
) -> list[FeatureView]:
    """Return the stored views, each with at least one field.

    Parameters
    ----------
    spark
        Whether they are for Feast's Spark store; nothing but their sources differs.

    Raises
    ------
    DatasetError
        If the description limits the age of a view that the dataset does not have.
    """
    names = [name for name, _, fields, _ in _views(dataset) if fields]
    unknown = sorted(set(dataset.freshness) - set(names))
    if unknown:
        raise DatasetError(
            f"{dataset.name}: [freshness.{unknown[0]}]: no such feature view; expected one of "
            f"{', '.join(names)}"
        )
    return [
        FeatureView(
            name=name,
            entities=[entity],
            ttl=FOREVER,
            schema=list(fields),
            source=feature_table(workspace, name, spark=spark),
            description=description,
            tags=freshness_tags(dataset, name),
        )
        for name, entity, fields, description in _views(dataset)
        if fields
    ]


def freshness_tags(dataset: Dataset, view: str) -> dict[str, str]:
    """Return the tags that say how old a view's served features may be; see `Freshness`.

    Without a word in the description, views whose windows move every day may be two days old.
    """
    daily = dataset.has_clock and view in _MOVING_DAILY
    limits = dataset.freshness.get(view) or Freshness(max_age_hours=48 if daily else None)
    ages = limits.model_dump(exclude_none=True)
    return {name: str(value) for name, value in ages.items()} if len(ages) > 1 else {}


def _views(dataset: Dataset) -> Iterable[tuple[str, Entity, list[Field], str]]:
    yield (
        "user_profile",
        user,
        _attributes(dataset.user_attributes, "user"),
        ("The user's attributes as the source has them."),
    )
    yield (
        "user_activity",
        user,
        _user_activity(dataset),
        ("How much the user did and liked, over sliding windows and for life."),
    )
    yield "post_profile", post, _post_profile(dataset), "What is known of a post without events."
    yield (
        "post_activity",
        post,
        _post_activity(dataset),
        ("How often the post was shown and liked, over sliding windows and for life."),
    )
    if dataset.has_topics:
        yield "user_topic_affinity", user, _topic_affinity(dataset), "Which topics the user likes."
    if dataset.has_text:
        yield (
            "post_text",
            post,
            [Field(name=c.TEXT_EMBEDDING, dtype=Array(Float32))],
            ("The sentence embedding of the post's text."),
        )
        yield (
            "post_text_clusters",
            post,
            _text_clusters(),
            ("The embedding reduced: principal components, nearest cluster, distances."),
        )
    if dataset.has_images:
        yield (
            "post_image",
            post,
            [Field(name=c.IMAGE_EMBEDDING, dtype=Array(Float32))],
            ("What the post's picture shows, as an embedding."),
        )
    if c.has_conversion(dataset):
        yield (
            "post_conversion",
            post,
            [Field(name=c.PREDICTED_POSITIVE_RATE, dtype=Float64)],
            ("How often the post would be liked, predicted from text, picture and topic."),
        )


def _attributes(attributes: tuple[Attribute, ...], entity: str) -> list[Field]:
    name = c.user_attribute if entity == "user" else c.post_attribute
    return [
        Field(
            name=name(a.name),
            dtype=_ATTRIBUTE_TYPES[a.type],
            tags=CATEGORY if a.type == "categorical" else {},
        )
        for a in attributes
    ]


def _user_activity(dataset: Dataset) -> list[Field]:
    fields = _counts(dataset, "user", "post")
    if dataset.has_impressions:
        fields += [
            Field(name=f"user_positive_rate_{window}", dtype=Float64)
            for window in c.window_names(dataset)
        ]
    return [*fields, Field(name=c.USER_LAST_EVENT, dtype=Int64)]


def _post_activity(dataset: Dataset) -> list[Field]:
    fields = _counts(dataset, "post", "user")
    if dataset.has_impressions:
        fields += [
            Field(name=f"post_positive_rate_smoothed_{window}", dtype=Float64)
            for window in c.window_names(dataset)
        ]
    return [*fields, Field(name=c.POST_FIRST_EVENT, dtype=Int64)]


def _counts(dataset: Dataset, key: str, other: str) -> list[Field]:
    names = [*(m.name for m in c.measures(dataset)), f"{other}_distinct_count"]
    return [
        Field(name=f"{key}_{name}_{window}", dtype=Int64)
        for name in names
        for window in c.window_names(dataset)
    ]


def _post_profile(dataset: Dataset) -> list[Field]:
    fields = _attributes(dataset.post_attributes, "post")
    if c.has_created_time(dataset):
        fields.append(Field(name=c.POST_CREATED, dtype=Int64))
    if dataset.has_text:
        fields.append(Field(name=c.POST_TEXT_LENGTH, dtype=Int64))
    if dataset.has_topics:
        fields.append(Field(name=c.POST_TOPICS, dtype=Array(Float32)))
    return fields


def _topic_affinity(dataset: Dataset) -> list[Field]:
    names = [c.USER_TOPIC_SHARE, *([c.USER_TOPIC_RATE] if dataset.has_impressions else [])]
    return [Field(name=name, dtype=Array(Float32)) for name in names]


def _text_clusters() -> list[Field]:
    return [
        Field(name=c.TEXT_CLUSTER, dtype=Int64, tags=CATEGORY),
        *(Field(name=c.distance_to_cluster(k), dtype=Float32) for k in range(c.TEXT_CLUSTERS)),
        Field(name=c.TEXT_PCA, dtype=Array(Float32)),
    ]


def request_features(inputs: pd.DataFrame) -> pd.DataFrame:
    """Run `feature_repo.transforms.request_features` on the frame that Feast hands over."""
    # Feast rebuilds this function from its source, without the globals of this module.
    from feature_repo import transforms

    return pd.DataFrame(
        transforms.request_features({str(n): c for n, c in inputs.items()}), index=inputs.index
    )


def request_view(
    dataset: Dataset, views: list[FeatureView], sources: Sequence[str] = c.DEFAULT_SOURCES
) -> OnDemandFeatureView:
    """Return the on-demand view of the request-time features that the stored views allow.

    Parameters
    ----------
    sources
        The candidate sources; each adds a score and a rank.
    """
    wanted = {*c.DAYS_SINCE.values(), *c.TOPIC_MATCHES.values(), c.POST_TOPICS}
    available = {field.name for view in views for field in view.schema}
    stored = [
        view[[field.name for field in view.schema if field.name in wanted]]
        for view in views
        if any(field.name in wanted for field in view.schema)
    ]
    names = _request_names(dataset, available, sources)
    decorate = on_demand_feature_view(
        sources=[*stored, request(sources)],
        schema=[Field(name=name, dtype=Float64) for name in names],
        mode="pandas",
        description="Features of user x post x moment.",
    )
    # Feast marks the function as one of __main__'s, where no second call would find its source.
    function = FunctionType(request_features.__code__, request_features.__globals__)
    view: OnDemandFeatureView = decorate(function)
    return view


def _request_names(dataset: Dataset, available: set[str], sources: Sequence[str]) -> list[str]:
    days = [
        name for name, since in c.DAYS_SINCE.items() if dataset.has_clock and since in available
    ]
    topics = [
        name for name, vector in c.TOPIC_MATCHES.items() if {vector, c.POST_TOPICS} <= available
    ]
    candidates = [
        name(source) for source in sources for name in (c.candidate_score, c.candidate_rank)
    ]
    return [*days, *topics, *candidates, c.CANDIDATE_SOURCE_COUNT]

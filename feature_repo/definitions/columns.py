"""Names of the feature columns; each exists once, here.

A name says measure, window and unit: ``user_positive_count_28d``, ``post_age_days``. Which
columns a dataset has follows from its description: without a clock there are no windows, without
impressions no rates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feature_repo.dataset import Dataset

WINDOWS_DAYS = (1, 7, 28)
LIFETIME = "lifetime"
TEXT_PCA_COMPONENTS = 50
TEXT_CLUSTERS = 15
# Topic vectors are dense, so the rare tail of a long list of topics is left out.
MAX_TOPICS = 64

USER_LAST_EVENT = "user_last_event_unix_s"
POST_FIRST_EVENT = "post_first_event_unix_s"
POST_CREATED = "post_created_unix_s"
POST_TOPICS = "post_topic_vector"
POST_TEXT_LENGTH = "post_text_length_characters"
USER_TOPIC_SHARE = "user_topic_positive_share"
USER_TOPIC_RATE = "user_topic_positive_rate"
TEXT_EMBEDDING = "post_text_embedding"
TEXT_PCA = "post_text_pca"
TEXT_CLUSTER = "text_cluster"
IMAGE_EMBEDDING = "post_image_embedding"
PREDICTED_POSITIVE_RATE = "post_predicted_positive_rate"

REQUEST_TIME = "request_unix_time_s"
# Unless `feature_repo.tuned` names others.
DEFAULT_SOURCES = ("popular", "als", "item_to_item")
CANDIDATE_SOURCE_COUNT = "candidate_source_count"
# Request-time feature -> the time that it counts days from.
DAYS_SINCE = {
    "user_days_since_last_event": USER_LAST_EVENT,
    "post_days_since_first_event": POST_FIRST_EVENT,
    "post_age_days": POST_CREATED,
}
# Request-time feature -> the user vector that is multiplied with the post's topic vector.
TOPIC_MATCHES = {
    "user_post_topic_share": USER_TOPIC_SHARE,
    "user_post_topic_rate": USER_TOPIC_RATE,
}


@dataclass(frozen=True)
class Measure:
    """One thing that activity views count.

    Parameters
    ----------
    name
        Middle of the column name: ``positive_count``.
    event_column
        Boolean column of the lake's events that is summed; None counts every event.
    """

    name: str
    event_column: str | None


def windows_days(dataset: Dataset) -> tuple[int, ...]:
    """Return the sliding windows in days; none without a clock."""
    return WINDOWS_DAYS if dataset.has_clock else ()


def window_names(dataset: Dataset) -> tuple[str, ...]:
    """Return column suffixes of the windows, lifetime last: ``1d``, ``7d``, ``lifetime``."""
    return window_suffixes(windows_days(dataset))


def window_suffixes(days: Sequence[int]) -> tuple[str, ...]:
    """Return the column suffixes of sliding windows of so many days, lifetime last."""
    return (*(f"{length}d" for length in days), LIFETIME)


def measures(dataset: Dataset) -> tuple[Measure, ...]:
    """Return what is counted: columns that would repeat another one are left out."""
    counted = [Measure("event_count", None)]
    if dataset.has_impressions and exposure(dataset) == "impression_count":
        counted.append(Measure("impression_count", "is_impression"))
    if not dataset.events.positive.every:
        counted.append(Measure("positive_count", "is_positive"))
    return tuple(counted)


def exposure(dataset: Dataset) -> str:
    """Return the measure that rates are divided by."""
    every = dataset.events.impressions is None or dataset.events.impressions.every
    return "event_count" if every else "impression_count"


def distance_to_cluster(cluster: int) -> str:
    """Return the column of the distance to the centre of ``cluster``."""
    return f"distance_to_cluster_{cluster}"


def user_attribute(name: str) -> str:
    """Return the feature column of a declared user attribute."""
    return name if name.startswith("user_") else f"user_{name}"


def post_attribute(name: str) -> str:
    """Return the feature column of a declared post attribute."""
    return name if name.startswith("post_") else f"post_{name}"


def source_score(source: str) -> str:
    """Return the name under which a request says the score that a candidate source gave."""
    return f"{source}_score"


def source_rank(source: str) -> str:
    """Return the name under which a request says the rank that a candidate source gave."""
    return f"{source}_rank"


def sources_in(names: Iterable[str]) -> list[str]:
    """Return the candidate sources that a request speaks of, in alphabetical order."""
    known = set(names)
    ending = source_rank("")
    sources = (name.removesuffix(ending) for name in known if name.endswith(ending))
    return sorted(source for source in sources if source and source_score(source) in known)


def candidate_score(source: str) -> str:
    """Return the column of the score that a candidate source gave the post; null: none."""
    return f"candidate_{source}_score"


def candidate_rank(source: str) -> str:
    """Return the column of the post's rank (1 is best) in a source's list; null: not listed."""
    return f"candidate_{source}_rank"


def candidate_inputs(names: Iterable[str]) -> set[str]:
    """Return the inputs that are a source's score or rank."""
    mine = {name for name in names if name.startswith("candidate_")}
    return mine - {CANDIDATE_SOURCE_COUNT}


def has_created_time(dataset: Dataset) -> bool:
    """Return whether posts say when they were created."""
    return dataset.posts is not None and dataset.posts.created is not None


def has_conversion(dataset: Dataset) -> bool:
    """Return whether posts are told apart by content, and views from what they led to."""
    is_counted = dataset.has_impressions and exposure(dataset) == "impression_count"
    return is_counted and (dataset.has_text or dataset.has_images)

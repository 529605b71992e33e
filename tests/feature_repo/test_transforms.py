"""Request-time features, worked by hand, and the contract that they are part of."""

import numpy as np
import pandas as pd
import pytest

from feature_repo.contract import contract_of
from feature_repo.dataset import Dataset
from feature_repo.definitions import columns as c
from feature_repo.definitions.repository import DEFAULT_DATASET, objects
from feature_repo.definitions.views import request_features as view_function
from feature_repo.transforms import dot, request_features

DAY = 86_400


def inputs(**columns):
    sources = {
        f"{s}_{what}": [np.nan, np.nan] for s in c.DEFAULT_SOURCES for what in ("score", "rank")
    }
    return pd.DataFrame({c.REQUEST_TIME: [10 * DAY, 10 * DAY], **sources, **columns})


def test_days_are_counted_from_the_time_to_the_request():
    frame = inputs(**{c.USER_LAST_EVENT: [8 * DAY, None], c.POST_FIRST_EVENT: [10 * DAY, 5 * DAY]})
    features = request_features(frame)
    np.testing.assert_array_equal(features["user_days_since_last_event"], [2.0, np.nan])
    np.testing.assert_array_equal(features["post_days_since_first_event"], [0.0, 5.0])
    assert "post_age_days" not in features


def test_topic_match_is_the_dot_product_and_unknown_where_either_is():
    frame = inputs(
        **{c.USER_TOPIC_SHARE: [[0.5, 0.25], None], c.POST_TOPICS: [[0.5, 0.5], [1.0, 0.0]]}
    )
    np.testing.assert_array_equal(request_features(frame)["user_post_topic_share"], [0.375, np.nan])


def test_vectors_of_another_vocabulary_do_not_match():
    np.testing.assert_array_equal(
        dot([[1.0], [1.0, 2.0]], [[1.0, 0.0], [3.0, 4.0]]), [np.nan, 11.0]
    )


def test_a_post_counts_the_sources_that_proposed_it():
    frame = inputs(
        als_score=[0.7, np.nan], als_rank=[3, np.nan], popular_score=[5.0, 6.0], popular_rank=[1, 2]
    )
    features = request_features(frame)
    np.testing.assert_array_equal(features[c.CANDIDATE_SOURCE_COUNT], [2.0, 1.0])
    np.testing.assert_array_equal(features[c.candidate_rank("als")], [3.0, np.nan])


def test_feasts_view_returns_what_the_pure_function_returns():
    frame = inputs(**{c.USER_LAST_EVENT: [8 * DAY, 9 * DAY]})
    expected = pd.DataFrame(request_features(frame))
    pd.testing.assert_frame_equal(view_function(frame), expected)


def test_the_contract_does_not_depend_on_the_order_feast_keeps_features_in():
    # Feast passes the features of a projection through a set.
    hashes = {contract_of(objects()[-1]).hash for _ in range(3)}
    assert len(hashes) == 1


def described(events: str) -> Dataset:
    return Dataset.parse(
        'name = "d"\n[events]\npath = "e.csv"\nformat = "csv"\nuser = "u"\npost = "p"\n' + events
    )


@pytest.mark.parametrize(
    ("events", "present", "absent"),
    [
        (
            'time = { column = "t" }\npositive = { every = true }',
            {"user_event_count_7d", "user_days_since_last_event"},
            {"user_positive_count_7d", "user_positive_rate_7d", "user_impression_count_7d"},
        ),
        (
            'time = { column = "t" }\nimpressions = { actions = ["view"] }\n'
            'action = { column = "a" }\npositive = { actions = ["like"] }',
            {"user_impression_count_28d", "post_positive_rate_smoothed_1d"},
            {"post_age_days", "text_cluster", "user_post_topic_share"},
        ),
        (
            'time = { format = "file_order" }\npositive = { column = "r", at_least = 4 }\n'
            "impressions = { every = true }",
            {"user_event_count_lifetime", "user_positive_rate_lifetime"},
            {"user_event_count_7d", "user_days_since_last_event"},
        ),
    ],
)
def test_views_follow_from_the_description(events, present, absent):
    names = set(contract_of(objects(described(events))[-1]).names)
    assert present <= names
    assert not absent & names


def test_the_default_dataset_is_the_demo():
    assert Dataset.read(DEFAULT_DATASET).name == objects()[0].name == "movielens_100k"

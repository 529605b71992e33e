import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.candidates.interactions import Interactions
from pipelines.ranking.protocol_features import Past, features

START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
DAY_US = 86_400_000_000
START_US = int(START.timestamp()) * 1_000_000

POSTS = pa.table(
    {
        "post_id": pa.array([10, 11, 12], pa.int64()),
        "topics": [["a"], ["a", "b"], ["b"]],
        "post_text_embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(np.eye(3, dtype=np.float32).ravel()), 3
        ),
        "release_year": [1990.0, None, 1996.0],
    }
)
USERS = pa.table(
    {
        "user_id": pa.array([1, 2, 3], pa.int64()),
        "gender": ["F", "M", "M"],
        "age": [20.0, 40.0, 41.0],
    }
)
# User 1 likes 10 on day 0 and 11 on day 10; 2 likes 10 on day 1, 12 on day 2; 3 likes 11, 12.
ROWS = ((1, 10, 0), (1, 11, 10), (2, 10, 1), (2, 12, 2), (3, 11, 20), (3, 12, 21))


def interactions(rows):
    users, posts, days = zip(*rows, strict=True)
    times = [START + datetime.timedelta(days=float(day)) for day in days]
    return Interactions.from_table(
        pa.table(
            {
                "user_id": pa.array(users, pa.int64()),
                "post_id": pa.array(posts, pa.int64()),
                "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
                "weight": pa.array([1.0] * len(rows)),
            }
        )
    )


def computed(rows, days, users=(0,), posts=(2,)):
    data = interactions(rows)
    now = START_US + np.asarray(days, dtype=np.int64) * DAY_US
    now = np.resize(now, len(data.user_ids))
    return features(Past(data, now, POSTS, USERS), np.asarray(users), np.asarray(posts))


def test_every_column_has_a_value_for_each_pair():
    found = computed(ROWS, [10], users=[0, 1, 2, 0], posts=[0, 1, 2, 2])
    assert len(found) > 30
    for name, column in found.items():
        assert column.shape == (4,), name
        assert column.dtype == np.float32, name
        assert not np.isinf(column).any(), name


def test_popularity_is_that_before_the_users_moment():
    # Post 12 (position 2): liked on day 2 and on day 21.
    at = {day: computed(ROWS, [day]) for day in (2, 3, 10, 22)}
    assert [float(at[day]["post_likes_before"][0]) for day in at] == [0, 1, 1, 2]
    assert [float(at[day]["post_likes_7d"][0]) for day in at] == [0, 1, 0, 1]
    assert [float(at[day]["post_likes_28d"][0]) for day in at] == [0, 1, 1, 2]
    assert np.isnan(at[2]["post_age_days"][0])
    assert at[10]["post_age_days"][0] == 8
    assert at[22]["days_since_post_liked"][0] == 1
    assert at[10]["post_like_share_28d"][0] == pytest.approx(1.05 / 53)


def test_activity_and_years():
    found = computed(ROWS, [12])
    assert found["user_likes"][0] == 2
    assert found["days_since_user_liked"][0] == 2
    assert found["user_active_days"][0] == 10
    assert found["release_year"][0] == 1996
    # Liked: 1990 and an unknown year, taken as the mean of the known ones, 1993.
    assert found["release_year_to_liked"][0] == pytest.approx(1996 - 1991.5)
    assert np.isnan(found["release_year_to_latest"][0])


def test_similarity_to_the_latest_posts():
    found = computed(ROWS, [12])
    # Likes: 10 by {1, 2}, 11 by {1, 3}, 12 by {2, 3}: every cosine is 1/2. Newest is 11.
    assert found["cosine_to_latest_1"][0] == pytest.approx(0.5)
    assert found["cosine_to_latest_10_mean"][0] == pytest.approx(0.5)
    assert np.isnan(found["cosine_to_latest_3"][0])
    # 12 came right after 11 once (user 3), over two likes and 5.
    assert found["follows_to_latest_1"][0] == pytest.approx(1 / 7)
    # Topics: 11 is (1, 1) / sqrt 2, 12 is (0, 1).
    assert found["topics_to_latest_1"][0] == pytest.approx(0.5**0.5)


def test_segments_lift_what_their_users_like():
    found = computed(ROWS, [12], users=[0, 1], posts=[2, 2])
    # Post 12 was liked by the two men only.
    assert found["gender_post_lift"][0] < 1 < found["gender_post_lift"][1]
    assert found["gender_topic_lift"][0] < 1 < found["gender_topic_lift"][1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(11, 40), min_size=1, max_size=6))
def test_later_likes_change_no_feature_of_time(days):
    later = tuple((user, 10 + day % 3, day) for user, day in enumerate(days, 4))
    names = [
        "post_likes_before",
        "post_likes_7d",
        "post_like_share_28d",
        "post_trend_7d_to_28d",
        "days_since_post_liked",
        "days_since_user_liked",
    ]
    before, after = computed(ROWS, [10]), computed((*ROWS, *later), [10])
    for name in names:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6, err_msg=name)

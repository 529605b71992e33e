"""Printed figures of a real social feed that simulated tables match.

Source: cell outputs of public notebooks about the feed of a data science course (users, posts and
views of a social network, October to December 2021), and the totals of views and likes per post
that one of them published. The tables themselves are not public, and nothing of them is here but
these figures. What no notebook printed is assumed, and marked so.
"""

from dataclasses import dataclass

import numpy as np

USERS = 163_205
POSTS = 7_023
FIRST_USER_ID, LAST_USER_ID = 200, 168_552
LAST_POST_ID = 7_319
FIRST_DAY = "2021-10-16"
DAYS = 75
"""Rows seen lie between 2021-10-16 and 2021-12-29."""

LIKES_PER_VIEW = 0.1195
"""8,206,345 views with target = 1 of 68,686,455."""

CITY_USERS = {
    "Moscow": 21_874,
    "Saint Petersburg": 6_904,
    "Novosibirsk": 1_987,
    "Yekaterinburg": 1_924,
    "Nizhniy Novgorod": 1_632,
    "Chelyabinsk": 1_574,
    "Kazan": 1_545,
    "Rostov": 1_541,
    "Samara": 1_484,
    "Omsk": 1_466,
}
"""Users of the ten largest cities, all in Russia; the rest live in smaller ones."""

EXPERIMENT_GROUPS = 5
LIKE_DELAY_S = (1, 60)
"""A like follows its view after up to about a minute."""

# Assumed: values were printed, shares were not.
MEN_SHARE = 0.55
ANDROID_SHARE = 0.65
ADS_SHARE = 0.62
YOUNGEST, OLDEST = 14, 95
AGE_SHAPE, AGE_SCALE = 1.7, 7.8
"""Age is YOUNGEST plus a gamma variable: mean 27, half of the users below 25."""
COUNTRY_SHARES = {
    "Russia": 0.877,
    "Ukraine": 0.05,
    "Belarus": 0.02,
    "Kazakhstan": 0.02,
    "Turkey": 0.011,
    "Finland": 0.011,
    "Azerbaijan": 0.011,
}
"""Assumed, but that nearly all printed users live in Russia."""
HOUR_WEIGHTS = np.array(
    [0, 0, 0, 0, 0, 0, 3, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 8, 8, 8, 7, 5, 0], dtype=np.float64
)
"""Assumed: when sessions begin; few by night, most in the evening (hours UTC)."""
WEEKEND_FACTOR = 1.1
"""Assumed: sessions on a Saturday or Sunday against those of another day."""
VIEWS_PER_SESSION = 12.0
"""Assumed."""


@dataclass(frozen=True)
class PostGroup:
    """Posts of a topic that were shown about as often and liked about as much.

    Parameters
    ----------
    posts
        How many there are.
    views
        Median number of views.
    log_views_sd
        Standard deviation of the logarithm of the views.
    like_rate
        Mean likes per view.
    like_rate_sd
        Standard deviation of the rate between posts, beyond what chance explains.
    """

    posts: int
    views: int
    log_views_sd: float
    like_rate: float
    like_rate_sd: float


@dataclass(frozen=True)
class TopicFacts:
    """One topic of the feed.

    Parameters
    ----------
    first_id, last_id
        Range of its post ids.
    never_viewed
        Posts without a view.
    like_rate
        Likes per view of all its posts.
    text_characters
        Length of its texts: 5, 25, 50, 75 and 95 percent are shorter.
    groups
        Its viewed posts. In the real feed views and like rates fall into about eight groups that
        recur in all topics, and most of them spread no more than chance would have it.
    """

    first_id: int
    last_id: int
    never_viewed: int
    like_rate: float
    text_characters: tuple[int, int, int, int, int]
    groups: tuple[PostGroup, ...]

    @property
    def posts(self) -> int:
        """Posts with and without views."""
        return self.never_viewed + sum(group.posts for group in self.groups)


def _groups(*rows: tuple[int, int, float, float, float]) -> tuple[PostGroup, ...]:
    return tuple(PostGroup(*row) for row in rows)


TOPICS: dict[str, TopicFacts] = {
    "business": TopicFacts(
        1,
        540,
        58,
        0.1195,
        (1018, 1400, 1809, 2358, 3506),
        _groups(
            (50, 7250, 0.046, 0.0941, 0.0070),
            (326, 8280, 0.025, 0.1344, 0.0046),
            (37, 12150, 0.011, 0.0741, 0.0012),
            (30, 17610, 0.008, 0.0930, 0.0002),
            (9, 22250, 0.029, 0.1243, 0.0047),
        ),
    ),
    "covid": TopicFacts(
        2333,
        4203,
        40,
        0.1198,
        (86, 131, 139, 140, 142),
        _groups(
            (1185, 6780, 0.029, 0.1029, 0.0044),
            (132, 8550, 0.026, 0.1318, 0.0048),
            (61, 12180, 0.010, 0.0737, 0.0),
            (48, 13790, 0.009, 0.1600, 0.0013),
            (31, 17560, 0.007, 0.0933, 0.0),
            (238, 16900, 0.008, 0.1552, 0.0),
            (9, 20760, 0.006, 0.1131, 0.0),
            (55, 22270, 0.027, 0.1247, 0.0027),
        ),
    ),
    "entertainment": TopicFacts(
        541,
        938,
        8,
        0.1226,
        (1027, 1309, 1553, 2084, 3474),
        _groups(
            (56, 6740, 0.053, 0.0989, 0.0073),
            (287, 8670, 0.010, 0.1294, 0.0010),
            (5, 12240, 0.014, 0.0730, 0.0),
            (20, 17660, 0.008, 0.0930, 0.0),
            (10, 16990, 0.006, 0.1538, 0.0),
        ),
    ),
    "movie": TopicFacts(
        4205,
        7319,
        5,
        0.1211,
        (334, 688, 943, 1552, 3231),
        _groups(
            (2466, 6700, 0.013, 0.1031, 0.0003),
            (6, 6640, 0.020, 0.1159, 0.0),
            (11, 8640, 0.015, 0.1290, 0.0006),
            (512, 16900, 0.008, 0.1554, 0.0),
        ),
    ),
    "politics": TopicFacts(
        939,
        1380,
        0,
        0.1136,
        (1129, 1867, 2606, 3114, 4040),
        _groups(
            (63, 7390, 0.024, 0.0891, 0.0056),
            (23, 8580, 0.012, 0.1289, 0.0016),
            (63, 12170, 0.009, 0.0738, 0.0),
            (5, 13800, 0.004, 0.1606, 0.0),
            (65, 17590, 0.007, 0.0929, 0.0005),
            (18, 16860, 0.008, 0.1559, 0.0012),
            (6, 20870, 0.006, 0.1124, 0.0),
            (174, 22310, 0.012, 0.1256, 0.0014),
        ),
    ),
    "sport": TopicFacts(
        1381,
        1917,
        2,
        0.1240,
        (786, 1180, 1628, 2309, 3850),
        _groups(
            (125, 7540, 0.036, 0.0864, 0.0063),
            (11, 17540, 0.007, 0.0911, 0.0011),
            (52, 16910, 0.008, 0.1554, 0.0013),
            (320, 22290, 0.006, 0.1261, 0.0),
        ),
    ),
    "tech": TopicFacts(
        1918,
        2332,
        92,
        0.0988,
        (1504, 2041, 2631, 3715, 5074),
        _groups(
            (197, 7240, 0.018, 0.0945, 0.0017),
            (44, 8630, 0.023, 0.1311, 0.0036),
            (37, 12210, 0.009, 0.0745, 0.0007),
            (23, 17540, 0.007, 0.0928, 0.0002),
            (8, 17000, 0.008, 0.1541, 0.0),
        ),
    ),
}
"""Posts, views and likes by topic. The few posts outside every group count as never viewed."""

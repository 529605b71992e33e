"""Names that columns and actions go by in other people's tables, for guessing what they hold."""

import re

_USER = "user|customer|visitor|member|client|account|listener|reader|viewer|person|profile|session"
_POST = "post|item|article|movie|film|track|song|video|product|book|artist|news|story|sku|ad"
IDS = {
    "users": re.compile(rf"({_USER})s?(_?(id|uuid|key|no))?|uid", re.IGNORECASE),
    "posts": re.compile(rf"({_POST})s?(_?(id|uuid|key|no))?|iid|pid", re.IGNORECASE),
}
PLAIN_ID = re.compile(r"id|uuid|key", re.IGNORECASE)
TIME = re.compile(
    r"(.*_)?(time|timestamp|ts|date|datetime|dt|at|when|created|published|started)(_.*)?"
    r"|.*(Time|Date|At)"
)
VALUE = re.compile(
    r"(.*_)?(rating|score|stars?|value|plays?|play_?count|counts?|listens|weight|duration|dur|"
    r"seconds|pct|percent)(_.*)?",
    re.IGNORECASE,
)
RATING = re.compile(r"(.*_)?(rating|score|stars?)(_.*)?", re.IGNORECASE)
ACTION = re.compile(r"(event_?)?(action|type|name)|event|behaviou?r|verb", re.IGNORECASE)
TARGET = re.compile(r"(is_?)?(target|label|clicked|click|liked|like|positive)", re.IGNORECASE)
TITLE = re.compile(r"(.*_)?(title|headline|name)(_seq)?", re.IGNORECASE)
TEXT = re.compile(r"(.*_)?(text|body|description|content|overview|summary|lyrics)", re.IGNORECASE)
TOPICS = re.compile(
    r"(.*_)?(topics?|genres?|categor(y|ies)|class|tags?|sections?|rubrics?|subjects?)",
    re.IGNORECASE,
)
IMAGE = re.compile(r"(.*_)?(photo|image|picture|img|cover|thumbnail)(_.*)?", re.IGNORECASE)

TOTAL = re.compile(
    r"(.*_)?(views|likes|clicks|shares|comments|plays|downloads|votes|vote_count|popularity)(_.*)?",
    re.IGNORECASE,
)

SEEN = re.compile(r"(?<!re)view|show|impression|seen|expos|display|open", re.IGNORECASE)
DISLIKED = re.compile(
    r"dislike|hide|report|skip|unlike|unfollow|block|remove|return|complain", re.IGNORECASE
)


def plain(name: str) -> str:
    """Return a column's name without the type that some sources append (`user_id:token`)."""
    return re.sub(r":\w+$", "", name.strip()).replace(" ", "_").replace("-", "_")


def fits(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a column's name is one of those that a pattern stands for."""
    return pattern.fullmatch(plain(name)) is not None

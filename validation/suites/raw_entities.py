"""What users and posts must be as they come from the source: one row each, known by external id."""

from collections.abc import Sequence
from datetime import datetime

from great_expectations.core import ExpectationSuite
from great_expectations.expectations.expectation import Expectation

from feature_repo.dataset import Dataset, EntityTable, Posts
from feature_repo.dataset_columns import Attribute
from validation.suites import vocabulary as v

MAX_NULL_SHARE = 0.05
"""Share of the rows in which an attribute may be null."""

_TYPES = {"categorical": "string", "numeric": "double", "list": "list<string>"}


def raw_users(
    dataset: Dataset, now: datetime, *, max_null_share: float = MAX_NULL_SHARE
) -> ExpectationSuite:
    """Return the suite of the raw users' table.

    Parameters
    ----------
    dataset
        The description; says which attributes there are.
    now
        The time of the run, with a zone: nothing may have become known after it.
    max_null_share
        Share of the rows in which an attribute may be null.
    """
    return _entities(
        "users", "user_id", dataset.users, dataset.user_attributes, now, max_null_share
    )


def raw_posts(
    dataset: Dataset, now: datetime, *, max_null_share: float = MAX_NULL_SHARE
) -> ExpectationSuite:
    """Return the suite of the raw posts' table; parameters as of `raw_users`."""
    return _entities(
        "posts", "post_id", dataset.posts, dataset.post_attributes, now, max_null_share
    )


def _entities(
    table: str,
    key: str,
    described: EntityTable | None,
    attributes: Sequence[Attribute],
    now: datetime,
    max_null_share: float,
) -> ExpectationSuite:
    # Without a time in the source, ingest derives it from the events, which have their own gate.
    dated = described is not None and described.created is not None
    columns = [key, *(["known_time"] if dated else []), *(a.name for a in attributes)]
    section = f"[{table}] of the dataset description"
    return ExpectationSuite(
        f"raw_{table}",
        expectations=v.flat(
            v.has_columns(columns, f"name the source's columns in {section}"),
            v.has_rows(2, table, f"add rows to the source, or check 'path' in {section}"),
            v.is_of_type(key, "string", f"check 'id' in {section}"),
            v.is_present(key, "remove these rows from the source or give them ids"),
            v.is_clean_id(key, "repair the ids in the source, in every table"),
            v.is_unique(key, f"keep one row for each of the {table} in the source"),
            _known_time(now, section) if dated else [],
            _texts(described, section) if isinstance(described, Posts) else [],
            *(_attribute(attribute, max_null_share, section) for attribute in attributes),
        ),
    )


def _known_time(now: datetime, section: str) -> list[Expectation]:
    column = "known_time"
    fix = f"check 'created' in {section}: its column, format and zone"
    return [
        v.is_of_type(column, v.TIME, fix),
        v.is_present(column, fix),
        v.lies_between(column, None, now, fix),
    ]


def _texts(posts: Posts, section: str) -> list[Expectation]:
    fix = f"repair the source, or check 'encoding' in {section}"
    columns = (("title", posts.title is not None), ("text", bool(posts.text)))
    return [v.is_clean_text(column, fix) for column, described in columns if described]


def _number(name: str) -> list[Expectation]:
    fix = "repair the source"
    return [v.is_finite(name, fix), v.lies_between(name, -v.LARGEST, v.LARGEST, fix)]


def _attribute(attribute: Attribute, max_null_share: float, section: str) -> list[Expectation]:
    name = attribute.name
    repair = f"repair the source, or check 'encoding' in {section}"
    drop = f"remove attribute '{name}' from {section}"
    return v.flat(
        v.is_of_type(name, _TYPES[attribute.type], f"check the attribute's 'type' in {section}"),
        v.is_present(name, f"fill it in the source or {drop}", max_null_share=max_null_share),
        v.varies(name, f"it tells nothing; {drop}"),
        _number(name) if attribute.type == "numeric" else [],
        v.is_clean_text(name, repair) if attribute.type == "categorical" else [],
    )

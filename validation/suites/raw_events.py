"""What events must be as they come from the source: who did what to which post, and when."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from great_expectations.core import ExpectationSuite
from great_expectations.expectations.expectation import Expectation

from feature_repo.dataset import Dataset
from validation.suites import vocabulary as v

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
"""Earlier times are not events of a feed but seconds read as milliseconds, or zeros."""

CLOCK_TOLERANCE = timedelta(days=1)
"""How far the source's clock, or a forgotten time zone, may run ahead of ours."""

MAX_REPEATED_SHARE = 0.01
"""Share of the rows that may repeat another before it is worth a warning."""

_TYPES = {
    "user_id": "string",
    "post_id": "string",
    "event_time": v.TIME,
    "action": "string",
    "value": "double",
    "is_impression": "bool",
    "is_positive": "bool",
    "weight": "double",
    "event_order": "int64",
}
_SECTION = "[events] of the dataset description"


def raw_events(
    dataset: Dataset,
    now: datetime,
    *,
    references: Collection[str] = (),
    is_addition: bool = False,
) -> ExpectationSuite:
    """Return the suite of the raw events' table.

    Parameters
    ----------
    dataset
        The description; says which events are positive and whether impressions are known.
    now
        The time of the run, with a zone: events may lie at most a day after it.
    references
        Which of ``users`` and ``posts`` are handed to the gate: events must be of theirs.
    is_addition
        Whether the table holds only what was added since an earlier ingest: there may then be
        little or nothing of it, and no labels of both kinds.
    """
    never_null = [column for column in _TYPES if column != "value"]
    return ExpectationSuite(
        "raw_events",
        expectations=v.flat(
            v.has_columns(list(_TYPES), f"name the source's columns in {_SECTION}"),
            [] if is_addition else _enough(),
            [v.is_of_type(c, kind, f"check '{c}' in {_SECTION}") for c, kind in _TYPES.items()],
            [v.is_present(c, "repair or remove these rows in the source") for c in never_null],
            v.lies_between(
                "event_time",
                EARLIEST,
                now + CLOCK_TOLERANCE,
                f"check 'time' in {_SECTION}: its column, format (epoch_s or epoch_ms?) and zone",
            ),
            v.is_clean_id("user_id", "repair the ids in the source, in every table"),
            v.is_clean_id("post_id", "repair the ids in the source, in every table"),
            _references(references),
            [] if is_addition else _labels(dataset),
            _numbers(dataset, is_addition=is_addition),
            v.are_unique_together(
                ["user_id", "post_id", "action", "event_time"],
                "ingest removes and counts them; if they are not mistakes, check 'time'",
                max_repeated_share=MAX_REPEATED_SHARE,
                severity="warn",
            ),
        ),
    )


def _enough() -> list[Expectation]:
    fix = "nothing can be learned from one; check '{}' in " + _SECTION
    return [
        v.has_rows(2, "events", f"add rows to the source, or check where it lies in {_SECTION}"),
        *(
            v.has_distinct(
                column,
                2,
                f"events must be {by} at least 2 {what} (distinct {column})",
                fix.format(column.removesuffix("_id")),
            )
            for column, by, what in (("user_id", "by", "users"), ("post_id", "of", "posts"))
        ),
    ]


def _references(references: Collection[str]) -> list[Expectation]:
    fix = "fix the source or pass --drop-orphans"
    tables = {"users": "user_id", "posts": "post_id"}
    return [v.exists_in(tables[name], name, tables[name], fix) for name in sorted(references)]


def _labels(dataset: Dataset) -> list[Expectation]:
    fix = f"check 'positive' in {_SECTION}"
    labels = [
        v.share_of_true(
            "is_positive",
            "some events must be positive (share of is_positive above 0)",
            fix,
            min_value=0,
            strict_min=True,
        )
    ]
    if not dataset.events.positive.every:
        labels.append(
            v.share_of_true(
                "is_positive",
                "not all events may be positive (share of is_positive below 1)",
                f"{fix}: it tells nothing apart",
                # Without impressions nothing but positives is learned from.
                severity="stop" if dataset.has_impressions else "warn",
                max_value=1,
                strict_max=True,
            )
        )
    return labels


def _numbers(dataset: Dataset, *, is_addition: bool) -> list[Expectation]:
    fix = "repair the source"
    numbers = [
        v.is_finite("value", fix),
        v.lies_between("value", -v.LARGEST, v.LARGEST, fix),
        v.is_finite("weight", fix),
        v.lies_between("weight", 0, None, f"check 'weight' in {_SECTION}"),
    ]
    if dataset.events.value is not None and not is_addition:
        numbers += [
            v.is_not_all_null("value", f"check 'value' in {_SECTION}"),
            v.varies("value", f"it tells nothing; remove 'value' from {_SECTION}", severity="warn"),
        ]
    return numbers

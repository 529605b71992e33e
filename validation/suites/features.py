"""What a feature table must be before Feast reads it: one row a key and time, values in range."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

import pyarrow as pa
from great_expectations.core import ExpectationSuite
from great_expectations.expectations.expectation import Expectation

from validation.suites import vocabulary as v

TIMESTAMP = "event_timestamp"
HORIZON = timedelta(days=29)
"""How long after the last event a value can still change: the longest sliding window, 28 days,
begins to lose the event at the midnight after it."""

_COUNT = re.compile(r"(^|_)count(_|$)")
_SHARE = re.compile(r"(^|_)(rate|share)(_|$)")


def features(
    view: str,
    schema: pa.Schema,
    keys: Sequence[str],
    last_event_time: datetime,
    *,
    horizon: timedelta = HORIZON,
) -> ExpectationSuite:
    """Return the suite of a feature table.

    Ranges follow from the names: ``*_count_*`` is not negative, ``*_rate_*`` and ``*_share_*`` lie
    in [0, 1], also as elements of lists.

    Parameters
    ----------
    view
        Name of the feature view; the gate is called ``features_<view>``.
    schema
        Schema the table must have: the keys, ``event_timestamp`` and the features.
    keys
        Entity columns.
    last_event_time
        Time of the dataset's last event, with a zone.
    horizon
        How long after it a value may become known.
    """
    step = f"see pipelines/features/{view}.py and the gate of the lake"
    columns = [name for name in schema.names if name not in (*keys, TIMESTAMP)]
    return ExpectationSuite(
        f"features_{view}",
        expectations=v.flat(
            v.has_columns([*keys, TIMESTAMP, *columns], step),
            v.has_rows(1, "row", step),
            v.is_of_type(TIMESTAMP, v.TIME, step),
            *([v.is_of_type(key, "int64", step), v.is_present(key, step)] for key in keys),
            v.is_present(TIMESTAMP, step),
            v.lies_between(TIMESTAMP, None, last_event_time + horizon, step),
            v.are_unique_together([*keys, TIMESTAMP], step),
            *(_feature(name, schema.field(name).type, step) for name in columns),
        ),
    )


def _feature(name: str, data_type: pa.DataType, step: str) -> list[Expectation]:
    in_lists = pa.types.is_list(data_type) or pa.types.is_large_list(data_type)
    number_type = data_type.value_type if in_lists else data_type
    is_real = pa.types.is_floating(number_type)
    is_number = is_real or pa.types.is_integer(number_type)
    bounds: tuple[float, float | None] | None = None
    if _SHARE.search(name):
        bounds = (0.0, 1.0)
    elif _COUNT.search(name):
        bounds = (0.0, None)
    return v.flat(
        v.is_not_all_null(name, f"{step}, or leave the feature out"),
        v.is_finite(name, step) if is_real else [],
        v.lies_between(name, *bounds, step, in_lists=in_lists) if bounds and is_number else [],
    )

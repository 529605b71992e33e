"""What a model must be before it is published: better than popularity, not worse than the last."""

from collections.abc import Mapping

import great_expectations.expectations as gxe
import pyarrow as pa
from great_expectations.core import ExpectationSuite
from great_expectations.expectations.expectation import Expectation

from validation.expectations import expect
from validation.suites import vocabulary as v

TOLERANCE = 0.10
"""How much of the published model's metric may be lost, as a share."""

_PUBLISHED_LEAST = "published_least"
_POPULARITY = "popularity"
_USERS = "evaluated_users"


def model_table(
    metrics: Mapping[str, float | None],
    *,
    metric: str,
    popularity: Mapping[str, float | None],
    evaluated_users: int,
    published: Mapping[str, float | None] | None = None,
    tolerance: float = TOLERANCE,
) -> pa.Table:
    """Return what the model's gate judges, as a table of one row.

    Parameters
    ----------
    metrics
        The ranked list's metrics by name; None and NaN are refused by the gate.
    metric
        The metric that decides, such as ``ndcg@10``; higher is better.
    popularity
        The popularity list's metrics on the same users.
    evaluated_users
        Users that the metrics are means over.
    published
        Metrics of the last published bundle; None if there is none.
    tolerance
        How much of its metric may be lost, as a share.

    Returns
    -------
    pa.Table
        One double column a metric of `metrics`; ``popularity`` double: the popularity list's
        `metric`; ``published_least`` double: the least that is as good as published, null if
        nothing is published; ``evaluated_users`` int64.
    """
    before = None if published is None else published.get(metric)
    row = {
        **metrics,
        _POPULARITY: popularity.get(metric),
        _PUBLISHED_LEAST: None if before is None else before * (1 - tolerance),
    }
    columns = {name: pa.array([value], pa.float64()) for name, value in row.items()}
    return pa.table({**columns, _USERS: pa.array([evaluated_users], pa.int64())})


def model(table: pa.Table, *, metric: str, least_users: int = 1) -> ExpectationSuite:
    """Return the suite of a model that is about to be published.

    Parameters
    ----------
    table
        `model_table`'s; says which metrics there are.
    metric
        The metric that decides.
    least_users
        The fewest evaluated users that metrics may be means over.
    """
    step = "nothing was published; see the evaluation report"
    own = [
        name for name in table.column_names if name not in (_POPULARITY, _PUBLISHED_LEAST, _USERS)
    ]
    return ExpectationSuite(
        "model",
        expectations=v.flat(
            v.has_columns([metric, _POPULARITY, _USERS], step),
            v.lies_between(_USERS, least_users, None, f"no user to evaluate on; {step}"),
            *([v.is_present(name, step), v.is_finite(name, step)] for name in own),
            v.is_present(_POPULARITY, step),
            _exceeds(
                metric, _POPULARITY, f"{metric} must be better than the popularity list's", step
            ),
            _exceeds(
                metric,
                _PUBLISHED_LEAST,
                f"{metric} must not fall below the published model's, less the tolerance",
                step,
                or_equal=True,
            ),
        ),
    )


def _exceeds(a: str, b: str, says: str, fix: str, *, or_equal: bool = False) -> Expectation:
    return expect(
        gxe.ExpectColumnPairValuesAToBeGreaterThanB,
        says=says,
        fix=fix,
        column_A=a,
        column_B=b,
        or_equal=or_equal,
        ignore_row_if="either_value_is_missing",
    )

"""What must hold before the pointer is flipped: the bundle's files, its lists, the online rows."""

from collections.abc import Sequence

import great_expectations.expectations as gxe
from great_expectations.core import ExpectationSuite

from validation.expectations import expect
from validation.suites import vocabulary as v

_STEP = "nothing was published; run `feastrank run` again"


def bundle_files() -> ExpectationSuite:
    """Return the suite of a staged bundle's files.

    One row a file that the bundle needs or has: ``file`` string, ``bytes`` int64, ``as_listed``
    bool (its checksum is the manifest's), ``posts`` int64 (vectors of an index, else null),
    ``posts_expected`` int64 (the least and most it may hold, else null).
    """
    return ExpectationSuite(
        "bundle_files",
        expectations=v.flat(
            v.has_columns(["file", "bytes", "as_listed", "posts", "posts_expected"], _STEP),
            v.is_unique("file", _STEP),
            v.lies_between("bytes", 1, None, f"the file is missing or empty; {_STEP}"),
            expect(
                gxe.ExpectColumnValuesToBeInSet,
                says="every file must be as its manifest lists it (sha256)",
                fix=f"it changed while it was staged: check the disk; {_STEP}",
                column="as_listed",
                value_set=[True],
            ),
            expect(
                gxe.ExpectColumnPairValuesAToBeGreaterThanB,
                says="an index must hold every post that it was made of",
                fix=_STEP,
                column_A="posts",
                column_B="posts_expected",
                or_equal=True,
                ignore_row_if="both_values_are_missing",
            ),
        ),
    )


def bundle_lists(sources: Sequence[str], users: int) -> ExpectationSuite:
    """Return the suite of a generation's candidate lists, read back from Redis.

    One row a user: ``user_id`` int64, ``posts`` int64 (over all sources), ``repeated`` int64
    (posts that come twice in one source's list), ``unknown`` int64 (posts that the bundle has
    not), ``not_finite`` int64 (scores).

    Parameters
    ----------
    sources
        The candidate sources.
    users
        How many users the lake has: each must have lists.
    """
    fix = f"see the sources {', '.join(sources)}; {_STEP}"
    return ExpectationSuite(
        "bundle_lists",
        expectations=v.flat(
            v.has_rows(users, "users with candidate lists in Redis", _STEP),
            v.is_unique("user_id", _STEP),
            v.exists_in("user_id", "users", "user_id", _STEP),
            v.lies_between("posts", 1, None, fix),
            *(v.lies_between(c, 0, 0, fix) for c in ("repeated", "unknown", "not_finite")),
        ),
    )


def online() -> ExpectationSuite:
    """Return the suite of the rows in the online store, read back after materialization.

    One row a view: ``view`` string, ``rows_expected`` and ``rows_online`` int64 (entities with a
    row), ``values_compared`` and ``values_different`` int64 (of a sample of entities, read as
    serving reads them), ``first_difference`` string or null.
    """
    fix = "run `feastrank materialize` again; if it stays, compare the view's feature table"
    return ExpectationSuite(
        "online",
        expectations=v.flat(
            v.has_rows(1, "view", fix),
            expect(
                gxe.ExpectColumnPairValuesAToBeGreaterThanB,
                says="no entity of a feature table may lack its row online",
                fix=fix,
                column_A="rows_online",
                column_B="rows_expected",
                or_equal=True,
            ),
            expect(
                gxe.ExpectColumnValuesToBeBetween,
                says="served values must equal the feature tables' latest rows",
                fix=fix,
                column="values_different",
                min_value=0,
                max_value=0,
            ),
        ),
    )

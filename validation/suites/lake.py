"""What the lake must be before features are computed of it: whole, and every event in its place."""

import great_expectations.expectations as gxe
from great_expectations.core import ExpectationSuite

from validation.expectations import expect
from validation.suites import vocabulary as v

_FIX = (
    "restore the lake from a copy, or remove its folder and run `feastrank ingest` on the whole "
    "source"
)


def lake() -> ExpectationSuite:
    """Return the suite of the lake.

    One row a file: ``file`` string, ``readable`` bool, and of files of events ``misplaced`` int64
    (rows of another month than the folder's, or without a time) and ``unknown`` int64 (rows whose
    user or post has no row). Then one row each for ``users``, ``posts`` and ``events``: ``surplus``
    int64, by how many rows the table is longer than the ingest left it, negative if it is shorter.
    What a row is not about is null.
    """
    return ExpectationSuite(
        "lake",
        expectations=v.flat(
            v.has_columns(["file", "readable", "misplaced", "unknown", "surplus"], _FIX),
            v.is_unique("file", _FIX),
            expect(
                gxe.ExpectColumnValuesToBeInSet,
                says="every file must be readable",
                fix=_FIX,
                column="readable",
                value_set=[True],
            ),
            *(v.lies_between(c, 0, 0, _FIX) for c in ("misplaced", "unknown", "surplus")),
        ),
    )

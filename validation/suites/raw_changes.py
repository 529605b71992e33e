"""How far a source may differ from what the lake knows of it."""

from collections.abc import Sequence

import great_expectations.expectations as gxe
import pyarrow as pa
from great_expectations.core import ExpectationSuite

from validation.changes import Change
from validation.expectations import Severity, expect


def changes_table(changes: Sequence[Change]) -> pa.Table:
    """Return the measures as a table of one row, a double column each."""
    return pa.table({one.measure: pa.array([one.value], pa.float64()) for one in changes})


def raw_changes(changes: Sequence[Change], severity: Severity = "stop") -> ExpectationSuite:
    """Return the suite of `changes_table`: every measure within its bounds."""
    return ExpectationSuite(
        "raw_changes",
        expectations=[
            expect(
                gxe.ExpectColumnMaxToBeBetween,
                says=one.says,
                fix=one.fix,
                severity=severity,
                column=one.measure,
                min_value=one.least,
                max_value=one.most,
            )
            for one in changes
            if one.least is not None or one.most is not None
        ],
    )

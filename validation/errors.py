"""The error tree of the gates.

::

    ValidationError
    ├── GateFailure           a table broke an expectation of severity "stop"; carries the result
    ├── MeasuringError        a table that memory does not suffice for, even with spilling to disk
    ├── UnreadableTableError  a table that cannot be read: missing, truncated, not parquet
    ├── LeakageError          the future, or the answer, reaches what the ranker learns from
    ├── DriftError            features that drifted further than their thresholds allow
    ├── SkewError             served features that are not those of the offline store
    └── SuiteError            a suite that cannot be judged: an expectation type or a severity
                              that gates do not know, a reference table that was not handed over
"""


class ValidationError(Exception):
    """Base of every error that the gates raise on purpose."""


class UnreadableTableError(ValidationError):
    """A table that cannot be read: missing, truncated, or not parquet."""


class MeasuringError(ValidationError):
    """A table that memory does not suffice for, even with spilling to disk."""


class SuiteError(ValidationError):
    """A suite that cannot be judged as it is written."""

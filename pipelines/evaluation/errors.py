"""Errors of the evaluation, a branch of the pipelines' tree.

::

    PipelineError
    └── EvaluationError      what was handed in cannot be evaluated (also a ValueError)
        ├── SplitError       the events do not allow the split asked for
        └── MetricsError     lists, relevant posts or values by user are malformed
"""

from pipelines.errors import PipelineError


class EvaluationError(PipelineError, ValueError):
    """What was handed in cannot be evaluated; the message says what to do next."""


class SplitError(EvaluationError):
    """The events do not allow the split asked for: too few, or too few distinct times."""


class MetricsError(EvaluationError):
    """A recommended list, the relevant posts or values by user are malformed."""

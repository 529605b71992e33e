"""Errors of the evaluation.

EvaluationError          what was handed in cannot be evaluated
├── SplitError           the events do not allow the split asked for
└── MetricsError         a list, the relevant posts or per-user values are malformed
"""


class EvaluationError(ValueError):
    """What was handed in cannot be evaluated; the message says what to do next."""


class SplitError(EvaluationError):
    """The events do not allow the split asked for: too few, or too few distinct times."""


class MetricsError(EvaluationError):
    """A recommended list, the relevant posts or per-user values are malformed."""

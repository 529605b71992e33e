"""The error tree of the pipelines.

::

    PipelineError
    ├── InteractionsError   events that no candidate generator can learn from (also a ValueError)
    ├── GeneratorError      a generator asked wrongly, not fitted, or unreadable on disk
    └── RankerTrainingError a training set or settings that no ranker can learn from
                            (also a ValueError)
"""


class PipelineError(Exception):
    """Base of every error that the pipelines raise on purpose."""


class InteractionsError(PipelineError, ValueError):
    """Events that no candidate generator can learn from: empty, null, NaN or negative."""


class GeneratorError(PipelineError):
    """A candidate generator that is asked wrongly, not fitted, or unreadable on disk."""


class RankerTrainingError(PipelineError, ValueError):
    """A training set or settings that no ranker can learn from."""

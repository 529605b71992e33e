"""The error tree of the pipelines.

::

    PipelineError
    ├── FetchError          a dataset's files cannot be obtained, or are not the expected ones
    ├── IngestError         a dataset that cannot be brought into the lake
    │   ├── SourceError     a source file is missing, empty, damaged or not as described
    │   ├── LakeError       rows that the lake cannot hold, or a lake that is in use or damaged
    │   ├── DrainError      events that cannot be moved out of Redis now
    │   └── ProposalError   files from which no dataset description can be guessed
    ├── MomentsError        moments that nothing can be recommended for
    ├── WriteBackError      rows that cannot be written to a table of a database
    ├── EvaluationError     in pipelines.evaluation.errors: splits and metrics
    ├── InteractionsError   events that no candidate generator can learn from (also a ValueError)
    ├── GeneratorError      a generator asked wrongly, not fitted, or unreadable on disk
    ├── RankerTrainingError a training set or settings that no ranker can learn from
    │                       (also a ValueError)
    ├── TuningError         a search for settings that found none
    ├── FeatureError        features that cannot be computed
    ├── ShardError          a process that did a part of the work was killed
    ├── ConversionError     a table of posts from which no conversion can be learned
    ├── BusyError           another run changes the same state; try again when it has ended
    │   └── PublishedElsewhereError  another machine has published since this one last looked
    ├── StorageError        object storage that does not answer, refuses, or holds damaged files
    ├── SimulationError     a feed that cannot be simulated, or whose truth cannot be read
    └── MissingStepError    a step whose forerunner has not been run
"""


class PipelineError(Exception):
    """Base of every error that the pipelines raise on purpose."""


class BusyError(PipelineError):
    """Another run changes the same state; the same command may be tried again later."""


class PublishedElsewhereError(BusyError):
    """Another state folder has published to the same object storage; nothing was changed there."""


class StorageError(PipelineError):
    """Object storage that does not answer, refuses, or holds something else than was written."""


class FetchError(PipelineError):
    """A dataset's files cannot be obtained, or are not the expected ones."""


class IngestError(PipelineError):
    """A dataset that cannot be brought into the lake."""


class SourceError(IngestError):
    """A source file is missing, empty, damaged or not as the description says."""


class LakeError(IngestError):
    """Rows that the lake cannot hold, or a lake that is in use or damaged."""


class DrainError(IngestError):
    """Events that cannot be moved out of Redis now."""


class ProposalError(IngestError):
    """Files from which no dataset description can be guessed."""


class MomentsError(PipelineError):
    """Moments that nothing can be recommended for, or a dataset without impressions."""


class WriteBackError(PipelineError):
    """Rows that cannot be written to a table of a database; it is left as it was."""


class InteractionsError(PipelineError, ValueError):
    """Events that no candidate generator can learn from: empty, null, NaN or negative."""


class GeneratorError(PipelineError):
    """A candidate generator that is asked wrongly, not fitted, or unreadable on disk."""


class RankerTrainingError(PipelineError, ValueError):
    """A training set or settings that no ranker can learn from."""


class TuningError(PipelineError):
    """A search for settings that found none."""


class FeatureError(PipelineError):
    """Features that cannot be computed, such as from a text encoder that does not load."""


class ShardError(PipelineError):
    """A process that did a shard of the work was killed; what is finished is kept."""


class MissingStepError(PipelineError):
    """A step that needs the result of another one, which has not been run."""


class SimulationError(PipelineError):
    """A feed that cannot be simulated as asked, or whose truth cannot be read."""


class ConversionError(PipelineError):
    """A table of posts from which no conversion can be learned: columns or counts are wrong."""

"""The error tree of serving.

::

    ServingError
    ├── RankerError         a ranker's file or its input does not fit
    ├── MissingOpenMPError  the OpenMP runtime that LightGBM and implicit need is nowhere
    ├── ContractError       features and model do not agree on the ranker's inputs
    ├── NotAssembledError   the inputs need the general way, through a table of columns
    ├── ApiKeysError        the list of API keys is not as described
    ├── NotReadyError       the service runs, and no bundle could be opened yet
    ├── BundleError         no published bundle, or one that is damaged
    ├── UnknownIdError      a user or post that the bundle does not know
    ├── OnlineStateError    lists or features that Redis should hold could not be read
    ├── IndexUnavailableError  the index of post vectors is missing or damaged
    ├── RulesError          the declared rules cannot be read, or the bundle lacks their data
    └── EventsRefusedError  events cannot be kept now; whoever sent them may try again
"""


class ServingError(Exception):
    """Base of every error that serving raises on purpose."""


class RankerError(ServingError):
    """A ranker's file cannot be read, or its input does not fit the model."""


class MissingOpenMPError(ServingError):
    """The OpenMP runtime (libgomp) that LightGBM and implicit need is nowhere to be found."""


class ContractError(ServingError):
    """Features and model do not agree on the ranker's inputs."""


class NotAssembledError(ServingError):
    """The ranker's inputs cannot be assembled from packed rows alone."""


class ApiKeysError(ServingError):
    """The list of API keys cannot be read; the message never shows a key."""


class NotReadyError(ServingError):
    """The service runs, and no bundle could be opened yet; it goes on looking."""


class BundleError(ServingError):
    """There is no published bundle, or it is damaged."""


class UnknownIdError(ServingError):
    """A user or post id that the published bundle does not know."""


class OnlineStateError(ServingError):
    """Lists or features that Redis should hold could not be read.

    Parameters
    ----------
    reason
        A word for answers and metrics: ``lists_unavailable``, ``lists_damaged``,
        ``features_unavailable`` or ``stale_<view>``.
    message
        What failed.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class IndexUnavailableError(ServingError):
    """The index of post vectors is missing or damaged; exact search takes its place."""


class RulesError(ServingError):
    """The declared rules cannot be read, or need what the bundle does not have."""


class EventsRefusedError(ServingError):
    """Events cannot be kept now, so none of them was accepted; whoever sent them may try again.

    Parameters
    ----------
    reason
        A word for answers and metrics: ``events_full`` or ``events_unavailable``.
    message
        What failed.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

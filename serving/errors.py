"""The error tree of serving.

::

    ServingError
    ├── RankerError         a ranker's file or its input does not fit
    └── MissingOpenMPError  the OpenMP runtime that LightGBM and implicit need is nowhere
"""


class ServingError(Exception):
    """Base of every error that serving raises on purpose."""


class RankerError(ServingError):
    """A ranker's file cannot be read, or its input does not fit the model."""


class MissingOpenMPError(ServingError):
    """The OpenMP runtime (libgomp) that LightGBM and implicit need is nowhere to be found."""

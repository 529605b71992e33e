"""The error tree of feastpack.

::

    FeastpackError
    ├── EmbeddedRedisError      the embedded Redis server cannot be started, reached or stopped
    ├── ConnectionStringError   a connection string that names no Redis (also a ValueError)
    ├── RowFormatError          stored bytes that are not a packed row of this library
    │   └── UnknownSchemaError  a packed row whose schema has not been looked up yet
    ├── SchemaError             a feature view or a table that cannot be packed (also a ValueError)
    ├── RequestError            a read that names unknown things or has the wrong types
    │                           (also a ValueError)
    ├── OnlineStoreError        Redis failed or refused while we talked to it
    ├── OfflineStoreError       DuckDB failed or refused a query or a setting
    ├── SparkError              Spark cannot be started or reached, or gave up a task
    └── UnsupportedError        asked for something this store does not do
                                (also a NotImplementedError)
"""

from __future__ import annotations


class FeastpackError(Exception):
    """Base of every error that feastpack raises on purpose."""


class EmbeddedRedisError(FeastpackError):
    """The embedded Redis server cannot be started, reached or stopped."""


class ConnectionStringError(FeastpackError, ValueError):
    """A connection string that names no Redis."""


class RowFormatError(FeastpackError):
    """Stored bytes that are not a packed row written by this library."""


class UnknownSchemaError(RowFormatError):
    """A packed row written under a schema that is not among those given."""


class SchemaError(FeastpackError, ValueError):
    """A feature view or table that cannot be packed: missing column, wrong type."""


class RequestError(FeastpackError, ValueError):
    """A read that names unknown features or entities, or passes values of a wrong type."""


class OnlineStoreError(FeastpackError):
    """Redis failed, was unreachable, or refused a command."""


class OfflineStoreError(FeastpackError):
    """DuckDB failed, or refused a query or a setting."""


class SparkError(FeastpackError):
    """Spark cannot be started or reached, or a task failed as often as it may."""


class UnsupportedError(FeastpackError, NotImplementedError):
    """A part of Feast's interface that this store does not offer."""

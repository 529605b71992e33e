"""One connection to PostgreSQL: what a table or query holds, and its rows as Arrow batches.

The ADBC driver decodes PostgreSQL's binary COPY straight into Arrow. Every error of it is
translated here, and none shows the connection's password.
"""

import difflib
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.types as pt
from adbc_driver_manager import Error as DriverError
from adbc_driver_postgresql import StatementOptions, dbapi

from feature_repo.dataset import Source
from pipelines.datasets.expressions import quoted
from pipelines.errors import SourceError

CONNECT_SECONDS = 10
_BATCH_BYTES = 4 << 20
_TYPE = b"POSTGRESQL:type"
_URI = re.compile(r"postgres(ql)?://", re.IGNORECASE)
_PASSWORDS = (
    re.compile(r"//[^/?@:]*:(.*)@"),
    re.compile(r"(?i)\bpassword\s*=\s*'((?:[^'\\]|\\.)*)'"),
    re.compile(r"(?i)\b(?:ssl)?password\s*=\s*([^\s&']+)"),
)
# Of libpq's complaints these cite no part of the connection's text beyond host, user and database.
_SAFE = ("connection to server", "could not translate host name", "no connection to the server")
_LOST = re.compile(
    r"terminating connection|no connection to the server|closed the connection|connection reset|"
    r"could not (receive|send) data|connection (has been )?(lost|closed)|SSL SYSCALL|57P0|\[08",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Relation:
    """A table, view or query that rows can be selected from.

    Attributes
    ----------
    label
        What messages call it.
    sql
        What stands behind FROM.
    schema
        Its columns as the driver gives them.
    """

    label: str
    sql: str
    schema: pa.Schema

    @property
    def types(self) -> dict[str, str]:
        """Each column's type as PostgreSQL names it, such as int8 or timestamptz."""
        return {one.name: (one.metadata or {}).get(_TYPE, b"").decode() for one in self.schema}

    def select(self, columns: Sequence[str]) -> str:
        """Return a SELECT of columns, without FROM, in types that `expressions` can read.

        What has no type of its own in Arrow (uuid, numeric, json, enum …) comes as text.
        """
        types = self.types
        parts = []
        for name in columns:
            column, kind = quoted(name), self.schema.field(name).type
            parts.append(f"{_readable(column, kind, types[name])} AS {column}")
        return f"SELECT {', '.join(parts)}"


class Database:
    """One connection, in which everything is read from one snapshot and nothing can be written.

    Parameters
    ----------
    variable
        The environment variable that holds the connection: a URI such as
        ``postgresql://user:password@host:5432/database``, or libpq's ``host=… user=…``.

    Raises
    ------
    SourceError
        If the variable is not set, or no connection can be made with its value.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._connection = connect(variable)
        with self._translated("the connection"), self._connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            # Else a large table's scan may begin in its middle, where another reader is.
            cursor.execute("SET LOCAL synchronize_seqscans = off")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        with suppress(DriverError):  # a connection that is lost already cannot be rolled back
            self._connection.close()

    def rows(self, sql: str, *parameters: Any, label: str = "PostgreSQL") -> list[Any]:
        """Run a query for a few rows."""
        with self._translated(label), self._connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            found: list[Any] = cursor.fetchall()
        return found

    def relation(self, source: Source, table: str) -> Relation:
        """Return what a description's table reads from.

        Raises
        ------
        SourceError
            If there is no such table, or the query is not valid.
        """
        if source.query is not None:
            label = f"{table}: the query"
            sql = f"({source.query.strip().rstrip(';')}\n) AS source"
        else:
            assert source.table is not None
            sql = self._table(source.table, table)
            label = f"{table}: table {sql}"
        with self._translated(label), self._connection.cursor() as cursor:
            schema = cursor.adbc_execute_schema(f"SELECT * FROM {sql}")
        return Relation(label, sql, schema)

    def batches(self, sql: str, label: str) -> Generator[pa.RecordBatch, None, None]:
        """Yield the rows of a SELECT in batches of about 4 MiB.

        Raises
        ------
        SourceError
            If the SELECT fails, or the connection is lost before its end.
        """
        done = 0
        with self._connection.cursor() as cursor:
            size = {StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(_BATCH_BYTES)}
            cursor.adbc_statement.set_options(**size)
            with self._translated(label):
                cursor.execute(sql)
                reader = cursor.fetch_record_batch()
            while True:
                with self._translated(label, f" after {done:,} rows"):
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                done += batch.num_rows
                yield batch

    def estimate(self, sql: str, label: str) -> int:
        """Return about how many rows a SELECT has, by the planner's statistics; at least 1."""
        with self._translated(label), self._connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{StatementOptions.USE_COPY.value: False})
            cursor.execute(f"EXPLAIN {sql}")
            (line,) = cursor.fetchall()[0]
        found = re.search(r"rows=(\d+)", line)
        return max(int(found[1]), 1) if found else 1

    def _table(self, name: str, table: str) -> str:
        qualified = "format('%I.%I', nspname, relname)"
        relations = (
            f"SELECT {qualified} FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        )
        label = f"{table}.table = '{name}'"
        found = self.rows(f"{relations} WHERE pg_class.oid = to_regclass($1)", name, label=label)
        if found:
            return str(found[0][0])
        there = self.rows(
            f"{relations} WHERE relkind IN ('r', 'p', 'v', 'm', 'f') "
            "AND nspname NOT IN ('pg_catalog', 'information_schema')"
        )
        names = [one for (one,) in there]
        near = difflib.get_close_matches(name, names + [one.split(".")[-1] for one in names], 1)
        hint = f"did you mean '{near[0]}'?" if near else f"correct {table}.table in the description"
        raise SourceError(
            f"{table}: no table '{name}' in the database that {self.variable} leads to (or not in "
            f"its search_path); {hint}"
        )

    @contextmanager
    def _translated(self, label: str, when: str = "") -> Iterator[None]:
        try:
            yield
        except (DriverError, pa.ArrowException, OSError) as error:
            text = _plain(str(error))
            state = getattr(error, "sqlstate", None) or ""
            if _LOST.search(f"{text} [{state}]"):
                raise SourceError(
                    f"{label}: the connection to PostgreSQL was lost{when} ({text}); nothing was "
                    "written; run the same command again"
                ) from error
            if state == "42501":
                raise SourceError(
                    f"{label}: {text}; GRANT SELECT on it to the user in {self.variable}"
                ) from error
            raise SourceError(f"{label}: {text}; correct the description or the table") from error


def connect(variable: str) -> dbapi.Connection:
    """Connect with what an environment variable holds.

    Raises
    ------
    SourceError
        As `Database`. No message shows the password.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SourceError(
            f"the environment variable {variable} is not set; it must hold the connection, such as "
            "postgresql://user:password@host:5432/database"
        )
    try:
        return dbapi.connect(_with_timeout(value))
    except DriverError as error:
        text = _plain(str(error))
        text = text.removeprefix("Failed to connect: ")
        if not text.startswith(_SAFE):
            raise SourceError(
                f"the environment variable {variable} holds no connection that PostgreSQL "
                "understands; expected such as postgresql://user:password@host:5432/database, "
                "with signs such as @ : / % in a password written as %40 %3A %2F %25"
            ) from None
        for password in _passwords(value):
            text = text.replace(password, "***")
        raise SourceError(
            f"no connection to PostgreSQL: {text}; {_advice(text, variable)}"
        ) from None


def _with_timeout(value: str) -> str:
    """Add a limit to how long the first answer is waited for, unless there is one."""
    if "connect_timeout" in value:
        return value
    if not _URI.match(value):
        return f"{value} connect_timeout={CONNECT_SECONDS}"
    return f"{value}{'&' if '?' in value else '?'}connect_timeout={CONNECT_SECONDS}"


def _passwords(value: str) -> list[str]:
    found = [one for pattern in _PASSWORDS for one in pattern.findall(value)]
    found += [unquote(one) for one in found]
    return sorted({one for one in found if one}, key=len, reverse=True)


def _advice(text: str, variable: str) -> str:
    if "password" in text or "authentication" in text or "role" in text:
        return f"correct the user and password in {variable}"
    if "database" in text and "does not exist" in text:
        return f"correct the database's name in {variable}"
    return f"is the server running, and are host and port in {variable} right?"


def _plain(text: str) -> str:
    """Return a driver's message on one line, without its own prefixes and the query."""
    text = text.split("\n\nQuery was:")[0].split("\nLINE ")[0]
    text = re.sub(r"\. SQLSTATE: \w+$", "", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"^[A-Z_]+: (?=\[libpq\]|Failed)", "", text).removeprefix("[libpq] ")
    text = re.sub(r"^(Failed to \w+ query|Execution error \[\w+\])( '.*')?: ", "", text)
    text = re.sub(r"^(could not begin COPY: )?(ERROR|FATAL): ", "", text)
    return text.rstrip(". ")


def _readable(sql: str, kind: pa.DataType, name: str) -> str:
    """Return a column, cast to text if Arrow or `expressions` has no type for it."""
    if name == "money":
        return f"CAST(CAST({sql} AS numeric) AS text)"
    if pt.is_list(kind) and not _is_plain(kind.value_type):
        return f"CAST({sql} AS text[])"
    return sql if pt.is_list(kind) or _is_plain(kind) else f"CAST({sql} AS text)"


def _is_plain(kind: pa.DataType) -> bool:
    return not isinstance(kind, pa.BaseExtensionType) and not pt.is_interval(kind)

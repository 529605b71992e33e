"""One connection to PostgreSQL: what a table or query holds, and its rows as Arrow batches.

The ADBC driver decodes PostgreSQL's binary COPY straight into Arrow. Every error of it is
translated here, and none shows the connection's password.
"""

import difflib
import os
import queue
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import unquote

import adbc_driver_postgresql
import pyarrow as pa
import pyarrow.types as pt

# Not the driver's DB-API: it imports pandas, which needs more memory than the reading.
from adbc_driver_manager import AdbcConnection, AdbcStatement
from adbc_driver_manager import Error as DriverError
from adbc_driver_postgresql import StatementOptions

from feature_repo.dataset import Source
from pipelines.datasets.expressions import literal, quoted
from pipelines.errors import PipelineError, SourceError

CONNECT_SECONDS = 10
# Types that hold the same values in more or fewer bytes: a change among them changes no meaning.
ALIKE = (
    {"int2", "int4", "int8"},
    {"float4", "float8"},
    {"text", "varchar", "bpchar", "name"},
)
_BATCH_BYTES = 2 << 20
_AHEAD = 2
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
        self._driver = connect(variable)
        self.connection = self._driver.connection
        with self.translated("the connection"):
            self.connection.set_autocommit(False)
            for setting in (
                "TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
                # Else a large table's scan may begin in its middle, where another reader is.
                "LOCAL synchronize_seqscans = off",
                "LOCAL standard_conforming_strings = on",
            ):
                self._driver.run(f"SET {setting}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._driver.close()

    def rows(self, sql: str, label: str = "PostgreSQL") -> list[tuple[Any, ...]]:
        """Run a query for a few rows."""
        tables = [batch.to_pylist() for batch in self.batches(sql, label)]
        return [tuple(row.values()) for rows in tables for row in rows]

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
        with self.translated(label), closing(self._driver.statement()) as statement:
            statement.set_sql_query(f"SELECT * FROM {sql}")
            schema = pa.schema(statement.execute_schema())
        return Relation(label, sql, schema)

    def batches(self, sql: str, label: str) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a SELECT in batches of about 2 MiB, which a thread fetches ahead.

        Raises
        ------
        SourceError
            If the SELECT fails, or the connection is lost before its end.
        """
        size = {StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(_BATCH_BYTES)}
        with closing(self._driver.statement(**size)) as statement:
            yield from _fetched_ahead(self._fetch(statement, sql, label), statement)

    def estimate(self, sql: str, label: str) -> int:
        """Return about how many rows a SELECT has, by the planner's statistics; at least 1."""
        # COPY, the driver's own way to send rows, knows no EXPLAIN.
        options = {StatementOptions.USE_COPY.value: "false"}
        with self.translated(label), closing(self._driver.statement(**options)) as statement:
            statement.set_sql_query(f"EXPLAIN {sql}")
            handle, _ = statement.execute_query()
            plan = pa.RecordBatchReader.from_stream(handle).read_all()
        found = re.search(r"rows=(\d+)", plan[0][0].as_py())
        return max(int(found[1]), 1) if found else 1

    def _fetch(
        self, statement: AdbcStatement, sql: str, label: str
    ) -> Generator[pa.RecordBatch, None, None]:
        done = 0
        with self.translated(label):
            statement.set_sql_query(sql)
            handle, _ = statement.execute_query()
            reader = pa.RecordBatchReader.from_stream(handle)
        with reader:
            while True:
                with self.translated(label, f" after {done:,} rows"):
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                done += batch.num_rows
                yield batch

    def _table(self, name: str, table: str) -> str:
        qualified = "format('%I.%I', nspname, relname)"
        relations = (
            f"SELECT {qualified} FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        )
        label = f"{table}.table = '{name}'"
        found = self.rows(f"{relations} WHERE pg_class.oid = to_regclass({literal(name)})", label)
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

    def translated(self, label: str, when: str = "") -> AbstractContextManager[None]:
        """Turn the driver's errors into `SourceError` that says where and what to do."""
        return translated(
            label,
            SourceError,
            when=when,
            denied=f"GRANT SELECT on it to the user in {self.variable}",
            otherwise="correct the description or the table",
        )


@contextmanager
def translated(
    label: str, kind: type[PipelineError], *, denied: str, otherwise: str, when: str = ""
) -> Iterator[None]:
    """Turn the driver's errors into one of ours.

    Parameters
    ----------
    label, when
        Where it happened, and when: "events: table public.feed_data", " after 7 rows".
    denied, otherwise
        What to do if a right is missing, and in any other case.
    """
    try:
        yield
    except (DriverError, pa.ArrowException, OSError) as error:
        text = _plain(str(error))
        state = getattr(error, "sqlstate", None) or ""
        if _LOST.search(f"{text} [{state}]"):
            raise kind(
                f"{label}: the connection to PostgreSQL was lost{when} ({text}); nothing was "
                "written; run the same command again"
            ) from error
        raise kind(f"{label}: {text}; {denied if state == '42501' else otherwise}") from error


class Driver:
    """The driver's handles of one connection, which must be closed in order."""

    def __init__(self, uri: str) -> None:
        self._database = adbc_driver_postgresql.connect(uri)
        try:
            self.connection = AdbcConnection(self._database)
        except DriverError:
            self._database.close()
            raise

    def statement(self, **options: str) -> AdbcStatement:
        """Return a new statement; it must be closed before the connection."""
        statement = AdbcStatement(self.connection)
        statement.set_options(**options)
        return statement

    def run(self, sql: str) -> int:
        """Run a statement that returns no rows; return how many it changed, -1 if not known."""
        with closing(self.statement()) as statement:
            statement.set_sql_query(sql)
            changed: int = statement.execute_update()
        return changed

    def close(self) -> None:
        """Give the connection back; what was not committed is undone."""
        with suppress(DriverError):  # a connection that is lost already cannot be rolled back
            self.connection.close()
        self._database.close()


def connect(variable: str) -> Driver:
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
        return Driver(_with_timeout(value))
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


def _fetched_ahead(
    items: Generator[pa.RecordBatch, None, None], statement: AdbcStatement
) -> Iterator[pa.RecordBatch]:
    """Yield what a thread works off, a few ahead; if no more is asked for, cancel the statement."""
    ready: queue.Queue[Any] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    put((item, None))
                    if stopped.is_set():
                        return
            put((None, None))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            put((None, error))

    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    is_done = False
    try:
        while not is_done:
            item, error = ready.get()
            is_done = item is None
            if error is not None:
                raise error
            if item is not None:
                yield item
    finally:
        stopped.set()
        if not is_done:
            with suppress(DriverError):
                statement.cancel()
        thread.join()

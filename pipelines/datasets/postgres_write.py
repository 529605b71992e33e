"""Tables of PostgreSQL that are written: one transaction, so that all rows arrive or none does.

Rows travel as Arrow batches in PostgreSQL's binary COPY. No message shows a password.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.types as pt
from adbc_driver_manager import StatementOptions as Option

from pipelines.datasets.expressions import literal, quoted
from pipelines.datasets.postgres import ALIKE, Driver, connect, translated
from pipelines.errors import WriteBackError

_STAGING = "feastrank_staging"
_TYPES = (
    (pt.is_boolean, "bool"),
    (pt.is_int16, "int2"),
    (pt.is_int32, "int4"),
    (pt.is_integer, "int8"),
    (pt.is_float32, "float4"),
    (pt.is_floating, "float8"),
    (pt.is_timestamp, "timestamptz"),
    (pt.is_string, "text"),
    (pt.is_large_string, "text"),
)


@dataclass(frozen=True)
class Upserted:
    """What `Writer.upsert` did.

    Parameters
    ----------
    rows
        How many rows were given.
    changed
        How many of them were new, or other than the table had them.
    is_new
        Whether the table was made.
    """

    rows: int
    changed: int
    is_new: bool


class Writer:
    """One connection, in whose transaction everything is written; `commit` makes it last.

    Without `commit`, or if anything fails before it, every table is left as it was.

    Parameters
    ----------
    variable
        The environment variable that holds the connection, as in `postgres.Database`.

    Raises
    ------
    SourceError
        If the variable is not set, or no connection can be made with its value.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._driver: Driver = connect(variable)
        with self._translated("the connection"):
            self._driver.connection.set_autocommit(False)
            self._driver.run("SET LOCAL standard_conforming_strings = on")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.close()

    def commit(self) -> None:
        """Make what was written last."""
        with self._translated("the end of the transaction"):
            self._driver.connection.commit()

    def exists(self, table: str) -> bool:
        """Return whether there is such a table or view."""
        return self._rows(f"SELECT to_regclass({literal(named(table))}) IS NOT NULL") == [(True,)]

    def create(self, table: str, columns: Mapping[str, str], *, replace: bool = False) -> None:
        """Make an empty table of these columns and their SQL types, in the place of an old one.

        Raises
        ------
        WriteBackError
            If it is there and ``replace`` is false, or may not be made.
        """
        if self.exists(table) and not replace:
            raise WriteBackError(
                f"table {table}: is there already; pass --replace-tables to drop it, or use a "
                "database without it"
            )
        typed = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
        self._run(table, f"DROP TABLE IF EXISTS {named(table)}")
        self._run(table, f"CREATE TABLE {named(table)} ({typed})")

    def append(self, table: str, rows: pa.RecordBatchReader) -> None:
        """Add rows to a table of the search path; columns that are not given have defaults."""
        self._copy(table, table, rows, {Option.INGEST_MODE: "adbc.ingest.mode.append"})

    def upsert(self, table: str, key: str, rows: pa.RecordBatchReader) -> Upserted:
        """Update rows with a known key and add the others; the table is made if it is not there.

        Parameters
        ----------
        table
            With its schema, unless the search path finds it.
        key
            The column of ``rows`` that tells rows apart; text is cast to what the table has.

        Raises
        ------
        WriteBackError
            If the table has other columns, no unique index on the key, or may not be written; if
            the connection is lost. The table is then as it was.
        """
        wanted = {field.name: sql_type(field) for field in rows.schema}
        is_new = not self.exists(table)
        if is_new:
            self.create(table, {**wanted, key: f"{wanted[key]} PRIMARY KEY"})
        there = self._checked(table, key, wanted)
        temporary = {Option.INGEST_MODE: "adbc.ingest.mode.create", Option.INGEST_TEMPORARY: "true"}
        self._copy(table, _STAGING, rows, temporary)
        names = list(wanted)
        cast = ", ".join(f"CAST({quoted(name)} AS {there[name]})" for name in names)
        others = [quoted(name) for name in names if name != key]
        given = ", ".join(f"{name} = EXCLUDED.{name}" for name in others)
        differs = " OR ".join(f"t.{name} IS DISTINCT FROM EXCLUDED.{name}" for name in others)
        changed = self._run(
            table,
            f"INSERT INTO {named(table)} AS t ({', '.join(map(quoted, names))}) "
            f"SELECT {cast} FROM pg_temp.{_STAGING} "
            f"ON CONFLICT ({quoted(key)}) DO UPDATE SET {given} WHERE {differs}",
        )
        [(count,)] = self._rows(f"SELECT count(*) FROM pg_temp.{_STAGING}")
        self._run(table, f"DROP TABLE pg_temp.{_STAGING}")
        return Upserted(int(str(count)), changed, is_new)

    def _checked(self, table: str, key: str, wanted: Mapping[str, str]) -> dict[str, str]:
        """Return the types of the table's columns, all of which the rows must suit."""
        place = f"to_regclass({literal(named(table))})"
        columns = [
            tuple(map(str, row))
            for row in self._rows(
                "SELECT attname::text, format_type(atttypid, NULL), typname::text "
                "FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid "
                f"WHERE attrelid = {place} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            )
        ]
        there = {name: kind for name, kind, _ in columns}
        internal = {name: kind for name, _, kind in columns}
        missing = [f"{name} {kind}" for name, kind in wanted.items() if name not in there]
        if missing:
            raise WriteBackError(
                f"table {table}: has no column {', '.join(missing)}; it has {', '.join(there)}; "
                "add what is missing, or name another --table"
            )
        for name, kind in wanted.items():
            if name != key and not _is_alike(internal[name], kind):
                raise WriteBackError(
                    f"table {table}: column {name} is of type {there[name]}, expected {kind}; "
                    "change its type, or name another --table"
                )
        unique = self._rows(
            "SELECT 1 FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]"
            f" WHERE indrelid = {place} AND indisunique AND indnkeyatts = 1 AND indpred IS NULL "
            f"AND attname = {literal(key)}"
        )
        if not unique:
            raise WriteBackError(
                f"table {table}: has no unique index on {key} alone, so no row can be told to be "
                f"there already; make {key} its primary key, or name another --table"
            )
        return there

    def _copy(
        self, label: str, target: str, rows: pa.RecordBatchReader, options: Mapping[Option, str]
    ) -> None:
        given = {Option.INGEST_TARGET_TABLE: target, **options}
        settings = {name.value: value for name, value in given.items()}
        with self._translated(f"table {label}"), closing(self._driver.statement(**settings)) as one:
            one.bind_stream(rows)
            one.execute_update()

    def _run(self, table: str, sql: str) -> int:
        with self._translated(f"table {table}"):
            return self._driver.run(sql)

    def _rows(self, sql: str) -> list[tuple[object, ...]]:
        with self._translated("the connection"), closing(self._driver.statement()) as statement:
            statement.set_sql_query(sql)
            handle, _ = statement.execute_query()
            found = pa.RecordBatchReader.from_stream(handle).read_all()
        return [tuple(row.values()) for row in found.to_pylist()]

    def _translated(self, label: str) -> AbstractContextManager[None]:
        return translated(
            label,
            WriteBackError,
            denied=f"GRANT what is missing to the user in {self.variable}: INSERT, UPDATE and "
            "SELECT on the table, CREATE on its schema for a new one, TEMPORARY on the database",
            otherwise="nothing was written; correct the table or name another one",
        )


def named(table: str) -> str:
    """Return a table's name, quoted part by part: schema.table or table."""
    return ".".join(quoted(part) for part in table.split("."))


def sql_type(field: pa.Field) -> str:
    """Return the PostgreSQL type that a field's values have.

    Raises
    ------
    WriteBackError
        If there is none.
    """
    is_list = pt.is_list(field.type) or pt.is_large_list(field.type)
    kind = field.type.value_type if is_list else field.type
    for is_of, name in _TYPES:
        if is_of(kind):
            return f"{name}[]" if is_list else name
    raise WriteBackError(f"column {field.name}: {field.type} has no type in PostgreSQL here")


def _is_alike(found: str, wanted: str) -> bool:
    wanted = f"_{wanted.removesuffix('[]')}" if wanted.endswith("[]") else wanted
    return found == wanted or any({found, wanted} <= alike for alike in ALIKE)


def reader(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    """Return batches of a schema as one stream."""
    return pa.RecordBatchReader.from_batches(schema, batches)

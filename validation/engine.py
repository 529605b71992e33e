"""Measures a whole table exactly, in bounded memory, with DuckDB.

All aggregates share one pass; each distinct key or reference costs one query more, which DuckDB
spills to disk above its memory limit. Arrow tables are read in place and parquet is streamed.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from validation.columns import ROW, SOURCE, quote, reference_view, text_literal
from validation.errors import MeasuringError, SuiteError, UnreadableTableError
from validation.measures import ROWS, Measure

Table: TypeAlias = pa.Table | pads.Dataset | Path
"""A table: Arrow in memory, an Arrow dataset, or a parquet file or folder (hive partitions)."""

MEMORY_LIMIT = "600MB"
"""What DuckDB may hold before it spills; an Arrow table handed over is not counted."""


class MeasuredTable:
    """A table that measures are taken of. Use as a context manager.

    Parameters
    ----------
    table
        The table to measure.
    references
        Tables that values may have to exist in, by name.
    memory_limit
        What DuckDB may hold before it spills to disk, such as ``600MB``.

    Raises
    ------
    UnreadableTableError
        If a file is missing or cannot be read.
    """

    schema: pa.Schema
    reference_schemas: Mapping[str, pa.Schema]
    rows: int

    def __init__(
        self,
        table: Table,
        references: Mapping[str, Table] | None = None,
        memory_limit: str = MEMORY_LIMIT,
    ) -> None:
        self._spill = tempfile.TemporaryDirectory(prefix="feastrank-gate-")
        self._connection = duckdb.connect()
        self._connection.execute(f"SET memory_limit = '{memory_limit}'")
        self._connection.execute(f"SET temp_directory = '{self._spill.name}'")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._where = str(table) if isinstance(table, Path) else "table"
        try:
            self.schema = self._open(SOURCE, table)
            self.reference_schemas = {
                name: self._open(reference_view(name), reference)
                for name, reference in (references or {}).items()
            }
            self.rows = self._query(f"SELECT count(*) AS n FROM {SOURCE}")[0]["n"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove what was spilled."""
        self._connection.close()
        self._spill.cleanup()

    def metrics(self, measures: Sequence[Measure]) -> list[dict[str, Any]]:
        """Return each measure's metrics by great-expectations' names, in order of `measures`.

        Raises
        ------
        UnreadableTableError
            If the table turns out to be damaged while it is read.
        MeasuringError
            If memory does not suffice, not even with what is spilled to disk.
        """
        aggregates = self._shared_pass(
            dict.fromkeys(sql for measure in measures for sql in measure.aggregates.values())
        )
        own_rows: dict[str, dict[str, Any]] = {}
        found = []
        for measure in measures:
            metrics = {ROWS: self.rows, **measure.facts}
            metrics |= {name: aggregates[sql] for name, sql in measure.aggregates.items()}
            if measure.own_query is not None:
                query, names = measure.own_query
                if query not in own_rows:
                    own_rows[query] = self._query(query)[0]
                metrics |= {name: own_rows[query][column] for name, column in names.items()}
            found.append(metrics)
        return found

    def rows_at_fault(
        self, measure: Measure, also: Iterable[str], limit: int
    ) -> list[dict[str, Any]]:
        """Return the first rows at fault, in the table's order.

        Parameters
        ----------
        measure
            A measure with `at_fault`.
        also
            Columns to return besides the measure's subject, where the table has them.
        limit
            The most rows to return.

        Returns
        -------
        list of dict
            ``row_position`` (from 0), then the columns.
        """
        columns = dict.fromkeys([*(c for c in also if c in self.schema.names), *measure.subject])
        selected = ", ".join([f"t.{quote(ROW)}", *(f"t.{quote(c)}" for c in columns)])
        kept = ", ".join(quote(c) for c in columns)
        return self._query(
            f"SELECT {selected} FROM (SELECT row_number() OVER () - 1 AS {quote(ROW)}, {kept} "
            f"FROM {SOURCE}) AS t WHERE {measure.at_fault} ORDER BY t.{quote(ROW)} LIMIT {limit}"
        )

    def split(self, reasons: Mapping[str, str], kept: Path, removed: Path) -> int:
        """Write the rows without and with a reason to be set aside into two parquet files.

        Parameters
        ----------
        reasons
            SQL conditions that are true for rows at fault, by what must hold.
        kept, removed
            The files; `removed` has ``reason`` and ``row_position`` before the table's columns.

        Returns
        -------
        How many rows were removed.
        """
        told = ", ".join(
            f"CASE WHEN {condition} THEN {text_literal(says)} END"
            for says, condition in reasons.items()
        )
        for path in (kept, removed):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._connection.execute(
            f"CREATE OR REPLACE VIEW judged AS SELECT concat_ws('; ', {told}) AS reason, "
            f"t.* FROM (SELECT row_number() OVER () - 1 AS {quote(ROW)}, * FROM {SOURCE}) AS t"
        )
        for path, query in (
            (kept, f"SELECT * EXCLUDE (reason, {quote(ROW)}) FROM judged WHERE reason = ''"),
            (removed, "SELECT * FROM judged WHERE reason <> ''"),
        ):
            self._query(f"COPY ({query}) TO {text_literal(str(path))} (FORMAT parquet)")
        counted = f"SELECT count(*) AS n FROM read_parquet({text_literal(str(removed))})"
        return int(self._query(counted)[0]["n"])

    def _shared_pass(self, aggregates: Iterable[str]) -> dict[str, Any]:
        aggregates = list(aggregates)
        if not aggregates:
            return {}
        selected = ", ".join(f"{sql} AS a{i}" for i, sql in enumerate(aggregates))
        row = self._query(f"SELECT {selected} FROM {SOURCE} AS t")[0]
        return {sql: row[f"a{i}"] for i, sql in enumerate(aggregates)}

    def _open(self, view: str, table: Table) -> pa.Schema:
        """Make a table known as `view`; return its schema."""
        if isinstance(table, Path):
            schema, relation = _schema_on_disk(table), self._parquet(table)
        else:
            schema, relation = table.schema, self._connection.from_arrow(table)
        names = [name.lower() for name in schema.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or ROW in names:
            raise SuiteError(
                f"{self._where}: column names must differ by more than case and none may be "
                f"'{ROW}'; found {', '.join(twice) or ROW}; rename it"
            )
        relation.create_view(view, replace=True)
        return schema

    def _parquet(self, path: Path) -> duckdb.DuckDBPyRelation:
        try:
            return self._connection.read_parquet(
                [str(file) for file in _parquet_files(path)], hive_partitioning=path.is_dir()
            )
        except duckdb.Error as error:
            raise _unreadable(str(path), error) from error

    def _query(self, sql: str) -> list[dict[str, Any]]:
        try:
            table = self._connection.sql(sql).to_arrow_table()
        except duckdb.OutOfMemoryException as error:
            raise MeasuringError(
                f"{self._where}: cannot be measured ({_first_line(error)}); raise memory_limit or "
                "free disk space"
            ) from error
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _unreadable(self._where, error) from error
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def _parquet_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UnreadableTableError(f"{path}: no such file; run the step that writes it")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UnreadableTableError(f"{path}: no parquet file in it; run the step that writes it")
    return files


def _schema_on_disk(path: Path) -> pa.Schema:
    files = _parquet_files(path)
    try:
        return pads.dataset(
            [str(file) for file in files],
            format="parquet",
            partitioning=pads.partitioning(flavor="hive") if path.is_dir() else None,
            partition_base_dir=str(path) if path.is_dir() else None,
        ).schema
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(str(path), error) from error


def _unreadable(where: str, error: Exception) -> UnreadableTableError:
    return UnreadableTableError(
        f"{where}: cannot be read as parquet, it is damaged or truncated ({_first_line(error)}); "
        "write it again with the step that made it"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

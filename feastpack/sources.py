"""Parquet sources of feature views, as expressions that DuckDB can scan.

A Feast ``FileSource`` names one parquet file, a folder of them (also nested or hive
partitioned), a glob, or a URI. Local ones become ``read_parquet(...)``, so that DuckDB's own
reader prunes columns and row groups; URIs are opened by Arrow's file systems, which know the
credentials Feast resolves.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource

from feastpack.errors import SchemaError, UnsupportedError

_GLOB_CHARACTERS = "*?["
_COPIES = itertools.count()


def quoted(identifier: str) -> str:
    """Quote an SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote an SQL string."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class SourceScan:
    """A source opened on one DuckDB connection.

    Attributes
    ----------
    label
        What to call the source in messages: its name and path.
    sql
        An expression for a FROM clause.
    types
        DuckDB type name per column of the source, in the source's order.
    row_id
        SQL of a BIGINT that names a row of the source; it grows in the order of the files.
    field_mapping
        The source's own mapping: column of the source -> name in the feature view.
    """

    label: str
    sql: str
    types: Mapping[str, str]
    row_id: str
    field_mapping: Mapping[str, str]

    def column(self, name: str) -> str:
        """Column of the source that holds what the feature view calls `name`.

        Raises
        ------
        SchemaError
            If the source has no such column.
        """
        for source_name, view_name in self.field_mapping.items():
            if view_name == name and source_name in self.types:
                return source_name
        if name in self.types:
            return name
        raise SchemaError(
            f"source {self.label}: no column {name!r} among {', '.join(self.types)}; "
            "correct the feature view, the source's field_mapping or the file"
        )

    def is_nanosecond(self, column: str) -> bool:
        """Whether a timestamp column of the source is finer than a microsecond."""
        return self.types[column].endswith("_NS")

    def instant(self, column: str) -> str:
        """SQL for a time column as TIMESTAMP WITH TIME ZONE; naive times are UTC."""
        if self.types[column] == "TIMESTAMP WITH TIME ZONE":
            return quoted(column)
        return f"{quoted(column)}::TIMESTAMPTZ"


def require_parquet_source(source: DataSource | None) -> FileSource:
    """`source` as a parquet FileSource.

    Raises
    ------
    UnsupportedError
        If it is another kind of source or another file format.
    """
    is_parquet = isinstance(source, FileSource) and (
        source.file_format is None or isinstance(source.file_format, ParquetFormat)
    )
    if not is_parquet:
        found = type(getattr(source, "file_format", None) or source).__name__
        raise UnsupportedError(
            f"source {getattr(source, 'name', None)!r}: found {found}, expected a FileSource of "
            "parquet files; set offline_store.type to the store of Feast that reads it"
        )
    return source


def local_path(path: str, repo_path: Path | str | None) -> str | None:
    """Absolute local path, folder or glob of a source, or None if it is a URI.

    Relative paths start at the feature repository; where nothing is there, at the current
    folder, which is what Feast's own DuckDB store takes.
    """
    if "://" in path:
        return None
    if Path(path).is_absolute() or repo_path is None:
        return str(Path(path).absolute())
    in_repo = Path(repo_path) / path
    here = Path(path).absolute()
    if not _paths(str(in_repo)) and _paths(str(here)):
        return str(here)
    return str(in_repo.absolute())


def is_glob(path: str) -> bool:
    """Whether a path names files by a pattern."""
    return any(character in path for character in _GLOB_CHARACTERS) and not Path(path).exists()


def open_source(
    connection: duckdb.DuckDBPyConnection, source: DataSource | None, repo_path: Path | str | None
) -> SourceScan:
    """Open a feature view's batch source on a connection, reading only its schema.

    Raises
    ------
    UnsupportedError
        If the source is not made of parquet files.
    SchemaError
        If the path leads to no parquet file.
    """
    file_source = require_parquet_source(source)
    label = f"{file_source.name!r} ({file_source.path})"
    path = local_path(file_source.path, repo_path)
    sql = _copied_dataset(connection, file_source) if path is None else _parquet_scan(path, label)
    types = _described(connection, sql)
    row_id = "rowid" if path is None else "((file_index::BIGINT << 40) + file_row_number)"
    if path is not None and {"file_index", "file_row_number"} & types.keys():
        sql, row_id = _copied(connection, sql), "rowid"
    return SourceScan(
        label=label,
        sql=sql,
        types=types,
        row_id=row_id,
        field_mapping=dict(file_source.field_mapping or {}),
    )


def _described(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, str]:
    described = connection.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
    return {row[0]: row[1] for row in described}


def _parquet_scan(path: str, label: str) -> str:
    pattern = f"{glob.escape(path)}/**/*.parquet" if Path(path).is_dir() else path
    # A fixed list: files that appear later must not renumber those of a query under way.
    files = [path] if Path(path).is_file() else sorted(_paths(pattern))
    if not files:
        raise SchemaError(
            f"source {label}: found no parquet file at {pattern}; write the file first or "
            "correct the source's path"
        )
    # Files of one source may have been written before a column was added.
    by_name = ", union_by_name = true" if len(files) > 1 else ""
    listed = ", ".join(literal(glob.escape(file)) for file in files)
    return f"read_parquet([{listed}]{by_name})"


def _paths(pattern: str) -> list[str]:
    # Path.glob takes no absolute patterns.
    return glob.glob(pattern, recursive=True)  # noqa: PTH207


def _copied_dataset(connection: duckdb.DuckDBPyConnection, source: FileSource) -> str:
    filesystem, path = FileSource.create_filesystem_and_path(
        source.path, source.s3_endpoint_override, source.resolve_credentials()
    )
    dataset: Any = pyarrow.dataset.dataset(
        path, filesystem=filesystem, format="parquet", partitioning="hive"
    )
    connection.register("remote_dataset", dataset)
    try:
        return _copied(connection, "remote_dataset")
    finally:
        connection.unregister("remote_dataset")


def _copied(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Copy a scan whose rows have no number of their own; DuckDB may spill the copy."""
    name = f"copy_{next(_COPIES)}"
    connection.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM {sql}")
    return name

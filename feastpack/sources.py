"""Parquet sources of feature views, as expressions that DuckDB can scan.

A Feast ``FileSource`` names one parquet file, a folder of them (also nested or hive
partitioned), a glob, or the URI of a file or folder. All become ``read_parquet(...)``, so that
DuckDB's own reader prunes columns and row groups. It reads URIs through Arrow's file systems, which
know the credentials that Feast resolves: DuckDB's own for S3 is an extension to be downloaded.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident

import duckdb
import pyarrow as pa
import pyarrow.fs
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from fsspec.implementations.arrow import ArrowFSWrapper

from feastpack.errors import OfflineStoreError, SchemaError, UnsupportedError

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
    OfflineStoreError
        If the store of a URI does not answer, or refuses.
    """
    file_source = require_parquet_source(source)
    label = f"{file_source.name!r} ({file_source.path})"
    path = local_path(file_source.path, repo_path)
    files = _remote_files(connection, file_source) if path is None else _local_files(path)
    if not files:
        raise SchemaError(
            f"source {label}: found no parquet file at {path or file_source.path}; write the file "
            "first or correct the source's path"
        )
    sql = _parquet_scan(files)
    types = _described(connection, sql)
    row_id = "((file_index::BIGINT << 40) + file_row_number)"
    if {"file_index", "file_row_number"} & types.keys():
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


def _parquet_scan(files: list[str]) -> str:
    # Files of one source may have been written before a column was added.
    by_name = ", union_by_name = true" if len(files) > 1 else ""
    listed = ", ".join(literal(glob.escape(file)) for file in files)
    return f"read_parquet([{listed}]{by_name})"


def _local_files(path: str) -> list[str]:
    """List a path's files; what appears later must not renumber the rows of a running query."""
    pattern = f"{glob.escape(path)}/**/*.parquet" if Path(path).is_dir() else path
    return [path] if Path(path).is_file() else sorted(_paths(pattern))


def _paths(pattern: str) -> list[str]:
    # Path.glob takes no absolute patterns.
    return glob.glob(pattern, recursive=True)  # noqa: PTH207


def open_uri(source: FileSource) -> tuple[pyarrow.fs.FileSystem, str]:
    """Open the file system of a source's URI; return it with the path in it.

    An endpoint of S3 is the source's own, else ``AWS_ENDPOINT_URL``.
    """
    endpoint = source.s3_endpoint_override or os.environ.get("AWS_ENDPOINT_URL", "")
    filesystem, path = FileSource.create_filesystem_and_path(
        source.path, endpoint, source.resolve_credentials()
    )
    return pyarrow.fs.FileSystem.from_uri(path) if filesystem is None else (filesystem, path)


def _remote_files(connection: duckdb.DuckDBPyConnection, source: FileSource) -> list[str]:
    """List a URI's files under names that the connection can read from then on."""
    try:
        filesystem, path = open_uri(source)
        files = [path]
        if not filesystem.get_file_info(path).is_file:
            below = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True)
            found = sorted(one.path for one in filesystem.get_file_info(below) if one.is_file)
            files = [file for file in found if file.endswith(".parquet")]
    except OSError as error:
        raise OfflineStoreError(
            f"source {source.name!r} ({source.path}): {error}; check the path, the endpoint "
            "(s3_endpoint_override or AWS_ENDPOINT_URL) and the credentials"
        ) from error
    # Two sources may have a scheme in common and not the credentials.
    scheme = f"source{next(_COPIES)}"
    connection.register_filesystem(_ArrowFileSystem(filesystem, scheme))
    return [f"{scheme}://{file}" for file in files]


class _ArrowFileSystem(ArrowFSWrapper):  # type: ignore[misc]
    """A file system of Arrow as DuckDB takes it, under a scheme of its own."""

    cachable = False

    def __init__(self, filesystem: pyarrow.fs.FileSystem, scheme: str) -> None:
        super().__init__(filesystem)
        self._scheme = scheme

    @property
    def protocol(self) -> str:
        return self._scheme

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.rpartition("://")[2]

    def open(self, path: str, *_: object, **__: object) -> _SharedFile:
        return _SharedFile(self.fs.open_input_file(self._strip_protocol(path)))


class _SharedFile:
    """A file that several threads read, each from its own position.

    DuckDB's threads share one file, and seek and read in two calls.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._positions: dict[int, int] = {}

    def seek(self, position: int) -> None:
        self._positions[get_ident()] = position

    def tell(self) -> int:
        return self._positions.get(get_ident(), 0)

    def read(self, size: int) -> bytes:
        content: bytes = self._file.read_at(size, self.tell())
        self.seek(self.tell() + len(content))
        return content

    def close(self) -> None:
        self._file.close()


def _copied(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Copy a scan whose rows have no number of their own; DuckDB may spill the copy."""
    name = f"copy_{next(_COPIES)}"
    connection.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM {sql}")
    return name

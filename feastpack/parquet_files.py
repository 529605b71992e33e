"""Writing parquet sources, saved datasets and feature logs, atomically where they are local."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource
from feast.saved_dataset import SavedDatasetStorage

from feastpack.errors import SchemaError, UnsupportedError
from feastpack.sources import is_glob, local_path, open_uri, require_parquet_source


def persist_batches(
    batches: Iterator[pa.RecordBatch],
    storage: SavedDatasetStorage,
    repo_path: Path | str | None,
    *,
    allow_overwrite: bool,
) -> None:
    """Write a stream to a saved dataset's file (``*.parquet``) or folder.

    Raises
    ------
    SavedDatasetLocationAlreadyExists
        If something is there and `allow_overwrite` is false.
    UnsupportedError
        If the storage is not parquet.
    """
    source = require_parquet_source(storage.to_data_source())
    path = local_path(source.path, repo_path)
    if path is None:
        _write_remote(batches, source)
        return
    target = Path(path)
    if target.exists() and not allow_overwrite:
        raise SavedDatasetLocationAlreadyExists(location=source.path)
    if target.suffix == ".parquet" and not target.is_dir():
        _write_file(batches, target)
        return
    before = list(target.rglob("*.parquet"))
    target.mkdir(parents=True, exist_ok=True)
    _write_file(batches, target / f"{uuid.uuid4().hex}.parquet")
    for stale in before:
        stale.unlink()


def append_rows(table: pa.Table, source: FileSource, repo_path: Path | str | None) -> None:
    """Append a table to a local parquet source: rewrite a file, or add one to a folder.

    Raises
    ------
    UnsupportedError
        If the source is a URI or a glob, of which it is unknown where new rows belong.
    SchemaError
        If the columns differ from the source's.
    """
    path = local_path(source.path, repo_path)
    if path is None or is_glob(path):
        raise UnsupportedError(
            f"source {source.name!r} ({source.path}): rows can be appended to a local file or "
            "folder, not to a URI or a glob; write the files with your own tool"
        )
    target = Path(path)
    is_folder = target.is_dir()
    dataset = pyarrow.dataset.dataset(path, format="parquet", partitioning="hive")
    if table.column_names != dataset.schema.names:
        raise SchemaError(
            f"source {source.name!r} ({source.path}): the input pyarrow table has the incorrect "
            f"columns {table.column_names}; expected, in this order, {dataset.schema.names}"
        )
    rows = table.cast(dataset.schema)
    if not is_folder:
        stream = _chained(dataset.to_batches(), rows.to_batches())
        _write_file(stream, target, schema=dataset.schema)
        return
    _write_partitioned(rows, target, _hive_keys(target))


def append_log(data: pa.Table | Path, folder: str, partition_by: list[str] | None) -> None:
    """Add logged features (a table, or a folder of parquet files) to a folder of parquet files."""
    logs = pyarrow.dataset.dataset(data, format="parquet") if isinstance(data, Path) else data
    _write_partitioned(logs, Path(folder), partition_by or [])


def _hive_keys(folder: Path) -> list[str]:
    """The columns in the folder's ``column=value`` levels, outermost first."""
    first = next(folder.rglob("*.parquet"))
    levels = first.relative_to(folder).parts[:-1]
    return [level.split("=", 1)[0] for level in levels if "=" in level]


def _chained(*streams: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for stream in streams:
        yield from stream


def _write_file(
    batches: Iterable[pa.RecordBatch], target: Path, schema: pa.Schema | None = None
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        _stream_to(batches, partial, schema)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _stream_to(batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema | None) -> None:
    stream = iter(batches)
    first = next(stream, None)
    known = schema if schema is not None else (first.schema if first is not None else None)
    if known is None:
        raise SchemaError(f"{path.name}: nothing to write, not even a schema")
    with pyarrow.parquet.ParquetWriter(path, known) as writer:
        for batch in _chained([first] if first is not None else [], stream):
            writer.write_batch(batch.cast(known))


def _write_partitioned(
    data: pa.Table | pyarrow.dataset.Dataset, folder: Path, keys: list[str]
) -> None:
    pyarrow.dataset.write_dataset(
        data,
        folder,
        format="parquet",
        basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
        partitioning=keys or None,
        partitioning_flavor="hive" if keys else None,
        existing_data_behavior="overwrite_or_ignore",
    )


def _write_remote(batches: Iterator[pa.RecordBatch], source: FileSource) -> None:
    filesystem, path = open_uri(source)
    table = pa.Table.from_batches(list(batches))
    if path.endswith(".parquet"):
        pyarrow.parquet.write_table(table, path, filesystem=filesystem)
    else:
        pyarrow.parquet.write_to_dataset(table, path, filesystem=filesystem)

"""Source files as Arrow batches: find them, read them in pieces, and say exactly what is wrong.

CSV and JSON lines come as strings (JSON lists and objects as their JSON): deciding what a text
means is the work of `expressions`. Parquet comes with its own types.
"""

import codecs
import csv
import difflib
import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from feature_repo.dataset import Source
from pipelines.errors import SourceError

_CSV_BLOCK_BYTES = 16 << 20
_BATCH_ROWS = 1 << 18
_JSON_SAMPLE_LINES = 1000


def find_files(base_folder: Path, source: Source, table: str) -> list[Path]:
    """Return a table's files: in the order of the description, and by name within a glob.

    Raises
    ------
    SourceError
        If a path or a glob has no file, or a file has no bytes.
    """
    files: list[Path] = []
    for pattern in source.path:
        # Not Path.glob: it knows no absolute patterns and no "..".
        names = sorted(glob.glob(pattern, root_dir=base_folder, recursive=True))  # noqa: PTH207
        found = [base_folder / name for name in names if (base_folder / name).is_file()]
        if not found:
            raise SourceError(
                f"{table}: no file '{pattern}' in {base_folder}"
                f"{_suggest_file(base_folder, pattern)}; correct {table}.path in the description, "
                "or the folder"
            )
        files += [path for path in found if path not in files]
    for path in files:
        if path.stat().st_size == 0:
            raise SourceError(
                f"{table}: {path} is empty (0 bytes); expected a row for each of the {table}; "
                "export it again"
            )
    return files


def column_names(path: Path, source: Source, table: str) -> list[str]:
    """Return the columns of one file; "0", "1", … for CSV without a header.

    For JSON lines: the keys of its first 1,000 objects, in order of appearance.
    """
    if source.format == "parquet":
        return list(_open_parquet(path, table).schema_arrow.names)
    if source.format == "jsonl":
        return _json_keys(path, table)
    first = next(_csv_rows(path, source, table), [])
    if not source.header:
        return [str(place) for place in range(len(first))]
    return first


def check_columns(path: Path, source: Source, table: str) -> None:
    """Raise `SourceError` unless the file has every described column exactly once."""
    there = column_names(path, source, table)
    missing = [column for column in source.columns() if column not in there]
    if missing:
        near = difflib.get_close_matches(missing[0], there, 1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "correct the description"
        wrong = " or format" if len(there) == 1 and source.format == "csv" else ""
        what = f"separator{wrong} {source.separator!r}" if wrong else "the names"
        raise SourceError(
            f"{table}: {path} has no column {_names(missing)}; it has {_names(there)}; {hint}"
            + (f" (one column only: is the {what} right?)" if wrong else "")
        )
    twice = [column for column in source.columns() if there.count(column) > 1]
    if twice:
        raise SourceError(
            f"{table}: {path} has more than one column {_names(twice)}; rename one in the file"
        )


def read_batches(path: Path, source: Source, table: str) -> Iterator[tuple[pa.Table, float]]:
    """Yield a file's described columns in pieces, with the share of the file that is read so far.

    Order of rows is the file's. Memory is bounded by the size of a piece (16 MiB of CSV, 262,144
    rows otherwise).

    Raises
    ------
    SourceError
        If the file is damaged, in another encoding, or its rows differ in length.
    """
    columns = list(source.columns())
    if source.format == "parquet":
        return _parquet_batches(path, columns, table)
    if source.format == "jsonl":
        return _json_batches(path, columns, table)
    return _csv_batches(path, source, table)


def line_numbers(path: Path, source: Source, rows: Sequence[int]) -> list[str]:
    """Return where rows stand in their file, as in "line 7" (or "row 7" for parquet).

    Parameters
    ----------
    rows
        0-based and ascending. The file is read again up to the last one.
    """
    if source.format == "parquet":
        return [f"row {row + 1}" for row in rows]
    lines: list[str] = []
    if source.format == "jsonl":
        with path.open("rb") as stream:
            numbers = (number for number, line in enumerate(stream, 1) if line.strip())
            wanted = itertools.islice(numbers, rows[-1] + 1)
            lines = [f"line {number}" for row, number in enumerate(wanted) if row in rows]
        return lines
    with path.open(encoding=_python_encoding(source), newline="") as text:
        reader = _csv_reader(text, source)
        row = -2 if source.header else -1
        try:
            for cells in reader:
                row += bool(cells)
                if cells and row in rows:
                    lines.append(f"line {reader.line_num}")
                if row >= rows[-1]:
                    break
        except csv.Error:  # a value longer than the csv module's limit: count rows instead
            return [f"row {row + 1}" for row in rows]
    return lines


def _csv_batches(path: Path, source: Source, table: str) -> Iterator[tuple[pa.Table, float]]:
    places = column_names(path, source, table)
    columns = list(source.columns())
    try:
        with pa.OSFile(str(path)) as stream:
            size = stream.size()
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(
                    block_size=_CSV_BLOCK_BYTES,
                    column_names=places,
                    skip_rows_after_names=0,
                    skip_rows=1 if source.header else 0,
                    encoding="utf8" if _is_utf8(source.encoding) else source.encoding,
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=source.separator,
                    quote_char=source.quote or False,
                    newlines_in_values=bool(source.quote),
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=list(source.nulls),
                ),
            )
            for batch in reader:
                yield pa.Table.from_batches([batch]), min(stream.tell() / size, 1.0)
    except (pa.ArrowException, UnicodeError) as error:
        _check_encoding(path, source, table)
        raise SourceError(
            f"{table}: {path}: {_first_line(error)}; correct the row, or separator and quote in "
            "the description"
        ) from error


def _json_batches(path: Path, columns: list[str], table: str) -> Iterator[tuple[pa.Table, float]]:
    types = dict.fromkeys(columns, "VARCHAR")
    try:
        with duckdb.connect() as connection:
            reader = connection.read_json(
                str(path), format="newline_delimited", columns=types
            ).to_arrow_reader(_BATCH_ROWS)
            for batch in reader:
                yield pa.Table.from_batches([batch]), 0.5
    except (duckdb.Error, pa.ArrowException) as error:
        for _ in _json_rows(path, table):  # raises with the right line, which DuckDB miscounts
            pass
        raise SourceError(f"{table}: {path}: {_first_line(error)}; correct the file") from error


def _parquet_batches(
    path: Path, columns: list[str], table: str
) -> Iterator[tuple[pa.Table, float]]:
    file = _open_parquet(path, table)
    total, done = max(file.metadata.num_rows, 1), 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            done += batch.num_rows
            yield pa.Table.from_batches([batch]).select(columns), done / total
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, table, error) from error
    finally:
        file.close()


def _open_parquet(path: Path, table: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, table, error) from error


def _damaged(path: Path, table: str, error: Exception) -> SourceError:
    return SourceError(
        f"{table}: {path} ({path.stat().st_size:,} bytes) is truncated or no parquet file "
        f"({_first_line(error)}); copy or export it again"
    )


def _json_keys(path: Path, table: str) -> list[str]:
    rows = itertools.islice(_json_rows(path, table), _JSON_SAMPLE_LINES)
    return list(dict.fromkeys(key for row in rows for key in row))


def _json_rows(path: Path, table: str) -> Iterator[dict[str, Any]]:
    """Yield a file's objects, slowly; raise `SourceError` naming the line that holds none."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SourceError(
                    f"{table}: {path}: line {number} is not JSON in UTF-8 ({error}); expected one "
                    "JSON object a line; correct the line"
                ) from error
            if not isinstance(row, dict):
                raise SourceError(
                    f"{table}: {path}: line {number} holds {type(row).__name__}, expected an "
                    'object such as {"user": 1}; write one object a line'
                )
            yield row


def _csv_rows(path: Path, source: Source, table: str) -> Iterator[list[str]]:
    try:
        with path.open(encoding=_python_encoding(source), newline="") as text:
            yield from (row for row in _csv_reader(text, source) if row)
    except UnicodeError as error:
        _check_encoding(path, source, table)
        raise SourceError(f"{table}: {path}: {error}") from error
    except csv.Error as error:
        raise SourceError(
            f"{table}: {path} cannot be read as CSV ({error}); correct separator and quote in the "
            "description"
        ) from error


def _check_encoding(path: Path, source: Source, table: str) -> None:
    """Raise `SourceError` naming line and byte if the file is not in the described encoding."""
    decoder = codecs.getincrementaldecoder(source.encoding)()
    offset, lines = 0, 1
    with path.open("rb") as stream:
        while True:
            block = stream.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                good = max(error.start - pending, 0)
                line = lines + block[:good].count(b"\n")
                where = offset - pending + error.start
                wrong = error.object[error.start : error.start + 1].hex()
                raise SourceError(
                    f"{table}: {path} is not {source.encoding}: line {line}, byte {where} "
                    f"is 0x{wrong} ({error.reason}); set {table}.encoding in the description, "
                    "for example 'latin-1' or 'cp1251'"
                ) from error
            if not block:
                return
            offset += len(block)
            lines += block.count(b"\n")


def _csv_reader(text: TextIO, source: Source) -> Any:
    return csv.reader(
        text,
        delimiter=source.separator,
        quotechar=source.quote or None,
        quoting=csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE,
    )


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")


def _python_encoding(source: Source) -> str:
    return "utf-8-sig" if codecs.lookup(source.encoding).name == "utf-8" else source.encoding


def _suggest_file(base_folder: Path, pattern: str) -> str:
    if not base_folder.is_dir():
        return " (the folder does not exist)"
    there = [path.name for path in base_folder.iterdir() if path.is_file()]
    near = difflib.get_close_matches(Path(pattern).name, there, 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _names(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(". ")

"""Guess how a file is written (format, encoding, separator, header) and what its columns hold."""

import codecs
import csv
import itertools
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.types as pt

from feature_repo.dataset import Posts
from pipelines.datasets.expressions import literal, quoted
from pipelines.datasets.files import column_names, read_batches
from pipelines.errors import ProposalError

_SEPARATORS = ",\t;|"
_SAMPLE_BYTES = 1 << 16
_SAMPLE_ROWS = 200_000
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_PATTERNS = (
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y"),
    *("%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y", "%m/%d/%Y %I:%M:%S %p"),
    *("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y"),
    *("%Y%m%d", "%Y%m%d%H%M%S", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z"),
)
_EPOCHS = (("epoch_s", 1), ("epoch_ms", 1_000), ("epoch_us", 1_000_000))
_EPOCH_SPAN = (315_532_800, 4_102_444_800)  # 1980 to 2100, in seconds
_LIST_SEPARATORS = "|;,"

Kind = Literal["integer", "number", "list", "binary", "time", "boolean", "text", "empty"]


@dataclass(frozen=True)
class Column:
    """What a sample of one column looks like.

    Attributes
    ----------
    kind
        What the values are: whole numbers, numbers, lists, bytes, times (typed), or text.
    rows, filled, distinct
        Rows of the sample, those with a value, and how many different values there are.
    least, greatest
        Of numbers; None otherwise.
    mean_length
        Characters of the values written as text.
    """

    name: str
    kind: Kind
    rows: int
    filled: int
    distinct: int
    least: float | None
    greatest: float | None
    mean_length: float

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return self.kind in ("integer", "number")


class Sniffed:
    """One file: how it is written, and a sample of its first rows.

    Parameters
    ----------
    path
        A CSV (any separator), JSON lines or parquet file.
    table
        What messages call it: users, posts or events.

    Raises
    ------
    ProposalError
        If there is no such file, it is empty, or it has no rows.
    SourceError
        If it cannot be read.
    """

    def __init__(self, path: Path, table: str) -> None:
        if not path.is_file():
            raise ProposalError(f"{table}: no file {path}; check the path")
        if path.stat().st_size == 0:
            raise ProposalError(f"{table}: {path} is empty (0 bytes); give the full file")
        self.path, self.table = path, table
        self.notes: list[str] = []
        self.settings: dict[str, Any] = {"format": _format(path)}
        if self.settings["format"] == "csv":
            self._sniff_csv()
        self.names = column_names(path, self._source([]), table)
        self.sample = self._read_sample()
        if self.sample.num_rows == 0:
            raise ProposalError(f"{table}: {path} has no rows; give the full file")

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns by name, in the file's order."""
        return {name: self._look_at(name) for name in self.names}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run SQL over the sample, which is called `sample`."""
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("sample", self.sample)
            rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return rows

    def time_format(self, name: str) -> str | None:
        """Return the first time format that reads every value of a column; None if none does."""
        column = self.columns[name]
        if column.kind == "time":
            return "iso"
        if column.filled == 0 or column.kind in ("list", "binary", "boolean", "empty"):
            return None
        if column.is_numeric and column.least is not None and column.greatest is not None:
            for form, factor in _EPOCHS:
                least, greatest = column.least / factor, column.greatest / factor
                if _EPOCH_SPAN[0] <= least and greatest <= _EPOCH_SPAN[1]:
                    return form
        text = f"CAST({quoted(name)} AS VARCHAR)"
        tests = [f"try_strptime({text}, {literal(pattern)})" for pattern in _PATTERNS]
        if column.kind == "text":
            tests.insert(0, f"TRY_CAST({text} AS TIMESTAMPTZ)")
        counts = ", ".join(f"count({test})" for test in tests)
        found = self.query(f"SELECT {counts} FROM sample WHERE {text} IS NOT NULL")[0]
        forms = (["iso"] if column.kind == "text" else []) + list(_PATTERNS)
        return next(
            (form for form, count in zip(forms, found, strict=True) if count == column.filled), None
        )

    def list_separator(self, name: str, *, words: bool = False) -> str | None:
        """Return what separates a text column's values, None if they are single values.

        At least a tenth of the values must have it; long texts and full stops look like prose,
        unless all values stand in brackets. With `words`, a space separates as well if the values
        are made of few words that come again and again.
        """
        text, filled = quoted(name), self.columns[name].filled
        for separator in _LIST_SEPARATORS:
            has, prose, brackets = self.query(
                f"SELECT count(*) FILTER (contains({text}, {literal(separator)})), "
                f"count(*) FILTER (length({text}) > 200 OR contains({text}, '. ')), "
                f"count(*) FILTER (starts_with({text}, '[')) FROM sample"
            )[0]
            if has >= 0.1 * filled and (prose == 0 or brackets == filled):
                return separator
        if words:
            has, values, parts = self.query(
                f"SELECT count(*) FILTER (contains({text}, ' ')), count(DISTINCT {text}), "
                f"len(list_distinct(flatten(list(string_split({text}, ' '))))) FROM sample"
            )[0]
            if has >= 0.1 * filled and 2 * parts < values:
                return " "
        return None

    def odd_texts(self, name: str) -> list[str]:
        """Return the few texts (at most 5) that stand among numbers; empty if it is not so."""
        number = f"TRY_CAST({quoted(name)} AS DOUBLE)"
        odd, others = self.query(
            f"SELECT list(DISTINCT {quoted(name)}) FILTER ({number} IS NULL), "
            f"count(*) FILTER ({number} IS NULL) FROM sample WHERE {quoted(name)} IS NOT NULL"
        )[0]
        few = odd is not None and len(odd) <= 5 and others <= 0.1 * self.columns[name].filled
        return sorted(odd) if few else []

    def values(self, name: str, limit: int = 50) -> list[str]:
        """Return the most frequent values of a column, written as text."""
        text = f"CAST({quoted(name)} AS VARCHAR)"
        found = self.query(
            f"SELECT {text} FROM sample WHERE {text} IS NOT NULL GROUP BY 1 "
            f"ORDER BY count(*) DESC, 1 LIMIT {limit}"
        )
        return [value for (value,) in found]

    def share_known(self, name: str, other: "Sniffed", key: str) -> float:
        """Return which share of a column's values occurs in a column of another file's sample."""
        with duckdb.connect() as connection:
            connection.register("here", self.sample)
            connection.register("there", other.sample)
            known = f"SELECT CAST({quoted(key)} AS VARCHAR) FROM there"
            found = connection.execute(
                f"SELECT avg(CAST(CAST({quoted(name)} AS VARCHAR) IN ({known}) AS INT)) FROM here"
            ).fetchall()
        return float(found[0][0] or 0)

    def _sniff_csv(self) -> None:
        encoding = _encoding(self.path)
        if encoding != "utf-8":
            self.settings["encoding"] = encoding
            self.notes.append(f"{self.table}: not UTF-8, so the encoding is taken to be {encoding}")
        with self.path.open(encoding=encoding, newline="") as stream:
            start = stream.read(_SAMPLE_BYTES)
        separator, quote, rows = _dialect(start)
        self.settings["separator"] = separator
        if not quote:
            self.settings["quote"] = ""
        if not _has_header(rows):
            self.settings["header"] = False
            self.notes.append(f"{self.table}: the first line holds values, so there is no header")

    def _source(self, columns: list[str]) -> Posts:
        """Return a description that reads all columns, whatever they are."""
        chosen = columns or ["0"]
        return Posts(path=(str(self.path),), id=chosen[0], text=tuple(chosen), **self.settings)

    def _read_sample(self) -> pa.Table:
        pieces, rows = [], 0
        for piece, _ in read_batches(self.path, self._source(self.names), self.table):
            pieces.append(piece)
            rows += piece.num_rows
            if rows >= _SAMPLE_ROWS:
                break
        if not pieces:
            return pa.table({name: pa.array([], pa.string()) for name in self.names})
        return pa.concat_tables(pieces).slice(0, _SAMPLE_ROWS)

    def _look_at(self, name: str) -> Column:
        kind, text = self.sample.schema.field(name).type, quoted(name)
        as_text = f"CAST({text} AS VARCHAR)"
        number = f"TRY_CAST({as_text} AS DOUBLE)"
        filled, distinct, numbers, whole, least, greatest, length, lists, truths = self.query(
            f"SELECT count({text}), count(DISTINCT {text}), count({number}), "
            f"count(*) FILTER ({number} = trunc({number})), min({number}), max({number}), "
            f"avg(length({as_text})), "
            f"count(*) FILTER (starts_with({as_text}, '[') AND json_valid({as_text})), "
            f"count(*) FILTER (lower({as_text}) IN ('true', 'false')) FROM sample"
        )[0]
        known: Kind | None = _typed_kind(kind)
        if known is None:
            known = "text"
            if filled == 0:
                known = "empty"
            elif numbers == filled:
                known = "integer" if whole == filled else "number"
            elif lists == filled:
                known = "list"
            elif truths == filled:
                known = "boolean"
        numeric = known in ("integer", "number")
        return Column(
            name=name,
            kind=known,
            rows=self.sample.num_rows,
            filled=filled,
            distinct=distinct,
            least=least if numeric else None,
            greatest=greatest if numeric else None,
            mean_length=length or 0.0,
        )


def _typed_kind(kind: pa.DataType) -> Kind | None:
    """Return what parquet's own types say; None for text and numbers, whose values decide."""
    if pt.is_list(kind) or pt.is_large_list(kind):
        return "list"
    if pt.is_binary(kind) or pt.is_large_binary(kind):
        return "binary"
    if pt.is_timestamp(kind) or pt.is_date(kind):
        return "time"
    if pt.is_boolean(kind):
        return "boolean"
    return "integer" if pt.is_integer(kind) else None


def _format(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(4096)
    if start[:4] == b"PAR1" or path.suffix in (".parquet", ".pq"):
        return "parquet"
    first = start.lstrip().split(b"\n")[0]
    if not first.startswith(b"{"):
        return "csv"
    try:
        json.loads(first)
    except ValueError:
        return "jsonl" if path.suffix in (".jsonl", ".ndjson", ".json") else "csv"
    return "jsonl"


def _encoding(path: Path) -> str:
    """Return utf-8 if the whole file is; else the likeliest of UTF-16, cp1251 and cp1252."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as stream:
        start = stream.read(_SAMPLE_BYTES)
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        try:
            for block in itertools.chain([start], iter(lambda: stream.read(1 << 20), b"")):
                decoder.decode(block)
        except UnicodeDecodeError:
            high = re.findall(rb"[\x80-\xff]+", block)
            long = sum(len(run) for run in high if len(run) > 2)
            return "cp1251" if 2 * long > sum(map(len, high)) else "cp1252"
    return "utf-8"


def _dialect(start: str) -> tuple[str, str, list[list[str]]]:
    """Return separator, quote and rows of the likeliest reading.

    It is the one in which most rows have the same number of cells; then, in which that number is
    greatest; then, in which there are most rows (a stray quote swallows line ends).
    """
    lines = start.splitlines(keepends=True)
    lines = lines[:-1] if len(lines) > 1 and len(start) >= _SAMPLE_BYTES else lines
    best, chosen = (0.0, 0, 0), (",", '"', list(csv.reader(lines)))
    for quote in ('"', "") if '"' in start else ('"',):
        for separator in _SEPARATORS:
            reader = csv.reader(
                lines,
                delimiter=separator,
                quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
            )
            rows = [row for row in reader if row]
            widths = [len(row) for row in rows[:-1] or rows]
            usual = max(set(widths), key=widths.count, default=0)
            share = widths.count(usual) / max(len(widths), 1)
            score = (round(share, 1), usual, len(rows))
            if usual > 1 and score > best:
                best, chosen = score, (separator, quote, rows)
    return chosen


def _has_header(rows: list[list[str]]) -> bool:
    first = rows[0]
    if any(not cell.strip() or _NUMBER.fullmatch(cell) for cell in first):
        return False
    return len(set(first)) == len(first) and first not in rows[1:]

"""Suites as files: proposed from data, reviewed and changed by people, read by the gates.

A file is TOML, an array of tables for each raw table (``raw_users``, ``raw_posts``,
``raw_events``), an entry an expectation::

    [[raw_events]]
    type = "expect_column_values_to_be_between"   # great-expectations' name
    column = "value"                              # and its own settings
    min_value = 1.0
    max_value = 5.0
    says = "value must be 1 to 5"
    fix = "check the scale of 'rating'"
    severity = "quarantine"                       # stop, quarantine or warn
    max_share = 0.01                              # of the rows that may be set aside

They are judged beside the built-in ones.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

from validation.columns import kind_of, quote, text_literal
from validation.engine import MEMORY_LIMIT
from validation.errors import SuiteError

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

TABLES = ("raw_users", "raw_posts", "raw_events")
MOST_VALUES = 30
"""Columns of texts with at most so many values get the list of them."""

_OURS = {"says", "fix", "severity", "max_share", "type"}


def read_suites(path: Path) -> dict[str, list["Expectation"]]:
    """Return the expectations of a file by table; nothing if there is no file.

    Raises
    ------
    SuiteError
        If it is not TOML, or a table, type or setting in it is unknown.
    """
    if not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not a TOML file ({error}); correct it") from error
    unknown = sorted(set(content) - set(TABLES))
    if unknown:
        raise SuiteError(f"{path}: unknown table {unknown[0]}; expected {', '.join(TABLES)}")
    return {
        table: [_made(f"{path}: [[{table}]] {i}", entry) for i, entry in enumerate(entries, 1)]
        for table, entries in content.items()
    }


def _made(where: str, entry: Mapping[str, Any]) -> "Expectation":
    # Takes seconds to import: paid only where there is a file.
    import great_expectations.expectations as gxe
    from pydantic.v1 import ValidationError

    from validation import expectations as own

    kind = str(entry.get("type", ""))
    name = "".join(part.title() for part in kind.split("_"))
    made = getattr(gxe, name, None) or getattr(own, name, None)
    if not kind.startswith("expect_") or made is None:
        raise SuiteError(f"{where}: unknown type '{kind}'; use one of great-expectations' names")
    settings = {key: value for key, value in entry.items() if key not in _OURS}
    try:
        return own.expect(
            made,
            says=str(entry.get("says", f"{entry.get('column', 'the table')}: {kind}")),
            fix=str(entry.get("fix", "")),
            severity=entry.get("severity", "stop"),
            max_share=entry.get("max_share"),
            **settings,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise SuiteError(f"{where}: {first['loc'][0]}: {first['msg']}; correct it") from error


def proposed(tables: Mapping[str, Path]) -> str:
    """Return a suite file with the bounds that the tables keep now.

    Numbers: the range, widened by a tenth on either side; texts of few values: the values; every
    column: its share of nulls, doubled; the table: half of its rows.

    Parameters
    ----------
    tables
        Parquet files by the name of their gate.
    """
    lines = [
        "# Proposed by `feastrank gate propose` from the data as they are now. Review every bound:",
        "# widen what may move, delete what you do not want. severity is stop, quarantine (rows at",
        "# fault are set aside, up to max_share of them) or warn.",
    ]
    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        for table, path in tables.items():
            for entry in _entries(connection, path):
                lines += ["", f"[[{table}]]"]
                lines += [f"{key} = {_toml(value)}" for key, value in entry.items()]
    return "\n".join(lines) + "\n"


def _entries(connection: duckdb.DuckDBPyConnection, path: Path) -> Iterator[dict[str, Any]]:
    source = f"read_parquet({text_literal(str(path))})"
    (rows,) = _one(connection, f"SELECT count(*) FROM {source}")
    least = rows // 2
    yield _entry(
        "table_row_count_to_be_between", f"there must be at least {least:,} rows", min_value=least
    )
    for field in pq.read_schema(path):
        column, kind = quote(field.name), kind_of(field.type)
        (present,) = _one(connection, f"SELECT count({column}) FROM {source}")
        if not present or field.name == "event_order":
            continue
        nulls = round(min(1.0, 2 * (1 - present / rows)), 4)
        if nulls < 1:
            yield _entry(
                "column_values_to_not_be_null",
                f"{field.name} must not be null in more than {nulls:g} of the rows",
                column=field.name,
                mostly=round(1 - nulls, 4),
            )
        if kind == "number":
            query = f"SELECT min({column}), max({column}) FROM {source} WHERE isfinite({column})"
            low, high = (float(bound) for bound in _one(connection, query))
            room = (high - low) / 10
            yield _entry(
                "column_values_to_be_between",
                f"{field.name} must be {low - room:g} to {high + room:g}; {low:g} to {high:g} seen",
                column=field.name,
                min_value=low - room,
                max_value=high + room,
            )
        if kind == "text" and not field.name.endswith("_id"):
            query = f"SELECT DISTINCT {column} FROM {source} WHERE {column} IS NOT NULL ORDER BY 1"
            values = [v for (v,) in connection.execute(f"{query} LIMIT 31").fetchall()]
            if len(values) <= MOST_VALUES and rows >= 10 * len(values):
                yield _entry(
                    "column_values_to_be_in_set",
                    f"{field.name} must be one of the {len(values)} values seen",
                    column=field.name,
                    value_set=values,
                )


def _entry(kind: str, says: str, **settings: Any) -> dict[str, Any]:
    fix = "check the source, or this bound"
    return {"type": f"expect_{kind}", **settings, "says": says, "fix": fix, "severity": "stop"}


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> Sequence[Any]:
    row: Sequence[Any] = connection.execute(query).fetchall()[0]
    return row


def _toml(value: Any) -> str:
    """Write a value as TOML; texts, numbers and lists of texts look as in JSON."""
    return json.dumps(value, ensure_ascii=False)

"""SQL (DuckDB) that turns a source's column into a typed one, and tells where it cannot."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt

from feature_repo.dataset_columns import ImageColumn, Rule, TimeColumn, Weight
from pipelines.errors import SourceError

Types = dict[str, pa.DataType]

_EPOCH_FACTORS = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_FIRST_TIME = "TIMESTAMPTZ '1678-01-01 00:00:00+00'"
_LAST_TIME = "TIMESTAMPTZ '2262-01-01 00:00:00+00'"
_YEARS = "in the years 1678 to 2261"  # those of pandas' nanoseconds, which Feast uses


@dataclass(frozen=True)
class Expression:
    """A value of each row, and where it is not what it should be.

    Attributes
    ----------
    sql
        The value; null where the source's is null or at fault.
    fault
        A condition, never null, true where the source has a value that cannot be read; None if
        every value can be.
    column
        The source's column, for messages.
    expected
        What the source's value should be, for messages.
    """

    sql: str
    fault: str | None = None
    column: str = ""
    expected: str = ""


FALSE = Expression("false")
EMPTY_LIST = Expression("CAST([] AS VARCHAR[])")


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def literal(value: str) -> str:
    """Return a text as an SQL literal."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"


def constant(value: str | None) -> Expression:
    """Return the same text for every row."""
    return Expression("CAST(NULL AS VARCHAR)" if value is None else literal(value))


def text(column: str, types: Types) -> Expression:
    """Return a text; whole floating-point numbers are written as integers (7.0 as '7').

    Parquet files hold integer ids as floating-point numbers as soon as one was missing.
    """
    kind, name = types[column], quoted(column)
    if _is_text(kind):
        return Expression(name)
    if pt.is_floating(kind):
        whole = f"{name} = trunc({name}) AND abs({name}) < 9e18"
        return Expression(
            f"CASE WHEN isnan({name}) THEN NULL WHEN {whole} THEN "
            f"CAST(CAST({name} AS BIGINT) AS VARCHAR) ELSE CAST({name} AS VARCHAR) END"
        )
    if pt.is_nested(kind) or pt.is_binary(kind) or pt.is_large_binary(kind):
        raise _wrong_type(column, kind, "text or a number")
    return Expression(f"CAST({name} AS VARCHAR)")


def identifier(column: str, types: Types) -> Expression:
    """Return an id as text, without white space around it (which tells no two apart); never ''."""
    if pt.is_integer(types[column]):
        return text(column, types)
    white = "' ' || chr(9) || chr(10) || chr(13) || chr(160)"
    return Expression(f"nullif(trim({text(column, types).sql}, {white}), '')")


def joined_text(columns: tuple[str, ...], types: Types) -> Expression:
    """Return the texts of some columns, joined by line breaks, nulls left out; null if all are."""
    parts = ", ".join(text(column, types).sql for column in columns)
    return Expression(f"nullif(concat_ws(chr(10), {parts}), '')")


def number(column: str, types: Types) -> Expression:
    """Return a finite double."""
    kind, name = types[column], quoted(column)
    expected = "a number"
    if _is_text(kind):
        value = f"TRY_CAST({name} AS DOUBLE)"
        fault = f"{name} IS NOT NULL AND NOT coalesce(isfinite({value}), false)"
        return Expression(f"CASE WHEN isfinite({value}) THEN {value} END", fault, column, expected)
    if pt.is_floating(kind):
        value = f"CASE WHEN isfinite({name}) THEN CAST({name} AS DOUBLE) END"
        return Expression(value, f"coalesce(isinf({name}), false)", column, expected)
    if pt.is_integer(kind) or pt.is_decimal(kind) or pt.is_boolean(kind) or pt.is_null(kind):
        return Expression(f"CAST({name} AS DOUBLE)")
    raise _wrong_type(column, kind, "numbers")


def time(described: TimeColumn, types: Types) -> Expression:
    """Return a TIMESTAMPTZ; the session's TimeZone is that of ISO times written without one."""
    assert described.column is not None
    column = described.column
    kind, name = types[column], quoted(column)
    expected = f"a time in format '{described.format}', {_YEARS}"
    if pt.is_timestamp(kind) or pt.is_date(kind):
        value = f"CAST({name} AS TIMESTAMPTZ)"
    elif described.format in _EPOCH_FACTORS:
        factor = _EPOCH_FACTORS[described.format]
        micros = f"round(({number(column, types).sql}) * {factor})"
        # Outside of these bounds make_timestamp raises; both lie outside of the years allowed.
        value = (
            f"CASE WHEN {micros} BETWEEN -9.2e18 AND 9.2e18 THEN "
            f"make_timestamp(CAST({micros} AS BIGINT)) AT TIME ZONE 'UTC' END"
        )
    elif not _is_text(kind):
        raise _wrong_type(column, kind, "times as text; for numbers say format = 'epoch_s'")
    elif described.format == "iso":
        value = f"TRY_CAST({name} AS TIMESTAMPTZ)"
    else:
        value = f"try_strptime({name}, {literal(described.format)})"
        value = f"CAST({value} AS TIMESTAMPTZ)"
    inside = f"coalesce({value} >= {_FIRST_TIME} AND {value} < {_LAST_TIME}, false)"
    return Expression(
        f"CASE WHEN {inside} THEN {value} END",
        f"{_present(column, types)} AND NOT {inside}",
        column,
        expected,
    )


def texts(column: str, separator: str | None, types: Types) -> Expression:
    """Return a list of distinct, non-empty texts in their order; an empty list for null.

    Lists come as they are. A text is split at the separator; without one it is a JSON list, or a
    single value. Brackets and quotes around a list and its parts, as Python prints them
    ("['a', 'b']"), are taken off before splitting.
    """
    kind, name = types[column], quoted(column)
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        items = f"CAST({name} AS VARCHAR[])"
    else:
        whole = text(column, types).sql
        if separator is None:
            is_list = f"starts_with({whole}, '[') AND json_valid({whole})"
            items = (
                f"CASE WHEN {is_list} THEN from_json({whole}, '[\"VARCHAR\"]') ELSE [{whole}] END"
            )
        else:
            bare = f"regexp_extract({whole}, '^\\s*\\[(.*)\\]\\s*$', 1, 's')"
            inner = f"list_transform(string_split({bare}, {literal(separator)}), {_UNQUOTE})"
            plain = f"string_split({whole}, {literal(separator)})"
            items = f"CASE WHEN {bare} <> '' THEN {inner} ELSE {plain} END"
    trimmed = f"list_transform({items}, lambda x: trim(x))"
    kept = f"list_filter({trimmed}, lambda x: x IS NOT NULL AND x NOT IN ('', '[]'))"
    distinct = f"list_filter({kept}, lambda x, i: list_position({kept}, x) = i)"
    return Expression(f"coalesce({distinct}, CAST([] AS VARCHAR[]))")


# RE2 knows no back references: one pattern for each kind of quote.
_UNQUOTE = (
    "lambda x: regexp_replace(regexp_replace(trim(x), '^''(.*)''$', '\\1', 's'), "
    "'^\"(.*)\"$', '\\1', 's')"
)


def image(described: ImageColumn, types: Types) -> Expression:
    """Return a path as text, or a picture's bytes.

    Text that is not base64 is passed on as it is: who decodes the picture refuses and counts it,
    as any other damaged one.
    """
    column = described.column
    kind, name = types[column], quoted(column)
    binary = pt.is_binary(kind) or pt.is_large_binary(kind)
    if described.kind == "binary":
        if not binary:
            raise _wrong_type(column, kind, "binary; for text say kind = 'base64' or 'path'")
        return Expression(name)
    if not _is_text(kind):
        raise _wrong_type(column, kind, "text; for bytes say kind = 'binary'")
    if described.kind == "path":
        return Expression(name)
    body = f"regexp_replace({name}, '^\\s*data:[^,]*,|\\s', '', 'g')"
    return Expression(f"coalesce(TRY(from_base64({body})), encode({name}))")


def rule(described: Rule, action: Expression, types: Types) -> Expression:
    """Return a boolean, never null: whether the rule holds."""
    if described.every:
        return Expression("true")
    if described.actions is not None:
        wanted = ", ".join(literal(one) for one in described.actions)
        return Expression(f"coalesce(({action.sql}) IN ({wanted}), false)")
    assert described.column is not None
    column = described.column
    if described.at_least is not None:
        value = number(column, types)
        test = f"coalesce(({value.sql}) >= {described.at_least!r}, false)"
        return Expression(test, value.fault, column, value.expected)
    if isinstance(described.equals, bool):
        value = _truth(column, types)
        test = f"coalesce(({value.sql}) = {described.equals}, false)"
        return Expression(test, value.fault, column, value.expected)
    if isinstance(described.equals, str):
        test = f"coalesce(({text(column, types).sql}) = {literal(described.equals)}, false)"
        return Expression(test)
    value = number(column, types)
    test = f"coalesce(({value.sql}) = {described.equals!r}, false)"
    return Expression(test, value.fault, column, value.expected)


def weight(described: Weight, positive: Expression, types: Types) -> Expression:
    """Return a positive event's weight, 0 for any other."""
    if described.column is None:
        return Expression(f"CASE WHEN {positive.sql} THEN {described.constant!r} ELSE 0 END")
    value = number(described.column, types)
    scaled = f"ln(1 + ({value.sql}))" if described.scale == "log1p" else value.sql
    usable = f"coalesce(({value.sql}) >= 0, false)"
    return Expression(
        f"CASE WHEN NOT ({positive.sql}) THEN 0 WHEN {usable} THEN {scaled} END",
        f"({positive.sql}) AND NOT {usable}",
        described.column,
        "a weight: a number from 0 up",
    )


def _truth(column: str, types: Types) -> Expression:
    kind, name = types[column], quoted(column)
    if pt.is_boolean(kind):
        return Expression(name)
    value = f"TRY_CAST({text(column, types).sql} AS BOOLEAN)"
    return Expression(
        value, f"{name} IS NOT NULL AND {value} IS NULL", column, "true or false (1 or 0)"
    )


def _present(column: str, types: Types) -> str:
    """Return the condition that a value is there; a floating-point NaN is not."""
    name = quoted(column)
    return f"{name} IS NOT NULL" + (
        f" AND NOT isnan({name})" if pt.is_floating(types[column]) else ""
    )


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _wrong_type(column: str, kind: pa.DataType, expected: str) -> SourceError:
    return SourceError(
        f"column '{column}' holds {kind}, expected {expected}; correct the description, or convert "
        "the column"
    )

"""Entity rows of a historical retrieval, whatever form they come in, as one Arrow table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.errors import EntityTimestampInferenceException, FeastEntityDFMissingColumnsError
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL

from feastpack.asof_sql import TimeRange, ViewJoin, instant_literal
from feastpack.duckdb_job import fetch_arrow
from feastpack.errors import RequestError
from feastpack.sources import quoted

_MICROSECONDS = pa.timestamp("us", tz="UTC")
_NANOSECONDS = pa.timestamp("ns", tz="UTC")


@dataclass(frozen=True)
class EntityRows:
    """Entity rows with their time column found and made UTC.

    Attributes
    ----------
    table
        All columns as given, in the given order of rows.
    timestamp
        Name of the time column; ``timestamp[unit, tz=UTC]``, null where unknown.
    span
        Earliest and latest time; None if there is no row with a time.
    """

    table: pa.Table
    timestamp: str
    span: TimeRange | None

    @property
    def needs_nanoseconds(self) -> bool:
        """Whether a time is finer than a microsecond."""
        times = self.table.column(self.timestamp)
        if times.type.unit != "ns":
            return False
        try:
            times.cast(_MICROSECONDS)
        except pa.ArrowInvalid:
            return True
        return False

    def times_and_keys(
        self, keys: Sequence[str], *, nanoseconds: bool
    ) -> tuple[pa.ChunkedArray, list[pa.ChunkedArray]]:
        """Times as int64 micro- or nanoseconds since 1970, and the columns of join keys.

        Raises
        ------
        FeastEntityDFMissingColumnsError
            If a join key is not among the columns.
        """
        missing = set(keys) - set(self.table.column_names)
        if missing:
            raise FeastEntityDFMissingColumnsError(set(keys), missing)
        kind = _NANOSECONDS if nanoseconds else _MICROSECONDS
        times = self.table.column(self.timestamp).cast(kind).cast(pa.int64())
        return times, [self.table.column(key) for key in keys]


def read_entity_rows(connection: duckdb.DuckDBPyConnection, entity_df: Any) -> EntityRows:
    """Take entity rows as pandas, as Arrow (anything with ``__arrow_c_stream__``) or as SQL.

    SQL runs in DuckDB; relative paths in it start at the feature repository.

    Raises
    ------
    EntityTimestampInferenceException
        If there is no column ``event_timestamp`` and not exactly one time column.
    RequestError
        If `entity_df` is none of those.
    """
    if isinstance(entity_df, str):
        return _with_utc_times(fetch_arrow(connection, entity_df))
    if isinstance(entity_df, pd.DataFrame):
        return _with_utc_times(_from_pandas(entity_df))
    if isinstance(entity_df, pa.Table) or hasattr(entity_df, "__arrow_c_stream__"):
        return _with_utc_times(pa.table(entity_df))
    raise RequestError(
        f"entity_df: found {type(entity_df).__name__}, expected a pandas DataFrame, an Arrow "
        "table, an SQL query, or None with start_date and end_date"
    )


def entity_rows_of_period(
    connection: duckdb.DuckDBPyConnection,
    joins: Sequence[ViewJoin],
    keys: Sequence[str],
    start: datetime,
    end: datetime,
) -> EntityRows:
    """Every entity with an event in ``[start, end]`` in any of the views, as of `end`.

    One row per distinct combination of join keys of a view, keys of other views null, ordered
    by the keys; the time column is ``event_timestamp``.
    """
    unions = []
    for join in joins:
        if not join.keys:
            continue
        time = join.scan.instant(join.timestamp)
        picked = [
            f"{quoted(join.scan.column(name))} AS {quoted(keys[position])}"
            for name, position in join.keys
        ]
        present = [f"{quoted(join.scan.column(name))} IS NOT NULL" for name, _ in join.keys]
        bounds = f"{time} BETWEEN {instant_literal(start)} AND {instant_literal(end)}"
        unions.append(
            f"SELECT {', '.join(picked)} FROM {join.scan.sql} "
            f"WHERE {' AND '.join([bounds, *present])}"
        )
    moment = pa.scalar(end.astimezone(UTC), _MICROSECONDS)
    time_name = DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
    if not unions:
        return _with_utc_times(pa.table({time_name: pa.array([moment.as_py()], _MICROSECONDS)}))
    union = "\nUNION ALL BY NAME\n".join(unions)
    columns = ", ".join(map(quoted, keys))
    found = fetch_arrow(connection, f"SELECT DISTINCT {columns} FROM (\n{union}\n) ORDER BY ALL")
    return _with_utc_times(found.append_column(time_name, pa.repeat(moment, found.num_rows)))


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    name = _time_column(
        [str(column) for column in frame],
        [str(column) for column in frame if pd.api.types.is_datetime64_any_dtype(frame[column])],
    )
    given = frame[name]
    times = given.infer_objects()
    if pd.api.types.is_string_dtype(times) or pd.api.types.is_object_dtype(times):
        times = pd.to_datetime(times, utc=True)
    if times.dtype != given.dtype:  # else Arrow points to the frame's own memory
        frame = frame.assign(**{name: times})
    return pa.Table.from_pandas(frame, preserve_index=False)


def _with_utc_times(table: pa.Table) -> EntityRows:
    table = table.replace_schema_metadata(None)
    name = _time_column(
        table.column_names,
        [field.name for field in table.schema if pa.types.is_timestamp(field.type)],
    )
    times = _utc(table.column(name), name)
    table = table.set_column(table.column_names.index(name), name, times)
    bounds = pc.min_max(times.cast(pa.timestamp("us", tz="UTC"), safe=False))
    span = None
    if bounds["min"].is_valid:
        span = TimeRange(bounds["min"].as_py(), bounds["max"].as_py())
    return EntityRows(table, name, span)


def _utc(times: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = times.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        parsed = pd.to_datetime(times.to_pandas(), utc=True)
        return pa.chunked_array([pa.array(parsed, pa.timestamp("ns", tz="UTC"))])
    if pa.types.is_date(kind) or pa.types.is_null(kind):
        times = times.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(kind):
        raise RequestError(
            f"entity_df: the time column {name!r} has type {kind}, expected a timestamp, a date or "
            "an ISO string; convert it"
        )
    if times.type.tz is None:
        return pc.assume_timezone(times, "UTC")
    return times.cast(pa.timestamp(times.type.unit, tz="UTC"))


def _time_column(columns: Sequence[str], time_columns: Sequence[str]) -> str:
    if DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL in columns:
        return str(DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL)
    if len(time_columns) != 1:
        raise EntityTimestampInferenceException(DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL)
    return time_columns[0]

"""Running point-in-time joins: find the valid rows, read their features, put them in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa

from feastpack.asof_sql import (
    FOUND_TABLE,
    KEY_TABLE,
    ViewJoin,
    candidates_query,
    ticks_of,
    uses_nanoseconds,
    values_query,
)
from feastpack.duckdb_job import stream_arrow
from feastpack.entity_rows import EntityRows
from feastpack.errors import OfflineStoreError, RequestError, SchemaError
from feastpack.gathering import Gathering, Wanted
from feastpack.valid_rows import IntArray, Slots, ValidRows, slots_of

#: Rows of the source that are looked at together: small enough for the processor's caches.
_SEARCH_ROWS = 1 << 17
_READ_ROWS = 1 << 14
#: Feature columns that are read in one pass. DuckDB holds some 5 MB per column and thread while
#: it reads; a further pass costs about as much as five columns.
_READ_COLUMNS = 10


class PointInTime:
    """The point-in-time join of some views to entity rows.

    Parameters
    ----------
    joins
        The views, in the order of their columns in the result.
    keys
        Entity columns that hold join keys, in the order that `ViewJoin.keys` counts them.
    by_created
        Count only rows created by the entity row's time, where the source says when.
    """

    def __init__(
        self,
        joins: Sequence[ViewJoin],
        keys: Sequence[str],
        entities: EntityRows,
        *,
        by_created: bool,
    ) -> None:
        self._nanoseconds = entities.needs_nanoseconds or any(
            uses_nanoseconds(join, by_created=by_created) for join in joins
        )
        self._joins = joins
        self._keys = keys
        self._entities = entities
        self._by_created = by_created
        self._times, self._key_columns = entities.times_and_keys(
            keys, nanoseconds=self._nanoseconds
        )

    @property
    def statements(self) -> list[str]:
        """What runs per view: the search for the valid rows, then the reading of their features."""
        return [
            sql
            for join in self._joins
            for sql in (self._search(join), values_query(join, slice(None)))
        ]

    def check(self) -> None:
        """Refuse what would be answered wrongly: columns of one name, text beside numbers.

        Raises
        ------
        RequestError
            If a feature has the name of a column of the entity rows.
        SchemaError
            If a join key is text on one side only; DuckDB would parse the text.
        """
        taken = set(self._entities.table.column_names)
        clashes = [name for join in self._joins for name in join.names if name in taken]
        if clashes:
            raise RequestError(
                f"entity_df: has columns with the names of features: {', '.join(clashes)}; rename "
                "them or ask with full_feature_names=True"
            )
        for join in self._joins:
            for name, position in join.keys:
                in_source = join.scan.types[join.scan.column(name)]
                in_rows = self._key_columns[position].type
                is_text = pa.types.is_string(in_rows) or pa.types.is_large_string(in_rows)
                if not pa.types.is_null(in_rows) and is_text != (in_source == "VARCHAR"):
                    raise SchemaError(
                        f"feature view {join.view!r}: join key {self._keys[position]!r} is "
                        f"{in_rows} in entity_df and {in_source} in source {join.scan.label}; "
                        "convert one of them"
                    )

    def count(self, connection: duckdb.DuckDBPyConnection) -> int:
        """As many rows as there are entity rows."""
        return int(self._entities.table.num_rows)

    def __call__(
        self, connection: duckdb.DuckDBPyConnection, batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """Yield the result for `batch_rows` entity rows at a time; once even if there are none.

        Raises
        ------
        OfflineStoreError
            If DuckDB fails.
        """
        slots: dict[tuple[int, ...], Slots] = {}
        found = [self._find(connection, join, slots) for join in self._joins]
        slots.clear()
        total = self._entities.table.num_rows
        step = max(batch_rows or total, 1)
        for start in range(0, max(total, 1), step):
            result = self._entities.table.slice(start, step)
            for join, rows in zip(self._joins, found, strict=True):
                columns = _features(connection, join, rows[start : start + step])
                for name, column in zip(join.names, columns, strict=True):
                    result = result.append_column(name, column)
            yield result

    def _search(self, join: ViewJoin) -> str:
        return candidates_query(
            join,
            self._entities.span,
            by_created=self._by_created,
            nanoseconds=self._nanoseconds,
        )

    def _find(
        self,
        connection: duckdb.DuckDBPyConnection,
        join: ViewJoin,
        known: dict[tuple[int, ...], Slots],
    ) -> IntArray:
        """The source's row id per entity row, NO_ROW where there is nothing."""
        positions = tuple(position for _, position in join.keys)
        if positions not in known:
            known[positions] = slots_of(self._times, [self._key_columns[at] for at in positions])
        slots = known[positions]
        levels = 2 if join.created is None else 3
        valid = ValidRows(slots, levels)
        connection.register(KEY_TABLE, slots.keys)
        try:
            for table in stream_arrow(connection, self._search(join), _SEARCH_ROWS):
                code, visible, *preference = (column.to_numpy() for column in table.columns)
                valid.add(code, visible, preference)
        finally:
            connection.unregister(KEY_TABLE)
        ttl = ticks_of(join.ttl, nanoseconds=self._nanoseconds) if join.ttl else None
        in_order = not (self._by_created and join.created is not None)
        return valid.result(len(self._times), ttl, in_order=in_order)


def _features(
    connection: duckdb.DuckDBPyConnection, join: ViewJoin, rows: IntArray
) -> list[pa.ChunkedArray]:
    """The feature columns of the given rows of the source, in that order; null for NO_ROW."""
    wanted = Wanted(rows)
    connection.register(FOUND_TABLE, pa.table({"source_row": wanted.unique_ids}))
    try:
        columns: list[pa.ChunkedArray] = []
        for first in range(0, len(join.columns), _READ_COLUMNS):
            query = values_query(join, slice(first, first + _READ_COLUMNS))
            columns += _gathered(connection, query, wanted, join)
        return columns
    finally:
        connection.unregister(FOUND_TABLE)


def _gathered(
    connection: duckdb.DuckDBPyConnection, query: str, wanted: Wanted, join: ViewJoin
) -> list[pa.ChunkedArray]:
    gathering: Gathering | None = None
    for table in stream_arrow(connection, query, _READ_ROWS):
        ids, *columns = (column.combine_chunks() for column in table.columns)
        if gathering is None:
            gathering = Gathering(wanted, [column.type for column in columns])
        gathering.add(ids.to_numpy(), columns)
    filled = gathering.filled if gathering is not None else 0
    if gathering is None or filled != wanted.count_of_rows:
        raise OfflineStoreError(
            f"feature view {join.view!r}: {wanted.count_of_rows} rows were found in source "
            f"{join.scan.label}, then {filled} read; was it written to meanwhile? Run it again"
        )
    return gathering.results()

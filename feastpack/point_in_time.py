"""Running point-in-time joins: find the valid rows, read their features, put them in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feastpack.asof_sql import (
    ENTITY_TABLE,
    FOUND_TABLE,
    ViewJoin,
    asof_query,
    uses_nanoseconds,
    values_query,
)
from feastpack.duckdb_job import fetch_arrow
from feastpack.entity_rows import EntityRows
from feastpack.errors import OfflineStoreError, RequestError, SchemaError

#: Rows gathered at once: keeps a chunk of a text column below Arrow's 2 GB of 32 bit offsets.
_GATHER_ROWS = 1 << 18


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
    threads
        How many feature columns are put in order at the same time.
    """

    def __init__(
        self,
        joins: Sequence[ViewJoin],
        keys: Sequence[str],
        entities: EntityRows,
        *,
        by_created: bool,
        threads: int,
    ) -> None:
        nanoseconds = entities.needs_nanoseconds or any(
            uses_nanoseconds(join, by_created=by_created) for join in joins
        )
        self._joins = joins
        self._keys = keys
        self._entities = entities
        self._rows = entities.join_table(keys, nanoseconds=nanoseconds)
        self._threads = threads
        self._searches = [
            asof_query(join, entities.span, by_created=by_created, nanoseconds=nanoseconds)
            for join in joins
        ]

    @property
    def statements(self) -> list[str]:
        """What runs per view: the search for the valid rows, then the reading of their features."""
        readings = [values_query(join) for join in self._joins]
        return [sql for pair in zip(self._searches, readings, strict=True) for sql in pair]

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
                in_rows = self._rows.schema.field(f"k{position}").type
                is_text = pa.types.is_string(in_rows) or pa.types.is_large_string(in_rows)
                if not pa.types.is_null(in_rows) and is_text != (in_source == "VARCHAR"):
                    raise SchemaError(
                        f"feature view {join.view!r}: join key {self._keys[position]!r} is "
                        f"{in_rows} in entity_df and {in_source} in source {join.scan.label}; "
                        "convert one of them"
                    )

    def count(self, connection: duckdb.DuckDBPyConnection) -> int:
        """As many rows as there are entity rows."""
        return int(self._rows.num_rows)

    def __call__(
        self, connection: duckdb.DuckDBPyConnection, batch_rows: int | None
    ) -> Iterator[pa.Table]:
        """Yield the result for `batch_rows` entity rows at a time; once even if there are none.

        Raises
        ------
        OfflineStoreError
            If DuckDB fails.
        """
        connection.register(ENTITY_TABLE, self._rows)
        try:
            found = [self._find(connection, number) for number in range(len(self._joins))]
        finally:
            connection.unregister(ENTITY_TABLE)
        total = self._rows.num_rows
        step = max(batch_rows or total, 1)
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, max(total, 1), step):
                result = self._entities.table.slice(start, step)
                for join, rows in zip(self._joins, found, strict=True):
                    columns = _features(connection, pool, join, rows.slice(start, step))
                    for name, column in zip(join.names, columns, strict=True):
                        result = result.append_column(name, column)
                yield result

    def _find(self, connection: duckdb.DuckDBPyConnection, number: int) -> pa.Array:
        """The source's row id per entity row, int64, null where there is nothing."""
        pairs = fetch_arrow(connection, self._searches[number])
        if pairs.num_rows != self._rows.num_rows:
            raise OfflineStoreError(
                f"feature view {self._joins[number].view!r}: the join returned {pairs.num_rows} "
                f"rows for {self._rows.num_rows} entity rows; please report this query:\n"
                f"{self._searches[number]}"
            )
        place = np.empty(pairs.num_rows, dtype=np.int64)
        place[pairs.column("row").to_numpy()] = np.arange(pairs.num_rows)
        return pairs.column("source_row").combine_chunks().take(pa.array(place))


def _features(
    connection: duckdb.DuckDBPyConnection, pool: ThreadPoolExecutor, join: ViewJoin, rows: pa.Array
) -> list[pa.ChunkedArray]:
    """The feature columns of the given rows of the source, in that order; null stays null."""
    connection.register(FOUND_TABLE, pa.table({"source_row": rows}))
    try:
        values = fetch_arrow(connection, values_query(join))
    finally:
        connection.unregister(FOUND_TABLE)
    places = pc.index_in(rows, value_set=values.column("source_row"), skip_nulls=True)
    parts = [places.slice(at, _GATHER_ROWS) for at in range(0, max(len(rows), 1), _GATHER_ROWS)]

    def gathered(column: pa.ChunkedArray) -> pa.ChunkedArray:
        whole = column.combine_chunks()
        chunks = [whole.take(part) for part in parts]
        return pa.chunked_array(chunks, type=column.type)

    return list(pool.map(gathered, values.columns[1:]))

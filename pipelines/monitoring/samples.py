"""Bounded samples of feature values whose rows are independent: one for each user or post."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from feast import FeatureStore
from feast.types import Array, Bytes, String

from feature_repo.contract import Contract
from feature_repo.definitions.columns import REQUEST_TIME
from feature_repo.definitions.entities import key_of
from validation.drift import Kind

VECTOR_ROWS = 2_000
UNITS = ("user_id", "post_id")
_KEYS = ["user_id", "post_id", "event_timestamp"]
_MEMORY = "1GB"


@dataclass(frozen=True)
class Sample:
    """Values of the ranker's inputs, and of stored vectors.

    Parameters
    ----------
    by_unit
        ``user_id`` to a table with one row for each user, ``post_id`` to one with a row for each
        post.
    """

    by_unit: Mapping[str, pa.Table]

    @property
    def rows(self) -> dict[str, int]:
        """Rows by unit."""
        return {unit: table.num_rows for unit, table in self.by_unit.items()}

    def columns(self, units: Mapping[str, str]) -> dict[str, pa.ChunkedArray]:
        """Return each feature's values from the table of its unit, where it is there."""
        return {
            name: self.by_unit[unit][name]
            for name, unit in units.items()
            if name in self.by_unit[unit].column_names
        }


def draw(relation: str, rows: int, seed: int) -> Sample:
    """Draw at most so many users and so many posts, and one row of each by chance.

    Parameters
    ----------
    relation
        What DuckDB selects from, with columns user_id, post_id and event_timestamp. It is read
        in a stream and sorted on disk where 1 GB does not suffice.
    seed
        Equal seeds draw equal rows, whatever their order.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        return Sample(
            {
                unit: connection.sql(
                    f"SELECT * FROM {relation} QUALIFY row_number() OVER (PARTITION BY {unit} "
                    f"ORDER BY hash(user_id, post_id, event_timestamp, {seed})) = 1 "
                    f"ORDER BY hash({unit}, {seed}) LIMIT {rows}"
                ).to_arrow_table()
                for unit in UNITS
            }
        )


def parquet(path: Path) -> str:
    """Return what DuckDB selects from to read a parquet file, or all those that a glob means."""
    return "read_parquet('" + str(path).replace("'", "''") + "', union_by_name = true)"


def at(sample: Sample, moment: datetime) -> Sample:
    """Return a sample of requests, asked at another moment."""
    stamp = pa.scalar(moment, pa.timestamp("us", tz="UTC"))
    seconds = pa.scalar(int(moment.timestamp()), pa.int64())

    def moved(table: pa.Table) -> pa.Table:
        kept = table.drop_columns(["event_timestamp", REQUEST_TIME])
        return kept.append_column(
            "event_timestamp", pa.repeat(stamp, table.num_rows)
        ).append_column(REQUEST_TIME, pa.repeat(seconds, table.num_rows))

    return Sample({unit: moved(table) for unit, table in sample.by_unit.items()})


def with_inputs(sample: Sample, store: FeatureStore, contract: Contract) -> Sample:
    """Join the ranker's inputs to a sample of requests, point in time, through Feast."""
    service = store.get_feature_service(contract.service)

    def joined(table: pa.Table) -> pa.Table:
        return _historical(store, table, service).select([*_KEYS, *contract.names])

    return Sample({unit: joined(table) for unit, table in sample.by_unit.items()})


def with_vectors(sample: Sample, store: FeatureStore) -> Sample:
    """Join stored vectors to the first rows of a sample, point in time; null in the other rows."""
    references: dict[str, list[str]] = {unit: [] for unit in UNITS}
    for name, (view, unit) in vectors(store).items():
        references[unit].append(f"{view}:{name}")
    filled = {}
    for unit, table in sample.by_unit.items():
        keys = table.select(_KEYS).slice(0, VECTOR_ROWS)
        if references[unit] and keys.num_rows:
            found = _historical(store, keys, references[unit])
            for reference in references[unit]:
                name = reference.partition(":")[2]
                rest = pa.nulls(table.num_rows - keys.num_rows, found[name].type)
                column = pa.chunked_array([*found[name].chunks, rest])
                table = table.append_column(name, column)
        filled[unit] = table
    return Sample(filled)


def vectors(store: FeatureStore) -> dict[str, tuple[str, str]]:
    """Return the stored features that are lists of numbers, with their view and its key."""
    return {
        field.name: (view.name, key_of(view))
        for view in store.list_feature_views()
        for field in view.features
        if isinstance(field.dtype, Array) and field.dtype.base_type not in (String, Bytes)
    }


def kinds_and_units(
    store: FeatureStore, contract: Contract
) -> tuple[dict[str, Kind], dict[str, str]]:
    """Return how each feature is to be compared, and whose it is.

    Request-time features depend on user and post; they count as the user's.
    """
    keys = {view.name: key_of(view) for view in store.list_feature_views()}
    kinds: dict[str, Kind] = {}
    units: dict[str, str] = {}
    for one in contract.inputs:
        is_category = one.is_category or one.dtype == "String"
        kinds[one.name] = "category" if is_category else "number"
        units[one.name] = keys.get(one.view, "user_id")
    for name, (_, unit) in vectors(store).items():
        kinds[name], units[name] = "vector", unit
    return kinds, units


def _historical(store: FeatureStore, keys: pa.Table, features: Any) -> pa.Table:
    """Join features to rows; the result has the rows in their order."""
    numbered = keys.append_column("row_position", pa.array(range(keys.num_rows), pa.int64()))
    job = store.get_historical_features(entity_df=numbered.to_pandas(), features=features)
    return job.to_arrow().sort_by("row_position")

"""Why served rows differ from the offline store: what the feature tables and the lake say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from feast import FeatureView
from numpy.typing import NDArray

from feature_repo.definitions.entities import key_of
from pipelines.monitoring.samples import parquet
from pipelines.monitoring.served import ROW
from validation.skew import LATE_EVENT, MISSING_ROW, NOT_MATERIALIZED, STALE_ROW, TTL

Causes = NDArray[np.object_]

# Rows of one view whose history is looked at; a fault has the same cause in the others.
EXPLAINED_ROWS = 20_000


@dataclass(frozen=True)
class StoredView:
    """A feature view with the inputs that the log holds of it."""

    view: FeatureView
    inputs: Sequence[str]

    @property
    def key(self) -> str:
        """The join key."""
        return key_of(self.view)

    @property
    def table(self) -> str:
        """What DuckDB selects its feature table from."""
        return parquet(Path(self.view.batch_source.path))


def row_causes(
    stored: StoredView, served: pa.Table, at: pa.ChunkedArray, differing: NDArray[np.int64]
) -> Causes:
    """Return why the served rows of a view are not the latest of its table; None: not known.

    A served row is an older one if all its logged values are those of one older row. Whether it
    should have been newer tells the moment that the view was materialized until.

    Parameters
    ----------
    served
        Logged rows: the key, ``materialized_until`` and the view's inputs.
    at
        The moments of the point-in-time join.
    differing
        Positions of the rows at which any of the view's inputs differs.
    """
    causes: Causes = np.full(served.num_rows, None, object)
    chosen = differing[:EXPLAINED_ROWS]
    if not len(chosen) or not stored.inputs:
        return causes
    for row, offline, latest, matched, until, is_missing in _histories(stored, served, at, chosen):
        if stored.view.ttl and latest is not None and offline is None:
            causes[row] = TTL
        elif offline is None:
            continue
        elif matched is not None and matched < offline:
            causes[row] = NOT_MATERIALIZED if until and offline > until else STALE_ROW
        elif is_missing:
            causes[row] = NOT_MATERIALIZED if until and latest > until else MISSING_ROW
    return causes


def _histories(
    stored: StoredView, served: pa.Table, at: pa.ChunkedArray, rows: NDArray[np.int64]
) -> list[tuple[Any, ...]]:
    """Return of each row: position, times of its offline row, first row, served row, and so on."""
    asked = served.select([stored.key, "materialized_until", *stored.inputs]).take(pa.array(rows))
    asked = asked.append_column(ROW, pa.array(rows)).append_column(
        "moment", at.take(pa.array(rows))
    )
    same = " AND ".join(
        f'{_cast("t", n, asked)} IS NOT DISTINCT FROM a."{n}"' for n in stored.inputs
    )
    nothing = " AND ".join(f'a."{name}" IS NULL' for name in stored.inputs)
    ttl = stored.view.ttl.total_seconds() if stored.view.ttl else 0
    oldest = f"a.moment - INTERVAL {int(1e6 * ttl)} MICROSECONDS" if ttl else "'-infinity'"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("asked", asked)
        found: list[tuple[Any, ...]] = connection.execute(
            f"SELECT a.{ROW}, max(t.event_timestamp) FILTER (t.event_timestamp >= {oldest}), "
            f"min(t.event_timestamp), max(t.event_timestamp) FILTER ({same}), "
            f"any_value(a.materialized_until), bool_and({nothing}) "
            f'FROM asked a LEFT JOIN {stored.table} t ON t."{stored.key}" = a."{stored.key}" '
            f"AND t.event_timestamp <= a.moment GROUP BY a.{ROW}"
        ).fetchall()
    return found


def _cast(table: str, name: str, asked: pa.Table) -> str:
    is_text = pa.types.is_string(asked.schema.field(name).type)
    column = f'{table}."{name}"'
    # The log holds NaN as null.
    return (
        column
        if is_text
        else f"CASE WHEN isnan({column}::DOUBLE) THEN NULL ELSE {column}::DOUBLE END"
    )


def late_events(
    files: Sequence[Path], served: pa.Table, at: pa.ChunkedArray
) -> Mapping[str, NDArray[np.bool_]]:
    """Return by join key which rows' users or posts have events that came after the answer.

    Parameters
    ----------
    files
        Event files of the lake that were written after the first answer.
    """
    keys = ("user_id", "post_id")
    late = {key: np.zeros(served.num_rows, bool) for key in keys}
    if not files:
        return late
    rows = served.select([*keys, "time"]).append_column("moment", at)
    rows = rows.append_column(ROW, pa.array(range(served.num_rows), pa.int64()))
    arrived = pa.table(
        {
            "filename": [str(file) for file in files],
            "arrived": pa.array(
                [datetime.fromtimestamp(file.stat().st_mtime, UTC) for file in files],
                pa.timestamp("us", tz="UTC"),
            ),
        }
    )
    names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("served", rows)
        connection.register("arrived", arrived)
        for key in keys:
            found = connection.execute(
                f"WITH events AS (SELECT {key}, event_time, arrived FROM "
                f"read_parquet([{names}], filename = true, union_by_name = true) "
                f"JOIN arrived USING (filename)) SELECT DISTINCT s.{ROW} FROM served s JOIN events "
                f"e ON e.{key} = s.{key} AND e.arrived > s.time AND e.event_time <= s.moment"
            ).fetchnumpy()[ROW]
            late[key][np.asarray(found, np.int64)] = True
    return late


def combined(causes: Sequence[Causes], rows: int) -> Causes:
    """Return the first cause that any of several sources knows of each row."""
    result: Causes = np.full(rows, None, object)
    for one in causes:
        unknown = np.array([cause is None for cause in result], bool)
        result[unknown] = one[unknown]
    return result


def named(flags: NDArray[np.bool_], cause: str = LATE_EVENT) -> Causes:
    """Return a cause where a flag is set."""
    causes: Causes = np.full(len(flags), None, object)
    causes[flags] = cause
    return causes

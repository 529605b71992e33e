"""Leakage: what was known before a cut must not depend on what came after it, not by a bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from validation.errors import ValidationError


class LeakageError(ValidationError):
    """The future, or the answer, reaches what the ranker learns from."""


@dataclass(frozen=True)
class Difference:
    """A column whose values before the cut changed with the events after it.

    Parameters
    ----------
    table, column
        Where; the column is ``rows`` where one side has rows that the other has not.
    count
        Rows that differ.
    rows
        Rows compared.
    example
        The first of them: its keys, the value without and with the changed future.
    """

    table: str
    column: str
    count: int
    rows: int
    example: str


def differences(
    name: str, before: Path, after: Path, keys: Sequence[str], cut: datetime
) -> list[Difference]:
    """Compare two feature tables up to a cut, value by value; NaN equals NaN, null equals null.

    Parameters
    ----------
    name
        What the table is called in the result.
    before, after
        Parquet files: from the events as they are, and from events with another future.
    keys
        Columns that tell rows apart; ``event_timestamp`` is among them.
    cut
        Rows with a later ``event_timestamp`` may differ.
    """
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    columns = _columns(connection, before)
    for side, path in (("before", before), ("after", after)):
        connection.execute(
            f"CREATE VIEW {side}_cut AS SELECT * FROM read_parquet({_text(str(path))}) "
            f"WHERE event_timestamp <= TIMESTAMPTZ {_text(cut.isoformat(sep=' '))}"
        )
    on = " AND ".join(f"b.{_name(key)} IS NOT DISTINCT FROM a.{_name(key)}" for key in keys)
    first = _name(keys[0])
    missing = f"(b.{first} IS NULL) <> (a.{first} IS NULL)"
    connection.execute(
        f"CREATE TABLE joined AS SELECT b, a FROM before_cut b FULL JOIN after_cut a ON {on}"
    )
    (rows,) = _one(connection, "SELECT count(*) FROM joined")
    shown = " || ', ' || ".join(
        f"'{key} ' || coalesce(b.{_name(key)}, a.{_name(key)})" for key in keys
    )
    found = []
    tests = [("rows", missing, "b IS NOT NULL", "a IS NOT NULL")]
    for column in columns:
        if column not in keys:
            mine, theirs = f"b.{_name(column)}", f"a.{_name(column)}"
            differ = f"NOT ({missing}) AND {mine} IS DISTINCT FROM {theirs}"
            tests.append((column, differ, mine, theirs))
    for column, differ, mine, theirs in tests:
        count, example = _one(
            connection,
            f"SELECT count(*), first({shown} || ': ' || coalesce(({mine})::VARCHAR, 'null') || "
            f"' became ' || coalesce(({theirs})::VARCHAR, 'null')) FROM joined WHERE {differ}",
        )
        if count:
            found.append(Difference(name, column, int(count), int(rows), example[:200]))
    return found


def late_features(examples: Path, tables: Mapping[str, tuple[Path, str]]) -> list[Difference]:
    """Compare training rows with each feature's latest value that is not after their moment.

    The labels of a row lie at or after its ``event_timestamp``; a feature that became known later
    would be the answer. The join is done anew here, by another way than Feast's.

    Parameters
    ----------
    examples
        Parquet file of the training set: keys, ``event_timestamp``, features.
    tables
        By view: its feature table, and its key.
    """
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    source = f"read_parquet({_text(str(examples))})"
    given = set(_columns(connection, examples))
    (rows,) = _one(connection, f"SELECT count(*) FROM {source}")
    found = []
    for view, (path, key) in tables.items():
        joined = (
            f"{source} AS e ASOF LEFT JOIN read_parquet({_text(str(path))}) AS t "
            f"ON e.{_name(key)} = t.{_name(key)} AND e.event_timestamp >= t.event_timestamp"
        )
        features = [c for c in _columns(connection, path) if c in given]
        for column in (c for c in features if c not in (key, "event_timestamp")):
            mine, known = f"e.{_name(column)}", f"t.{_name(column)}"
            count, example = _one(
                connection,
                f"SELECT count(*), first('{key} ' || e.{_name(key)} || ': ' || "
                f"coalesce({mine}::VARCHAR, 'null') || ', known then ' || "
                f"coalesce({known}::VARCHAR, 'null')) "
                f"FROM {joined} WHERE {mine} IS DISTINCT FROM {known}",
            )
            if count:
                found.append(Difference(view, column, int(count), int(rows), example[:200]))
    return found


def early_labels(examples: Path, events: Path) -> list[Difference]:
    """Find training rows of label 1 whose user did not like the post at or after their moment.

    Parameters
    ----------
    examples
        Parquet file: ``user_id``, ``post_id``, ``event_timestamp``, ``label``.
    events
        Folder of the lake's events.
    """
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    rows, count, example = _one(
        connection,
        f"""WITH liked AS (SELECT user_id, post_id, max(event_time) AS last FROM
            read_parquet({_text(f"{events}/*/*.parquet")}, hive_partitioning = false)
            WHERE is_positive GROUP BY ALL),
        judged AS (SELECT e.*, coalesce(last < e.event_timestamp, TRUE) AS early FROM
            read_parquet({_text(str(examples))}) AS e LEFT JOIN liked USING (user_id, post_id)
            WHERE label = 1)
        SELECT count(*), count(*) FILTER (WHERE early), first('user_id ' || user_id ||
            ', post_id ' || post_id || ' as of ' || event_timestamp) FILTER (WHERE early)
        FROM judged""",
    )
    if not count:
        return []
    return [Difference("training set", "label", int(count), int(rows), example[:200])]


def perturbed(events: pa.Table, cut: datetime, rng: np.random.Generator) -> pa.Table:
    """Give every event from the cut on another user, post and value; times stay.

    Times and what counts as positive stay as they are, so that the cuts of the slices, which
    follow from them, stay too.

    Parameters
    ----------
    events
        The lake's events, any order; a column ``event_time``.
    """
    late = np.flatnonzero(_microseconds(events["event_time"]) >= int(cut.timestamp() * 1_000_000))
    changed = {}
    for column in events.column_names:
        if column in _KEPT:
            continue
        places = np.arange(events.num_rows)
        # Drawn anew, not exchanged: totals over all time must move too.
        places[late] = rng.integers(0, events.num_rows, len(late))
        changed[column] = events[column].take(pa.array(places))
    for column, values in changed.items():
        events = events.set_column(events.schema.get_field_index(column), column, values)
    return events


_KEPT = ("event_time", "event_order", "is_positive", "weight", "is_impression", "event_month")


def chance_interval(
    measure_of_random: Sequence[float], deviations: float = 4.0
) -> tuple[float, float]:
    """Return what measures of random orders lie between: mean and so many standard deviations."""
    values: NDArray[np.float64] = np.asarray(measure_of_random, dtype=np.float64)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    return mean - deviations * spread, mean + deviations * spread


def _columns(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    described = connection.execute(
        f"DESCRIBE SELECT * FROM read_parquet({_text(str(path))})"
    ).fetchall()
    return [row[0] for row in described]


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    return connection.execute(query).fetchall()[0]


def _microseconds(times: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    return values


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"

"""What a source says now against what the lake knows of it, as measures with bounds.

A table can be well-formed and still be wrong: a file cut short, ratings on another scale, times
in another zone, ids that were numbered anew. What gives it away is the comparison with what was
read before. Each measure here is exact, taken by DuckDB in bounded memory, and becomes one
expectation of the gate ``raw_changes`` (`validation.suites.raw_changes`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, Self

import duckdb

from feature_repo.dataset import Dataset
from validation.columns import quote
from validation.engine import MEMORY_LIMIT

LEAST_ROWS = 100
"""Fewer new events than these are too few to compare shares and medians of."""

_KEY = ("user_id", "post_id", "action", "event_time")
_RECALL = "if the source was changed on purpose, pass --accept-changes"


@dataclass(frozen=True)
class Change:
    """One measure, the bounds that it must keep, and what to say if it does not.

    Parameters
    ----------
    measure
        A name that is fit for a column.
    value
        What was found.
    least, most
        The bounds, allowed themselves; None for no bound.
    says
        What must hold, in plain words.
    fix
        What to do next if it does not.
    """

    measure: str
    value: float
    least: float | None
    most: float | None
    says: str
    fix: str = _RECALL


@dataclass(frozen=True)
class Sources:
    """Parquet files of the raw tables; None where the dataset describes no such table."""

    events: Path
    users: Path | None = None
    posts: Path | None = None


History = Literal["whole", "addition", "none"]
"""How the raw events relate to the lake's: all there are in a span of time; only what was added
to a database table; or not comparable (no clock, or read by other rules)."""


class Comparison:
    """The raw tables and the lake, side by side. Use as a context manager.

    Parameters
    ----------
    dataset
        The description.
    raw
        The tables as read from the source.
    lake
        The lake's folder; may not exist.
    history
        How the raw events relate to the lake's.
    """

    def __init__(self, dataset: Dataset, raw: Sources, lake: Path, history: History) -> None:
        self.dataset, self.raw, self.lake, self.history = dataset, raw, lake, history
        self._spill = TemporaryDirectory(prefix="feastrank-changes-")
        self.connection = duckdb.connect()
        self.connection.execute("SET TimeZone = 'UTC'")
        self.connection.execute(f"SET temp_directory = '{self._spill.name}'")
        self.connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        self.connection.execute(f"CREATE VIEW raw AS SELECT * FROM {_files(raw.events)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()
        self._spill.cleanup()

    def changes(self) -> list[Change]:
        """Return every measure that applies; those of the source alone if there is no lake."""
        found = [*_shape(self)]
        parts = sorted((self.lake / "events").glob("*/*.parquet"))
        if not parts:
            return found
        self.connection.execute(
            f"""CREATE VIEW lake AS SELECT u.external_id AS user_id, p.external_id AS post_id,
            event_time, action, value, is_positive, is_impression
            FROM read_parquet('{self.lake}/events/*/*.parquet', hive_partitioning = false) AS e
            JOIN {_files(self.lake / "ids" / "users.parquet")} AS u USING (user_id)
            JOIN {_files(self.lake / "ids" / "posts.parquet")} AS p USING (post_id)"""
        )
        for name, path in (("users", self.raw.users), ("posts", self.raw.posts)):
            if path is not None:
                found += _Entities(self, name, path).changes()
        if self.history != "none":
            same = " AND ".join(f"l.{column} = raw.{column}" for column in _KEY)
            self.connection.execute(
                f"CREATE TABLE new AS SELECT * FROM raw WHERE NOT EXISTS "
                f"(SELECT 1 FROM lake AS l WHERE {same})"
            )
            if self.history == "whole":
                found += _history(self)
            found += _new_events(self)
        return found

    def one(self, query: str) -> Any:
        """Return the row of a query."""
        return self.connection.execute(query).fetchall()[0]

    def number(self, query: str) -> float | None:
        """Return the only value of a query."""
        (value,) = self.one(query)
        return None if value is None else float(value)


def _files(path: Path) -> str:
    return f"read_parquet('{path}')"


def _shape(compare: Comparison) -> Iterator[Change]:
    """Measure what needs nothing to compare with: all of it would be odd in any feed."""
    rows, same_instant, users = compare.one(
        "SELECT count(*), max(n), (SELECT count(DISTINCT user_id) FROM raw) FROM raw, "
        "(SELECT max(n) AS n FROM (SELECT count(*) AS n FROM raw GROUP BY event_time))"
    )
    if rows < LEAST_ROWS:
        return
    if compare.dataset.has_clock:
        yield Change(
            "events_at_one_instant_share",
            same_instant / rows,
            None,
            0.5,
            "at most half of the events may be at one and the same instant",
            "a default time was written where the time is unknown; repair the source",
        )
    if users >= 10:
        for column, who in (("user_id", "user"), ("post_id", "post")):
            yield Change(
                f"events_of_one_{who}_share",
                compare.number(
                    f"SELECT max(n) / sum(n) FROM (SELECT count(*) AS n FROM raw GROUP BY {column})"
                )
                or 0.0,
                None,
                0.5,
                f"at most half of the events may be of one {who}",
                f"a default {who} was written where it is unknown; repair the source",
            )
    yield Change(
        "events_repeated_share",
        compare.number(
            # Two keys of one hash among so many are none that matters to a share.
            f"SELECT 1 - count(*) / {rows} FROM (SELECT DISTINCT hash({', '.join(_KEY)}) FROM raw)"
        )
        or 0.0,
        None,
        0.4,
        "at most 0.4 of the events may repeat an earlier one",
        "a join of the export multiplies rows, or a file is there twice; repair the source",
    )
    if compare.dataset.events.value is not None:
        yield from _empty_months(compare)
    yield from _before_creation(compare, rows)


def _empty_months(compare: Comparison) -> Iterator[Change]:
    empty, filled = compare.one(
        "SELECT count(*) FILTER (WHERE present = 0), count(*) FILTER (WHERE present > 0) FROM "
        "(SELECT count(value) AS present FROM raw GROUP BY date_trunc('month', event_time) "
        "HAVING count(*) >= 20)"
    )
    yield Change(
        "months_without_values",
        empty if filled else 0,
        None,
        0,
        "no month of events may be without any value, if others have values",
        "the export lost a column in those months; repair the source",
    )


def _before_creation(compare: Comparison, rows: int) -> Iterator[Change]:
    for name, described, path in (
        ("user", compare.dataset.users, compare.raw.users),
        ("post", compare.dataset.posts, compare.raw.posts),
    ):
        if described is not None and described.created is not None and path is not None:
            yield Change(
                f"events_before_their_{name}_share",
                compare.number(
                    f"SELECT count(*) / {rows} FROM raw JOIN {_files(path)} AS e USING ({name}_id) "
                    "WHERE event_time < e.known_time - INTERVAL 1 DAY"
                )
                or 0.0,
                None,
                0.02,
                f"at most 0.02 of the events may be more than a day before their {name}'s creation",
                f"check 'time' of events and 'created' of {name}s: columns, formats, zones",
            )


def _history(compare: Comparison) -> Iterator[Change]:
    """Measure whether the past is still told as it was."""
    same = " AND ".join(f"r.{column} = l.{column}" for column in _KEY)
    known, missing, changed, behind = compare.one(
        f"""WITH span AS (SELECT min(event_time) AS first, max(event_time) AS last FROM raw),
        keys AS (SELECT {", ".join(_KEY)},
            list((value, is_positive, is_impression)) AS facts FROM raw GROUP BY ALL),
        told AS (SELECT r.user_id IS NULL AS gone, r.user_id IS NOT NULL AND NOT list_contains(
            r.facts, (l.value, l.is_positive, l.is_impression)) AS changed
            FROM (SELECT lake.* FROM lake, span WHERE event_time BETWEEN first AND last) AS l
            LEFT JOIN keys AS r ON {same})
        SELECT (SELECT count(*) FROM told), (SELECT count(*) FROM told WHERE gone),
            (SELECT count(*) FROM told WHERE changed),
            (SELECT epoch(max(event_time)) FROM lake) - epoch(last) FROM span"""
    )
    yield Change(
        "source_ends_days_before_the_lake",
        max(behind, 0) / 86_400,
        None,
        0,
        "the source's last event must not be earlier than the last one known, in days",
        f"the export is cut short or old, or its times moved; export it again; {_RECALL}",
    )
    if known:
        yield Change(
            "known_events_missing_share",
            missing / known,
            None,
            0.05,
            "of the events known in the source's span of time at most 0.05 may be missing",
            "rows were lost, or users, posts, actions or times (zone? unit?) are written in "
            f"another way than before; {_RECALL}",
        )
        yield Change(
            "known_events_changed_share",
            changed / known,
            None,
            0.02,
            "of the events known at most 0.02 may have another value or label than before",
            f"the scale of 'value' or the meaning of actions changed; {_RECALL}",
        )


def _new_events(compare: Comparison) -> Iterator[Change]:
    """Measure whether what is new looks like what is known."""
    new, known = (int(compare.one(f"SELECT count(*) FROM {t}")[0]) for t in ("new", "lake"))
    if new < LEAST_ROWS or known < LEAST_ROWS:
        return
    for column, word in (("is_positive", "positive"), ("is_impression", "impressions")):
        share = f"(SELECT avg({column}::INTEGER) FROM {{}})"
        yield Change(
            f"{column.removeprefix('is_')}_share_moved_by",
            compare.number(f"SELECT abs({share.format('new')} - {share.format('lake')})") or 0.0,
            None,
            0.25,
            f"the share of new events that are {word} may differ from before by at most 0.25",
            f"actions or ratings are written in another way than before; {_RECALL}",
        )
    daily = "(SELECT max(n) FROM (SELECT count(*) AS n FROM {} GROUP BY event_time::DATE))"
    yield Change(
        "busiest_day_times_before",
        compare.number(f"SELECT {daily.format('new')} / {daily.format('lake')}") or 0.0,
        None,
        10,
        "the busiest of the new days may have at most 10 times the events of the busiest before",
        f"rows are multiplied, or times fall together; {_RECALL}",
    )
    yield Change(
        "new_events_before_all_known_share",
        compare.number(
            "SELECT avg((event_time < (SELECT min(event_time) FROM lake))::INTEGER) FROM new"
        )
        or 0.0,
        None,
        0.5,
        "at most half of the new events may be earlier than every known one",
        f"check 'time': its unit, format and zone; {_RECALL}",
    )
    for column in ("user_id", "post_id"):
        yield _form(compare, "new", f"SELECT DISTINCT {column} FROM lake", column)
    if compare.dataset.events.value is not None:
        yield from _range(compare, "value", "new", "lake")


def _form(compare: Comparison, table: str, known: str, column: str) -> Change:
    """Compare which kinds of characters ids are made of: digits, letters, others."""
    form = ", ".join(
        f"regexp_matches({column}, '{c}')" for c in ("[0-9]", "[a-zA-Z]", "[^0-9a-zA-Z]")
    )
    share = compare.number(
        f"WITH known AS (SELECT DISTINCT ({form}) AS form FROM ({known})) "
        f"SELECT avg((({form}) IN (SELECT form FROM known))::INTEGER) FROM {table}"
    )
    return Change(
        f"{column}_of_known_form_share",
        1.0 if share is None else share,
        0.5,
        None,
        f"at least half of the new {column} must be made of digits and letters as those before",
        f"ids are written in another way, or another column is read; {_RECALL}",
    )


def _range(compare: Comparison, column: str, new: str, known: str) -> Iterator[Change]:
    """Compare a number's medians with the other side's range: a change of unit moves them out."""
    name = quote(column)
    quantiles = f"SELECT quantile_cont({name}::DOUBLE, [0.01, 0.5, 0.99]), min({name}), max({name})"
    mine, *_ = compare.one(f"{quantiles} FROM {new} WHERE {name} IS NOT NULL")
    theirs, least, most = compare.one(f"{quantiles} FROM {known} WHERE {name} IS NOT NULL")
    if mine is None or theirs is None:
        return
    off = not (theirs[0] <= mine[1] <= theirs[2] and mine[0] <= theirs[1] <= mine[2])
    yield Change(
        f"{column}_median_before_and_now",
        mine[1] if off else theirs[1],
        theirs[1] if off else None,
        theirs[1] if off else None,
        f"the median of {column}, {theirs[1]:g} before, must stay in the usual range "
        f"({theirs[0]:g} to {theirs[2]:g})",
        f"the unit or scale of '{column}' changed, or another column is read; {_RECALL}",
    )
    yield Change(
        f"{column}_outside_known_range_share",
        compare.number(
            f"SELECT avg(({name} NOT BETWEEN {least!r} AND {most!r})::INTEGER) FROM {new}"
        )
        or 0.0,
        None,
        0.05,
        f"at most 0.05 of the new {column} may lie outside what was known, {least:g} to {most:g}",
        f"the unit or scale of '{column}' changed; {_RECALL}",
    )


class _Entities:
    """One of the tables of users and posts, now and as the lake has it."""

    def __init__(self, compare: Comparison, name: str, path: Path) -> None:
        self.compare, self.name, self.key = compare, name, f"{name[:-1]}_id"
        connection = compare.connection
        connection.execute(f"CREATE VIEW {name}_now AS SELECT * FROM {_files(path)}")
        connection.execute(
            f"CREATE VIEW {name}_before AS SELECT t.* EXCLUDE ({self.key}), "
            f"i.external_id AS {self.key} "
            f"FROM read_parquet('{compare.lake}/{name}/*.parquet') AS t "
            f"JOIN {_files(compare.lake / 'ids' / f'{name}.parquet')} AS i USING ({self.key})"
        )
        columns = connection.execute(f"DESCRIBE {name}_before").fetchall()
        self.before = {column[0] for column in columns}

    def changes(self) -> Iterator[Change]:
        described = getattr(self.compare.dataset, self.name)
        known = int(self.compare.one(f"SELECT count(*) FROM {self.name}_before")[0])
        if known < 10:
            return
        yield Change(
            f"known_{self.name}_missing_share",
            self.compare.number(
                f"SELECT count(*) / {known} FROM {self.name}_before ANTI JOIN {self.name}_now "
                f"USING ({self.key})"
            )
            or 0.0,
            None,
            0.1,
            f"of the {known:,} {self.name} known at most 0.1 may be missing",
            f"the export is cut short, or ids are written in another way; {_RECALL}",
        )
        texts = ("title", "text", "topics") if self.name == "posts" else ()
        for column in (c for c in texts if c in self.before):
            yield self._changed(column)
        for attribute in described.attributes:
            if attribute.name in self.before:
                yield from self._attribute(attribute.name, attribute.type)

    def _attribute(self, column: str, kind: str) -> Iterator[Change]:
        nulls = f"(SELECT avg(({quote(column)} IS NULL)::INTEGER) FROM {{}})"
        now, before = f"{self.name}_now", f"{self.name}_before"
        yield Change(
            f"{self.name}_{column}_null_share_rose_by",
            self.compare.number(f"SELECT {nulls.format(now)} - {nulls.format(before)}") or 0.0,
            None,
            0.2,
            f"the share of {self.name} without {column} may rise by at most 0.2",
            f"the export lost values; {_RECALL}",
        )
        if kind == "numeric":
            yield from _range(self.compare, column, now, before)
            yield from self._correlation(column)
        else:
            yield self._changed(column)

    def _changed(self, column: str) -> Change:
        name = quote(column)
        share = self.compare.number(
            f"SELECT avg((n.{name} IS DISTINCT FROM b.{name})::INTEGER) FROM {self.name}_now AS n "
            f"JOIN {self.name}_before AS b USING ({self.key})"
        )
        return Change(
            f"{self.name}_{column}_changed_share",
            share or 0.0,
            None,
            0.5,
            f"at most half of the known {self.name} may have another {column} than before",
            f"columns or ids are mixed up, or texts are in another encoding; {_RECALL}",
        )

    def _correlation(self, column: str) -> Iterator[Change]:
        name = quote(column)
        rows, correlation = self.compare.one(
            f"SELECT count(*), corr(n.{name}, b.{name}) FROM {self.name}_now AS n "
            f"JOIN {self.name}_before AS b USING ({self.key}) "
            f"WHERE isfinite(n.{name}) AND isfinite(b.{name})"
        )
        if rows >= 30 and correlation is not None:
            yield Change(
                f"{self.name}_{column}_correlation",
                correlation,
                0.5,
                None,
                f"{column} of the known {self.name} must go with what it was (correlation at "
                "least 0.5)",
                f"columns or ids are mixed up; {_RECALL}",
            )

"""The lake's events as training and publishing ask for them, in memory for the answers only.

Who liked what fits into memory where who saw what does not. Seen posts are therefore read of the
users that lists are made for.
"""

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.candidates.interactions import Ids, Interactions, Seen
from pipelines.datasets.expressions import literal
from pipelines.evaluation.metrics import KnownPairs
from pipelines.evaluation.split import TimeSlice, warm_and_cold_users

_MEMORY_LIMIT = "2GB"
_BATCH_ROWS = 1 << 20


class LakeEvents:
    """Queries of the lake's events; a context manager.

    Parameters
    ----------
    lake
        The lake's folder. What does not fit into `memory_limit` is spilled beside it.
    """

    def __init__(self, lake: Path, memory_limit: str = _MEMORY_LIMIT) -> None:
        self._spill = TemporaryDirectory(prefix=".events-", dir=lake.parent)
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute(f"SET memory_limit = {literal(memory_limit)}")
        self._connection.execute(f"SET temp_directory = {literal(self._spill.name)}")
        files = literal(str(lake / "events" / "*" / "*.parquet"))
        self._connection.execute(
            f"CREATE VIEW events AS FROM read_parquet({files}, hive_partitioning = false)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._spill.cleanup()

    def users(self, until: datetime | None = None) -> Ids:
        """Return the users with an event before a time, ascending."""
        query = f"SELECT DISTINCT user_id FROM events WHERE {_before(until)} ORDER BY user_id"
        users: Ids = self._connection.sql(query).to_arrow_table()["user_id"].to_numpy()
        return users

    def interactions(
        self, until: datetime | None = None, *, seen_by: Ids | None = None
    ) -> Interactions:
        """Return what was known strictly before a time, as `Interactions.until` would.

        Parameters
        ----------
        seen_by
            Users whose seen posts are read; None: everybody's. The others' are as if they had
            seen nothing: generators learn the same, and lists are to be asked for these only.

        Raises
        ------
        InteractionsError
            If no positive event is before it.
        """
        columns = "user_id, post_id, event_time, weight, event_order"
        positives = self._connection.sql(
            # Not above 0: what is no weight is to be told.
            f"SELECT {columns} FROM events WHERE weight IS DISTINCT FROM 0 AND {_before(until)}"
        ).to_arrow_table()
        return Interactions.from_positives(positives, self._seen(until, seen_by), self.users(until))

    def recommendable(self, part: TimeSlice) -> pa.Table:
        """Return the distinct pairs liked within a slice that had no event before it.

        Returns
        -------
        ``user_id``, ``post_id``, ordered by them.

        Raises
        ------
        SplitError
            If no user of the slice is known before it.
        """
        start, end = _moment(part.start), _moment(part.end)
        self._connection.execute(
            "CREATE OR REPLACE TEMP TABLE liked AS SELECT DISTINCT user_id, post_id FROM events "
            f"WHERE is_positive AND event_time >= {start} AND event_time < {end}"
        )
        pairs = self._connection.sql(
            # The few are looked up among the many, whatever order of joins would be chosen.
            "WITH known AS (SELECT DISTINCT user_id, post_id FROM events "
            f"SEMI JOIN liked USING (user_id, post_id) WHERE event_time < {start}) "
            "FROM liked ANTI JOIN known USING (user_id, post_id) ORDER BY user_id, post_id"
        ).to_arrow_table()
        warm_and_cold_users(self.users(part.start), pairs["user_id"])
        return pairs

    def known_pairs(self, until: datetime, of: Ids) -> KnownPairs:
        """Return what measures beyond accuracy ask of the time before; see `KnownPairs`.

        Parameters
        ----------
        of
            The users whose seen posts are asked for.
        """
        counted = self._connection.sql(
            "SELECT post_id, count(DISTINCT user_id) AS users FROM events "
            f"WHERE {_before(until)} GROUP BY post_id ORDER BY post_id"
        ).to_arrow_table()
        seen = self._seen(until, of)
        return KnownPairs(
            users=len(self.users(until)),
            post_ids=counted["post_id"].to_numpy(),
            seen_by=counted["users"].to_numpy(),
            pairs=pa.table({"user_id": seen.users, "post_id": seen.posts}),
        )

    def _seen(self, until: datetime | None, users: Ids | None) -> Seen:
        """Return each pair of a user and a post once, with its first time."""
        among = ""
        if users is not None:
            self._connection.register("asked", pa.table({"user_id": users}))
            among = "SEMI JOIN asked USING (user_id)"
        reader = self._connection.sql(
            "SELECT user_id, post_id, epoch_us(event_time) AS time FROM events "
            f"{among} WHERE {_before(until)} ORDER BY user_id, post_id, event_time"
        ).to_arrow_reader(_BATCH_ROWS)
        parts: list[list[Any]] = [[np.empty(0, np.int64)] for _ in range(3)]
        last = (-1, -1)
        for batch in reader:
            user, post, time = (column.to_numpy() for column in batch.columns)
            first = np.ones(len(user), dtype=bool)
            first[1:] = (user[1:] != user[:-1]) | (post[1:] != post[:-1])
            first[0] = (user[0], post[0]) != last
            last = (user[-1], post[-1])
            for part, column in zip(parts, (user, post, time), strict=True):
                part.append(column[first])
        # Column by column: the pieces of one are gone before those of the next are joined.
        return Seen(*(np.concatenate(parts.pop(0)) for _ in range(3)))


def _before(until: datetime | None) -> str:
    return "true" if until is None else f"event_time < {_moment(until)}"


def _moment(time: datetime) -> str:
    return f"TIMESTAMPTZ {literal(time.isoformat())}"

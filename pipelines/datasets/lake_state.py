"""What an ingest did, and what a lake remembers of it: ``lake.json`` beside its tables.

::

    events_rules    checksum of what the description said about events
    followed        for a watermark: the table followed, and up to where it was read
    types           the columns' types in the database, by table and column
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from feature_repo.dataset import Dataset
from pipelines.datasets.normalise import RawTables
from pipelines.errors import LakeError

_STATE = "lake.json"


@dataclass(frozen=True)
class IngestResult:
    """What an ingest found and did.

    Attributes
    ----------
    users, posts, events, topics
        Rows in the lake afterwards.
    new_users, new_posts, new_events
        Rows that were not in the lake before.
    duplicates
        Rows of the source left out because an earlier row has the same user, post, action, time.
    already_known
        Rows of the source left out because the lake had them already.
    orphans
        Rows of the source left out because their user or post is in no users' or posts' table.
    first_time, last_time
        The lake's first and last event; made up where the dataset has no clock.
    rebuilt
        Whether the lake's events were replaced and not added to: the dataset has no clock, or its
        description reads events in another way than before.
    """

    users: int
    posts: int
    events: int
    topics: int
    new_users: int
    new_posts: int
    new_events: int
    duplicates: int
    already_known: int
    orphans: int
    first_time: datetime
    last_time: datetime
    rebuilt: bool


def read_state(lake: Path) -> dict[str, Any]:
    """Return what the lake remembers; nothing if there is no lake."""
    path = lake / _STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_readable(lake: Path) -> None:
    """Raise `LakeError` if a file has lost its end, where parquet says what is in it."""
    for path in sorted(lake.rglob("*.parquet")):
        try:
            pq.read_metadata(path)
        except pa.ArrowInvalid as error:
            raise LakeError(
                f"{path}: it is damaged ({error}); restore the lake from a copy, or remove its "
                "folder and run `feastrank ingest` on the whole source"
            ) from error


def last_event(lake: Path) -> datetime | None:
    """Return the time of the lake's last event, UTC; None if there is none."""
    months = sorted((lake / "events").glob("event_month=*"))
    if not months:
        return None
    newest: datetime | None = pc.max(ds.dataset(months[-1]).to_table(["event_time"])[0]).as_py()
    return newest


def write_state(raw: RawTables, folder: Path) -> None:
    """Write what the lake will remember once these tables are in it."""
    state: dict[str, Any] = {"events_rules": events_rules(raw.dataset)}
    after = raw.after
    if after.reached is not None:
        state["followed"] = {"source": followed_table(raw.dataset), "reached": after.reached}
    types = {table: dict(types) for table, types in after.types.items() if types}
    if types:
        state["types"] = types
    (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")


def events_rules(dataset: Dataset) -> str:
    """Return a checksum of what the description says about events, but for where they lie."""
    files = {"path", "format", "separator", "header", "encoding", "quote", "nulls"}
    place = files | {"connection", "table", "watermark"}
    return _checksum(dataset.events.model_dump(mode="json", exclude_defaults=True, exclude=place))


def followed_table(dataset: Dataset) -> str:
    """Return a checksum of the table whose watermark is followed, and of how it is read."""
    events = dataset.events
    column = None if events.watermark is None else events.watermark.column
    return _checksum([events_rules(dataset), events.connection, events.table, column])


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""From the stream of events in Redis to parquet parts that ingest reads beside the source.

::

    drained/part-NNNNNN.parquet    columns as in the described source; the time as timestamp[us,
                                   UTC], and event_id of its own
    drained/position.json          up to where the stream is drained, how many events that were

A part and the position that it reaches are put into place as one change, and only then are its
events removed from the stream. Whoever is killed in between leaves events that are drained and
still in the stream; the position tells, so they are removed and not drained again.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from feature_repo.dataset import Events
from pipelines.datasets import commit
from pipelines.errors import DrainError
from serving.events import PAYLOAD, StoredEvent, StreamKeys

EVENT_ID = "feastrank_event_id"
BATCH_EVENTS = 50_000

_POSITION = "position.json"
_START = "0-0"
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Position:
    """Up to where a stream is drained.

    Attributes
    ----------
    stream
        The stream's name; another one in its place begins anew.
    last
        Id of the last entry that is drained.
    events
        How many events were drained, over all streams.
    parts
        How many parts they lie in.
    """

    stream: str = ""
    last: str = _START
    events: int = 0
    parts: int = 0


def drain(
    client: Any,
    project: str,
    events: Events,
    folder: Path,
    *,
    batch_events: int = BATCH_EVENTS,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Move all events that wait in the stream into parts; return how many.

    Parameters
    ----------
    client
        The Redis that serving writes to.
    events
        The described table of events, whose columns the parts have.
    folder
        Where the parts lie.
    batch_events
        Events in a part, at most; so many are held in memory.
    on_progress
        Called with the events drained and those that were waiting.

    Raises
    ------
    LakeError
        If another process is draining into the folder.
    DrainError
        If Redis fails; what was drained until then stays drained.
    """
    keys = StreamKeys(project)
    moved = 0
    try:
        with commit.locked(folder):
            commit.finish(folder)
            position = _position(folder, client.get(keys.name))
            _trim(client, keys.stream, position)
            waiting = int(client.xlen(keys.stream))
            while entries := client.xrange(
                keys.stream, min=f"({position.last}", count=batch_events
            ):
                position = _put(folder, position, events, entries)
                _trim(client, keys.stream, position)
                moved += len(entries)
                if on_progress is not None:
                    on_progress(moved, max(waiting, moved))
    except redis.exceptions.RedisError as error:
        raise DrainError(
            f"{folder}: Redis failed after {moved:,} events were drained ({error}); run "
            "`feastrank drain` again"
        ) from error
    return moved


def _position(folder: Path, name: bytes | None) -> Position:
    path = folder / _POSITION
    known = Position(**json.loads(path.read_text("utf-8"))) if path.exists() else Position()
    stream = "" if name is None else name.decode()
    if stream == known.stream:
        return known
    return Position(stream, _START, known.events, known.parts)


def _put(
    folder: Path, before: Position, events: Events, entries: Sequence[tuple[bytes, Any]]
) -> Position:
    """Put one part and the position that it reaches into place, as one change."""
    last = entries[-1][0].decode()
    after = Position(before.stream, last, before.events + len(entries), before.parts + 1)
    with commit.staged(folder) as staging:
        part = staging / f"part-{before.parts:06d}.parquet"
        pq.write_table(_table(events, [fields[PAYLOAD] for _, fields in entries]), part)
        position = staging / _POSITION
        position.write_text(json.dumps(asdict(after)), encoding="utf-8")
        # The stream forgets them next: a power cut must not.
        for path in (part, position, staging):
            _to_disk(path)
        commit.commit(folder, [])
    _to_disk(folder)
    return after


def _table(events: Events, payloads: Sequence[bytes]) -> pa.Table:
    stored = [StoredEvent.from_json(payload) for payload in payloads]
    names = dict.fromkeys(name for one in stored for name in one.row)
    columns = {name: _column([one.row.get(name) for one in stored]) for name in names}
    if events.time.column is not None:
        columns[events.time.column] = pa.array([one.time_us for one in stored]).cast(_TIME)
    columns[EVENT_ID] = pa.array([one.event_id for one in stored], pa.string())
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # The description was changed in between, and a column has values of two kinds.
        return pa.array([None if one is None else str(one) for one in values], pa.string())


def _trim(client: Any, stream: str, position: Position) -> None:
    """Remove what is drained from the stream."""
    milliseconds, _, number = position.last.partition("-")
    client.xtrim(stream, minid=f"{milliseconds}-{int(number) + 1}", approximate=False)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

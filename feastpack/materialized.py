"""Until when the rows in Redis are materialized: one hash for all views of a namespace.

Feast keeps that in its registry only, which a reader of the rows may not see, or see late. The
fields are the views' names, the values JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from feastpack.cluster import send

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Materialized:
    """What is known of a view's rows in Redis.

    Attributes
    ----------
    until
        End of the last materialization.
    newest_event
        The latest event time among all rows that materializations wrote; None: there were none.
    """

    until: datetime
    newest_event: datetime | None


def materialized_key(project: str, namespace: str) -> str:
    """Return the key of a namespace's hash."""
    return f"fp-materialized:{project}@{namespace}"


def write_materialized(
    client: Any, project: str, namespace: str, view: str, until: datetime, newest: datetime | None
) -> None:
    """Note a finished materialization; the newest event of those before stays, if it is later."""
    key = materialized_key(project, namespace)
    before = read_materialized(client, project, namespace).get(view)
    if before is not None and before.newest_event is not None:
        newest = before.newest_event if newest is None else max(newest, before.newest_event)
    value = [_micros(until), None if newest is None else _micros(newest)]
    send(client, [(key, ("HSET", key, view, json.dumps(value)))])


def read_materialized(client: Any, project: str, namespace: str) -> dict[str, Materialized]:
    """Return what is known of every view of a namespace, by name, with one command."""
    found = client.hgetall(materialized_key(project, namespace))
    states = {}
    for view, value in found.items():
        until, newest = json.loads(value)
        states[view.decode()] = Materialized(
            _time(until), None if newest is None else _time(newest)
        )
    return states


def _micros(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)

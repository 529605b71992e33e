"""What users do, from the moment that the service is told.

One script in Redis keeps a batch of events: it appends them to a stream, which `feastrank drain`
moves into the lake, and to the recent events of their users, which the next request reads. An id
that was kept before is not kept again. What the script changes together has to lie together: on a
Redis Cluster all keys of a space carry one hash tag, and so are on one node. Lists, histories and
feature rows carry none.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import redis

from feastpack.cluster import ClusterClient
from serving.errors import EventsRefusedError
from serving.event_rules import EventRules
from serving.history import MAX_RECENT, RECORD, recent_key
from serving.ids import IdMap

PAYLOAD = b"event"
"""Field of a stream's entry that holds the event as JSON, a `StoredEvent`."""

_SCRIPT = Path(__file__).with_suffix(".lua")
_ID_LIFE_S = 7 * 86_400
_RECENT_LIFE_S = 90 * 86_400
_MOST_AHEAD_S = 300


@dataclass(frozen=True)
class Event:
    """One thing that a user did to a post.

    Parameters
    ----------
    event_id
        Given by whoever sends it; one id is kept once.
    user, post
        The source's ids.
    action
        As in the source; None where the dataset knows only one.
    value
        The dataset's value (rating, seconds); None where it has none.
    time
        With a zone; None: the moment of the bundle.
    fields
        Values of further columns that the dataset's rules read.
    """

    event_id: str
    user: str
    post: str
    action: str | None = None
    value: float | None = None
    time: datetime | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class Status(StrEnum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    UNKNOWN_USER = "unknown_user"
    UNKNOWN_POST = "unknown_post"
    INVALID = "invalid"


@dataclass(frozen=True)
class Outcome:
    """What became of one event, and what is wrong with it if it is invalid."""

    event_id: str
    status: Status
    detail: str | None = None


@dataclass(frozen=True)
class StoredEvent:
    """An event as the stream holds it: a row of the source, its time and its id."""

    event_id: str
    time_us: int
    row: dict[str, Any]

    def to_json(self) -> str:
        """Return the entry's payload."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: bytes) -> "StoredEvent":
        """Read an entry's payload."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class StreamKeys:
    """Keys of a space's events; the braces keep them in one slot of a Cluster."""

    space: str

    @property
    def stream(self) -> str:
        """The events that are not in the lake yet."""
        return f"feastrank:{{{self.space}}}:events"

    @property
    def ids(self) -> str:
        """Digests of the ids that were kept, by time."""
        return f"feastrank:{{{self.space}}}:event_ids"

    @property
    def name(self) -> str:
        """A word that tells one stream from another that took its place."""
        return f"feastrank:{{{self.space}}}:events_name"


class EventLog:
    """Keeps events in Redis.

    Parameters
    ----------
    client
        The Redis of lists and features.
    space
        Under which name they are kept: the Feast project, as a rule.
    rules
        What events mean.
    users, posts
        The source's ids that the bundle knows.
    room
        How many events the stream may hold until it is drained; beyond it, events are refused.
    """

    def __init__(
        self, client: Any, space: str, rules: EventRules, users: IdMap, posts: IdMap, room: int
    ) -> None:
        self._client = client
        self._keys = StreamKeys(space)
        self._rules = rules
        self._users, self._posts = users, posts
        self._room = room
        self._text = _SCRIPT.read_text(encoding="utf-8")
        self._script = client.register_script(self._text)

    def keep(self, events: Sequence[Event], moment: datetime) -> list[Outcome]:
        """Keep events: once this returns, those accepted are in the stream and in effect.

        Parameters
        ----------
        moment
            The time of events that bring none.

        Raises
        ------
        EventsRefusedError
            If Redis fails or the stream is full. None is accepted then, or Redis was lost while
            it answered; sending the same ids again is safe.
        """
        outcomes = [self._judged(event, moment) for event in events]
        kept = [one for one in outcomes if isinstance(one, _Accepted)]
        statuses = iter(self._append(kept) if kept else ())
        return [
            Outcome(one.stored.event_id, next(statuses)) if isinstance(one, _Accepted) else one
            for one in outcomes
        ]

    def waiting(self) -> int:
        """Return how many events the stream holds."""
        return int(self._client.xlen(self._keys.stream))

    def _judged(self, event: Event, moment: datetime) -> "_Accepted | Outcome":
        user_id, post_id = self._users.find(event.user), self._posts.find(event.post)
        if user_id is None:
            return Outcome(event.event_id, Status.UNKNOWN_USER)
        if post_id is None:
            return Outcome(event.event_id, Status.UNKNOWN_POST)
        time_us = round((event.time or moment).timestamp() * 1_000_000)
        try:
            if time_us > (time.time() + _MOST_AHEAD_S) * 1_000_000:
                raise ValueError("time lies in the future")
            row = self._rules.row(event.user, event.post, event.action, event.value, event.fields)
            weight = self._rules.weight(row)
        except ValueError as error:
            return Outcome(event.event_id, Status.INVALID, str(error))
        record = np.array((post_id, time_us, weight), RECORD).tobytes()
        return _Accepted(user_id, record, StoredEvent(event.event_id, time_us, row))

    def _append(self, events: Sequence["_Accepted"]) -> list[Status]:
        keys = [self._keys.stream, self._keys.ids, self._keys.name]
        keys += [recent_key(self._keys.space, event.user_id) for event in events]
        now_ms = time.time_ns() // 1_000_000
        kept_bytes = MAX_RECENT * RECORD.itemsize
        arguments: list[Any] = [self._room, now_ms, 1000 * _ID_LIFE_S, kept_bytes, _RECENT_LIFE_S]
        arguments.append(secrets.token_hex(8))
        for event in events:
            digest = hashlib.blake2b(event.stored.event_id.encode(), digest_size=16).digest()
            arguments += [digest, event.record, event.stored.to_json()]
        try:
            if isinstance(self._client, ClusterClient):
                call = ("EVAL", self._text, len(keys), *keys, *arguments)
                (answer,) = self._client.send([(self._keys.stream, call)])
            else:
                answer = self._script(keys=keys, args=arguments)
        except redis.exceptions.RedisError as error:
            raise EventsRefusedError("events_unavailable", f"keeping events: {error}") from error
        if answer is None:
            raise EventsRefusedError(
                "events_full",
                f"the stream of events holds {self._room:,} at most; run `feastrank drain`",
            )
        return [Status.ACCEPTED if new else Status.DUPLICATE for new in answer]


@dataclass(frozen=True)
class _Accepted:
    user_id: int
    record: bytes
    stored: StoredEvent

"""Reads: one MGET for any number of views and entities, decoded view by view."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from feastpack.cluster import ClusterClient
from feastpack.errors import UnknownSchemaError
from feastpack.keys import Keys
from feastpack.rows import BoolArray, Rows, RowSchema, uniform_binary
from feastpack.views import ViewLayout
from feastpack.wire import mget
from feastpack.writer import translated


@dataclass(frozen=True)
class Question:
    """Which rows of which view to read, and how old they may be.

    ``not_before_us``: rows with an earlier event time count as missing; None for no limit.
    """

    layout: ViewLayout
    keys: Keys
    not_before_us: int | None = None


@dataclass(frozen=True)
class Answer:
    """The rows of one question, in its order.

    ``expired`` marks the rows that exist but are too old; None if there are none. They
    are blank in ``rows``.
    """

    rows: Rows
    expired: BoolArray | None = None


def oldest_valid(layout: ViewLayout, honour_ttl: bool) -> int | None:
    """Return the earliest event time, in microseconds, that the view's ttl allows now."""
    if not honour_ttl or layout.ttl_us is None:
        return None
    return time.time_ns() // 1000 - layout.ttl_us


class SchemaBook:
    """The schemas that rows were written under, by view and fingerprint.

    Entries are only ever added, so threads may share a book without a lock.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, dict[int, RowSchema]] = {}

    def learn(self, layout: ViewLayout, stored: Mapping[bytes, bytes]) -> None:
        """Take in what Redis holds under the view's ``schemas_key``."""
        known = {int(name, 16): RowSchema.from_json(text) for name, text in stored.items()}
        self._known[layout.keys.schemas_key] = known

    def decode(self, question: Question, stored: Sequence[bytes | None]) -> Answer:
        """Decode what MGET returned for a question.

        Raises
        ------
        UnknownSchemaError
            If a row's schema is to be looked up first.
        RowFormatError
            If stored bytes are no packed row.
        """
        layout = question.layout
        known = self._known.get(layout.keys.schemas_key, {})
        rows = layout.schema.unpack(stored, known)
        if question.not_before_us is None:
            return Answer(rows)
        expired: BoolArray = rows.found & (rows.event_us < question.not_before_us)
        if not expired.any():
            return Answer(rows)
        kept = [None if old else row for row, old in zip(stored, expired.tolist(), strict=True)]
        return Answer(layout.schema.unpack(kept, known), expired)


def ask(client: Any, questions: Sequence[Question], book: SchemaBook) -> list[Answer]:
    """Answer all questions with one round trip.

    A second one follows only when rows of an unseen older schema turn up.

    Raises
    ------
    OnlineStoreError
        If Redis fails.
    """
    return ask_beside(client, questions, book, ())[0]


def fetch(client: Any, keys: Sequence[Keys]) -> list[bytes | None]:
    """Return the values of all keys, at least one in all, with one round trip.

    Raises
    ------
    redis.exceptions.RedisError
        If Redis fails.
    """
    return client.fetch(keys) if isinstance(client, ClusterClient) else mget(client, keys)


def ask_beside(
    client: Any, questions: Sequence[Question], book: SchemaBook, others: Sequence[bytes]
) -> tuple[list[Answer], list[bytes | None]]:
    """As :func:`ask`; the same round trip also fetches the plain values of other keys."""
    keys = [question.keys for question in questions]
    if others:
        keys = [*keys, pa.array(others, pa.binary())]
    count = sum(map(len, keys))
    try:
        stored = fetch(client, keys) if count else []
        answers = []
        for question, part in _parts(questions, stored):
            try:
                answers.append(book.decode(question, part))
            except UnknownSchemaError:
                book.learn(question.layout, client.hgetall(question.layout.keys.schemas_key))
                answers.append(book.decode(question, part))
    except redis.exceptions.RedisError as error:
        raise translated(error, f"reading {count} rows from Redis") from error
    return answers, stored[count - len(others) :]


async def ask_async(client: Any, questions: Sequence[Question], book: SchemaBook) -> list[Answer]:
    """As :func:`ask`, for an asyncio client; that of a Cluster is asked in a thread."""
    if isinstance(client, ClusterClient):
        return await asyncio.to_thread(ask, client, questions, book)
    keys = _listed([question.keys for question in questions])
    try:
        stored = await client.mget(keys) if keys else []
        answers = []
        for question, part in _parts(questions, stored):
            try:
                answers.append(book.decode(question, part))
            except UnknownSchemaError:
                schemas = await client.hgetall(question.layout.keys.schemas_key)
                book.learn(question.layout, schemas)
                answers.append(book.decode(question, part))
    except redis.exceptions.RedisError as error:
        raise translated(error, f"reading {len(keys)} rows from Redis") from error
    return answers


def _parts(
    questions: Sequence[Question], stored: Sequence[bytes | None]
) -> list[tuple[Question, Sequence[bytes | None]]]:
    ends = list(accumulate(len(question.keys) for question in questions))
    starts = [0, *ends]
    return [(q, stored[a:b]) for q, a, b in zip(questions, starts, ends, strict=False)]


def _listed(keys: Sequence[Keys]) -> list[bytes]:
    arrays = (uniform_binary(part) if isinstance(part, np.ndarray) else part for part in keys)
    return [key for array in arrays for key in array.to_pylist()]

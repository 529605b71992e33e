"""Candidate lists in Redis: one packed value per user and generation.

Layout of a value, little endian, for each source in the bundle's order: uint8 form, uint16 n,
then n post ids, best first, then n float32 scores. Bit 0 of the form: ids are uint16 instead of
int32, which they are wherever all fit; bit 1: the scores are left out. A post's rank is its
place. Lists belong to a generation (the published bundle's id), so that readers never mix two.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from feastpack.cluster import send
from feastpack.writer import unlink

_BATCH = 2_000
_MAX_LENGTH = 65_535
_HEAD = struct.Struct("<BH")
_SHORT_IDS, _WITHOUT_SCORES = 1, 2


@dataclass(frozen=True)
class SourceList:
    """One source's candidates for one user, best first: int32 post ids and float32 scores."""

    post_ids: NDArray[np.int32]
    scores: NDArray[np.float32]


def key_prefix(project: str, generation: str) -> str:
    """Return what the keys of a generation's lists begin with."""
    return f"feastrank:{project}:lists:{generation}:"


def pack(sources: Sequence[SourceList], *, with_scores: bool = True) -> bytes:
    """Pack one user's lists; their order is the bundle's order of sources.

    Without scores a value is a third to a half as long, and the scores read back are NaN: for
    lists that are shown as they are, never for a ranker that was trained on the scores.
    """
    parts: list[bytes] = []
    for source in sources:
        count = len(source.post_ids)
        if count > _MAX_LENGTH or count != len(source.scores):
            raise ValueError(
                f"candidate list: {count} posts and {len(source.scores)} scores; expected as many, "
                f"at most {_MAX_LENGTH:,}"
            )
        fits = not count or (source.post_ids.min() >= 0 and source.post_ids.max() < 2**16)
        form = _SHORT_IDS * fits | _WITHOUT_SCORES * (not with_scores)
        parts += [
            _HEAD.pack(form, count),
            source.post_ids.astype(_id_type(form)).tobytes(),
            source.scores.astype("<f4").tobytes() if with_scores else b"",
        ]
    return b"".join(parts)


def unpack(value: bytes, sources: int) -> list[SourceList]:
    """Unpack what `pack` packed.

    Raises
    ------
    ValueError
        If the value is shorter or longer than its counts say, or of an unknown form.
    """
    result, position = [], 0
    for _ in range(sources):
        if position + _HEAD.size > len(value):
            raise ValueError(f"candidate list: {len(value)} bytes end within a list's head")
        form, count = _HEAD.unpack_from(value, position)
        if form > _SHORT_IDS | _WITHOUT_SCORES:
            raise ValueError(
                f"candidate list: found form {form}, expected 0 to 3; it was written by another "
                "version, publish again"
            )
        ids = position + _HEAD.size
        scores = ids + count * _id_type(form).itemsize
        end = scores if form & _WITHOUT_SCORES else scores + 4 * count
        if end > len(value):
            raise ValueError(f"candidate list: {len(value)} bytes, expected at least {end}")
        posts = np.frombuffer(value, _id_type(form), count, ids).astype(np.int32)
        if form & _WITHOUT_SCORES:
            result.append(SourceList(posts, np.full(count, np.nan, np.float32)))
        else:
            result.append(SourceList(posts, np.frombuffer(value, "<f4", count, scores)))
        position = end
    if position != len(value):
        raise ValueError(f"candidate list: {len(value)} bytes, expected {position}")
    return result


def _id_type(form: int) -> np.dtype[Any]:
    return np.dtype("<u2" if form & _SHORT_IDS else "<i4")


def write_lists(
    client: Any,
    prefix: str,
    lists: Iterable[tuple[int, Sequence[SourceList]]],
    *,
    with_scores: bool = True,
) -> Iterator[int]:
    """Write lists of many users, as `pack` does; yield the number written after every batch."""
    values = ((f"{prefix}{user}", pack(one, with_scores=with_scores)) for user, one in lists)
    return write_values(client, values)


def write_values(client: Any, values: Iterable[tuple[str, bytes]]) -> Iterator[int]:
    """Write keys with their values; yield the number written after every batch."""
    written = 0
    rest = iter(values)
    while batch := list(islice(rest, _BATCH)):
        send(client, [(key, ("SET", key, value)) for key, value in batch])
        written += len(batch)
        yield written


def read_list(client: redis.Redis, prefix: str, user_id: int, sources: int) -> list[SourceList]:
    """Return a user's lists, one per source; empty lists if none are stored."""
    value = client.get(f"{prefix}{user_id}")
    if value is None:
        empty = SourceList(np.empty(0, np.int32), np.empty(0, np.float32))
        return [empty] * sources
    if not isinstance(value, bytes):
        raise TypeError(f"candidate list of user {user_id}: {type(value)}, expected bytes")
    return unpack(value, sources)


def delete_generations(client: Any, project: str, keep: Iterable[str]) -> int:
    """Delete the lists of every generation but those of ``keep``; return how many keys."""
    kept = tuple(key_prefix(project, generation).encode() for generation in keep)
    deleted = 0
    batch: list[bytes] = []
    for key in client.scan_iter(match=f"feastrank:{project}:lists:*", count=_BATCH):
        if not key.startswith(kept):
            batch.append(key)
        if len(batch) == _BATCH:
            deleted += unlink(client, batch)
            batch.clear()
    return deleted + unlink(client, batch)

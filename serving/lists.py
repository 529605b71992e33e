"""Candidate lists in Redis: one packed value per user and generation.

Layout of a value, little endian, for each source in the bundle's order: uint16 n, then n int32
post ids, best first, then n float32 scores. A post's rank is its place. Lists belong to a
generation (the published bundle's id), so that readers never mix two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

_BATCH = 2_000
_MAX_LENGTH = 65_535


@dataclass(frozen=True)
class SourceList:
    """One source's candidates for one user, best first: int32 post ids and float32 scores."""

    post_ids: NDArray[np.int32]
    scores: NDArray[np.float32]


def key_prefix(project: str, generation: str) -> str:
    """Return what the keys of a generation's lists begin with."""
    return f"feastrank:{project}:lists:{generation}:"


def pack(sources: Sequence[SourceList]) -> bytes:
    """Pack one user's lists; their order is the bundle's order of sources."""
    parts: list[bytes] = []
    for source in sources:
        count = len(source.post_ids)
        if count > _MAX_LENGTH or count != len(source.scores):
            raise ValueError(
                f"candidate list: {count} posts and {len(source.scores)} scores; expected as many, "
                f"at most {_MAX_LENGTH:,}"
            )
        parts += [
            np.uint16(count).tobytes(),
            source.post_ids.astype("<i4").tobytes(),
            source.scores.astype("<f4").tobytes(),
        ]
    return b"".join(parts)


def unpack(value: bytes, sources: int) -> list[SourceList]:
    """Unpack what `pack` packed.

    Raises
    ------
    ValueError
        If the value is shorter or longer than its counts say.
    """
    result, position = [], 0
    for _ in range(sources):
        if position + 2 > len(value):
            raise ValueError(f"candidate list: {len(value)} bytes end within a list's length")
        count = int(np.frombuffer(value, "<u2", 1, position)[0])
        end = position + 2 + 8 * count
        if end > len(value):
            raise ValueError(f"candidate list: {len(value)} bytes, expected at least {end}")
        posts = np.frombuffer(value, "<i4", count, position + 2)
        scores = np.frombuffer(value, "<f4", count, position + 2 + 4 * count)
        result.append(SourceList(posts, scores))
        position = end
    if position != len(value):
        raise ValueError(f"candidate list: {len(value)} bytes, expected {position}")
    return result


def write_lists(
    client: redis.Redis, prefix: str, lists: Iterable[tuple[int, Sequence[SourceList]]]
) -> Iterator[int]:
    """Write lists of many users; yield the number written after every batch."""
    pipeline = client.pipeline(transaction=False)
    written = 0
    for user_id, sources in lists:
        pipeline.set(f"{prefix}{user_id}", pack(sources))
        written += 1
        if written % _BATCH == 0:
            pipeline.execute()
            yield written
    pipeline.execute()
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
            deleted += client.unlink(*batch)
            batch.clear()
    if batch:
        deleted += client.unlink(*batch)
    return deleted

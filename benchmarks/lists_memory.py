"""What top-100 lists weigh in Redis: packed, against lists of UUIDs as text and as 16 bytes.

The shape is that of a published word2vec recommender on MovieLens-100k: 942 users with 100 posts
each, UUIDs outside, whole numbers inside. Its own figures were 4,770,528 bytes with UUIDs as text
and 2,271,040 bytes with UUIDs of 16 bytes. Every form is written into the same real Redis, emptied
before, and read back and compared before it is measured. The mapping between UUIDs and whole
numbers is counted apart: the bundle holds it, not Redis.

    python -m benchmarks.lists_memory
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from feastpack.embedded import EmbeddedRedis
from serving.lists import SourceList, key_prefix, read_list, write_lists

USERS, LENGTH, POSTS = 942, 100, 1_682
PUBLISHED_TEXT_BYTES, PUBLISHED_BINARY_BYTES = 4_770_528, 2_271_040
TARGET_BYTES = PUBLISHED_BINARY_BYTES // 4
PREFIX = key_prefix("movielens_100k", "0123456789ab")


@dataclass(frozen=True)
class Shape:
    """Who is recommended what: ids outside and inside, int32 (USERS, LENGTH) posts, best first."""

    users: list[uuid.UUID]
    posts: list[uuid.UUID]
    lists: np.ndarray[Any, np.dtype[np.int32]]
    scores: np.ndarray[Any, np.dtype[np.float32]]


def make_shape(seed: int = 0) -> Shape:
    """Draw ids and lists; a user is never recommended a post twice."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> list[uuid.UUID]:
        return [uuid.UUID(bytes=rng.bytes(16), version=4) for _ in range(count)]

    lists = np.stack([rng.permutation(POSTS)[:LENGTH] for _ in range(USERS)]).astype(np.int32)
    scores = np.sort(rng.random((USERS, LENGTH), dtype=np.float32))[:, ::-1]
    return Shape(ids(USERS), ids(POSTS), lists, scores)


def write_uuids(client: Any, shape: Shape, form: Callable[[uuid.UUID], bytes]) -> None:
    """Write one Redis list a user: the user's UUID to the posts' UUIDs; read all back."""
    pipeline = client.pipeline(transaction=False)
    for user, posts in zip(shape.users, shape.lists, strict=True):
        pipeline.rpush(form(user), *(form(shape.posts[post]) for post in posts))
    pipeline.execute()
    for user, posts in zip(shape.users, shape.lists, strict=True):
        assert client.lrange(form(user), 0, -1) == [form(shape.posts[post]) for post in posts]


def write_packed(client: Any, shape: Shape, *, with_scores: bool, first_post: int = 0) -> None:
    """Write the lists as feastrank does, with post ids from `first_post` on; read all back."""
    lists = shape.lists + np.int32(first_post)
    pairs = zip(lists, shape.scores, strict=True)
    packed = ((user, [SourceList(*pair)]) for user, pair in enumerate(pairs))
    for _ in write_lists(client, PREFIX, packed, with_scores=with_scores):
        pass
    for user in range(USERS):
        [found] = read_list(client, PREFIX, user, 1)
        np.testing.assert_array_equal(found.post_ids, lists[user])
        if with_scores:
            np.testing.assert_array_equal(found.scores, shape.scores[user])


def measure(client: Any, write: Callable[[Any], None]) -> dict[str, int]:
    """Return the bytes that a way of writing takes, by two counts of Redis itself.

    ``keys_bytes`` sums MEMORY USAGE of every key, all elements sampled; ``used_bytes`` is the
    growth of INFO's used_memory, which has the table of keys too.
    """
    client.flushall(asynchronous=False)
    before = client.info("memory")["used_memory"]
    write(client)
    used = client.info("memory")["used_memory"] - before
    keys = list(client.scan_iter(count=1000))
    assert len(keys) == USERS
    return {
        "keys_bytes": sum(client.memory_usage(key, samples=0) for key in keys),
        "used_bytes": used,
    }


def mapping_bytes(shape: Shape) -> int:
    """Return the Arrow memory of both two-way mappings: UUID of 16 bytes, int32."""
    tables = (
        pa.table({"external_id": pa.array([i.bytes for i in ids], pa.binary(16)), "id": dense})
        for ids in (shape.users, shape.posts)
        for dense in [pa.array(np.arange(len(ids), dtype=np.int32))]
    )
    return sum(table.nbytes for table in tables)


def main() -> None:
    """Measure every form and print one JSON object as the last line."""
    shape = make_shape()
    ways: dict[str, Callable[[Any], None]] = {
        "uuid_text": lambda client: write_uuids(client, shape, lambda i: str(i).encode()),
        "uuid_16_bytes": lambda client: write_uuids(client, shape, lambda i: i.bytes),
        "packed_with_scores": lambda client: write_packed(client, shape, with_scores=True),
        "packed_large_ids": lambda client: write_packed(
            client, shape, with_scores=False, first_post=2**16
        ),
        "packed": lambda client: write_packed(client, shape, with_scores=False),
    }
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(folder) as server:
        client: Any = redis.Redis(host=server.host, port=server.port)
        ways["packed"](client)  # What the connection itself costs is there before the first count.
        found = {name: measure(client, way) for name, way in ways.items()}
        version = client.info("server")["redis_version"]
        client.close()
    mapping = mapping_bytes(shape)
    print(f"{USERS} users x {LENGTH} posts, Redis {version}")
    print(f"{'':20} {'MEMORY USAGE':>14} {'used_memory':>14}")
    for name, counts in found.items():
        print(f"{name:20} {counts['keys_bytes']:14,} {counts['used_bytes']:14,}")
    print(f"published: text {PUBLISHED_TEXT_BYTES:,}, 16 bytes {PUBLISHED_BINARY_BYTES:,}")
    print(f"mapping of {USERS + POSTS:,} UUIDs, apart, in the bundle: {mapping:,}")
    packed = max(found["packed"].values())
    figures = {
        "benchmark": "lists_memory",
        "users": USERS,
        "posts_per_user": LENGTH,
        "bytes": found,
        "mapping_bytes": mapping,
        "published_bytes": {
            "uuid_text": PUBLISHED_TEXT_BYTES,
            "uuid_16_bytes": PUBLISHED_BINARY_BYTES,
        },
        "target_bytes": TARGET_BYTES,
        "share_of_published": round(packed / PUBLISHED_BINARY_BYTES, 4),
        "meets_target": packed <= TARGET_BYTES,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

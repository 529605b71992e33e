"""What the embedding views share: a row for each post that has a vector."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.features.vector_files import Vectors, vector_array
from pipelines.shards import Facts


def embedding_schema(name: str) -> pa.Schema:
    """Return the columns of a view whose embedding is called ``name``."""
    return pa.schema(
        [
            ("post_id", pa.int64()),
            ("event_timestamp", pa.timestamp("us", tz="UTC")),
            (name, pa.list_(pa.float32())),
        ]
    )


def embedding_rows(
    posts: pa.RecordBatch, places: NDArray[np.int64], vectors: Vectors, schema: pa.Schema
) -> pa.RecordBatch:
    """Return the rows of the posts at ``places``, whose vectors (m, d) these are."""
    seen = posts.take(pa.array(places))
    return pa.RecordBatch.from_arrays(
        [seen["post_id"], seen["known_time"], vector_array(vectors)], schema=schema
    )


def add_facts(facts: Facts, **counts: int) -> None:
    """Add counts of a part to those of a shard."""
    for name, count in counts.items():
        facts[name] = facts.get(name, 0) + count

"""Vectors kept by the hash of what they stand for, so that nothing is embedded twice.

One folder belongs to one encoder with its settings; it is shared by datasets and by runs. Its
parquet files (``key`` string, ``embedding`` list<float32>) are only ever added, each whole or not
at all, so a killed run leaves what it has written and two runs at a time do no harm.
"""

import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import FeatureError

Vectors = NDArray[np.float32]

_KEPT_AT_ONCE = 1024
_KEPT_SECONDS = 10.0


class VectorFiles:
    """The vectors in one folder of the cache.

    Parameters
    ----------
    folder
        Where the files lie; made with the first one.
    wanted
        Keys to read; None reads all.

    Raises
    ------
    FeatureError
        If a file is damaged.
    """

    def __init__(self, folder: Path, wanted: Collection[str] | None = None) -> None:
        self.folder = folder
        self.vectors: dict[str, Vectors] = {}
        self._new: list[str] = []
        self._written = time.monotonic()
        keys = None if wanted is None else pa.array(sorted(wanted), pa.string())
        for part in sorted(folder.glob("*.parquet")):
            self._read(part, keys)

    def _read(self, part: Path, wanted: pa.Array | None) -> None:
        try:
            # Vectors are most of a file, and few files have one for any given shard.
            if wanted is not None and not _has_any(part, wanted):
                return
            table = pq.read_table(part)
        except (pa.ArrowInvalid, OSError) as error:
            raise FeatureError(
                f"cache of embeddings {part}: cannot be read ({error}); delete this file, and "
                "what it held is embedded again"
            ) from error
        if wanted is not None:
            table = table.filter(pc.is_in(table["key"], wanted))
        if table.num_rows:
            flat = pc.list_flatten(table["embedding"]).to_numpy()
            rows = flat.reshape(table.num_rows, -1)
            self.vectors.update(zip(table["key"].to_pylist(), rows, strict=True))

    def add(self, keys: list[str], vectors: Vectors) -> None:
        """Keep vectors (n, d); they are written every few seconds, and by `write`."""
        self.vectors.update(zip(keys, vectors, strict=True))
        self._new += keys
        waited = time.monotonic() - self._written
        if len(self._new) >= _KEPT_AT_ONCE or waited >= _KEPT_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is new into a file that appears whole or not at all."""
        self._written = time.monotonic()
        if not self._new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(self._new).encode()).hexdigest()[:16]
        vectors = np.stack([self.vectors[key] for key in self._new])
        partial = self.folder / f"{name}.{os.getpid()}.tmp"
        pq.write_table(pa.table({"key": self._new, "embedding": vector_array(vectors)}), partial)
        partial.replace(self.folder / f"{name}.parquet")
        self._new = []


def _has_any(part: Path, wanted: pa.Array) -> bool:
    keys = pq.read_table(part, columns=["key"])["key"]
    return bool(pc.any(pc.is_in(keys, wanted)).as_py())


def vector_array(vectors: Vectors) -> pa.ListArray:
    """Return the rows of a float32 matrix (n, d) as an Arrow list<float32> array of length n."""
    rows, dimensions = vectors.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * dimensions
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(vectors).ravel())


def normalised(vectors: Vectors) -> Vectors:
    """Return the rows (n, d) scaled to length 1; a row of zeros stays as it is."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)

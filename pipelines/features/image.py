"""post_image: what a post's picture shows, as an embedding.

Grain: one row per post with a usable picture; ``event_timestamp`` is when the post became known.
Column ``post_image_embedding``: list<float32> of length 1, 1,280 numbers from the packaged
encoder (EfficientNet-Lite0: Tan and Le 2019, in its Lite form of 2020). Pictures that cannot be
used have no row; they are counted by reason (`pictures.REASONS`).

Embeddings are kept by the hash of the picture's bytes and of the encoder: no picture is embedded
twice, in any run or dataset, and an interrupted run loses little.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.definitions import columns as c
from pipelines.features.embedding_rows import add_facts, embedding_rows, embedding_schema
from pipelines.features.image_encoders import ImageEncoder, encoder_identity, load_encoder
from pipelines.features.pictures import (
    EMBEDDED_IMAGE_MODEL,
    REASONS,
    Refusal,
    decode_picture,
    read_picture,
)
from pipelines.features.vector_files import VectorFiles, Vectors, normalised
from pipelines.shards import Facts, Progress, rows_key
from pipelines.steps import content_key

_DECODERS = 2
# Part of every key: raise it when pictures are prepared differently.
_PREPARATION = 1


@dataclass(frozen=True)
class ImageEmbeddings:
    """What became of n pictures.

    Attributes
    ----------
    vectors
        float32 (m, dimensions), each row of length 1: the pictures that could be used.
    places
        int64[m], ascending: which of the n they are.
    refused
        Place and refusal of every picture that could not be used.
    absent
        How many of the n were null.
    embedded
        Distinct pictures that were not in the cache, and so cost time.
    """

    vectors: Vectors
    places: NDArray[np.int64]
    refused: dict[int, Refusal]
    absent: int
    embedded: int

    @property
    def counts(self) -> dict[str, int]:
        """Pictures refused by reason, most frequent first."""
        return dict(Counter(one.reason for one in self.refused.values()).most_common())

    @property
    def reasons(self) -> dict[str, tuple[int, str]]:
        """Of each reason how many pictures it refused, and the decoder's words on the first."""
        first: dict[str, str] = {}
        for one in self.refused.values():
            first.setdefault(one.reason, one.detail)
        return {why: (count, first[why]) for why, count in self.counts.items()}

    @property
    def summary(self) -> str:
        """The counts in words, with the decoder's words on the first; empty if none was refused."""
        return in_words(self.reasons)


def in_words(reasons: Mapping[str, tuple[int, str]]) -> str:
    """Return `ImageEmbeddings.reasons` in words, most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1][0])
    return "; ".join(
        f"{count:,} {REASONS[why]}" + (f" (first: {detail})" if detail else "")
        for why, (count, detail) in ordered
    )


def embed_images(
    pictures: pa.Array | pa.ChunkedArray | Sequence[str | bytes | None],
    *,
    folder: Path,
    cache: Path,
    model: str = EMBEDDED_IMAGE_MODEL,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> ImageEmbeddings:
    """Embed pictures, each distinct one once ever per model.

    Memory holds a few batches of pixels and all vectors, whatever the pictures' sizes.

    Parameters
    ----------
    pictures
        Paths (text) or encoded pictures (bytes) of n pictures; null: there is none.
    folder
        Where relative paths start.
    cache
        Folder of the cache, shared by models.
    model
        ``efficientnet-lite0`` (packaged), or a folder with a vision model of transformers.
    on_progress
        Called with (pictures done, pictures there are).

    Raises
    ------
    FeatureError
        If the model cannot be loaded. What a picture holds never raises.
    """
    work = _Work(VectorFiles(cache / cache_name(model)), model, folder, batch_size)
    values = pictures if isinstance(pictures, pa.ChunkedArray) else pa.chunked_array([pictures])
    total = len(values) - values.null_count
    for done in work.run(values):
        if on_progress is not None:
            on_progress(done, total)
    places = np.array(sorted(work.keys), dtype=np.int64)
    known = work.files.vectors
    vectors = [known[work.keys[place]] for place in places.tolist()]
    stacked = np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32)
    return ImageEmbeddings(stacked, places, work.refused, len(values) - total, work.embedded)


@dataclass(frozen=True)
class EmbedImages:
    """Makes the rows of post_image of a shard of the lake's posts; see `pipelines.shards.Work`.

    Its facts: ``embedded`` (pictures that were not in the cache), ``absent`` (posts without one)
    and ``refused`` (`ImageEmbeddings.reasons`).

    Parameters
    ----------
    model, cache, folder
        See `embed_images`.
    """

    model: str
    cache: Path
    folder: Path

    name: ClassVar[str] = "post_image"
    columns: ClassVar[tuple[str, ...]] = ("known_time", "image")
    together: ClassVar[int] = 1
    schema: ClassVar[pa.Schema] = embedding_schema(c.IMAGE_EMBEDDING)

    def key(self, rows: pa.Table) -> str:
        """Return the hash of encoder and pictures: bytes, or paths with sizes and times."""
        stamps: list[tuple[int, int] | None] = []
        if not pa.types.is_binary(rows["image"].type):
            stamps = [self._stamp(path) for path in rows["image"].to_pylist()]
        return content_key(self.name, cache_name(self.model), rows_key(rows), stamps)

    def __call__(
        self, batches: Iterable[pa.RecordBatch], facts: Facts, on_progress: Progress | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield a row for each post whose picture can be used."""
        for posts in batches:
            found = embed_images(
                posts["image"],
                folder=self.folder,
                cache=self.cache,
                model=self.model,
                on_progress=on_progress,
            )
            add_facts(facts, embedded=found.embedded, absent=found.absent)
            facts["refused"] = merged(facts.get("refused", {}), found.reasons)
            yield embedding_rows(posts, found.places, found.vectors, self.schema)

    def _stamp(self, path: str | None) -> tuple[int, int] | None:
        # As `read_picture` finds it; what it refuses has no stamp.
        if path is None or not path.strip() or "\x00" in path:
            return None
        try:
            found = (self.folder / path.strip()).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


def merged(
    one: Mapping[str, tuple[int, str]], other: Mapping[str, tuple[int, str]]
) -> dict[str, tuple[int, str]]:
    """Add up `ImageEmbeddings.reasons` of two parts; the first's words come first."""
    counts = Counter({why: count for why, (count, _) in one.items()})
    counts.update({why: count for why, (count, _) in other.items()})
    words = {why: detail for part in (other, one) for why, (_, detail) in part.items()}
    return {why: (count, words[why]) for why, count in counts.items()}


class _Work:
    """One pass over the pictures: read and decode in threads while the encoder works."""

    def __init__(self, files: VectorFiles, model: str, folder: Path, batch_size: int) -> None:
        self.files, self.model, self.folder = files, model, folder
        self.batch_size = batch_size
        self.keys: dict[int, str] = {}
        self.refused: dict[int, Refusal] = {}
        self.embedded = 0
        self._damaged: dict[str, Refusal] = {}
        self._encoder: ImageEncoder | None = None

    def run(self, values: pa.ChunkedArray) -> Iterator[int]:
        """Embed all; yield how many are done after every batch."""
        done = 0
        with ThreadPoolExecutor(_DECODERS) as pool:
            waiting: list[tuple[str, Future[Any]]] = []
            for place, value in enumerate(_values(values)):
                if value is None:
                    continue
                done += 1
                content = read_picture(value, self.folder)
                if isinstance(content, Refusal):
                    self.refused[place] = content
                    continue
                key = hashlib.sha256(content).hexdigest()
                self.keys[place] = key
                if key not in self.files.vectors and key not in self._damaged:
                    self._damaged[key] = _PENDING
                    prepare = pool.submit(_prepared, content, self.encoder)
                    waiting.append((key, prepare))
                # One batch is encoded while the threads decode the next one.
                if len(waiting) >= 2 * self.batch_size:
                    self._encode(waiting[: self.batch_size])
                    del waiting[: self.batch_size]
                    yield done
            for start in range(0, len(waiting), self.batch_size):
                self._encode(waiting[start : start + self.batch_size])
        self.files.write()
        self._refuse_damaged()
        yield done

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder, loaded with the first picture that is not in the cache."""
        if self._encoder is None:
            self._encoder = loaded_encoder(self.model, encoder_identity(self.model))
        return self._encoder

    def _encode(self, batch: list[tuple[str, Future[Any]]]) -> None:
        ready = []
        for key, future in batch:
            prepared = future.result()
            if isinstance(prepared, Refusal):
                self._damaged[key] = prepared
            else:
                del self._damaged[key]
                ready.append((key, prepared))
        if ready:
            vectors = self.encoder.encode([prepared for _, prepared in ready])
            self.files.add([key for key, _ in ready], normalised(vectors))
            self.embedded += len(ready)

    def _refuse_damaged(self) -> None:
        for place, key in list(self.keys.items()):
            if key in self._damaged:
                self.refused[place] = self._damaged[key]
                del self.keys[place]


_PENDING = Refusal("corrupt", "not decoded yet")


def _prepared(content: bytes, encoder: ImageEncoder) -> NDArray[Any] | Refusal:
    image = decode_picture(content, wanted_side=encoder.side)
    return image if isinstance(image, Refusal) else encoder.prepare(image)


def _values(values: pa.ChunkedArray) -> Iterator[str | bytes | None]:
    for chunk in values.chunks:
        for value in chunk:
            yield value.as_py()


def cache_name(model: str) -> str:
    """Return the name of a model's folder in the cache, which follows from all that vectors do."""
    text = f"image|{_PREPARATION}|{encoder_identity(model)}|normalised"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def loaded_encoder(model: str, identity: str) -> ImageEncoder:
    """Return the encoder, loaded once by a process that embeds shard after shard.

    Parameters
    ----------
    identity
        `encoder_identity`: other files under the same name are another encoder.
    """
    return load_encoder(model)

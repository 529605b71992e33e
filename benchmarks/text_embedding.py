"""Text embeddings beside the original's way: ``python -m benchmarks.text_embedding``.

Both sides have the same model, the same weights and the same cut. The original's way tokenizes
everything at once, pads every text to the longest one and takes batches in the order of the
file. Ours (`pipelines.features.text_encoders`) puts texts of like length together. The vectors are
asserted to agree before rates are printed.

Cases: the posts of ``--texts`` (CSV with a column text), cut at the model's own length and at the
512 tokens that its tokenizer allows, as the original did; and, if ``--lengths`` (CSV with a column
text_length) is given, the same words cut to the lengths of a whole feed. Besides, each way as it is
used: ours at the model's own length against the original's 512 tokens, whose vectors differ where a
text is longer than the model's own length (the mean cosine is printed). Without ``--texts``: the
titles of MovieLens-100k.

Then faster arithmetic (int8 in all or some layers, compiled, bfloat16) on our side: it would have
to pay, keep a mean cosine of 0.99 to float32 and 95 % of the ten nearest neighbours.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.common import peak_mb
from pipelines.features.embedding import embed_texts
from pipelines.features.plain_text import plain_text
from pipelines.features.text_encoders import EMBEDDED, TextEncoder, TextModel, batches
from pipelines.features.vector_files import normalised

TOKENIZER_LENGTH = 512
_JUDGED = 128  # posts that each kind of arithmetic is judged on
MIN_COSINE, MIN_OVERLAP = 0.99, 0.95
INT8: dict[str, Callable[[str], bool]] = {
    "int8": lambda _: True,
    "int8 in attention": lambda layer: "attention" in layer,
    "int8 in feed-forward": lambda layer: "attention" not in layer,
}


def texts_of(path: Path | None, count: int, rng: np.random.Generator) -> list[str]:
    """Return texts drawn by chance, in the file's order."""
    if path is None:
        from benchmarks.protocols import load_data

        found = [text for text in load_data().posts["text"].to_pylist() if text]
    else:
        with path.open(encoding="utf-8", newline="") as file:
            found = [row["text"] for row in csv.DictReader(file)]
    chosen = np.sort(rng.choice(len(found), min(count, len(found)), replace=False))
    return [plain_text(found[place]) for place in chosen]


def of_lengths(texts: list[str], path: Path, count: int, rng: np.random.Generator) -> list[str]:
    """Return the words of ``texts``, cut to lengths drawn from a feed, in the feed's order."""
    with path.open(encoding="utf-8", newline="") as file:
        lengths = [int(row["text_length"]) for row in csv.DictReader(file, delimiter=";")]
    words = " ".join(texts)
    made = []
    for place in np.sort(rng.choice(len(lengths), min(count, len(lengths)), replace=False)):
        start = int(rng.integers(max(len(words) - lengths[place], 1)))
        made.append(words[start : start + lengths[place]])
    return made


@dataclass
class Clock:
    """Texts per second, and per second of processor time, which a busy machine leaves alone."""

    texts: int
    rate: float = 0.0
    cpu_rate: float = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.rate = self.texts / (time.perf_counter() - self._start[0])
        self.cpu_rate = self.texts / (time.process_time() - self._start[1])


def original(encoder: TextEncoder, texts: list[str], alone: int) -> tuple[np.ndarray, Clock]:
    """Embed the first texts, padded like all; return vectors and how fast."""
    tokens = encoder._tokenizer(
        texts, truncation=True, max_length=encoder.max_tokens, padding=True, return_tensors="pt"
    )
    vectors = []
    with Clock(alone) as clock:
        for first in range(0, alone, 32):
            batch = {key: values[first : min(first + 32, alone)] for key, values in tokens.items()}
            with torch.no_grad():
                found = encoder._network({**batch, "modality": "text"})["sentence_embedding"]
            vectors.append(found.numpy())
    return np.concatenate(vectors), clock


def ours(encoder: TextEncoder, texts: list[str]) -> tuple[np.ndarray, Clock]:
    """Embed all; return vectors and how fast, tokenizing included."""
    with Clock(len(texts)) as clock:
        found = list(encoder.encode(texts))
    vectors = np.empty((len(texts), found[0][1].shape[1]), np.float32)
    for places, part in found:
        vectors[places] = part
    return normalised(vectors), clock


def padded_tokens(encoder: TextEncoder, texts: list[str]) -> float:
    """Return the original's padded tokens over ours: what can be gained, whatever the machine."""
    lengths = np.array([len(ids) for ids in encoder._tokens(texts)["input_ids"]])
    mine = sum(int(lengths[batch].max()) * len(batch) for batch in batches(lengths))
    return float(lengths.max() * len(lengths) / mine)


@dataclass
class Timed:
    """Vectors of one side, how fast they came, and the tokens that texts were cut at."""

    vectors: np.ndarray
    clock: Clock
    max_tokens: int


def compare(name: str, theirs: Timed, mine: Timed) -> dict[str, object]:
    """Put both ways on the same texts side by side."""
    before, after = theirs.clock, mine.clock
    agreement = (mine.vectors[: len(theirs.vectors)] * normalised(theirs.vectors)).sum(axis=1)
    if mine.max_tokens == theirs.max_tokens:
        assert agreement.min() > 0.9999, f"{name}: vectors differ, least cosine {agreement.min()}"
    figures = {
        "case": name, "posts": after.texts,
        "max_tokens": mine.max_tokens, "original_max_tokens": theirs.max_tokens,
        "posts_per_second": round(after.rate, 2),
        "original_posts_per_second": round(before.rate, 2),
        "speedup": round(after.rate / before.rate, 2),
        "cpu_speedup": round(after.cpu_rate / before.cpu_rate, 2),
        "least_cosine": round(float(agreement.min()), 6),
        "mean_cosine": round(float(agreement.mean()), 6),
    }  # fmt: skip
    ratio = f"{figures['speedup']:.2f} x, {figures['cpu_speedup']:.2f} x by processor time"
    print(f"{name:42} {after.rate:8.1f} posts/s, original's way {before.rate:8.1f}, {ratio}")
    return figures


def neighbours(vectors: np.ndarray) -> np.ndarray:
    """Return the ten nearest of each vector, itself left out."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, 10, axis=1)[:, :10]


def _quantize(encoder: TextEncoder, of: Callable[[str], bool]) -> None:
    """Quantize the chosen linear layers, their inputs as they come."""
    layers = {
        name: torch.ao.quantization.default_dynamic_qconfig
        for name, layer in encoder._network.named_modules()
        if isinstance(layer, torch.nn.Linear) and of(name)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder._network = torch.ao.quantization.quantize_dynamic(
            encoder._network, layers, dtype=torch.qint8
        )


def variant(name: str, texts: list[str], model: TextModel) -> dict[str, object]:
    """Judge one kind of arithmetic against float32 on the same texts."""
    plain, before = ours(TextEncoder(model), texts)
    encoder = TextEncoder(model)
    if name == "bfloat16":
        encoder._network.to(torch.bfloat16)
    elif name == "compiled":
        encoder._network[0].auto_model = torch.compile(encoder._network[0].auto_model, dynamic=True)
    else:
        _quantize(encoder, INT8[name])
    # Whatever is made on the first call is not what a run of thousands pays for.
    ours(encoder, texts[:16])
    fast, after = ours(encoder, texts)
    cosine = float((plain * fast).sum(axis=1).mean())
    pairs = zip(neighbours(plain), neighbours(fast), strict=True)
    overlap = float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in pairs]))
    good = cosine >= MIN_COSINE and overlap >= MIN_OVERLAP
    gain, cpu_gain = after.rate / before.rate, after.cpu_rate / before.cpu_rate
    speed = f"{gain:5.2f} x float32, {cpu_gain:5.2f} x by processor time"
    print(f"{name:34} {speed}, cosine {cosine:.4f}, neighbours {overlap:.3f}")
    return {
        "arithmetic": name,
        "speed_to_float32": round(gain, 2), "cpu_to_float32": round(cpu_gain, 2),
        "mean_cosine": round(cosine, 4), "neighbours_10": round(overlap, 3),
        "close_enough": good, "pays": good and min(gain, cpu_gain) > 1,
    }  # fmt: skip


def main() -> None:
    """Measure all cases and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, help="CSV with a column text")
    parser.add_argument("--lengths", type=Path, help="CSV (;) with a column text_length")
    parser.add_argument("--posts", type=int, default=512)
    parser.add_argument("--alone", type=int, default=96, help="posts that the peer is timed on")
    parser.add_argument("--model", default=EMBEDDED.name)
    chosen = parser.parse_args()
    logging.disable_progress_bar()
    rng = np.random.default_rng(0)
    model = TextModel(chosen.model)
    texts = texts_of(chosen.texts, chosen.posts, rng)
    encoder = TextEncoder(model)
    ours(encoder, texts[:8])
    own = encoder.max_tokens
    sets = {"posts": texts}
    if chosen.lengths:
        sets["words at a feed's lengths"] = of_lengths(texts, chosen.lengths, chosen.posts, rng)
    cases: list[dict[str, object]] = []
    for name, some in sets.items():
        at_own: Timed | None = None
        for limit in dict.fromkeys((own, TOKENIZER_LENGTH)):
            encoder.max_tokens = limit
            theirs = Timed(*original(encoder, some, min(chosen.alone, len(some))), limit)
            mine = Timed(*ours(encoder, some), limit)
            padded = {"padded_tokens_ratio": round(padded_tokens(encoder, some), 3)}
            cases.append(compare(f"{name}, {limit} tokens", theirs, mine) | padded)
            if at_own is not None:
                label = f"{name}, {own} against {limit} tokens"
                cases.append(compare(label, theirs, at_own))
            at_own = at_own or mine
    kinds = (*INT8, "compiled", "bfloat16")
    arithmetic = [variant(name, texts[:_JUDGED], model) for name in kinds]
    with tempfile.TemporaryDirectory() as folder:
        embed_texts(texts[:64], model=model, cache=Path(folder))
        again = embed_texts(texts[:64], model=model, cache=Path(folder))
    assert again.embedded == 0
    figures = {
        "benchmark": "text_embedding",
        "model": model.name,
        "threads": torch.get_num_threads(),
    }
    figures |= {"cases": cases, "arithmetic": arithmetic, "peak_mb": round(peak_mb())}
    print(json.dumps(figures | {"cached_posts_per_second": round(64 / again.seconds)}))


if __name__ == "__main__":
    main()

"""Image embeddings in batches beside one by one: ``python -m benchmarks.image_embedding``.

Both sides turn the same JPEG bytes into vectors with the same packaged weights. Ours decodes in
threads, folds normalization into convolutions and encodes in batches; the other way, which
notebooks take, decodes each picture whole and asks the package's own network about it alone. The
vectors agree (mean cosine printed); pictures are a thousand different crops of two photographs, or
of those in ``--folder``.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.common import peak_mb
from pipelines.features.image import embed_images
from pipelines.features.image_encoders import plain_lite0


def photographs(count: int, side: int, folder: Path | None) -> list[bytes]:
    """Return JPEGs of ``side`` pixels, each another crop."""
    rng = np.random.default_rng(0)
    if folder is None:
        sources = [Image.fromarray(photo) for photo in load_sample_images().images]
    else:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        sources = [Image.open(path).convert("RGB") for path in paths]
    made = []
    for place in range(count):
        source = sources[place % len(sources)]
        width = int(rng.integers(min(source.size) // 3, min(source.size)))
        left = int(rng.integers(source.width - width + 1))
        top = int(rng.integers(source.height - width + 1))
        buffer = io.BytesIO()
        crop = source.crop((left, top, left + width, top + width)).resize((side, side))
        crop.save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def one_by_one(pictures: list[bytes]) -> np.ndarray:
    """Embed each picture alone, with the package's network as it is."""
    network = plain_lite0()
    vectors = []
    for picture in pictures:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        crop = 0.875 * min(image.size)
        left, top = (image.width - crop) / 2, (image.height - crop) / 2
        box = (left, top, left + crop, top + crop)
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC, box=box))
        batch = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.no_grad():
            vectors.append(network.extract_features(batch).mean(dim=(2, 3))[0].numpy())
    stacked: np.ndarray = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def main() -> None:
    """Measure both ways and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--alone", type=int, default=64)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    pictures = photographs(chosen.pictures, chosen.side, chosen.folder)
    alone = pictures[: chosen.alone]
    one_by_one(pictures[:2])
    clock, cpu = time.perf_counter(), time.process_time()
    theirs = one_by_one(alone)
    theirs_s, theirs_cpu_s = time.perf_counter() - clock, time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        embed_images(pictures[:2], folder=cache, cache=cache / "warm")
        clock, cpu = time.perf_counter(), time.process_time()
        ours = embed_images(pictures, folder=cache, cache=cache / "cold").vectors
        ours_s, ours_cpu_s = time.perf_counter() - clock, time.process_time() - cpu
        clock = time.perf_counter()
        again = embed_images(pictures, folder=cache, cache=cache / "cold").vectors
        cached_s = time.perf_counter() - clock
    np.testing.assert_array_equal(again, ours)
    rates = {
        "images_per_second": len(pictures) / ours_s,
        "one_by_one_images_per_second": len(alone) / theirs_s,
        "cached_images_per_second": len(pictures) / cached_s,
        "images_per_cpu_second": len(pictures) / ours_cpu_s,
        "one_by_one_images_per_cpu_second": len(alone) / theirs_cpu_s,
        "mean_cosine": float((ours[: len(alone)] * theirs).sum(axis=1).mean()),
    }
    ratio = rates["images_per_second"] / rates["one_by_one_images_per_second"]
    for name, rate in rates.items():
        print(f"{name:34} {rate:10.2f}")
    figures = {"pictures": len(pictures), "side": chosen.side, "peak_mb": round(peak_mb())}
    figures |= {name: round(rate, 4) for name, rate in rates.items()}
    print(json.dumps({"benchmark": "image_embedding", **figures, "speedup": round(ratio, 2)}))


if __name__ == "__main__":
    main()

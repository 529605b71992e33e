"""Posts' pictures, from paths or bytes to pixels; each is handled or refused by itself.

Nothing here raises because of what a picture holds: a picture that cannot be used becomes a
`Refusal` with one of `REASONS`, so that one bad upload never stops a run.
"""

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EMBEDDED_IMAGE_MODEL = "efficientnet-lite0"
"""The image model that a package of the installed set carries; nothing is downloaded for it."""

MAX_BYTES = 32 << 20
MAX_PIXELS = 64_000_000
"""More than any phone takes by default; decoded they are 192 MB. Files of a few kB can claim more
(decompression bombs), so the header's size is looked at before anything is decoded."""

REASONS = {
    "empty": "no bytes",
    "missing": "no such file",
    "address": "an address; pictures are never fetched, so download them first",
    "too_many_bytes": f"more than {MAX_BYTES >> 20} MiB",
    "too_many_pixels": f"more than {MAX_PIXELS // 1_000_000} million pixels",
    "not_an_image": "not a JPEG, PNG, WebP, GIF or BMP",
    "truncated": "cut off: the end of the picture is missing",
    "corrupt": "cannot be decoded",
}
"""Why pictures are refused, and what that means."""

# Fewer decoders than Pillow has: those that browsers show. EPS and the like start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_WHITE = (255, 255, 255, 255)
# All that Pillow's decoders raise on damaged files; its plug-ins parse with struct and zlib.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Refusal:
    """Why one picture cannot be used: one of `REASONS`, and the decoder's words if it has any."""

    reason: str
    detail: str = ""


def read_picture(value: str | bytes | None, folder: Path) -> bytes | Refusal:
    """Return a picture's bytes.

    Parameters
    ----------
    value
        Bytes as they are; text is the path of a file, relative to ``folder`` or absolute.
    """
    if isinstance(value, bytes):
        return _sized(value)
    if value is None or not value.strip():
        return Refusal("empty")
    if "://" in value[:16]:
        return Refusal("address", value[:80])
    try:
        path = folder / value.strip()
        # Not every path that exists is a file: opening a pipe would wait for ever.
        if not path.is_file():
            return Refusal("missing", value[:80])
        if path.stat().st_size > MAX_BYTES:
            return Refusal("too_many_bytes", value[:80])
        return _sized(path.read_bytes())
    except (OSError, ValueError) as error:
        return Refusal("missing", str(error)[:80])


def decode_picture(content: bytes, *, wanted_side: int) -> Image.Image | Refusal:
    """Decode bytes into an RGB picture, upright as its camera was held.

    Of an animation the first frame is taken; transparency is laid on white; CMYK, grey (8 and 16
    bits) and palette become RGB.

    Parameters
    ----------
    wanted_side
        The side in pixels that the caller will scale to. A JPEG may come smaller than it is, by
        a power of two and no smaller than four times that: decoding it whole would be wasted.
    """
    # Pillow looks again at sizes that come later than the header, such as a GIF's frames.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return Refusal("too_many_pixels", f"{image.width:,} x {image.height:,}")
            image.draft(None, (4 * wanted_side, 4 * wanted_side))
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Refusal("too_many_pixels", str(error)[:80])
    except UnidentifiedImageError:
        return Refusal("not_an_image")
    except MemoryError:
        return Refusal("too_many_pixels", "memory does not suffice")
    except _DAMAGE as error:
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        return Refusal("truncated" if cut else "corrupt", str(error)[:80])


def _sized(content: bytes) -> bytes | Refusal:
    if not content:
        return Refusal("empty")
    return Refusal("too_many_bytes") if len(content) > MAX_BYTES else content


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.clip(np.asarray(image, dtype=np.float32) / 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")

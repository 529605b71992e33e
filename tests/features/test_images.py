"""Pictures of every kind, good and bad, through the real packaged encoder."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from pipelines.errors import FeatureError
from pipelines.features.image import EmbedImages, embed_images
from pipelines.features.image_encoders import EfficientNetLite0, plain_lite0
from pipelines.features.pictures import (
    MAX_BYTES,
    REASONS,
    Refusal,
    decode_picture,
    read_picture,
)

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]
DAISY, PALACE = 985, 698  # ImageNet classes: what the two sample photographs show


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def small(form: str, **options: object) -> bytes:
    return encoded(PHOTOS[0].resize((48, 32)), form, **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


def test_encoder_sees_what_the_photographs_show():
    encoder, whole = EfficientNetLite0(), plain_lite0()
    vectors = encoder.encode([encoder.prepare(photo) for photo in PHOTOS])
    assert vectors.shape == (2, 1280)
    head = whole._fc.weight.detach().numpy()
    classes = (vectors @ head.T + whole._fc.bias.detach().numpy()).argmax(axis=1)
    assert classes.tolist() == [PALACE, DAISY]


def test_folding_normalization_changes_nothing():
    import torch

    encoder, whole = EfficientNetLite0(), plain_lite0()
    pixels = np.stack([encoder.prepare(photo) for photo in PHOTOS])
    batch = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = whole.extract_features(batch).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(encoder.encode(list(pixels)), expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        grey = np.asarray(PHOTOS[0].resize((48, 32)).convert("L"), dtype=np.uint16) * 257
        content = encoded(Image.fromarray(grey))
    else:
        image = PHOTOS[0].resize((48, 32)).convert("RGB").convert(mode)
        content = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    decoded = decode_picture(content, wanted_side=224)
    assert isinstance(decoded, Image.Image)
    assert (decoded.mode, decoded.size) == ("RGB", (48, 32))
    if mode not in ("1", "P"):
        difference = np.asarray(decoded.convert("L"), float) - np.asarray(
            PHOTOS[0].resize((48, 32)).convert("L"), float
        )
        assert abs(difference).mean() < 6


def test_transparency_is_white_and_an_animation_its_first_frame():
    clear = decode_picture(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0))), wanted_side=4)
    assert isinstance(clear, Image.Image)
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        moving = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        first = decode_picture(moving, wanted_side=8)
        assert isinstance(first, Image.Image)
        red, _, blue = first.getpixel((4, 4))
        assert red > 200 > 60 > blue


def test_a_camera_held_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_picture(small("JPEG", exif=exif), wanted_side=224)
    assert isinstance(upright, Image.Image)
    assert upright.size == (32, 48)


def test_each_bad_picture_is_refused_with_its_reason(tmp_path):
    jpeg = encoded(PHOTOS[0], "JPEG")
    (tmp_path / "good.jpg").write_bytes(jpeg)
    (tmp_path / "large").write_bytes(b"0" * (MAX_BYTES + 1))
    values: list[str | bytes | None] = [
        *("good.jpg", jpeg, None, "", b"", "gone.jpg", "https://example.org/a.jpg", "large"),
        *(b"no picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>", jpeg[: len(jpeg) // 2]),
        *(png_header(100_000, 100_000), png_header(9000, 9000), png_header(20, 20), "\x00"),
    ]
    text = embed_images(pa.array([v if isinstance(v, str) else None for v in values]),
                        folder=tmp_path, cache=tmp_path / "cache")  # fmt: skip
    raw = embed_images(pa.array([v if isinstance(v, bytes) else None for v in values]),
                       folder=tmp_path, cache=tmp_path / "cache")  # fmt: skip
    assert text.places.tolist() == [0]
    assert raw.places.tolist() == [1]
    np.testing.assert_array_equal(text.vectors, raw.vectors)
    reasons = {place: one.reason for place, one in {**text.refused, **raw.refused}.items()}
    assert reasons == {
        3: "empty", 4: "empty", 5: "missing", 6: "address", 7: "too_many_bytes",
        8: "not_an_image", 9: "not_an_image", 10: "truncated", 11: "too_many_pixels",
        12: "too_many_pixels", 13: "truncated", 14: "missing",
    }  # fmt: skip
    assert raw.counts == {
        "too_many_pixels": 2, "not_an_image": 2, "truncated": 2, "empty": 1,
    }  # fmt: skip
    assert set(reasons.values()) <= set(REASONS)
    assert text.absent == sum(not isinstance(v, str) for v in values)


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    assert read_picture("pipe.jpg", tmp_path) == Refusal("missing", "pipe.jpg")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=20),
    st.floats(0, 1),
)
def test_damage_of_any_kind_never_raises(form, changes, kept):
    content = bytearray(small(form))
    for place, value in changes:
        content[place % len(content)] = value
    decoded = decode_picture(bytes(content[: int(len(content) * kept)]), wanted_side=224)
    assert isinstance(decoded, Image.Image) or decoded.reason in REASONS


def test_nothing_is_embedded_twice(tmp_path, monkeypatch):
    jpeg, png = small("JPEG"), small("PNG")
    first = embed_images([jpeg, png, jpeg], folder=tmp_path, cache=tmp_path)
    encoded_batches = []
    encode = EfficientNetLite0.encode
    monkeypatch.setattr(
        EfficientNetLite0,
        "encode",
        lambda self, batch: (encoded_batches.append(len(batch)), encode(self, batch))[1],
    )
    again = embed_images([png, jpeg], folder=tmp_path, cache=tmp_path)
    assert encoded_batches == []
    np.testing.assert_array_equal(again.vectors, first.vectors[[1, 2]])
    embed_images([png, small("GIF"), small("GIF")], folder=tmp_path, cache=tmp_path)
    assert encoded_batches == [1]
    np.testing.assert_allclose(np.linalg.norm(first.vectors, axis=1), 1, rtol=1e-5)


def test_batches_of_any_size_give_the_same(tmp_path):
    pictures = [encoded(PHOTOS[0].resize((60, 40)).rotate(turn)) for turn in range(0, 60, 20)]
    one = embed_images(pictures, folder=tmp_path, cache=tmp_path / "1", batch_size=1)
    three = embed_images(pictures, folder=tmp_path, cache=tmp_path / "3", batch_size=2)
    np.testing.assert_allclose(one.vectors, three.vectors, atol=1e-5)


def test_table_has_a_row_for_each_usable_picture(tmp_path):
    times = pa.array([10, 20, 30], pa.timestamp("us", tz="UTC"))
    posts = pa.table(
        {"post_id": [4, 5, 6], "known_time": times, "image": [small("PNG"), b"bad", small("JPEG")]}
    )
    facts = {}
    work = EmbedImages("efficientnet-lite0", tmp_path, tmp_path)
    table = pa.Table.from_batches(work(posts.to_batches(), facts, None))
    assert table["post_id"].to_pylist() == [4, 6]
    assert table["event_timestamp"].to_pylist() == times.take(pa.array([0, 2])).to_pylist()
    assert table.schema.field("post_image_embedding").type == pa.list_(pa.float32())
    assert facts == {"embedded": 2, "absent": 0, "refused": {"not_an_image": (1, "")}}


def test_a_picture_that_changes_under_its_name_changes_the_key(tmp_path):
    (tmp_path / "a.png").write_bytes(small("PNG"))
    posts = pa.table({"post_id": [1, 2], "image": ["a.png", "gone.png"]})
    work = EmbedImages("efficientnet-lite0", tmp_path, tmp_path)
    before = work.key(posts)
    assert work.key(posts) == before
    (tmp_path / "a.png").write_bytes(small("GIF"))
    assert work.key(posts) != before


def test_a_vision_model_of_transformers_is_taken_from_its_folder(tmp_path):
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = ViTModel(
        ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=32, patch_size=8,
        )
    )  # fmt: skip
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    found = embed_images([small("PNG")], folder=tmp_path, cache=tmp_path, model=str(folder))
    assert found.vectors.shape == (1, 16)


@pytest.mark.parametrize("make", [None, "empty"])
def test_no_model_says_what_is_expected(tmp_path, make):
    folder = Path(tmp_path / "model")
    if make:
        folder.mkdir()
    with pytest.raises(FeatureError, match=r"image model .*(no such folder|cannot be loaded)"):
        embed_images([small("PNG")], folder=tmp_path, cache=tmp_path, model=str(folder))

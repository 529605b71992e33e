"""Texts of every kind through the packaged encoder and through small ones saved to a folder."""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from encoder_examples import WORDS, save_encoder

from pipelines.errors import FeatureError
from pipelines.features.embedding import embed_texts
from pipelines.features.plain_text import plain_text
from pipelines.features.text_encoders import EMBEDDED, TextEncoder, TextModel, batches
from pipelines.features.vector_files import VectorFiles


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> TextModel:
    return TextModel(str(save_encoder(tmp_path_factory.mktemp("models") / "small")))


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 30, 50)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        (" \t\n\u00a0 ", ""),
        ("<p>\n<br/></p><!-- hidden --><style>p { x }</style>", ""),
        ("<b>Bold</b>and&nbsp;more &amp; <script>x < 1</script>more", "Bold and more & more"),
        ("1 < 2 and 3 > 2, I <3 it", "1 < 2 and 3 > 2, I <3 it"),
        ("&lt;b&gt; is a tag", "<b> is a tag"),
        ("a\x00b\r\nЖизнь  日本 \U0001f600", "ab Жизнь 日本 \U0001f600"),
    ],
)
def test_markup_is_left_out_and_words_stay(text, expected):
    assert plain_text(text) == expected


def test_batches_hold_texts_of_like_length_and_bounded_tokens():
    lengths = np.random.default_rng(1).integers(3, 512, 1000)
    found = list(batches(lengths))
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(1000))
    for one in found:
        assert lengths[one].max() * len(one) <= 4096
    padded = sum(lengths[one].max() * len(one) for one in found)
    assert padded < 1.05 * lengths.sum()
    assert [one.tolist() for one in batches(np.array([9000, 1, 5]))] == [[0], [2, 1]]


def test_every_kind_of_text_has_its_defined_vector(tmp_path):
    long = "word " * 100_000
    texts = ["A cat.", None, "", " <p></p> ", "Кошка сидит", "猫", "<i>A</i> cat.", long, "ب", "😀"]
    found = embed_texts(texts, cache=tmp_path)
    assert found.places.tolist() == [0, 4, 5, 6, 7, 8, 9]
    assert found.vectors.shape == (7, 384)
    assert found.count == 10
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        [value is None for value in found.column.to_pylist()],
        [False, True, True, True, *[False] * 6],
    )
    # A long text counts with its beginning: the model's own 256 tokens.
    cut = embed_texts(["word " * 254, "word " * 253], cache=tmp_path / "cut").vectors
    np.testing.assert_allclose(found.vectors[4], cut[0], atol=1e-5)
    assert abs(found.vectors[4] - cut[1]).max() > 1e-5


def test_vectors_are_those_of_sentence_transformers(tmp_path):
    from sentence_transformers import SentenceTransformer

    texts = ["A cat sat on the mat.", "Elections were held", "x", "The bank " * 200, "猫 sat"]
    network = SentenceTransformer(str(EMBEDDED.folder()), device="cpu")
    expected = network.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(embed_texts(texts, cache=tmp_path).vectors, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["model", "mean", "cls"])
def test_plain_transformers_with_either_pooling_and_any_size(small, texts, tmp_path, pooling):
    import torch
    from transformers import AutoModel, AutoTokenizer

    found = embed_texts(texts, model=TextModel(small.name, pooling), cache=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(small.name)
    network = AutoModel.from_pretrained(small.name).eval()
    for text, vector in islice(zip(texts, found.vectors, strict=True), 8):
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = network(tokens["input_ids"])[0][0].numpy()
        expected = states[0] if pooling == "cls" else states.mean(axis=0)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert found.vectors.shape == (50, 24)


@pytest.mark.parametrize(("roberta", "longest"), [(False, 32), (True, 31)])
def test_no_text_is_longer_than_the_model_has_positions(tmp_path, roberta, longest):
    model = TextModel(str(save_encoder(tmp_path / "model", roberta=roberta)))
    assert TextEncoder(model).max_tokens == longest
    found = embed_texts(["cat " * 500], model=model, cache=tmp_path)
    assert np.isfinite(found.vectors).all()


def test_nothing_is_embedded_twice_in_any_run(small, texts, tmp_path, monkeypatch):
    first = embed_texts([*texts, texts[0], "<b>new</b> cat"], model=small, cache=tmp_path)
    assert first.embedded == len({*texts, "new cat"})
    monkeypatch.setattr(TextEncoder, "__init__", None)  # nothing loads the model
    again = embed_texts(["new  cat", *texts[::-1]], model=small, cache=tmp_path)
    assert again.embedded == 0
    np.testing.assert_array_equal(again.vectors[1:], first.vectors[: len(texts)][::-1])
    np.testing.assert_array_equal(again.vectors[0], first.vectors[-1])


def test_the_key_is_the_model_itself_not_its_place(small, tmp_path):
    moved = shutil.copytree(small.name, tmp_path / "moved")
    (moved / "README.md").write_text("words about it")
    same = TextModel(str(moved))
    assert same.fingerprint() == small.fingerprint()
    assert TextModel(small.name, "cls").fingerprint() != small.fingerprint()
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert same.fingerprint() != small.fingerprint()


def test_a_stopped_run_keeps_its_batches(small, texts, tmp_path):
    def stop(done: int, _: int) -> None:
        raise KeyboardInterrupt

    many = [f"{text} {' '.join(WORDS[:k])}" for text in texts for k in range(5)]
    with pytest.raises(KeyboardInterrupt):
        embed_texts(many, model=small, cache=tmp_path, on_progress=stop)
    seen: list[tuple[int, int]] = []
    rest = embed_texts(many, model=small, cache=tmp_path, on_progress=lambda *n: seen.append(n))
    distinct = len(set(many))
    assert rest.embedded == distinct - 64
    assert seen[-1] == (rest.embedded, rest.embedded)
    whole = embed_texts(many, model=small, cache=tmp_path / "other")
    np.testing.assert_allclose(rest.vectors, whole.vectors, atol=1e-6)


def test_a_killed_run_keeps_what_is_older_than_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.features.vector_files._KEPT_SECONDS", 0.0)
    VectorFiles(tmp_path).add(["a", "b"], np.eye(2, dtype=np.float32))  # never told to write
    assert sorted(VectorFiles(tmp_path).vectors) == ["a", "b"]
    assert sorted(VectorFiles(tmp_path, {"b", "c"}).vectors) == ["b"]


def test_a_damaged_file_of_the_cache_is_named(small, tmp_path):
    embed_texts(["cat"], model=small, cache=tmp_path)
    part = next(Path(tmp_path).rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:20])
    with pytest.raises(FeatureError, match=f"{part.name}: cannot be read .*delete this file"):
        embed_texts(["cat"], model=small, cache=tmp_path)


def test_no_model_says_what_is_expected(tmp_path):
    with pytest.raises(FeatureError, match=r"cannot be loaded .* name a folder with config\.json"):
        embed_texts(["cat"], model=TextModel(str(tmp_path)), cache=tmp_path)


def test_nothing_to_read_is_no_error(tmp_path):
    found = embed_texts([None, ""], cache=tmp_path)
    assert (found.vectors.shape, found.column.null_count) == ((0, 0), 2)
    assert found.column.type == pa.list_(pa.float32())

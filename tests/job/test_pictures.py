"""Posts with pictures, good and bad, through ingest and features."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tiny_feed import make_feed


def _png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _feed(pictures: dict[str, bytes], missing: str = ""):
    feed = make_feed("pictures")
    posts = [{**post, "photo": ""} for post in feed.posts]
    for place, name in enumerate([*pictures, missing]):
        posts[place]["photo"] = name
    description = feed.description.replace('title = "title"', 'title = "title"\nimage = "photo"')
    return feed.with_(posts=posts, description=description, files=pictures)


def test_usable_pictures_become_features_and_others_are_counted(new_job):
    job = new_job(_feed({"a.png": _png(1), "b.png": _png(2)[:80], "c.png": _png(3)}, "gone.png"))
    assert job.do("ingest").code == 0
    outcome = job.do("features")
    assert outcome.code == 0, outcome.err
    assert "1 cut off" in outcome.out
    assert "1 no such file (first: gone.png)" in outcome.out
    table = pq.read_table(job.workspace.feature_table("post_image"))
    posts = pq.read_table(job.workspace.lake / "posts")
    images = dict(zip(posts["post_id"].to_pylist(), posts["image"].to_pylist(), strict=True))
    assert sorted(images[post] for post in table["post_id"].to_pylist()) == ["a.png", "c.png"]
    vectors = np.stack(table["post_image_embedding"].to_pylist())
    assert vectors.shape == (2, 1280)


def test_no_usable_picture_at_all_stops_with_the_reasons(new_job):
    job = new_job(_feed({}, "gone.png"))
    assert job.do("ingest").code == 0
    outcome = job.do("features")
    assert outcome.code == 1
    assert "none of 120 posts has one that can be used (119 have none" in outcome.err
    assert not Path(job.workspace.features).exists()

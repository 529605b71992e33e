"""Lists of segments: by hand."""

from pathlib import Path

import pytest

from serving.segments import Segments, write_segments


def segments(folder: Path, **values) -> Segments:
    (name, of), *_ = values.items()
    write_segments(
        folder,
        "age",
        [{name: value, "post_ids": [at], "scores": [0.5]} for at, value in enumerate(of)],
    )
    return Segments.open(folder)


@pytest.mark.parametrize(
    ("age", "found"), [(0, 0), (20.0, 0), (20.5, 1), (35, 1), (36, 2), (99, 2), ("35", None)]
)
def test_numbers_belong_to_the_first_segment_that_reaches_them(tmp_path: Path, age, found):
    known = segments(tmp_path, up_to=[20.0, 35.0, 50.0]).list_for({"age": age})
    assert (None if known is None else known.post_ids.tolist()) == (
        None if found is None else [found]
    )


def test_texts_belong_to_their_own(tmp_path: Path):
    known = segments(tmp_path, value=["young", "old"])
    assert [known.list_for({"age": text}).post_ids.tolist() for text in ("old", "young")] == [
        [1],
        [0],
    ]
    assert known.list_for({"age": "new"}) is None
    assert known.list_for({"age": 3}) is None
    assert known.list_for({"city": "Ulm"}) is None


def test_a_bundle_without_segments_has_no_list(tmp_path: Path):
    assert Segments.open(tmp_path).list_for({"age": 3}) is None

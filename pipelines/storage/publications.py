"""What was published, as a log in object storage that is only ever appended to.

::

    publications/00000007.json      what publication 7 consists of: its generation, and size and
                                    sha256 of every file by its path in the state folder
    files/PATH/SHA256.EXTENSION     a file's content as it once was

No object is ever changed, so there is nothing to rename. A file is written before the record that
names it, and publishing is writing the record with the next number *if there is none*: readers,
who look for the highest number, see one publication or the next, whole; and of two writers one
wins.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from uuid import uuid4

from pipelines.errors import PublishedElsewhereError, StorageError
from pipelines.storage.objects import Objects

_LOG, _FILES, _PROBE = "publications", "files", "conditional-writes"


@dataclass(frozen=True)
class StoredFile:
    """A file's sha256 (hex) and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Publication:
    """One record of the log.

    Parameters
    ----------
    number
        1 for the first.
    id
        Random; tells who wrote it.
    generation
        The bundle that is served.
    published
        When, ISO 8601 in UTC, by the writer's clock.
    files
        By path in the state folder.
    """

    number: int
    id: str
    generation: str
    published: str
    files: Mapping[str, StoredFile]

    @classmethod
    def after(
        cls, latest: "Publication | None", generation: str, files: Mapping[str, StoredFile]
    ) -> "Publication":
        """Return the next publication, not yet written."""
        number = 1 if latest is None else latest.number + 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(number, uuid4().hex, generation, now, dict(files))

    def to_json(self) -> bytes:
        """Return the record as it is stored."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Publication":
        """Read a record; raises `LookupError`, `ValueError` or `TypeError` if it is none."""
        read = json.loads(content)
        for name in read["files"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} leads out of the state folder")
        files = {name: StoredFile(**stored) for name, stored in read["files"].items()}
        return cls(**{**read, "files": files})


class Publications:
    """The publications of one dataset.

    Parameters
    ----------
    objects
        Where they lie.

    Raises
    ------
    StorageError
        From every method, if the store does not answer, refuses, or holds something else than
        was written.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._latest: Publication | None = None

    @property
    def url(self) -> str:
        """Where they lie."""
        return self._objects.url

    def latest(self) -> Publication | None:
        """Return the latest publication; None if there is none yet."""
        known = None if self._latest is None else _record_key(self._latest.number)
        newer = self._objects.sizes(_LOG, after=known)
        if newer:
            key = max(newer)
            try:
                self._latest = Publication.from_json(self._objects.read(key))
            except (LookupError, ValueError, TypeError) as error:
                raise StorageError(
                    f"{self.url}/{key}: no record of a publication: {error}"
                ) from error
        return self._latest

    def upload(self, root: Path, names: Iterable[str]) -> dict[str, StoredFile]:
        """Store files that are not stored yet; return what to name in a record.

        Sizes are compared before and after, so what an earlier upload left is used if it is whole,
        and written again if it is not.
        """
        there = self._objects.sizes(_FILES)
        files: dict[str, StoredFile] = {}
        for name in sorted(names):
            with (root / name).open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
                files[name] = stored = StoredFile(digest, content.tell())
                key = _file_key(name, stored)
                if there.get(key) != stored.bytes:
                    content.seek(0)
                    self._objects.put(key, content)
        for key, expected, found in self._faults(files):
            raise StorageError(
                f"{self.url}/{key}: found {found:,} bytes after writing {expected:,}; nothing was "
                "published, try again"
            )
        return files

    def is_whole(self, publication: Publication) -> bool:
        """Return whether every file of a publication is stored, and of its size."""
        return not any(self._faults(publication.files))

    def _faults(self, files: Mapping[str, StoredFile]) -> Iterator[tuple[str, int, int]]:
        """Yield key, size and stored size of every file that is not stored as it is."""
        there = self._objects.sizes(_FILES)
        for name, stored in files.items():
            key = _file_key(name, stored)
            if there.get(key) != stored.bytes:
                yield key, stored.bytes, there.get(key, 0)

    def append(self, publication: Publication) -> None:
        """Publish: write the record, unless another one has its number.

        Raises
        ------
        PublishedElsewhereError
            If another one has; nothing is changed.
        """
        self._objects.create(_PROBE, b"")
        if self._objects.create(_PROBE, b""):
            raise StorageError(
                f"{self.url}: the store overwrites objects in spite of If-None-Match, so two runs "
                "could publish at once; nothing was published, use a store with conditional writes"
            )
        key, content = _record_key(publication.number), publication.to_json()
        # A lost answer is asked for again, and then finds the record that it wrote itself.
        if not self._objects.create(key, content) and self._objects.read(key) != content:
            raise PublishedElsewhereError(
                f"{self.url}: publication {publication.number} was written by another run in the "
                f"meantime, so {publication.generation} was not published; run the same command "
                "again, which begins from that one"
            )
        self._latest = publication

    def download(self, publication: Publication, names: Iterable[str], folder: Path) -> None:
        """Write files of a publication into a folder, at their paths, each checked.

        Raises
        ------
        StorageError
            If one is missing or not as it was published.
        """
        for name in names:
            stored = publication.files[name]
            key, target = _file_key(name, stored), folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with target.open("wb") as file:
                for chunk in self._objects.chunks(key):
                    digest.update(chunk)
                    file.write(chunk)
                size = file.tell()
            if (digest.hexdigest(), size) != (stored.sha256, stored.bytes):
                target.unlink()
                raise StorageError(
                    f"{self.url}/{key}: {size:,} bytes with sha256 {digest.hexdigest()}, expected "
                    f"{stored.bytes:,} with {stored.sha256}; remove the object, and publish again "
                    "from a state folder that has the file"
                )

    def unused(self, publications: Iterable[Publication | None]) -> list[str]:
        """Return the keys of stored files that none of ``publications`` names."""
        named = {
            _file_key(name, stored)
            for one in publications
            if one is not None
            for name, stored in one.files.items()
        }
        return [key for key in self._objects.sizes(_FILES) if key not in named]

    def remove(self, keys: Iterable[str]) -> None:
        """Remove stored files."""
        for key in keys:
            self._objects.remove(key)


def _record_key(number: int) -> str:
    return f"{_LOG}/{number:08}.json"


def _file_key(name: str, stored: StoredFile) -> str:
    return f"{_FILES}/{name}/{stored.sha256}{PurePosixPath(name).suffix}"

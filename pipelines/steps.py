"""Content-addressed steps: a step runs only if what it depends on has changed.

A step's key is the hash of its name, settings, code and the keys of the steps before it. When it
has finished, a record with the key and the sizes of the files it wrote is put into the steps
folder in one atomic move; a step whose record matches is skipped. A killed run leaves no record,
so its step runs again.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def content_key(*parts: Any) -> str:
    """Return the sha256 (hex) of JSON-serialisable parts; paths count as their text."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_key(*packages: str) -> str:
    """Return the sha256 (hex) of the source files of packages or modules of this distribution."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in packages:
        place = root / package.replace(".", "/")
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        for file in files:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class StepRecord:
    """What is kept of a finished step.

    Parameters
    ----------
    key
        See the module.
    files
        Size in bytes of every file written, by absolute path.
    facts
        What the step reports: row counts, choices, warnings.
    seconds
        Wall time.
    finished
        When, ISO 8601 in UTC.
    """

    key: str
    files: Mapping[str, int]
    facts: Mapping[str, Any]
    seconds: float
    finished: str


class Ledger:
    """The records of finished steps in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str) -> StepRecord | None:
        """Return the record of step ``name``; None if it never finished."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        return StepRecord(**json.loads(path.read_text(encoding="utf-8")))

    def is_current(self, name: str, key: str) -> bool:
        """Return whether ``name`` finished with this key and its files are still there."""
        record = self.find(name)
        return (
            record is not None
            and record.key == key
            and all(_size(Path(path)) == size for path, size in record.files.items())
        )

    def write(
        self, name: str, key: str, outputs: Iterable[Path], facts: Mapping[str, Any], start: float
    ) -> StepRecord:
        """Record that ``name`` has finished.

        Parameters
        ----------
        outputs
            Files, or folders with everything below them.
        start
            `time.monotonic` at the step's start.
        """
        files = {str(file): file.stat().st_size for path in outputs for file in _files(path)}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        record = StepRecord(key, files, facts, round(time.monotonic() - start, 3), finished)
        write_json(self._folder / f"{name}.json", asdict(record))
        return record


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    partial.replace(path)


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))

"""Settings of the two stages that `feastrank tune` found: candidate sources, rankers.

They are part of what the features are: each source is two inputs of the ranker. They are read
from the first of these that exists, else everything keeps its defaults:

1. ``tuned.json`` in the dataset's state folder, which is what `feastrank tune` writes;
2. the file beside the description that is called like it, ``my_feed.tuned.json`` beside
   ``my_feed.toml``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from feature_repo.dataset import DatasetError
from feature_repo.definitions.columns import DEFAULT_SOURCES
from feature_repo.workspace import Workspace

ALWAYS = "popular"


def _defaults() -> dict[str, dict[str, Any]]:
    return {name: {} for name in DEFAULT_SOURCES}


SUFFIX = ".tuned.json"


class TunedSettings(BaseModel):
    """What the file holds.

    Attributes
    ----------
    sources
        Candidate source to its generator's settings, in order; those left out keep their
        defaults. `popular` is always one: it answers for users that nobody knows.
    rankers
        Ranker to its settings; `train` compares those named, and all if none is.
    found
        How the settings were found: slices, trials, values. Nothing reads it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[str, dict[str, Any]] = Field(default_factory=_defaults)
    rankers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    found: dict[str, Any] = Field(default_factory=dict)

    @field_validator("sources")
    @classmethod
    def _usable(cls, sources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if ALWAYS not in sources:
            raise ValueError(
                f"'{ALWAYS}' is missing among {sorted(sources)}; add it: it answers for users "
                "that nobody knows"
            )
        wrong = [name for name in sources if not name.isidentifier()]
        if wrong:
            raise ValueError(f"{wrong} cannot be part of a column's name")
        return sources

    @property
    def hash(self) -> str:
        """Sha256 (hex) of what is used; how it was found changes nothing."""
        used = json.dumps([list(self.sources.items()), self.rankers], sort_keys=True)
        return hashlib.sha256(used.encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises
        ------
        DatasetError
            If it cannot be read, or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: cannot be read ({error}); {_ADVICE}") from error
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}"
                for one in error.errors(include_url=False)
            )
            raise DatasetError(f"{path}: no tuned settings: {problems}; {_ADVICE}") from error

    @classmethod
    def of(cls, description: Path, workspace: Workspace) -> Self:
        """Return the settings that hold for a dataset; see the module for where they lie.

        Raises
        ------
        DatasetError
            As `read`.
        """
        path = tuned_file(description, workspace)
        return cls() if path is None else cls.read(path)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.tmp")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


_ADVICE = "run `feastrank tune`, or remove the file to go back to the defaults"


def beside(description: Path) -> Path:
    """Return where the settings of a description lie that come with it."""
    return description.with_suffix(SUFFIX)


def tuned_file(description: Path, workspace: Workspace) -> Path | None:
    """Return the file that holds for a dataset; None: nothing is tuned."""
    places = (workspace.tuned, beside(description))
    return next((place for place in places if place.exists()), None)

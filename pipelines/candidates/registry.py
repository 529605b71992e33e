"""Every candidate generator by name, so that settings and saved folders can choose one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.candidates.als import ALS, ALSSettings
from pipelines.candidates.item_to_item import ItemToItem, ItemToItemSettings
from pipelines.candidates.popular import Popular, PopularSettings
from pipelines.candidates.protocol import CandidateGenerator, read_head
from pipelines.errors import GeneratorError

GENERATORS: dict[str, tuple[type[Any], type[Any]]] = {
    Popular.name: (Popular, PopularSettings),
    ALS.name: (ALS, ALSSettings),
    ItemToItem.name: (ItemToItem, ItemToItemSettings),
}
"""Name to generator and settings class; an entry here is all it takes to add one."""


def make_generator(name: str, settings: Mapping[str, Any] | None = None) -> CandidateGenerator:
    """Return an unfitted generator; settings left out keep their defaults.

    Raises
    ------
    GeneratorError
        An unknown generator, an unknown setting, or a value out of its bounds.
    """
    kind, settings_kind = _known(name)
    allowed = [field.name for field in dataclasses.fields(settings_kind)]
    unknown = sorted(set(settings or {}) - set(allowed))
    if unknown:
        raise GeneratorError(
            f"{name}: found unknown settings {unknown}, expected some of {allowed}"
        )
    generator: CandidateGenerator = kind(settings_kind(**(settings or {})))
    return generator


def load_generator(folder: Path) -> CandidateGenerator:
    """Return the fitted generator saved in `folder`, whichever it is.

    Raises
    ------
    GeneratorError
        The folder holds none, an unknown or an unreadable one.
    """
    kind, _ = _known(str(read_head(folder)["generator"]))
    generator: CandidateGenerator = kind.load(folder)
    return generator


def _known(name: str) -> tuple[type[Any], type[Any]]:
    if name not in GENERATORS:
        raise GeneratorError(
            f"found generator {name!r}, expected one of {sorted(GENERATORS)}; "
            "correct the settings' list of generators"
        )
    return GENERATORS[name]

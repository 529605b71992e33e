"""Every candidate generator by name, so that settings and saved folders can choose one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.candidates.als import ALS, ALSSettings
from pipelines.candidates.bpr import BPR, BPRSettings
from pipelines.candidates.content import Content, ContentSettings
from pipelines.candidates.ease import EASE, EASESettings
from pipelines.candidates.item_to_item import ItemToItem, ItemToItemSettings
from pipelines.candidates.mult_vae import MultVAE, MultVAESettings
from pipelines.candidates.popular import Popular, PopularSettings
from pipelines.candidates.protocol import CandidateGenerator, read_head
from pipelines.candidates.segment_popular import SegmentPopular, SegmentPopularSettings
from pipelines.candidates.sequential import Sequential, SequentialSettings
from pipelines.candidates.two_tower import TwoTower, TwoTowerSettings
from pipelines.candidates.user_knn import UserKNN, UserKNNSettings
from pipelines.candidates.word2vec import Word2Vec, Word2VecSettings
from pipelines.errors import GeneratorError

GENERATORS: dict[str, tuple[type[Any], type[Any]]] = {
    Popular.name: (Popular, PopularSettings),
    ALS.name: (ALS, ALSSettings),
    ItemToItem.name: (ItemToItem, ItemToItemSettings),
    EASE.name: (EASE, EASESettings),
    MultVAE.name: (MultVAE, MultVAESettings),
    Sequential.name: (Sequential, SequentialSettings),
    UserKNN.name: (UserKNN, UserKNNSettings),
    Word2Vec.name: (Word2Vec, Word2VecSettings),
    Content.name: (Content, ContentSettings),
    SegmentPopular.name: (SegmentPopular, SegmentPopularSettings),
    BPR.name: (BPR, BPRSettings),
    TwoTower.name: (TwoTower, TwoTowerSettings),
}
"""Name to generator and settings class; an entry here is all it takes to add one."""

TABLES = {
    EASE.name: ("posts",),
    Content.name: ("posts",),
    SegmentPopular.name: ("users",),
    TwoTower.name: ("posts", "users"),
}
"""Which tables beside the interactions a generator takes."""


def make_generator(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    posts: pa.Table | None = None,
    users: pa.Table | None = None,
) -> CandidateGenerator:
    """Return an unfitted generator; settings left out keep their defaults.

    Parameters
    ----------
    name, settings
        Key of `GENERATORS`, and fields of its settings class.
    posts, users
        The lake's tables (posts with ``post_text_embedding`` beside them, if the content
        generator is to look at texts); generators that need none ignore them.

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
    tables = {"posts": posts, "users": users}
    taken = {table: tables[table] for table in TABLES.get(name, ())}
    generator: CandidateGenerator = kind(settings_kind(**(settings or {})), **taken)
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

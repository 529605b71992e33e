"""The candidate sources of a dataset: which generators, with which settings and tables."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.dataset import Dataset
from feature_repo.definitions.columns import TEXT_EMBEDDING
from feature_repo.workspace import Workspace
from pipelines.candidates.content import Content
from pipelines.candidates.protocol import CandidateGenerator
from pipelines.candidates.registry import GENERATORS, TABLES, make_generator
from pipelines.job.context import Context
from pipelines.settings import JobSettings


class SourceTables:
    """The tables beside the events that generators take, each read when first asked for."""

    def __init__(self, dataset: Dataset, workspace: Workspace) -> None:
        self._dataset, self._workspace = dataset, workspace
        self._read: dict[str, pa.Table] = {}

    def of(self, generator: str) -> dict[str, pa.Table]:
        """Return what a generator takes, by the parameter's name."""
        return {name: self._table(name) for name in TABLES.get(generator, ())}

    def _table(self, name: str) -> pa.Table:
        if name not in self._read:
            self._read[name] = self._posts() if name == "posts" else self._users()
        return self._read[name]

    def _users(self) -> pa.Table:
        return pq.read_table(self._workspace.lake / "users")

    def _posts(self) -> pa.Table:
        """Return post_id, topics and, where posts have text, its embedding."""
        posts = pq.read_table(self._workspace.lake / "posts", columns=["post_id", "topics"])
        if not self._dataset.has_topics:
            nothing = pa.array([[]] * posts.num_rows, pa.list_(pa.string()))
            posts = posts.set_column(1, "topics", nothing)
        if not self._dataset.has_text:
            return posts
        columns = ["post_id", TEXT_EMBEDDING]
        texts = pq.read_table(self._workspace.feature_table("post_text"), columns=columns)
        places = np.argsort(texts["post_id"].to_numpy(), kind="stable")
        texts = texts.take(pa.array(places))
        # An embedding does not change: of several rows of a post any will do.
        _, first = np.unique(texts["post_id"].to_numpy(), return_index=True)
        ids = texts["post_id"].combine_chunks().take(pa.array(first))
        at = pc.index_in(posts["post_id"], ids)
        vectors = texts[TEXT_EMBEDDING].take(pa.array(first)).combine_chunks()
        return posts.append_column(TEXT_EMBEDDING, vectors.take(at.combine_chunks()))


def generators(context: Context, names: Iterable[str] | None = None) -> list[CandidateGenerator]:
    """Return unfitted generators with the settings that hold for the dataset.

    Parameters
    ----------
    names
        By default the dataset's candidate sources, in their order; one that is no source has
        its default settings.

    Raises
    ------
    GeneratorError
        If the tuned settings name an unknown generator or setting.
    """
    tuned = context.tuned.sources
    tables = SourceTables(context.dataset, context.workspace)
    return [
        make_generator(
            name,
            settings_of(name, tuned.get(name, {}), context),
            **tables.of(name),
        )
        for name in (tuned if names is None else names)
    ]


def settings_of(name: str, chosen: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return a generator's settings with what follows from the dataset and the job."""
    _, kind = GENERATORS.get(name, (None, None))
    fields = {field.name for field in dataclasses.fields(kind)} if kind else set()
    settings = dict(chosen)
    # Without topics there is nothing but the text to compare posts by.
    if name == Content.name and not chosen and not context.dataset.has_topics:
        settings["text_weight"] = 1.0
    if "seed" in fields:
        settings.setdefault("seed", context.settings.seed)
    # Without a clock the age of an event means nothing.
    if "half_life_days" in fields and not context.dataset.has_clock:
        settings["half_life_days"] = None
    return settings


def recommend_with(
    generator: CandidateGenerator, users: NDArray[np.int64], settings: JobSettings
) -> pa.Table:
    """Return a fitted generator's candidates, never a post that the user has an event with."""
    return generator.recommend(users, settings.candidates_per_source)

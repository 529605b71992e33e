"""What a bundle knows of posts for the rules: age, attributes, vectors.

``post_attributes.parquet`` has one row per post, ascending by ``post_id`` (int64): ``created``
(timestamp[us, UTC] or null), ``topics`` (list of strings) and every post attribute of the dataset
description under its name. ``post_embeddings.npy`` has, in the same order, float32 (n, d) with
rows of length 1, or of zeros where a post has no text; without texts there is no such file.
"""

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.arrangement import Arranger, Groups
from serving.errors import RulesError
from serving.fresh import FoldIn
from serving.rule_settings import TOPICS, Cap, Freshness, Rules

ATTRIBUTES, EMBEDDINGS = "post_attributes.parquet", "post_embeddings.npy"
CREATED = "created"
Posts = NDArray[np.int64]


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors scaled to length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def write_post_facts(folder: Path, posts: pa.Table, embeddings: pa.Table | None) -> None:
    """Write what `PostFacts` opens.

    Parameters
    ----------
    posts
        ``post_id``, ``created``, ``topics`` and attributes.
    embeddings
        ``post_id`` and a list of numbers; None: posts have no texts.
    """
    posts = posts.sort_by("post_id")
    pq.write_table(posts, folder / ATTRIBUTES)
    if embeddings is None or not embeddings.num_rows:
        return
    values = embeddings.column(1).combine_chunks()
    given = pc.is_valid(values).to_numpy(zero_copy_only=False)
    flat = values.drop_null().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    matrix = np.zeros((posts.num_rows, len(flat) // max(int(given.sum()), 1)), np.float32)
    places = np.searchsorted(posts["post_id"].to_numpy(), embeddings.column(0).to_numpy()[given])
    matrix[places] = unit_rows(flat.reshape(-1, matrix.shape[1]))
    np.save(folder / EMBEDDINGS, matrix, allow_pickle=False)


class PostFacts:
    """What some rules need to know of posts, opened for these rules.

    Raises
    ------
    RulesError
        If the bundle does not have what a rule needs.
    """

    def __init__(self, folder: Path, rules: Rules, fold_in: FoldIn | None) -> None:
        self._rules = rules
        names = [cap.attribute for cap in rules.cap]
        if rules.freshness is not None:
            names.append(CREATED)
        table = _read(folder / ATTRIBUTES, names) if names else pa.table({"post_id": [0][:0]})
        self._post_ids: Posts = table["post_id"].to_numpy()
        self._groups = {cap.attribute: _coded(table[cap.attribute]) for cap in rules.cap}
        if rules.freshness is not None:
            created = table[CREATED]
            if created.null_count == len(created):
                raise RulesError(
                    "rules, freshness: no post of this bundle has a creation time; name it as "
                    "`created` in the dataset description, or leave the section out"
                )
            self._created_us = created.cast(pa.int64()).fill_null(0).to_numpy()
            self._is_dated = created.is_valid().to_numpy()
        self._vectors: NDArray[np.float32] | None = None
        if rules.diversity is not None:
            self._open_vectors(folder, rules.diversity.vectors, fold_in)

    def _open_vectors(self, folder: Path, vectors: str, fold_in: FoldIn | None) -> None:
        if vectors == "als" and fold_in is not None:
            self._vectors, self._vector_ids = unit_rows(fold_in.factors), fold_in.post_ids
        elif vectors == "text" and (folder / EMBEDDINGS).exists():
            self._vectors = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
            self._vector_ids = _read(folder / ATTRIBUTES, [])["post_id"].to_numpy()
        else:
            raise RulesError(
                f"rules, diversity.vectors: bundle {folder.name} has no {vectors} vectors of "
                "posts; choose the other kind (text, als), or publish again"
            )

    def fresh(self, post_ids: Posts, freshness: Freshness, moment: datetime) -> Posts:
        """Return the posts that are young enough at a moment; those of the future too."""
        rows = np.searchsorted(self._post_ids, post_ids)
        earliest_us = (moment.timestamp() - 86_400 * freshness.max_age_days) * 1e6
        passes = np.where(
            self._is_dated[rows], self._created_us[rows] >= earliest_us, freshness.keep_unknown
        )
        return post_ids[passes]

    def arranger(self, post_ids: Posts, pins: dict[int, int]) -> Arranger:
        """Return what arranges these candidates; ``pins`` are rows of them by place."""
        diversity = self._rules.diversity
        vectors = None
        if diversity is not None and self._vectors is not None:
            rows = np.minimum(
                np.searchsorted(self._vector_ids, post_ids), len(self._vector_ids) - 1
            )
            known = self._vector_ids[rows] == post_ids
            vectors = np.where(known[:, None], self._vectors[rows], np.float32(0))
        return Arranger(
            [self._cap(cap, post_ids) for cap in self._rules.cap],
            pins,
            diversity,
            vectors,
            self._rules.exploration,
        )

    def _cap(self, cap: Cap, post_ids: Posts) -> Groups:
        bounds, codes = self._groups[cap.attribute]
        rows = np.searchsorted(self._post_ids, post_ids)
        counts = (bounds[1:] - bounds[:-1])[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Groups(cap.limit, owners, codes[np.repeat(bounds[:-1][rows], counts) + within])


def _read(path: Path, names: list[str]) -> pa.Table:
    if not path.exists():
        raise RulesError(f"{path}: no such file, an older version published it; publish again")
    found = pq.read_schema(path).names
    for name in names:
        if name not in found:
            known = ", ".join([TOPICS, *(one for one in found[1:] if one not in (CREATED, TOPICS))])
            raise RulesError(f"rules, cap: posts have no {name!r}, expected one of: {known}")
    return pq.read_table(path, columns=["post_id", *names])


def _coded(column: pa.ChunkedArray) -> tuple[Posts, Posts]:
    """Return each post's values as runs of codes: int64 (n + 1,) bounds and (m,) codes."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        counts = pc.list_value_length(array).fill_null(0).to_numpy()
        array = array.flatten()
        owners = np.repeat(np.arange(len(counts)), counts)
    else:
        owners = np.arange(len(array))
    given = array.is_valid().to_numpy(zero_copy_only=False)
    codes = array.drop_null().dictionary_encode().indices.to_numpy().astype(np.int64)
    owners = owners[given]
    # A value that a list has twice counts once.
    pairs = np.unique(np.stack([owners, codes], axis=1), axis=0).reshape(-1, 2)
    bounds = np.searchsorted(pairs[:, 0], np.arange(len(column) + 1))
    return bounds.astype(np.int64), pairs[:, 1].copy()

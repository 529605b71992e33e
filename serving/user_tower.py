"""A user's vector from attributes and a fresh history, with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

NORM_EPSILON = 1e-5
"""Added to the variance in a layer norm, here and in training."""


@dataclass(frozen=True, eq=False)
class AttributeEncoder:
    """Attributes as numbers: what a tower takes in.

    A number becomes two inputs, its z-score (0 if null) and whether it is null; a category
    becomes one input for each known value, all 0 if it is null or another.

    Attributes
    ----------
    numbers : str[n]
        Names of the numeric attributes.
    means, scales : float64[n]
    categories, values : str[c]
        Attribute and value of each one-hot input.
    """

    numbers: NDArray[np.str_]
    means: NDArray[np.float64]
    scales: NDArray[np.float64]
    categories: NDArray[np.str_]
    values: NDArray[np.str_]

    @property
    def width(self) -> int:
        """The number of inputs."""
        return 2 * len(self.numbers) + len(self.values)

    def encode(self, columns: Mapping[str, Sequence[Any]], count: int) -> Floats:
        """Return the inputs, float32 (count, width).

        Parameters
        ----------
        columns
            Attribute to its values, `count` of them; a missing attribute is null everywhere.
        count
            Number of rows.
        """
        found = np.zeros((count, self.width), dtype=np.float32)
        for i, name in enumerate(self.numbers):
            given = columns.get(str(name), [None] * count)
            number = np.asarray([np.nan if v is None else v for v in given], dtype=np.float64)
            known = np.isfinite(number)
            found[known, 2 * i] = (number[known] - self.means[i]) / self.scales[i]
            found[~known, 2 * i + 1] = 1.0
        for i, (name, value) in enumerate(zip(self.categories, self.values, strict=True)):
            given = columns.get(str(name), ())
            found[: len(given), 2 * len(self.numbers) + i] = [v == value for v in given]
        return found

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Return what `from_arrays` needs, to be saved."""
        return {
            f"{prefix}numbers": self.numbers,
            f"{prefix}means": self.means,
            f"{prefix}scales": self.scales,
            f"{prefix}categories": self.categories,
            f"{prefix}values": self.values,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, prefix: str) -> AttributeEncoder:
        """Rebuild what `arrays` took apart."""
        names = ("numbers", "means", "scales", "categories", "values")
        return cls(*(arrays[prefix + name] for name in names))


@dataclass(frozen=True, eq=False)
class UserTower:
    """The trained user tower, without what trained it.

    Attributes
    ----------
    post_ids : int64[n_posts]
        Ascending: the posts that count in a history.
    encoder : AttributeEncoder
    weights : mapping of name to float32 array
        ``history`` (n_posts, d): what each post adds; ``decay`` (heads, length): the weight of
        the latest post, the one before, ...; ``in_weight``, ``in_bias``; for each block b
        ``b_norm_gain``, ``b_norm_bias``, ``b_up_weight``, ``b_up_bias``, ``b_down_weight``,
        ``b_down_bias``; ``norm_gain``, ``norm_bias``; ``out_weight``, ``out_bias``;
        ``trend_weight``, ``trend_bias``; ``temperature``, 0-dimensional.
    """

    post_ids: NDArray[np.int64]
    encoder: AttributeEncoder
    weights: Arrays

    @property
    def length(self) -> int:
        """How many of the latest posts count."""
        return int(self.weights["decay"].shape[1])

    def vector(self, attributes: Mapping[str, Any], posts: Sequence[int]) -> Floats:
        """Return one user's vector, float32 (d,); its dot product with a post's is the score.

        Parameters
        ----------
        attributes
            By name, as in the users' table; those missing or None are null.
        posts
            Ids of the posts liked, oldest first; ids that are not in `post_ids` are left out.
        """
        ids = np.asarray(posts, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.post_ids, ids), len(self.post_ids) - 1)
        known = place[self.post_ids[place] == ids][::-1][: self.length]
        latest = np.full((1, self.length), -1, dtype=np.int64)
        latest[0, : len(known)] = known
        columns = {name: [value] for name, value in attributes.items()}
        one: Floats = self.vectors(latest, self.encoder.encode(columns, 1))[0]
        return one

    def vectors(self, latest: NDArray[np.int64], attributes: Floats) -> Floats:
        """Return the vectors of many users, float32 (n, d).

        Parameters
        ----------
        latest : int64 (n, length)
            Positions in `post_ids`, the latest first, -1 where there is none.
        attributes : float32 (n, encoder.width)
        """
        weights = self.weights
        present = latest >= 0
        inputs = [attributes]
        posts = weights["history"][np.where(present, latest, 0)]
        for decay in weights["decay"]:
            share = np.where(present, decay[: latest.shape[1]], np.float32(0))
            total = np.maximum(share.sum(axis=1, keepdims=True), np.float32(1e-12))
            inputs.append(np.einsum("nl,nld->nd", share / total, posts))
        hidden = np.concatenate(inputs, axis=1) @ weights["in_weight"].T + weights["in_bias"]
        block = 0
        while f"{block}_up_weight" in weights:
            hidden = hidden + self._residual(hidden, f"{block}_")
            block += 1
        hidden = _layer_norm(hidden, weights["norm_gain"], weights["norm_bias"])
        taste = hidden @ weights["out_weight"].T + weights["out_bias"]
        taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), np.float32(1e-12))
        trends = hidden @ weights["trend_weight"].T + weights["trend_bias"]
        joined: Floats = np.concatenate([taste / weights["temperature"], trends], axis=1)
        return joined.astype(np.float32)

    def _residual(self, hidden: Floats, block: str) -> Floats:
        weights = self.weights
        inner = _layer_norm(hidden, weights[block + "norm_gain"], weights[block + "norm_bias"])
        inner = inner @ weights[block + "up_weight"].T + weights[block + "up_bias"]
        inner = np.maximum(inner, np.float32(0))
        out: Floats = inner @ weights[block + "down_weight"].T + weights[block + "down_bias"]
        return out


def _layer_norm(values: Floats, gain: Floats, bias: Floats) -> Floats:
    mean = values.mean(axis=1, keepdims=True)
    variance = values.var(axis=1, keepdims=True)
    normed: Floats = (values - mean) / np.sqrt(variance + np.float32(NORM_EPSILON)) * gain + bias
    return normed

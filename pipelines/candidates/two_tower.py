"""Two towers: a vector for each user and each post, whose dot product is the score (DSSM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import Progress, fitted
from pipelines.candidates.scored import Arrays, ScoredGenerator
from pipelines.candidates.tower_inputs import (
    Floats,
    Histories,
    attribute_encoder,
    encode,
    latest_posts,
    post_content,
)
from pipelines.errors import GeneratorError
from serving.user_tower import AttributeEncoder, UserTower

LOSSES = ("sampled_softmax", "bpr", "triplet")
NEGATIVES = ("in_batch", "mined")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TwoTowerSettings:
    """Settings of `TwoTower`.

    Attributes
    ----------
    factors, width
        Length of the vectors, width of the hidden layers; at least 1.
    residual_blocks, dropout
        Blocks in each tower, at least 0; share of inputs and hidden units that is hidden while
        training, from 0, below 1.
    loss
        ``sampled_softmax`` (scores corrected by the log of the chance to be in the pool),
        ``bpr`` or ``triplet``.
    margin
        By which the triplet loss wants a positive's cosine above a negative's; above 0.
    temperature
        Cosines are divided by it; above 0.
    negatives
        ``in_batch``: the pool, which is the other examples' posts and `uniform_negatives`;
        ``mined``: also posts that the model ranks high for the user and he did not like,
        looked for anew after each epoch. They have half of a pairwise loss.
    uniform_negatives
        At least 0. As many as posts make the softmax exact.
    mined_negatives, mined_from_rank
        How many are mined for each user, and from which rank on: the very first are what should
        be recommended. At least 1.
    history_posts, short_half_life_posts, long_half_life_posts
        The latest posts that the user tower sees, and after how many posts back one counts half
        in its two means when training begins (the weights are learnt); at least 1, above 0.
    history_dropout
        Share of the history that is hidden while training; from 0, below 1.
    future_posts
        The example's post is foretold from the history up to so many events before; 1: the
        next post. At least 1.
    user_balance
        Events are drawn by (their user's events) to the power of minus this: 0: all alike,
        1: all users alike. From 0 to 1.
    example_half_life_days
        Age at which an event is drawn half as often; above 0. None: age does not matter.
    post_ids
        Whether each post has weights of its own, beside its content.
    trend_half_life_days
        Half life of the likes that count as recent in the trends of a post; above 0. None: no
        trends, the only sound choice for events without a clock.
    trend_moments
        At how many moments of the past trends are known; at least 1. They take
        ``20 * moments * posts`` bytes.
    epochs, patience, validation_share
        Passes at most; at least 1. If the share is above 0 (and below 1), so large a part of
        the events, the latest, is held out until NDCG@10 of the next post has not improved for
        `patience` epochs; then the model is trained again on everything for the best number.
    batch_examples
        At least 1.
    learning_rate, weight_decay
        Of AdamW; above 0, at least 0.
    device
        ``auto``: a GPU if there is one. Equal seeds give equal results on the CPU.
    seed
        Of everything random.
    """

    factors: int = 64
    width: int = 64
    residual_blocks: int = 1
    dropout: float = 0.2
    loss: Literal["sampled_softmax", "bpr", "triplet"] = "sampled_softmax"
    margin: float = 0.4
    temperature: float = 0.1
    negatives: Literal["in_batch", "mined"] = "in_batch"
    uniform_negatives: int = 256
    mined_negatives: int = 20
    mined_from_rank: int = 100
    history_posts: int = 50
    short_half_life_posts: float = 2.0
    long_half_life_posts: float = 30.0
    history_dropout: float = 0.2
    future_posts: int = 1
    user_balance: float = 0.5
    example_half_life_days: float | None = None
    post_ids: bool = True
    trend_half_life_days: float | None = 7.0
    trend_moments: int = 64
    epochs: int = 30
    patience: int = 3
    validation_share: float = 0.1
    batch_examples: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("negatives", self.negatives, NEGATIVES)
        _check_choice("device", self.device, DEVICES)
        for name in (
            "factors", "width", "mined_negatives", "mined_from_rank", "history_posts",
            "future_posts", "trend_moments", "epochs", "patience", "batch_examples",
        ):  # fmt: skip
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("residual_blocks", "uniform_negatives", "weight_decay"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("dropout", "history_dropout", "validation_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 and below 1")
        for name in (
            "margin", "temperature", "short_half_life_posts", "long_half_life_posts",
            "learning_rate",
        ):  # fmt: skip
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("example_half_life_days", "trend_half_life_days"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "above 0 (or None)")
        self._check("user_balance", 0 <= self.user_balance <= 1, "from 0 to 1")

    def _check(self, name: str, sound: bool, expected: str) -> None:
        if not sound:
            raise GeneratorError(
                f"two_tower: found {name} = {getattr(self, name)}, expected {expected}"
            )


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise GeneratorError(f"two_tower: found {name} = {value!r}, expected one of {allowed}")


class TwoTower(ScoredGenerator[TwoTowerSettings]):
    """Scores are dot products of the vectors that two neural networks make.

    The post tower sees a post's attributes, topics and text, and weights of its own; the user
    tower sees attributes and two weighted means of the latest liked posts. After the method of
    Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough
    Data" (2013). The last elements of a post's vector are its trends as of the end of the fit
    (`pipelines.candidates.tower_inputs.TREND_NAMES`), those of a user's vector say how much
    they matter to him; in training, trends are as of the moment of the example. Event weights
    are not looked at. Torch is needed to fit only.

    Parameters
    ----------
    settings
        See `TwoTowerSettings`.
    posts
        ``post_id`` int64, and optionally ``topics`` list<string>, ``post_text_embedding``
        list<float>, and attributes: further columns of numbers or strings. None: posts are
        known by their own weights alone.
    users
        ``user_id`` int64 and attributes. None: users are known by their history alone.
    """

    name: ClassVar[str] = "two_tower"
    settings_kind: ClassVar[type[Any]] = TwoTowerSettings

    def __init__(
        self,
        settings: TwoTowerSettings | None = None,
        *,
        posts: pa.Table | None = None,
        users: pa.Table | None = None,
    ) -> None:
        super().__init__(settings)
        self._posts, self._users = posts, users

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        from pipelines.candidates.tower_training import train

        user_ids, post_ids = interactions.user_ids, interactions.post_ids
        encoder = attribute_encoder(self._users, "user_id", user_ids)
        attributes = encode(self._users, "user_id", user_ids, encoder)
        content = post_content(self._posts, post_ids)
        trained = train(interactions, content, attributes, self.settings, progress)
        tower = UserTower(post_ids, encoder, trained.weights)
        histories = Histories.of(interactions, self.settings.history_posts)
        latest = latest_posts(interactions, histories)
        return {
            "users": _in_blocks(tower, latest, attributes),
            "posts": np.concatenate([trained.posts, trained.trends], axis=1),
            "validation": np.asarray(trained.validation),
            "epochs": np.asarray(trained.epochs),
            **encoder.arrays("encoder_"),
            **{f"tower_{name}": array for name, array in trained.weights.items()},
        }

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = arrays["users"][rows] @ arrays["posts"].T
        return scores

    def post_vectors(self) -> tuple[Ids, Floats]:
        """Return the catalogue's ids, ascending, and vectors, float32 (n_posts, d).

        An index over them finds posts by the largest dot product.
        """
        audience = fitted(self._audience, self.name)
        return audience.post_ids, fitted(self._arrays, self.name)["posts"]

    def user_vectors(self, user_ids: ArrayLike) -> tuple[Ids, Floats]:
        """Return the known users among those asked for, and their vectors, float32 (n, d)."""
        audience = fitted(self._audience, self.name)
        users, rows = audience.asked_warm(user_ids, 1)
        return users, fitted(self._arrays, self.name)["users"][rows]

    @property
    def user_tower(self) -> UserTower:
        """What makes a user's vector from attributes and a fresh history, without torch."""
        arrays = fitted(self._arrays, self.name)
        weights = {
            name.removeprefix("tower_"): array
            for name, array in arrays.items()
            if name.startswith("tower_")
        }
        encoder = AttributeEncoder.from_arrays(arrays, "encoder_")
        return UserTower(fitted(self._audience, self.name).post_ids, encoder, weights)

    @property
    def validation(self) -> list[float]:
        """NDCG@10 of the next post after each epoch of early stopping; empty without it."""
        values: list[float] = fitted(self._arrays, self.name)["validation"].tolist()
        return values

    @property
    def epochs(self) -> int:
        """How many epochs the model was trained for on everything."""
        return int(fitted(self._arrays, self.name)["epochs"])


def _in_blocks(tower: UserTower, latest: Ids, attributes: Floats, block: int = 4096) -> Floats:
    parts = [
        tower.vectors(latest[start : start + block], attributes[start : start + block])
        for start in range(0, len(latest), block)
    ]
    return np.concatenate(parts)

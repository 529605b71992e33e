"""The two towers in torch, and their weights as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from serving.user_tower import NORM_EPSILON

if TYPE_CHECKING:
    from pipelines.candidates.two_tower import TwoTowerSettings

HEADS = 2
"""Weighted means of the history that the user tower sees: of the last few posts, and of many."""


class _Linear(nn.Module):
    """As `torch.nn.Linear`, but none of inputs or outputs is fine, which that warns of."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        scale /= max(inputs, 1) ** 0.5
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, values: Tensor) -> Tensor:
        return functional.linear(values, self.weight, self.bias)


class _Block(nn.Module):
    """Layer norm, a wider layer, dropout, and back; added to what came in."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        # At first a block adds nothing.
        nn.init.zeros_(self.down.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.dropout(functional.relu(self.up(self.norm(hidden))))
        out: Tensor = hidden + self.dropout(self.down(inner))
        return out


class _Tower(nn.Module):
    def __init__(self, settings: TwoTowerSettings) -> None:
        super().__init__()
        width = settings.width
        self.blocks = nn.ModuleList(
            _Block(width, settings.dropout) for _ in range(settings.residual_blocks)
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.out = nn.Linear(width, settings.factors)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors, and the last hidden layer."""
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        return functional.normalize(self.out(hidden), dim=1), hidden


class TwoTowers(nn.Module):
    """Scores are the cosine of both towers over the temperature, plus the user's view of trends.

    Parameters
    ----------
    content
        float32 (n_posts, inputs)
    attributes
        Number of the users' inputs.
    trends
        Number of trends of a post; 0: none.
    """

    content: Tensor

    def __init__(
        self, settings: TwoTowerSettings, content: Tensor, attributes: int, trends: int
    ) -> None:
        super().__init__()
        n_posts, inputs = content.shape
        width = settings.width
        self.register_buffer("content", content)
        self.ids = nn.Embedding(n_posts, width) if settings.post_ids else None
        self.history_ids = nn.Embedding(n_posts, width) if settings.post_ids else None
        self.from_content = _Linear(inputs, width)
        self.history_content = _Linear(inputs, width)
        for table in (self.ids, self.history_ids):
            if table is not None:
                nn.init.normal_(table.weight, std=width**-0.5)
        places = torch.arange(settings.history_posts, dtype=torch.float32)
        halves = torch.tensor([settings.short_half_life_posts, settings.long_half_life_posts])
        self.log_decay = nn.Parameter(-places * np.log(2) / halves[:, None])
        self.user_in = nn.Linear(HEADS * width + attributes, width)
        self.post_tower, self.user_tower = _Tower(settings), _Tower(settings)
        self.trend = _Linear(width, trends, scale=0.0)
        self.temperature = settings.temperature

    def post_vectors(self, posts: Tensor) -> Tensor:
        """Return unit vectors, (len(posts), factors)."""
        hidden = self.from_content(self.content[posts])
        if self.ids is not None:
            hidden = hidden + self.ids(posts)
        vectors: Tensor = self.post_tower(hidden)[0]
        return vectors

    def history_vectors(self) -> Tensor:
        """Return what each post adds to a history, (n_posts, width)."""
        vectors: Tensor = self.history_content(self.content)
        return vectors if self.history_ids is None else vectors + self.history_ids.weight

    def user_vectors(self, latest: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (users, factors), and weights of the trends (users, trends).

        Parameters
        ----------
        latest
            (users, length), as `Histories.before`.
        attributes
            (users, attributes)
        """
        present = latest >= 0
        vectors = functional.embedding(latest.clamp(min=0), self.history_vectors())
        share = present[:, None, :] * self.log_decay.exp()
        share = share / share.sum(dim=2, keepdim=True).clamp(min=1e-12)
        history = torch.bmm(share, vectors).flatten(1)
        hidden = self.user_in(torch.cat([attributes, history], dim=1))
        unit, hidden = self.user_tower(hidden)
        return unit, self.trend(hidden)

    def scores(self, users: tuple[Tensor, Tensor], posts: Tensor, trends: Tensor) -> Tensor:
        """Return (users, posts).

        Parameters
        ----------
        users
            From `user_vectors`.
        posts
            From `post_vectors`.
        trends
            (users, posts, trends), as of each user's moment.
        """
        unit, weights = users
        found = unit @ posts.T / self.temperature
        if trends.shape[2]:
            found = found + torch.bmm(trends, weights[:, :, None])[:, :, 0]
        return found

    @torch.no_grad()
    def exported(self) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """Return the weights of `serving.user_tower.UserTower`, and all posts' unit vectors."""
        self.eval()
        tower = self.user_tower
        named: dict[str, Tensor] = {
            "history": self.history_vectors(),
            "decay": self.log_decay.exp(),
            "in_weight": self.user_in.weight,
            "in_bias": self.user_in.bias,
            "norm_gain": tower.norm.weight,
            "norm_bias": tower.norm.bias,
            "out_weight": tower.out.weight,
            "out_bias": tower.out.bias,
            "trend_weight": self.trend.weight,
            "trend_bias": self.trend.bias,
        }
        for number, block in enumerate(tower.blocks):
            for short, layer in (("norm", "norm"), ("up", "up"), ("down", "down")):
                part = getattr(block, layer)
                gain = "gain" if layer == "norm" else "weight"
                named[f"{number}_{short}_{gain}"] = part.weight
                named[f"{number}_{short}_bias"] = part.bias
        weights: dict[str, NDArray[Any]] = {name: _numpy(tensor) for name, tensor in named.items()}
        weights["temperature"] = np.asarray(self.temperature, dtype=np.float32)
        every = torch.arange(len(self.content), device=self.content.device)
        vectors = [_numpy(self.post_vectors(part)) for part in torch.split(every, 65_536)]
        return weights, np.concatenate(vectors)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return array

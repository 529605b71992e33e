"""Mult-VAE: a variational autoencoder of whole histories with a multinomial likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.sparse import csr_matrix

from pipelines.candidates.interactions import Interactions
from pipelines.candidates.protocol import Progress
from pipelines.candidates.scored import Arrays, FactorGenerator
from pipelines.errors import GeneratorError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MultVAESettings:
    """Settings of `MultVAE`.

    Attributes
    ----------
    hidden, latent
        Width of the hidden layers and of the code; at least 1.
    dropout
        Share of a history that is hidden while training; from 0, below 1.
    kl_weight
        Weight that the Kullback-Leibler term grows to over the first half; at least 0.
    epochs, batch_users
        Passes over the users, and users in each step; at least 1.
    learning_rate, weight_decay
        Of Adam; above 0, at least 0.
    seed
        Of everything random.
    """

    hidden: int = 200
    latent: int = 64
    dropout: float = 0.5
    kl_weight: float = 0.2
    epochs: int = 60
    batch_users: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.hidden, self.latent, self.epochs, self.batch_users)
        if (
            min(counts) < 1
            or not 0 <= self.dropout < 1
            or self.learning_rate <= 0
            or min(self.kl_weight, self.weight_decay) < 0
        ):
            raise GeneratorError(
                f"mult_vae: found {self}, expected hidden, latent, epochs and batch_users of at "
                "least 1, dropout from 0 and below 1, learning_rate above 0, kl_weight and "
                "weight_decay of at least 0"
            )


class MultVAE(FactorGenerator[MultVAESettings]):
    """Scores are the decoder's logits for the mean code of a user's history.

    The method is Liang, Krishnan, Hoffman and Jebara, "Variational Autoencoders for
    Collaborative Filtering" (2018). The last layer is linear, so what is kept of a user is the
    decoder's hidden layer, and torch is needed to fit only.
    """

    name: ClassVar[str] = "mult_vae"
    settings_kind: ClassVar[type[Any]] = MultVAESettings

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        liked = (interactions.matrix > 0).astype(np.float32)
        with _one_thread():
            return _train(liked, self.settings, progress)


def _train(liked: csr_matrix, settings: MultVAESettings, progress: Progress) -> Arrays:
    import torch

    chance = torch.Generator().manual_seed(settings.seed)
    layers = _layers(liked.shape[1], settings, chance)
    parameters = [tensor for layer in layers for tensor in layer]
    optimizer = torch.optim.Adam(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    warm = np.flatnonzero(np.diff(liked.indptr))
    steps = settings.epochs * -(-len(warm) // settings.batch_users)
    step = 0
    for epoch in range(settings.epochs):
        order = warm[torch.randperm(len(warm), generator=chance).numpy()]
        for start in range(0, len(order), settings.batch_users):
            batch = torch.from_numpy(liked[order[start : start + settings.batch_users]].toarray())
            kl_weight = settings.kl_weight * min(1.0, 2 * step / steps)
            loss = _loss(batch, layers, settings.dropout, kl_weight, chance)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
        progress(0.95 * (epoch + 1) / settings.epochs)
    return _state(liked, layers)


_Layers = list[tuple["torch.Tensor", "torch.Tensor"]]


def _layers(n_posts: int, settings: MultVAESettings, chance: torch.Generator) -> _Layers:
    """Return (weight, bias) of encoder in, encoder out, decoder in, decoder out."""
    import torch

    shapes = [
        (n_posts, settings.hidden),
        (settings.hidden, 2 * settings.latent),
        (settings.latent, settings.hidden),
        (settings.hidden, n_posts),
    ]
    layers = []
    for rows, columns in shapes:
        scale = (2.0 / (rows + columns)) ** 0.5  # Glorot
        weight = torch.randn(rows, columns, generator=chance) * scale
        layers.append((weight.requires_grad_(), torch.zeros(columns).requires_grad_()))
    return layers


def _encode(batch: torch.Tensor, layers: _Layers) -> tuple[torch.Tensor, torch.Tensor]:
    (weight, bias), (out_weight, out_bias) = layers[0], layers[1]
    hidden = (batch @ weight + bias).tanh()
    mean, log_variance = (hidden @ out_weight + out_bias).chunk(2, dim=1)
    return mean, log_variance


def _loss(
    batch: torch.Tensor,
    layers: _Layers,
    dropout: float,
    kl_weight: float,
    chance: torch.Generator,
) -> torch.Tensor:
    import torch

    unit = batch / batch.norm(dim=1, keepdim=True)
    kept = torch.rand(batch.shape, generator=chance) >= dropout
    mean, log_variance = _encode(unit * kept / (1 - dropout), layers)
    noise = torch.randn(mean.shape, generator=chance)
    code = mean + noise * (0.5 * log_variance).exp()
    (weight, bias), (out_weight, out_bias) = layers[2], layers[3]
    logits = (code @ weight + bias).tanh() @ out_weight + out_bias
    likelihood = (batch * logits.log_softmax(dim=1)).sum(dim=1).mean()
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
    return kl_weight * divergence - likelihood


def _state(liked: csr_matrix, layers: _Layers, block: int = 4096) -> Arrays:
    import torch

    (weight, bias), (out_weight, out_bias) = layers[2], layers[3]
    parts = []
    with torch.no_grad():
        for start in range(0, liked.shape[0], block):
            batch = torch.from_numpy(liked[start : start + block].toarray())
            unit = batch / batch.norm(dim=1, keepdim=True).clamp(min=1.0)
            mean, _ = _encode(unit, layers)
            parts.append((mean @ weight + bias).tanh().numpy())
        posts = np.ascontiguousarray(out_weight.numpy().T)
        return {"users": np.concatenate(parts), "posts": posts, "bias": out_bias.numpy().copy()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep sums from depending on the number of threads; these layers are small anyway."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

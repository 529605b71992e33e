"""Training of the two towers: pools of posts, mined negatives, early stopping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import Progress
from pipelines.candidates.topk import top_k
from pipelines.candidates.tower_inputs import (
    DAY_US,
    TREND_NAMES,
    Floats,
    Histories,
    Trends,
    latest_posts,
)
from pipelines.candidates.tower_losses import (
    bayesian_personalized_ranking,
    log_inclusion,
    sampled_softmax,
    triplet,
)
from pipelines.candidates.tower_model import TwoTowers

if TYPE_CHECKING:
    from pipelines.candidates.two_tower import TwoTowerSettings

VALIDATION_EXAMPLES = 4_000
"""Of the validation slice, spread over it, are measured after each epoch."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The model as numpy arrays, and how it came about.

    Attributes
    ----------
    weights : of `serving.user_tower.UserTower`
    posts : float32 (n_posts, factors), unit vectors
    trends : float32 (n_posts, trends), as of the end
    validation : NDCG@10 of the next post after each epoch; empty without a slice
    epochs : how many the final model was trained for
    """

    weights: dict[str, NDArray[Any]]
    posts: Floats
    trends: Floats
    validation: list[float]
    epochs: int


def train(
    interactions: Interactions,
    content: Floats,
    attributes: Floats,
    settings: TwoTowerSettings,
    progress: Progress,
) -> Trained:
    """Find the number of epochs on the latest events, then train on all of them.

    Parameters
    ----------
    content : float32 (n_posts, inputs)
    attributes : float32 (n_users, inputs)
    """
    device = torch.device(_device(settings.device))
    with _reproducible(settings.seed, device):
        data = _Data.of(interactions, content, attributes, settings)
        latest = data.latest_events(settings.validation_share)
        scores: list[float] = []
        epochs = settings.epochs
        if len(latest):
            first = _Run(data, settings, device, np.setdiff1d(data.events, latest))
            scores = first.until_worse(latest, lambda done: progress(0.5 * done))
            epochs = int(np.argmax(scores)) + 1
            torch.manual_seed(settings.seed)
        run = _Run(data, settings, device, data.events)
        share = 0.5 if scores else 0.0
        for epoch in range(epochs):
            run.epoch()
            progress(share + (0.99 - share) * (epoch + 1) / epochs)
        weights, posts = run.model.exported()
        return Trained(weights, posts, data.trends.values[-1], scores, epochs)


@dataclass(frozen=True, eq=False)
class _Data:
    """What examples are made of; an example is one event, foretold from those before it."""

    events: Ids
    times: Ids
    users: Ids
    histories: Histories
    liked: csr_matrix
    latest: Ids
    content: Floats
    attributes: Floats
    trends: Trends

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        content: Floats,
        attributes: Floats,
        settings: TwoTowerSettings,
    ) -> _Data:
        histories = Histories.of(interactions, settings.history_posts)
        return cls(
            np.arange(len(interactions.event_posts)),
            interactions.event_times,
            interactions.event_users.astype(np.int64),
            histories,
            (interactions.matrix > 0).astype(bool),
            latest_posts(interactions, histories),
            content,
            attributes,
            Trends.of(interactions, settings.trend_half_life_days, settings.trend_moments),
        )

    def latest_events(self, share: float) -> Ids:
        """Return the latest events that leave others before them; none if there are too few."""
        count = int(share * len(self.events))
        if count == 0:
            return self.events[:0]
        cut = np.sort(self.times)[-count]
        return self.events[self.times >= cut] if cut > self.times.min() else self.events[:0]

    def likes_of(self, events: Ids) -> csr_matrix:
        """Return which posts are liked by these events, bool csr (n_users, n_posts)."""
        return csr_matrix(
            (np.ones(len(events), bool), (self.users[events], self.histories.posts[events])),
            shape=self.liked.shape,
        )


class _Run:
    """One model in training on some of the events."""

    def __init__(
        self, data: _Data, settings: TwoTowerSettings, device: torch.device, events: Ids
    ) -> None:
        self.data, self.settings, self.device, self.events = data, settings, device, events
        self.rng = np.random.default_rng(settings.seed)
        self.liked = data.likes_of(events)
        self.model = TwoTowers(
            settings,
            torch.from_numpy(data.content),
            data.attributes.shape[1],
            data.trends.values.shape[2],
        ).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.attributes = self._tensor(data.attributes)
        self.trends = self._tensor(data.trends.values)
        self.chances = self._chances()
        posts = data.histories.posts[events]
        shares = np.bincount(posts, weights=self.chances, minlength=len(data.content))
        batch = min(settings.batch_examples, len(events))
        self.log_q = log_inclusion(
            self._tensor(shares.astype(np.float32)),
            batch,
            settings.uniform_negatives,
            len(data.content),
        )
        self.mined: Ids | None = None

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _chances(self) -> NDArray[np.float64]:
        """Return the chance of each event to be an example."""
        settings, data = self.settings, self.data
        events = np.bincount(data.users[self.events])[data.users[self.events]]
        chances = events ** -float(settings.user_balance)
        if settings.example_half_life_days is not None:
            age = (data.times[self.events].max() - data.times[self.events]) / DAY_US
            chances = chances * np.exp2(-age / settings.example_half_life_days)
        return np.asarray(chances / chances.sum(), dtype=np.float64)

    def epoch(self) -> None:
        """Draw as many examples as there are events, and learn from them."""
        size = len(self.events)
        drawn = self.events[self.rng.choice(size, size, p=self.chances)]
        self.model.train()
        for start in range(0, size, self.settings.batch_examples):
            loss = self._loss(drawn[start : start + self.settings.batch_examples])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
        if self.settings.negatives == "mined":
            self.mined = self._mine()

    def _loss(self, events: Ids) -> Tensor:
        data, settings = self.data, self.settings
        users, targets = data.users[events], data.histories.posts[events]
        pool, column = self._pool(users, targets)
        negative, mined = self._negatives(users, pool, column)
        starts = data.histories.starts[events]
        ahead = self.rng.integers(0, settings.future_posts, len(events))
        moments = np.maximum(events - ahead, starts)
        latest = data.histories.before(moments, starts)
        latest[self.rng.random(latest.shape) < settings.history_dropout] = -1
        vectors = self.model.user_vectors(self._tensor(latest), self.attributes[users])
        pool_posts = self._tensor(pool)
        rows = self._tensor(data.trends.moment_of(data.times[moments]))
        scores = self.model.scores(
            vectors,
            self.model.post_vectors(pool_posts),
            self.trends[rows[:, None], pool_posts[None, :]],
        )
        own = self._tensor(column)
        positive = scores.gather(1, own[:, None])[:, 0]
        if settings.loss == "sampled_softmax":
            log_q = self.log_q[pool_posts]
            every = log_q if mined is None else log_q.masked_fill(mined, 0.0)
            return sampled_softmax(positive, scores, negative, log_q[own], every)
        pairwise = self._pairwise(positive, scores, negative)
        if mined is None:
            return pairwise
        return (pairwise + self._pairwise(positive, scores, negative & mined)) / 2

    def _pairwise(self, positive: Tensor, scores: Tensor, negative: Tensor) -> Tensor:
        if self.settings.loss == "bpr":
            return bayesian_personalized_ranking(positive, scores, negative)
        # The margin is one of cosines.
        scale = self.settings.temperature
        return triplet(scale * positive, scale * scores, negative, self.settings.margin)

    def _pool(self, users: Ids, targets: Ids) -> tuple[Ids, Ids]:
        """Return the distinct posts that examples are scored against, and each target's place."""
        n_posts = len(self.data.content)
        uniform = min(self.settings.uniform_negatives, n_posts)
        parts = [targets, self.rng.choice(n_posts, uniform, replace=False)]
        if self.mined is not None:
            parts.append(self.mined[users].ravel())
        pool = np.unique(np.concatenate(parts))
        pool = pool[pool >= 0]
        return pool, np.searchsorted(pool, targets)

    def _negatives(self, users: Ids, pool: Ids, column: Ids) -> tuple[Tensor, Tensor | None]:
        """Return which of the pool each user has not liked, and which were mined for him."""
        place = np.full(len(self.data.content), -1)
        place[pool] = np.arange(len(pool))
        liked = self.liked[users]
        rows = np.repeat(np.arange(len(users)), np.diff(liked.indptr))
        columns = place[liked.indices]
        negative = np.ones((len(users), len(pool)), dtype=bool)
        negative[rows[columns >= 0], columns[columns >= 0]] = False
        negative[np.arange(len(users)), column] = False
        if self.mined is None:
            return self._tensor(negative), None
        mined = np.zeros_like(negative)
        own = self.mined[users]
        rows, slots = np.nonzero(own >= 0)
        mined[rows, place[own[rows, slots]]] = True
        return self._tensor(negative), self._tensor(mined)

    @torch.no_grad()
    def _mine(self) -> Ids:
        """Return posts that are ranked high for each user who does not like them, -1: fewer.

        Ranks further down than the first teach more, as those hold what should be recommended:
        Huang et al., "Embedding-based Retrieval in Facebook Search" (2020).
        """
        self.model.eval()
        posts = self.model.post_vectors(torch.arange(len(self.data.content), device=self.device))
        users = []
        for start in range(0, len(self.data.latest), 4096):
            rows = slice(start, start + 4096)
            latest = self._tensor(self.data.latest[rows])
            unit, weights = self.model.user_vectors(latest, self.attributes[rows])
            users.append(torch.cat([unit / self.model.temperature, weights], dim=1))
        every = torch.cat(users).cpu().numpy()
        against = torch.cat([posts, self.trends[-1]], dim=1).cpu().numpy()
        skipped = self.settings.mined_from_rank - 1
        top = top_k(
            lambda block: every[block] @ against.T,
            (len(every), len(against)),
            skipped + self.settings.mined_negatives,
            masked=self.liked,
        )
        mined = np.full((len(every), self.settings.mined_negatives), -1, dtype=np.int64)
        kept = top.ranks > skipped
        mined[top.rows[kept], top.ranks[kept] - 1 - skipped] = top.columns[kept]
        return mined

    def until_worse(self, latest: Ids, progress: Progress) -> list[float]:
        """Train until validation has not improved for a while; return its value by epoch."""
        count = min(len(latest), VALIDATION_EXAMPLES)
        chosen = latest[np.linspace(0, len(latest), count, endpoint=False, dtype=int)]
        values: list[float] = []
        for epoch in range(self.settings.epochs):
            self.epoch()
            values.append(self.validate(chosen))
            progress((epoch + 1) / self.settings.epochs)
            if len(values) - 1 - int(np.argmax(values)) >= self.settings.patience:
                break
        return values

    @torch.no_grad()
    def validate(self, events: Ids) -> float:
        """Return NDCG@10 of the event's post, from the events before it, seen posts left out."""
        self.model.eval()
        data = self.data
        posts = self.model.post_vectors(torch.arange(len(data.content), device=self.device))
        gains = []
        for part in np.array_split(events, -(-len(events) // 256)):
            starts, users = data.histories.starts[part], data.users[part]
            latest = self._tensor(data.histories.before(part, starts))
            vectors = self.model.user_vectors(latest, self.attributes[users])
            trends = self.trends[self._tensor(data.trends.moment_of(data.times[part]))]
            scores = self.model.scores(vectors, posts, trends)
            for row, (start, event) in enumerate(zip(starts, part, strict=True)):
                scores[row, data.histories.posts[start:event]] = -torch.inf
            target = self._tensor(data.histories.posts[part])
            own = scores.gather(1, target[:, None])
            # A post that was liked before cannot be foretold.
            rank = torch.where(torch.isfinite(own), scores >= own, True).sum(dim=1)
            gains.append(torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0))
        return float(torch.cat(gains).mean())


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and keep sums from depending on the number of threads; leave no trace."""
    threads = torch.get_num_threads()
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        if device.type == "cpu":
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


__all__ = ["TREND_NAMES", "Trained", "train"]

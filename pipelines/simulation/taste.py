"""The taste model: with what probability a user likes a post that is shown at a moment.

For user u, post i of topic k, at hour h (UTC) and share x of the period::

    logit p = logit(rate_i) + correction_k + generosity_u + w_u . m_i
              + daily_k cos(2 pi (h - peak_k) / 24) + drift_k (x - 1/2)

``rate_i`` is the post's own like rate (`Posts.like_rates`, the real feed's groups), ``m_i`` its
topic and its mixture of themes, ``w_u`` what the user likes of each: a linear part of his traits
(gender, age, big city, abroad, system, where he came from) and a part of his own that nothing but
his behaviour tells. Every term but the first has mean 0, and ``correction_k`` makes each topic's
like rate the printed one.

The strengths (`TasteSettings`) are not printed anywhere. They are chosen so that the way from
random to the best possible HitRate@5 has the printed hit rate of the real system's A/B test (0.707
and 0.721, five posts shown by a model) at about four fifths; that figure was fixed before any
ranker was trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from pipelines.errors import SimulationError
from pipelines.simulation import facts
from pipelines.simulation.posts import THEMES_PER_TOPIC, TOPICS, Posts
from pipelines.simulation.users import Users

Floats = NDArray[np.float32]
_CALIBRATION_VIEWS = 400_000
_STEPS = 12


@dataclass(frozen=True)
class TasteSettings:
    """Standard deviations of the terms, all in logits.

    Parameters
    ----------
    generosity
        Of users: how readily somebody likes anything.
    topic_traits, theme_traits
        Of what a user's traits say about a topic, and about a theme.
    topic_own, theme_own
        Of what is the user's own.
    daily
        Of the amplitude of a topic's daily rhythm.
    drift
        Of a topic's change from the first day to the last.
    """

    generosity: float = 0.35
    topic_traits: float = 0.40
    theme_traits: float = 0.25
    topic_own: float = 0.20
    theme_own: float = 0.15
    daily: float = 0.15
    drift: float = 0.10


@dataclass(frozen=True)
class Taste:
    """The parameters of every user and post; rows as in `Users` and `Posts`.

    Parameters
    ----------
    user_ids, post_ids
        int64, ascending; (users,), (posts,).
    generosity
        float32 (users,).
    users
        float32 (users, topics + topics * themes): the vectors w.
    posts
        float32 (posts, the same): the vectors m.
    base
        float32 (posts,): logit of the post's rate, and its topic's correction.
    topics
        int64 (posts,).
    hours
        float32 (24, topics): the daily rhythm.
    drift
        float32 (topics,).
    start_s, end_s
        The period, unix seconds.
    """

    user_ids: NDArray[np.int64]
    post_ids: NDArray[np.int64]
    generosity: Floats
    users: Floats
    posts: Floats
    base: Floats
    topics: NDArray[np.int64]
    hours: Floats
    drift: Floats
    start_s: int
    end_s: int

    def of_views(
        self, users: NDArray[np.int64], posts: NDArray[np.int64], seconds: NDArray[np.int64]
    ) -> Floats:
        """Return the like probability of views: rows of users and posts, unix seconds, all (n,)."""
        logits = (
            self.base[posts]
            + self.generosity[users]
            + self._moments(seconds)[np.arange(len(posts)), self.topics[posts]]
        )
        logits += np.einsum("ij,ij->i", self.users[users], self.posts[posts])
        return _expit(logits)

    def of_all_posts(self, users: NDArray[np.int64], seconds: NDArray[np.int64]) -> Floats:
        """Return the like probability of every post at n moments: (n, posts)."""
        logits = self.users[users] @ self.posts.T
        logits += self.base + self.generosity[users][:, None]
        logits += self._moments(seconds)[:, self.topics]
        return _expit(logits)

    def _moments(self, seconds: NDArray[np.int64]) -> Floats:
        """Return what the moment adds to each topic: (n, topics)."""
        share = (seconds - self.start_s) / (self.end_s - self.start_s) - 0.5
        added: Floats = self.hours[seconds // 3600 % 24] + np.outer(share, self.drift).astype(
            np.float32
        )
        return added

    def save(self, path: Path) -> None:
        """Write all parameters to ``path`` (npz)."""
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        SimulationError
            If the file is not there or not what `save` writes.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            start, end = int(arrays.pop("start_s")), int(arrays.pop("end_s"))
            return cls(**arrays, start_s=start, end_s=end)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SimulationError(
                f"{path}: the parameters of a simulated feed cannot be read ({error}); write the "
                "feed again with `feastrank simulate`"
            ) from error


def make_taste(
    users: Users,
    posts: Posts,
    period_s: tuple[int, int],
    rng: np.random.Generator,
    settings: TasteSettings | None = None,
) -> Taste:
    """Draw a taste whose like rates by topic are the printed ones, for this exposure."""
    settings = settings or TasteSettings()
    taste = Taste(
        user_ids=users.table["user_id"].to_numpy(),
        post_ids=posts.table["post_id"].to_numpy(),
        generosity=(settings.generosity * rng.standard_normal(len(users.traits))).astype(
            np.float32
        ),
        users=_wishes(users.traits, settings, rng),
        posts=np.column_stack([np.eye(len(TOPICS), dtype=np.float32)[posts.topics], posts.mixture]),
        base=logit(posts.like_rates).astype(np.float32),
        topics=posts.topics,
        hours=_rhythm(settings.daily, rng),
        drift=(settings.drift * rng.standard_normal(len(TOPICS))).astype(np.float32),
        start_s=period_s[0],
        end_s=period_s[1],
    )
    taste.base[:] += _corrections(taste, posts, rng)[posts.topics]
    return taste


def _wishes(traits: Floats, settings: TasteSettings, rng: np.random.Generator) -> Floats:
    """Return the vectors w, (users, topics + topics * themes); every column has mean 0."""
    blocks = []
    for columns, from_traits, own in (
        (len(TOPICS), settings.topic_traits, settings.topic_own),
        (len(TOPICS) * THEMES_PER_TOPIC, settings.theme_traits, settings.theme_own),
    ):
        # Effects are scaled, so that chance decides who likes what but not how much it matters.
        effects = rng.standard_normal((traits.shape[1], columns))
        effects *= from_traits / np.linalg.norm(effects, axis=0)
        personal = own * rng.standard_normal((len(traits), columns), dtype=np.float32)
        block = traits @ effects.astype(np.float32) + personal
        blocks.append(block - block.mean(axis=0))
    return np.column_stack(blocks).astype(np.float32)


def _rhythm(amplitude: float, rng: np.random.Generator) -> Floats:
    heights = amplitude * np.abs(rng.standard_normal(len(TOPICS)))
    peaks = rng.uniform(0, 24, len(TOPICS))
    hours = np.arange(24)[:, None]
    rhythm: Floats = (heights * np.cos(2 * np.pi * (hours - peaks) / 24)).astype(np.float32)
    weights = facts.HOUR_WEIGHTS / facts.HOUR_WEIGHTS.sum()
    centred: Floats = rhythm - (weights @ rhythm).astype(np.float32)
    return centred


def _corrections(taste: Taste, posts: Posts, rng: np.random.Generator) -> Floats:
    """Solve for each topic's correction by Newton's method on drawn views."""
    views = _CALIBRATION_VIEWS
    shown = rng.choice(len(posts.exposure), views, p=posts.exposure)
    viewers = rng.integers(0, len(taste.user_ids), views)
    hours = rng.choice(24, views, p=facts.HOUR_WEIGHTS / facts.HOUR_WEIGHTS.sum())
    days = rng.integers(0, max(1, (taste.end_s - taste.start_s) // 86_400), views)
    logits = logit(taste.of_views(viewers, shown, taste.start_s + days * 86_400 + hours * 3600))
    found = np.zeros(len(TOPICS), dtype=np.float32)
    for position, topic in enumerate(facts.TOPICS.values()):
        of_topic = logits[taste.topics[shown] == position].astype(np.float64)
        correction = 0.0
        for _ in range(_STEPS if len(of_topic) else 0):
            p = expit(of_topic + correction)
            correction += (topic.like_rate - p.mean()) / (p * (1 - p)).mean()
        found[position] = correction
    return found


def _expit(logits: Floats) -> Floats:
    values: Floats = expit(logits, out=logits)
    return values

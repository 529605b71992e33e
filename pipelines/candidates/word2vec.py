"""word2vec over histories: posts are words, and a history is a sentence."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipelines.candidates.interactions import Interactions
from pipelines.candidates.protocol import Progress
from pipelines.candidates.scored import Arrays, FactorGenerator, latest_histories
from pipelines.errors import GeneratorError


@dataclass(frozen=True)
class Word2VecSettings:
    """Settings of `Word2Vec`; the first ones are gensim's.

    Attributes
    ----------
    vector_size, window, epochs, negative
        At least 1.
    skip_gram
        Foretell the neighbours from a post, not a post from its neighbours.
    ns_exponent
        Posts are drawn as negatives by their count to this power; below 0, rare ones more often.
    min_count
        Posts with fewer likes are left out, of histories too; at least 1.
    alpha
        First learning rate; above 0.
    latest_posts
        A user is the mean of so many of his last posts; at least 1.
    seed
        Of the initial vectors and the negatives.
    """

    vector_size: int = 64
    window: int = 100
    epochs: int = 30
    negative: int = 10
    skip_gram: bool = False
    ns_exponent: float = -0.5
    min_count: int = 1
    alpha: float = 0.025
    latest_posts: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            *(self.vector_size, self.window, self.epochs, self.negative),
            *(self.latest_posts, self.min_count),
        )
        if min(counts) < 1 or self.alpha <= 0:
            raise GeneratorError(
                f"word2vec: found {self}, expected vector_size, window, epochs, negative, "
                "latest_posts and min_count of at least 1, and alpha above 0"
            )


class Word2Vec(FactorGenerator[Word2VecSettings]):
    """Scores order posts as gensim's ``predict_output_word`` does for the user's latest posts.

    The method is Mikolov et al., "Distributed Representations of Words and Phrases and their
    Compositionality" (2013), as implemented by gensim. A score is the logarithm of that
    method's probability, up to a constant of the user. A user none of whose posts has a vector
    gets the mean of all posts' vectors.
    """

    name: ClassVar[str] = "word2vec"
    settings_kind: ClassVar[type[Any]] = Word2VecSettings

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        from gensim.models import Word2Vec as Model

        settings = self.settings
        likes = np.bincount(interactions.event_posts, minlength=len(interactions.post_ids))
        is_word = likes >= settings.min_count
        if not is_word.any():
            raise GeneratorError(
                f"word2vec: no post of {len(likes):,} has the {settings.min_count} likes that "
                f"min_count asks for (the most liked has {likes.max(initial=0):,}); lower it"
            )
        words = interactions.event_posts.astype(str).tolist()
        bounds = itertools.pairwise(interactions.history_bounds)
        sentences = [words[start:end] for start, end in bounds if end > start]
        # gensim cuts sentences at 10,000 words; workers would make the order of updates chance.
        model = Model(
            sentences,
            vector_size=settings.vector_size,
            window=settings.window,
            epochs=settings.epochs,
            negative=settings.negative,
            sg=int(settings.skip_gram),
            ns_exponent=settings.ns_exponent,
            alpha=settings.alpha,
            min_count=settings.min_count,
            seed=settings.seed + 1,  # gensim's seed 0 would draw the same numbers for all words
            workers=1,
        )
        progress(0.9)
        place = [model.wv.key_to_index[str(post)] for post in np.flatnonzero(is_word)]
        outputs = np.zeros((len(likes), settings.vector_size), dtype=np.float32)
        outputs[is_word] = model.syn1neg[place]
        return {
            "users": self._means(interactions, model.wv.vectors[place], is_word),
            "posts": outputs,
            "bias": np.where(is_word, 0.0, -np.inf).astype(np.float32),
        }

    def _means(self, interactions: Interactions, inputs: Any, is_word: Any) -> Any:
        """Return the mean input vector of each user's latest posts that have one."""
        posts, bounds = latest_histories(interactions, self.settings.latest_posts)
        vectors = np.zeros((len(is_word), inputs.shape[1]))
        vectors[is_word] = inputs
        known = np.concatenate([[0], np.cumsum(is_word[posts])])
        sums = np.concatenate([np.zeros((1, inputs.shape[1])), np.cumsum(vectors[posts], axis=0)])
        counts = (known[bounds[1:]] - known[bounds[:-1]])[:, None]
        means = (sums[bounds[1:]] - sums[bounds[:-1]]) / np.maximum(counts, 1)
        return np.where(counts > 0, means, inputs.mean(axis=0)).astype(np.float32)

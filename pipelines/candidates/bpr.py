"""Matrix factorization that ranks liked posts above others: a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipelines.candidates.interactions import Interactions
from pipelines.candidates.protocol import Progress
from pipelines.candidates.scored import Arrays, FactorGenerator
from pipelines.errors import GeneratorError
from serving.openmp import ensure_openmp


@dataclass(frozen=True)
class BPRSettings:
    """Settings of `BPR`.

    Attributes
    ----------
    factors, iterations
        Length of each vector, passes over the likes; at least 1.
    learning_rate
        Above 0.
    regularization
        At least 0.
    seed
        Of the initial vectors and the sampled pairs.
    """

    factors: int = 32
    iterations: int = 100
    learning_rate: float = 0.05
    regularization: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.factors, self.iterations) < 1
            or self.learning_rate <= 0
            or self.regularization < 0
        ):
            raise GeneratorError(
                f"bpr: found {self}, expected factors and iterations of at least 1, "
                "learning_rate above 0 and regularization of at least 0"
            )


class BPR(FactorGenerator[BPRSettings]):
    """Scores are dot products plus a bias of the post.

    The method is Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback"
    (2009), as implemented by the implicit library.
    """

    name: ClassVar[str] = "bpr"
    settings_kind: ClassVar[type[Any]] = BPRSettings

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        ensure_openmp()
        from implicit.bpr import BayesianPersonalizedRanking

        liked = (interactions.matrix > 0).astype(np.float32)
        # One thread: threads overwrite each other's updates by chance.
        model = BayesianPersonalizedRanking(
            factors=self.settings.factors,
            iterations=self.settings.iterations,
            learning_rate=self.settings.learning_rate,
            regularization=self.settings.regularization,
            random_state=self.settings.seed,
            num_threads=1,
        )
        model.fit(liked, show_progress=False)
        # The library keeps the bias in the last column.
        return {
            "users": np.ascontiguousarray(model.user_factors[:, :-1]),
            "posts": np.ascontiguousarray(model.item_factors[:, :-1]),
            "bias": np.ascontiguousarray(model.item_factors[:, -1]),
        }

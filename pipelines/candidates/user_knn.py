"""Posts liked by the users whose likes are most alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import Progress, csr_arrays, csr_from
from pipelines.candidates.scored import Arrays, ScoredGenerator
from pipelines.errors import GeneratorError
from serving.openmp import ensure_openmp


@dataclass(frozen=True)
class UserKNNSettings:
    """Settings of `UserKNN`.

    Attributes
    ----------
    similarity
        Between two users' rows: ``cosine`` or ``bm25``, which discounts popular posts.
    neighbours
        Whose likes count; at least 1.
    power
        Similarities are raised to it: above 1, near neighbours count more; above 0.
    """

    similarity: Literal["cosine", "bm25"] = "cosine"
    neighbours: int = 100
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.similarity not in ("cosine", "bm25") or self.neighbours < 1 or self.power <= 0:
            raise GeneratorError(
                f"user_knn: found {self}, expected similarity 'cosine' or 'bm25', neighbours of "
                "at least 1 and power above 0"
            )


class UserKNN(ScoredGenerator[UserKNNSettings]):
    """A user's score of a post is the summed similarity of his neighbours who like it."""

    name: ClassVar[str] = "user_knn"
    settings_kind: ClassVar[type[Any]] = UserKNNSettings

    def _learn(self, interactions: Interactions, progress: Progress) -> Arrays:
        ensure_openmp()
        from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize

        liked = (interactions.matrix > 0).astype(np.float64)
        weigh = {"cosine": normalize, "bm25": bm25_weight}[self.settings.similarity]
        # The library finds neighbours of columns; unit rows make products cosines.
        unit = normalize(weigh(liked).tocsr()).tocsr()
        model = ItemItemRecommender(K=self.settings.neighbours + 1)
        model.fit(unit.T.tocsr(), show_progress=False)
        progress(0.9)
        similarity = csr_matrix(model.similarity)
        similarity = similarity - diags(similarity.diagonal())
        # Rounding may leave traces of the diagonal.
        similarity.data = np.clip(similarity.data, 0.0, None) ** self.settings.power
        similarity.eliminate_zeros()
        return {
            **csr_arrays("neighbours", similarity.astype(np.float32)),
            **csr_arrays("liked", liked.astype(np.float32)),
        }

    def _score(self, arrays: Arrays, rows: Ids) -> NDArray[np.float32]:
        neighbours = csr_from("neighbours", arrays)[rows]
        scores: NDArray[np.float32] = (neighbours @ csr_from("liked", arrays)).toarray()
        scores[scores <= 0] = -np.inf
        return scores

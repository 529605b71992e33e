"""Matrix factorization of implicit feedback by alternating least squares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import threadpoolctl
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import identity

from pipelines.candidates.interactions import Ids, Interactions
from pipelines.candidates.protocol import (
    SIMILAR_POSTS,
    Audience,
    Progress,
    fitted,
    load_state,
    save_state,
)
from pipelines.candidates.topk import top_k
from pipelines.errors import GeneratorError
from serving.openmp import ensure_openmp


@dataclass(frozen=True)
class ALSSettings:
    """Settings of `ALS`.

    Attributes
    ----------
    factors
        Length of each vector; at least 1.
    regularization
        L2 penalty on the vectors, not scaled by counts; at least 0.
    alpha
        Confidence of a positive of weight 1, where an unobserved pair has confidence 1; above 0.
    iterations
        Sweeps over users and posts; at least 1.
    seed
        Of the initial vectors.
    """

    factors: int = 16
    regularization: float = 10.0
    alpha: float = 1.0
    iterations: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.factors < 1 or self.iterations < 1 or self.regularization < 0 or self.alpha <= 0:
            raise GeneratorError(
                f"als: found {self}, expected factors and iterations of at least 1, "
                "regularization of at least 0 and alpha above 0"
            )


class ALS:
    """Scores are dot products of user and post vectors.

    The method is Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback
    Datasets" (2008), as implemented by the implicit library.
    """

    name: ClassVar[str] = "als"
    serves_cold_users: ClassVar[bool] = False

    def __init__(self, settings: ALSSettings | None = None) -> None:
        self.settings = settings or ALSSettings()
        self._audience: Audience | None = None
        self._user_factors: NDArray[np.float32] | None = None
        self._post_factors: NDArray[np.float32] | None = None

    @property
    def post_factors(self) -> NDArray[np.float32]:
        """Post vectors, float32 (n_posts, factors), in the order of the fitted ``post_ids``."""
        return fitted(self._post_factors, self.name)

    @property
    def post_ids(self) -> Ids:
        """The posts of `post_factors`, int64, ascending."""
        return fitted(self._audience, self.name).post_ids

    @property
    def user_factors(self) -> NDArray[np.float32]:
        """User vectors, float32 (n_users, factors), in the order of the fitted ``user_ids``."""
        return fitted(self._user_factors, self.name)

    def post_vectors(self) -> tuple[Ids, NDArray[np.float32]]:
        """Return `post_ids` and `post_factors`."""
        return self.post_ids, self.post_factors

    def user_vectors(self, user_ids: ArrayLike) -> tuple[Ids, NDArray[np.float32]]:
        """Return the users with a positive among those asked for, and their factors."""
        users, rows = fitted(self._audience, self.name).asked_warm(user_ids, 1)
        return users, self.user_factors[rows]

    def fit(self, interactions: Interactions, *, progress: Progress | None = None) -> Self:
        """Factorize the summed weights; the answer does not depend on the number of threads."""
        ensure_openmp()
        from implicit.cpu.als import AlternatingLeastSquares

        settings = self.settings

        def report(iteration: int, _seconds: float, _loss: float | None) -> None:
            if progress:
                progress((iteration + 1) / settings.iterations)

        # Each vector is solved by one thread, so only BLAS could make threads matter.
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            model = AlternatingLeastSquares(
                factors=settings.factors,
                regularization=settings.regularization,
                alpha=settings.alpha,
                iterations=settings.iterations,
                random_state=settings.seed,
            )
            model.fit(interactions.matrix, show_progress=False, callback=report)
        self._user_factors = np.ascontiguousarray(model.user_factors, dtype=np.float32)
        self._post_factors = np.ascontiguousarray(model.item_factors, dtype=np.float32)
        self._audience = Audience.of(interactions)
        return self

    def recommend(self, user_ids: ArrayLike, k: int, *, exclude_seen: bool = True) -> pa.Table:
        """Return the posts with the largest dot products; users without a positive get none."""
        audience = fitted(self._audience, self.name)
        user_factors = fitted(self._user_factors, self.name)
        users, rows = audience.asked_warm(user_ids, k)
        vectors = user_factors[rows]
        posts = self.post_factors.T
        top = top_k(
            lambda block: vectors[block] @ posts,
            (len(users), len(audience.post_ids)),
            k,
            masked=audience.seen_by(rows) if exclude_seen else None,
        )
        return audience.candidates(users, top, self.name)

    def similar(self, k: int) -> pa.Table:
        """Return up to `k` posts of the nearest direction for every fitted post, by cosine.

        Returns
        -------
        as `SIMILAR_POSTS`; a post whose vector is zero has no row.
        """
        audience = fitted(self._audience, self.name)
        length = np.linalg.norm(self.post_factors, axis=1, keepdims=True)
        unit = self.post_factors / np.maximum(length, np.finfo(np.float32).tiny)
        nowhere = length[:, 0] == 0

        def cosines(block: slice) -> NDArray[np.float32]:
            scores: NDArray[np.float32] = unit[block] @ unit.T
            scores[:, nowhere] = -np.inf
            scores[nowhere[block]] = -np.inf
            return scores

        posts = len(audience.post_ids)
        itself = identity(posts, dtype=bool, format="csr")
        top = top_k(cosines, (posts, posts), k, masked=itself)
        return pa.table(
            {
                "post_id": audience.post_ids[top.rows],
                "similar_post_id": audience.post_ids[top.columns],
                "score": top.scores,
                "rank": top.ranks,
            },
            schema=SIMILAR_POSTS,
        )

    def save(self, folder: Path) -> None:
        """Write ``generator.json`` and ``state.npz`` into `folder`."""
        arrays = {
            **fitted(self._audience, self.name).arrays(),
            "user_factors": fitted(self._user_factors, self.name),
            "post_factors": self.post_factors,
        }
        save_state(folder, self.name, self.settings, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        settings, arrays = load_state(folder, cls.name, ALSSettings)
        generator = cls(settings)
        generator._audience = Audience.from_arrays(arrays)
        generator._user_factors = arrays["user_factors"]
        generator._post_factors = arrays["post_factors"]
        return generator

"""How likely a user likes a post that he is shown: a bilinear logistic model of impressions.

For user u with attributes x, post p with content z, of topics t (part of z), at hour h::

    logit = b_p + x' W z + v_u' t + H_h' t

where t begins with a constant, so that v_u and H_h hold a term for all posts too. All parameters
but the constant have a Gaussian prior around 0 and are fitted at once to their most probable
values (L-BFGS). So a post with few impressions stays near what its content says, and a user with
few near what his attributes say: partial pooling as in Agarwal and Chen, "Regression-based Latent
Factor Models", 2009, with v_u and t in the place of the factors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from pipelines.errors import RankerTrainingError

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
_CHUNK = 200_000
_HOURS = 24


@dataclass(frozen=True)
class AffinitySettings:
    """Standard deviations of the priors, in logits, and when to stop.

    Attributes
    ----------
    post, crossed, own, hourly
        Of b, of W (for columns of unit variance), of v, of H.
    iterations
        At most so many steps.
    """

    post: float = 0.3
    crossed: float = 0.05
    own: float = 0.3
    hourly: float = 0.1
    iterations: int = 60


@dataclass(frozen=True)
class Views:
    """Impressions, one a row of each array.

    Attributes
    ----------
    users, posts : int64[n]
        Rows of the attributes and of the contents.
    hours : int64[n]
        Hour of day, 0 to 23.
    liked : float32[n]
        1 where it was liked.
    """

    users: Rows
    posts: Rows
    hours: Rows
    liked: Floats


@dataclass(frozen=True)
class Affinity:
    """The fitted model.

    Attributes
    ----------
    contents : float32[posts, d]
        z; its first columns are t.
    wishes : float32[users, d]
        x' W, and v in the columns of t.
    posts : float32[posts]
        b, and what is common to everything.
    hours : float32[24, topics]
        H.
    """

    contents: Floats
    wishes: Floats
    posts: Floats
    hours: Floats

    @classmethod
    def fit(
        cls,
        views: Views,
        attributes: Floats,
        contents: Floats,
        topics: int,
        settings: AffinitySettings | None = None,
    ) -> "Affinity":
        """Fit to impressions.

        Parameters
        ----------
        attributes
            x: float32 (users, a); one column should be constant.
        contents
            z: float32 (posts, d); the first ``topics`` columns are t, the first of them constant.

        Raises
        ------
        RankerTrainingError
            If every impression, or none, was liked.
        """
        rate = float(views.liked.mean()) if len(views.liked) else 0.0
        if not 0 < rate < 1:
            raise RankerTrainingError(
                f"impressions: {len(views.liked):,} rows, {rate:.0%} of them liked; expected some "
                "that were liked and some that were not: is `positive` of the description right?"
            )
        problem = _Problem(views, attributes, contents, topics, settings or AffinitySettings())
        found = minimize(
            problem.loss_and_gradient,
            np.zeros(problem.size),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": problem.settings.iterations, "maxcor": 8},
        )
        parts = problem.split(found.x)
        return cls(contents, problem.wishes(parts), parts[1] + problem.constant, parts[3])

    def of_pairs(self, users: Rows, posts: Rows, hours: Rows) -> Floats:
        """Return the logit of n impressions: float32 (n,)."""
        return _logits(self, users, posts, hours)

    def of_all_posts(self, users: Rows, hours: Rows) -> Floats:
        """Return the logit of every post at n moments: float32 (n, posts)."""
        vectors = self.wishes[users]
        vectors[:, : self.hours.shape[1]] += self.hours[hours]
        logits: Floats = vectors @ self.contents.T + self.posts
        return logits


def _logits(model: Affinity, users: Rows, posts: Rows, hours: Rows) -> Floats:
    logits = np.empty(len(users), dtype=np.float32)
    topics = model.hours.shape[1]
    for start in range(0, len(users), _CHUNK):
        part = slice(start, start + _CHUNK)
        vectors = model.wishes[users[part]]
        vectors[:, :topics] += model.hours[hours[part]]
        logits[part] = np.einsum("ij,ij->i", vectors, model.contents[posts[part]])
    return logits + model.posts[posts]


Parts = tuple[Floats, Floats, Floats, Floats]


class _Problem:
    """The penalised log likelihood, its gradient, and how parameters lie in one vector."""

    def __init__(
        self,
        views: Views,
        attributes: Floats,
        contents: Floats,
        topics: int,
        settings: AffinitySettings,
    ) -> None:
        self.views, self.settings = views, settings
        self._x, self._z, self._topics = attributes, contents, topics
        users, posts, columns = len(attributes), len(contents), contents.shape[1]
        self._shapes = ((attributes.shape[1], columns), (posts,), (users, topics), (_HOURS, topics))
        self._ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        self.size = int(self._ends[-1])
        rate = float(views.liked.mean())
        self.constant = np.float32(np.log(rate / (1 - rate)))
        deviations = (settings.crossed, settings.post, settings.own, settings.hourly)
        # The search goes on in units of the priors' deviations: in units of logits, parameters that
        # many impressions bear on are far steeper than others, and it takes many times the steps.
        self._scales = np.repeat(deviations, np.diff(self._ends, prepend=0))

    def split(self, values: NDArray[np.float64]) -> Parts:
        pieces = np.split((values * self._scales).astype(np.float32), self._ends[:-1])
        w, b, v, h = (p.reshape(s) for p, s in zip(pieces, self._shapes, strict=True))
        return w, b, v, h

    def wishes(self, parts: Parts) -> Floats:
        wishes: Floats = self._x @ parts[0]
        wishes[:, : self._topics] += parts[2]
        return wishes

    def loss_and_gradient(self, values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parts = self.split(values)
        model = Affinity(self._z, self.wishes(parts), parts[1] + self.constant, parts[3])
        views = self.views
        logits = model.of_pairs(views.users, views.posts, views.hours)
        loss = float(np.sum(np.logaddexp(0, logits) - views.liked * logits, dtype=np.float64))
        residuals = expit(logits) - views.liked
        by_user = self._summed(residuals, views.users, len(self._x))
        of_wishes = by_user @ self._z
        by_hour = self._summed(residuals, views.hours, _HOURS)
        topics = self._z[:, : self._topics]
        by_post = np.bincount(views.posts, residuals, len(self._z))
        gradients = [self._x.T @ of_wishes, by_post, of_wishes[:, : self._topics], by_hour @ topics]
        gradient = np.concatenate([g.ravel() for g in gradients]) * self._scales + values
        return loss + float(values @ values) / 2, gradient

    def _summed(self, residuals: Floats, rows: Rows, count: int) -> csr_matrix:
        """Return residuals as a sparse matrix (count, posts), those of equal places added up."""
        shape = (count, len(self._z))
        return csr_matrix((residuals, (rows, self.views.posts)), shape=shape)

"""How likely a user likes a post that he is shown: a bilinear logistic model of impressions.

For user u with attributes x, post p with content z, of topics t (part of z), at hour h::

    logit = g_k(p) + b_p + x' W z + v_u' t + H_h' t

where k(p) is the group of posts that p belongs to and t begins with a constant, so that v_u and H_h
hold a term for all posts too. All parameters but the constant have a Gaussian prior around 0 and
are fitted at once to their most probable values (L-BFGS). So a post with few impressions stays near
what its group and its content say, and a user with few near what his attributes say: partial
pooling as in Agarwal and Chen, "Regression-based Latent Factor Models", 2009, with v_u and t in the
place of the factors.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from joblib import cpu_count
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
    group, post, crossed, own, hourly
        Of g, of b, of W (for columns of unit variance), of v, of H.
    iterations
        At most so many steps; half as many from another model on.
    """

    group: float = 0.3
    post: float = 0.15
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
        g + b, and what is common to everything.
    hours : float32[24, topics]
        H.
    found : float64[parameters]
        Where the search ended, for another one to begin with.
    """

    contents: Floats
    wishes: Floats
    posts: Floats
    hours: Floats
    found: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        views: Views,
        attributes: Floats,
        contents: Floats,
        topics: int,
        groups: Rows | None = None,
        settings: AffinitySettings | None = None,
        start: "Affinity | None" = None,
    ) -> "Affinity":
        """Fit to impressions.

        Parameters
        ----------
        attributes
            x: float32 (users, a); one column should be constant.
        contents
            z: float32 (posts, d); the first ``topics`` columns are t, the first of them constant.
        groups
            k: int64 (posts,), from 0; one group by default.
        start
            The model of other impressions of the same users, posts and groups, to begin with.

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
        if groups is None:
            groups = np.zeros(len(contents), dtype=np.int64)
        problem = _Problem(
            views, attributes, contents, topics, groups, settings or AffinitySettings()
        )
        steps = problem.settings.iterations
        found = minimize(
            problem.loss_and_gradient,
            np.zeros(problem.size) if start is None else start.found,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps if start is None else steps // 2, "maxcor": 8},
        )
        return problem.model(found.x)

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

    def fill(start: int) -> None:
        part = slice(start, start + _CHUNK)
        vectors = model.wishes[users[part]]
        vectors[:, :topics] += model.hours[hours[part]]
        logits[part] = np.einsum("ij,ij->i", vectors, model.contents[posts[part]])

    with ThreadPoolExecutor(cpu_count()) as threads:
        list(threads.map(fill, range(0, len(users), _CHUNK)))
    return logits + model.posts[posts]


Parts = tuple[Floats, Floats, Floats, Floats, Floats]


class _Problem:
    """The penalised log likelihood, its gradient, and how parameters lie in one vector."""

    def __init__(
        self,
        views: Views,
        attributes: Floats,
        contents: Floats,
        topics: int,
        groups: Rows,
        settings: AffinitySettings,
    ) -> None:
        self.settings = settings
        # By user, so that the sums over each user's impressions need no sorting at every step.
        order = np.argsort(views.users, kind="stable")
        self.views = Views(*(getattr(views, f.name)[order] for f in fields(Views)))
        self._ends_of_users = np.searchsorted(self.views.users, np.arange(len(attributes) + 1))
        self._cells = self.views.hours * len(contents) + self.views.posts
        self._x, self._z, self._topics, self._groups = attributes, contents, topics, groups
        users, posts, columns = len(attributes), len(contents), contents.shape[1]
        self._shapes = (
            (attributes.shape[1], columns),
            (posts,),
            (users, topics),
            (_HOURS, topics),
            (int(groups.max()) + 1,),
        )
        self._ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        self.size = int(self._ends[-1])
        rate = float(views.liked.mean())
        self.constant = np.float32(np.log(rate / (1 - rate)))
        deviations = (
            settings.crossed,
            settings.post,
            settings.own,
            settings.hourly,
            settings.group,
        )
        # The search goes on in units of the priors' deviations: in units of logits, parameters that
        # many impressions bear on are far steeper than others, and it takes many times the steps.
        self._scales = np.repeat(deviations, np.diff(self._ends, prepend=0))

    def split(self, values: NDArray[np.float64]) -> Parts:
        pieces = np.split((values * self._scales).astype(np.float32), self._ends[:-1])
        w, b, v, h, g = (p.reshape(s) for p, s in zip(pieces, self._shapes, strict=True))
        return w, b, v, h, g

    def model(self, values: NDArray[np.float64]) -> Affinity:
        w, b, v, h, g = self.split(values)
        wishes: Floats = self._x @ w
        wishes[:, : self._topics] += v
        return Affinity(self._z, wishes, b + g[self._groups] + self.constant, h, values)

    def loss_and_gradient(self, values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        views, model = self.views, self.model(values)
        logits = model.of_pairs(views.users, views.posts, views.hours)
        loss = float(np.sum(np.logaddexp(0, logits) - views.liked * logits, dtype=np.float64))
        residuals = expit(logits) - views.liked
        users, posts = len(self._x), len(self._z)
        by_user = csr_matrix((residuals, views.posts, self._ends_of_users), shape=(users, posts))
        of_wishes = by_user @ self._z
        by_hour = np.bincount(self._cells, residuals, _HOURS * posts).reshape(_HOURS, posts)
        by_post = by_hour.sum(axis=0)
        gradients = [
            self._x.T @ of_wishes,
            by_post,
            of_wishes[:, : self._topics],
            by_hour @ self._z[:, : self._topics],
            np.bincount(self._groups, by_post, self._shapes[-1][0]),
        ]
        gradient = np.concatenate([g.ravel() for g in gradients]) * self._scales + values
        return loss + float(values @ values) / 2, gradient

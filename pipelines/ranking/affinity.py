"""How likely a user likes a post that he is shown: a bilinear logistic model of impressions.

For user u with attributes x, post p with content z, of topics t (part of z), at hour h::

    logit = g_k(p) + b_p + x' W z + v_u' t + H_h' t

where k(p) is the group of posts that p belongs to and t begins with a constant, so that v_u and H_h
hold a term for all posts too. All parameters but the constant have a Gaussian prior around 0 and
are fitted at once to their most probable values (L-BFGS). So a post with few impressions stays near
what its group and its content say, and a user with few near what his attributes say: partial
pooling as in Agarwal and Chen, "Regression-based Latent Factor Models", 2009, with v_u and t in the
place of the factors.

How wide the priors are is learnt from the same impressions, by evidence (MacKay, "Bayesian
Interpolation", 1992), in turns with the search: g, b, the constant and the other columns of v and
of H have a width each, and W one for each attribute crossed with the constant, the topics and the
rest of z. So what an attribute does not tell about taste is forgotten, and what it tells is not
held down. The posterior's variances, which that takes, are those of its diagonal.
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
# Turns of so many steps, after each of which the widths are learnt; then twice as many steps. From
# another model on there is one turn.
_TURNS, _STEPS = 4, 15
_WIDTH = 0.1  # in logits, before anything is known; as if so many parameters had it:
_WIDTH_WEIGHT = 1.0


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
    groups : int64[posts]
        k.
    found, widths : float64[parameters]
        Where the search ended, in logits, and the priors' deviations, for another to begin with;
        g is last.
    """

    contents: Floats
    wishes: Floats
    posts: Floats
    hours: Floats
    groups: Rows
    found: NDArray[np.float64]
    widths: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        views: Views,
        attributes: Floats,
        contents: Floats,
        topics: int,
        groups: Rows | None = None,
        origins: Rows | None = None,
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
        origins
            Which attribute each column of x is made of: int64 (a,), from 0; by default each is one.
        start
            The model of other impressions of the same users and posts, to begin with; its groups
            may be others.

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
        if origins is None:
            origins = np.arange(attributes.shape[1])
        problem = _Problem(views, attributes, contents, topics, groups, origins)
        found, widths = np.zeros(problem.size), np.full(problem.size, _WIDTH)
        if start is not None:
            found, widths = problem.parameters_of(start)
        for _ in range(_TURNS if start is None else 1):
            found = problem.search(found, widths, _STEPS)
            widths = problem.learnt_widths(found, widths)
        found = problem.search(found, widths, 2 * _STEPS)
        return problem.model(found, widths)

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


class _Problem:
    """The penalised log likelihood, its gradient, and how parameters lie in one vector."""

    def __init__(
        self,
        views: Views,
        attributes: Floats,
        contents: Floats,
        topics: int,
        groups: Rows,
        origins: Rows,
    ) -> None:
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
        # The constant, topics, the rest; and whose width each parameter has.
        kinds = np.repeat([0, 1, 2], [1, topics - 1, columns - topics])
        parts = (
            origins[:, None] * 3 + kinds,
            np.zeros(posts),
            np.tile(kinds[:topics], (users, 1)),
            np.tile(kinds[:topics], (_HOURS, 1)),
            np.zeros(self._shapes[-1]),
        )
        offsets = np.cumsum([0, *(int(part.max()) + 1 for part in parts[:-1])])
        whose = [(part + offset).ravel() for part, offset in zip(parts, offsets, strict=True)]
        self._whose = np.concatenate(whose).astype(np.int32)

    def parameters_of(self, start: Affinity) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return another model's parameters and widths; a group gets the mean of its posts'."""
        kept = self._ends[-2]
        levels = start.found[kept:][start.groups]
        sizes = np.maximum(np.bincount(self._groups), 1)
        g = np.bincount(self._groups, levels) / sizes
        widths = np.full(len(g), start.widths[-1])
        return (
            np.concatenate([start.found[:kept], g]),
            np.concatenate([start.widths[:kept], widths]),
        )

    def search(
        self, found: NDArray[np.float64], widths: NDArray[np.float64], steps: int
    ) -> NDArray[np.float64]:
        """Return better parameters after at most so many steps."""
        # In units of the widths: in units of logits, parameters that many impressions bear on are
        # far steeper than others, and it takes many times the steps.
        result = minimize(
            self.loss_and_gradient,
            found / widths,
            args=(widths,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps, "maxcor": 8},
        )
        return np.asarray(result.x * widths)

    def learnt_widths(
        self, found: NDArray[np.float64], widths: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the widths under which the impressions are most probable, one step nearer."""
        views, model = self.views, self.model(found, widths)
        chances = expit(model.of_pairs(views.users, views.posts, views.hours))
        # How much of each parameter the impressions tell, and not its prior.
        curvatures = self._sums(chances * (1 - chances), self._x**2, self._z**2)
        told = curvatures / (curvatures + widths**-2)
        squares = np.bincount(self._whose, found**2) + _WIDTH_WEIGHT * _WIDTH**2
        variances = squares / (np.bincount(self._whose, told) + _WIDTH_WEIGHT)
        return np.asarray(np.sqrt(variances)[self._whose])

    def model(self, found: NDArray[np.float64], widths: NDArray[np.float64]) -> Affinity:
        pieces = np.split(found.astype(np.float32), self._ends[:-1])
        w, b, v, h, g = (p.reshape(s) for p, s in zip(pieces, self._shapes, strict=True))
        wishes: Floats = self._x @ w
        wishes[:, : self._topics] += v
        levels: Floats = b + g[self._groups] + self.constant
        return Affinity(self._z, wishes, levels, h, self._groups, found, widths)

    def loss_and_gradient(
        self, values: NDArray[np.float64], widths: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        views, model = self.views, self.model(values * widths, widths)
        logits = model.of_pairs(views.users, views.posts, views.hours)
        loss = float(np.sum(np.logaddexp(0, logits) - views.liked * logits, dtype=np.float64))
        gradient = self._sums(expit(logits) - views.liked, self._x, self._z) * widths + values
        return loss + float(values @ values) / 2, gradient

    def _sums(self, of_views: Floats, x: Floats, z: Floats) -> NDArray[np.float64]:
        """Sum a number of each impression, times what it has of each parameter."""
        users, posts = len(x), len(z)
        by_user = csr_matrix((of_views, self.views.posts, self._ends_of_users), (users, posts))
        of_wishes = by_user @ z
        by_hour = np.bincount(self._cells, of_views, _HOURS * posts).reshape(_HOURS, posts)
        by_post = by_hour.sum(axis=0)
        parts = (
            x.T @ of_wishes,
            by_post,
            of_wishes[:, : self._topics],
            by_hour @ z[:, : self._topics],
            np.bincount(self._groups, by_post, self._shapes[-1][0]),
        )
        return np.concatenate([part.ravel() for part in parts], dtype=np.float64)

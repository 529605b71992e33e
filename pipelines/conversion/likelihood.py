"""Binomial likelihood of counts, how much of it is chance, and rates of posts with few views.

All of it works on aggregated counts: k of n views had the activity. The log loss of the n rows, one
a view, is the same number (up to no constant at all), so no row is ever made for a view.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import betaln, xlogy
from scipy.stats import beta

from pipelines.errors import ConversionError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_LEAST = 1e-9
# Draws of each post's count from which the noise floor is taken, by the number of posts.
_DRAWN, _FEWEST_DRAWS = 2_000_000, 20


def log_loss(count: Counts, views: Counts, rate: Floats) -> Floats:
    """Return -log likelihood of each post's views, one by one, in nats; float64[n].

    The sum over posts divided by the sum of views is the log loss per view.
    """
    p = np.clip(rate, _LEAST, 1 - _LEAST)
    return np.asarray(-(count * np.log(p) + (views - count) * np.log1p(-p)), np.float64)


def saturated_log_loss(count: Counts, views: Counts) -> Floats:
    """Return the log loss if every post's rate were predicted as it turned out; float64[n]."""
    share = count / views
    return np.asarray(-(xlogy(count, share) + xlogy(views - count, 1 - share)), np.float64)


def deviance(count: Counts, views: Counts, rate: Floats) -> Floats:
    """Return each post's binomial deviance, 2 x (log loss - saturated log loss); float64[n].

    Its expectation is about 1 where the rate is the true one and the counts are not tiny
    (McCullagh and Nelder 1989, Generalized Linear Models, chapter 4).
    """
    return 2 * (log_loss(count, views, rate) - saturated_log_loss(count, views))


@dataclass(frozen=True)
class RatePrior:
    """Rates of posts scatter around expected ones as Beta(precision m, precision (1 - m)).

    The beta-binomial distribution (Skellam 1948); with the precision from the data, posterior
    means are empirical Bayes (Robbins 1956; Casella 1985).

    Attributes
    ----------
    precision
        How many views the expected rate is worth; the larger, the less posts differ.
    """

    precision: float

    @classmethod
    def fit(cls, count: Counts, views: Counts, expected: Floats) -> "RatePrior":
        """Find the precision of maximum likelihood.

        Parameters
        ----------
        count, views
            int64[n]; views at least 1.
        expected
            float64[n]: the mean that each post's rate is drawn around, from something that has
            not seen the post's own count.

        Raises
        ------
        ConversionError
            If there are no posts.
        """
        if not len(views):
            raise ConversionError("a prior of rates needs at least one post, found none")
        m = np.clip(expected, _LEAST, 1 - _LEAST)

        def loss(log_precision: float) -> float:
            a, b = np.exp(log_precision) * m, np.exp(log_precision) * (1 - m)
            return -float(np.sum(betaln(count + a, views - count + b) - betaln(a, b)))

        found = minimize_scalar(loss, bounds=(-2.0, 20.0), method="bounded")
        return cls(float(np.exp(found.x)))

    @property
    def correlation(self) -> float:
        """How alike two views of one post are, beyond their expected rate: 1 / (precision + 1)."""
        return 1 / (self.precision + 1)

    def effective_views(self, views: Counts) -> Floats:
        """Return how many independent views a post's views are worth (Williams 1982); float64[n].

        views / (1 + (views - 1) correlation): at most 1 / correlation, however often it is shown.
        """
        return np.asarray(views / (1 + (views - 1) * self.correlation), np.float64)

    def mean(self, count: Counts, views: Counts, expected: Floats) -> Floats:
        """Return posterior mean rates, between the observed and the expected ones; float64[n]."""
        return np.asarray(
            (count + self.precision * expected) / (views + self.precision), np.float64
        )

    def interval(
        self, count: Counts, views: Counts, expected: Floats, confidence: float = 0.95
    ) -> tuple[Floats, Floats]:
        """Return the lower and the upper end of each rate's credible interval; float64[n] each."""
        m = np.clip(expected, _LEAST, 1 - _LEAST)
        a = count + self.precision * m
        b = views - count + self.precision * (1 - m)
        tail = (1 - confidence) / 2
        return beta.ppf(tail, a, b), beta.ppf(1 - tail, a, b)


def expected_deviance(views: Counts, rate: Floats, rng: np.random.Generator) -> Floats:
    """Return the mean deviance of each post if its rate were known: binomial noise; float64[n].

    Drawn, not the usual 1, which it is not for posts with few views.
    """
    draws = max(_FEWEST_DRAWS, _DRAWN // max(len(views), 1))
    total = np.zeros(len(views))
    for _ in range(draws):
        total += deviance(rng.binomial(views, rate), views, rate)
    return total / draws

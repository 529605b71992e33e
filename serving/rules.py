"""Rules that decide which candidates may be in an answer; pure functions of arrays."""

import numpy as np
from numpy.typing import NDArray

Posts = NDArray[np.int64]


def admitted(post_ids: Posts, exclude: Posts, only: Posts | None) -> Posts:
    """Return the posts that a request allows.

    Parameters
    ----------
    post_ids
        int64, shape (n,), distinct; their order is kept.
    exclude
        Posts that must not be in the answer, in any order; wins over ``only``.
    only
        Posts that alone may be in the answer; None allows all, an empty array none. It adds
        nothing: a post that no source proposed stays out.

    Returns
    -------
    int64 array of shape (m,), m <= n.
    """
    if len(exclude):
        post_ids = post_ids[~np.isin(post_ids, exclude)]
    return post_ids if only is None else post_ids[np.isin(post_ids, only)]


def by_popularity(post_ids: Posts, popular: Posts) -> Posts:
    """Order posts as the popular list does; what it does not name follows in the given order.

    Parameters
    ----------
    post_ids
        int64, shape (n,), distinct.
    popular
        int64, shape (m,), distinct, most popular first.

    Returns
    -------
    int64 array of shape (n,).
    """
    order = np.argsort(popular, kind="stable")
    at = np.searchsorted(popular, post_ids, sorter=order)
    places = np.append(order, len(popular))[at]
    listed = np.append(popular, -1)[places] == post_ids
    return post_ids[np.argsort(np.where(listed, places, len(popular)), kind="stable")]

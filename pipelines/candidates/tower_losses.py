"""What a two-tower model is trained to make small: three losses over a shared pool of posts.

All take scores (examples, pool), which of them are negatives, and the score of each example's
own post; all return the mean over the examples. An example without a negative counts as zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def triplet(positive: Tensor, scores: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Return the mean of max(0, margin - positive + negative).

    For unit vectors and cosines that is the triplet loss of half the squared distance: Schroff
    et al., "FaceNet" (2015).
    """
    short = functional.relu(margin - positive[:, None] + scores)
    return _mean_over(short, negative)


def bayesian_personalized_ranking(positive: Tensor, scores: Tensor, negative: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(positive - negative): Rendle et al. (2009)."""
    return _mean_over(functional.softplus(scores - positive[:, None]), negative)


def sampled_softmax(
    positive: Tensor,
    scores: Tensor,
    negative: Tensor,
    positive_log_q: Tensor,
    log_q: Tensor,
) -> Tensor:
    """Return the cross-entropy of the own post among itself and the negatives.

    Each score is lowered by the log of the chance that its post is in the pool, so that the sum
    over the pool estimates the sum over all posts (Bengio and Senecal 2008; Yi et al.,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", 2019).

    Parameters
    ----------
    positive, positive_log_q
        (examples,)
    scores, negative
        (examples, pool)
    log_q
        (pool,) or (examples, pool)
    """
    own = positive - positive_log_q
    others = (scores - log_q).masked_fill(~negative, -torch.inf)
    everything = torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1)
    return (everything - own).mean()


def log_inclusion(target_share: Tensor, batch: int, uniform: int, posts: int) -> Tensor:
    """Return the log of each post's chance to be in a pool.

    A pool is the set of `batch` targets drawn by their shares and of `uniform` of all `posts`
    drawn without replacement: 1 - (1 - share)^batch (1 - uniform / posts). A pool of every post
    has the chance 1, and the sampled softmax is the softmax.

    Parameters
    ----------
    target_share
        (posts,), the chance of each post to be the target of an example.
    """
    if uniform >= posts:
        return torch.zeros_like(target_share)
    missed = batch * torch.log1p(-target_share.clamp(max=1 - 1e-7))
    missed = missed + torch.log(torch.tensor(1 - uniform / posts))
    # A post that is never a target and never drawn is in no pool: any finite value does.
    return torch.log(-torch.expm1(missed)).clamp(min=-30.0)


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum(dim=1).clamp(min=1)
    return ((values * chosen).sum(dim=1) / count).mean()

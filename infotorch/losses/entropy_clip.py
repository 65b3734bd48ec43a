r"""The Entropy-Clip rule: which updates PPO's clip lets through, and what they do to the entropy.

A step of the natural gradient changes the entropy of a state by :math:`-\mathrm{Cov}_\pi(\log \pi, A X)` to first
order, with X = 1 where the clip leaves an update its gradient. Likely actions with a positive advantage and unlikely
ones with a negative one lower the entropy; unlikely positive and likely negative ones raise it, and the former are what
a fixed upper bound silences. A diagnosis of any clip; :mod:`infotorch.losses.bapo` is the method drawn from it.

Reference:
    "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive
    Clipping", 2025, arXiv:2510.18927, equations 6 and 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core.categorical import log_softmax
from infotorch.losses.batch import TokenBatch, widen
from infotorch.losses.ppo import check_clip


def retained_by_clip(advantages: Tensor, ratio: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """Boolean: whether PPO's clip leaves the update its gradient, any shape.

    Reference: arXiv:2510.18927, 2025, equation 7.

    >>> retained_by_clip(torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([1.1, 1.3, 1.3, 1.0]))
    tensor([ True, False,  True, False])
    """
    check_clip(clip_low, clip_high)
    return ((advantages > 0) & (ratio < 1 + clip_high)) | ((advantages < 0) & (ratio > 1 - clip_low))


def entropy_clip_terms(
    logits: Tensor, advantages: Tensor, ratio: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    r"""What every action of a state does to the entropy, in nats per unit step of the natural gradient.

    .. math:: -\pi_a (\log \pi_a + H)(A_a X_a - E_\pi[A X])

    with :math:`X` from :func:`retained_by_clip`. The sum over actions is the first-order change of entropy,
    :math:`-\mathrm{Cov}_\pi(\log \pi, A X)`. Likely actions with a positive advantage and unlikely ones with a negative
    one lower the entropy; unlikely positive and likely negative ones raise it, and the former are what a fixed upper
    bound silences.

    Args:
        logits: Shape ``(..., V)``.
        advantages: Of every action, ``(..., V)``.
        ratio: Of every action, ``(..., V)``.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.

    Returns:
        Shape ``(..., V)``.

    Raises:
        ValueError: A negative clip width.

    Reference: arXiv:2510.18927, 2025, equations 6 and 7.

    >>> p = torch.tensor([0.8, 0.2])
    >>> entropy_clip_terms(p.log(), torch.tensor([0.0, 1.0]), torch.ones(2)).sum()  # the unlikely one is favored
    tensor(0.2218)
    """
    log_p = log_softmax(logits)
    p = log_p.exp()
    log_p = torch.where(p > 0, log_p, 0.0)
    kept = widen(advantages) * retained_by_clip(advantages, ratio, clip_low=clip_low, clip_high=clip_high)
    entropy = -(p * log_p).sum(-1, keepdim=True)
    return -p * (log_p + entropy) * (kept - (p * kept).sum(-1, keepdim=True))


def sampled_entropy_clip_terms(batch: TokenBatch, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    r"""The rule on sampled tokens: :math:`-(\log \pi + H) A X`, whose mean over a state's samples is its change.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``, ``entropy``.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.

    Returns:
        Shape ``(B, T)``, nats per unit step, without gradient; 0 outside the mask.

    Raises:
        ValueError: Missing advantages or entropy, a negative clip width.

    Reference: arXiv:2510.18927, 2025.

    >>> batch = TokenBatch(log_probs=torch.tensor([[-0.1, -3.0]]), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    advantages=torch.ones(1), entropy=torch.full((1, 2), 0.5))
    >>> sampled_entropy_clip_terms(batch)  # rewarding the likely token lowers the entropy, the unlikely one raises it
    tensor([[-0.4000,  2.5000]])
    """
    batch.require("sampled_entropy_clip_terms", "advantages", "entropy")
    assert batch.advantages is not None
    assert batch.entropy is not None
    kept = retained_by_clip(batch.advantages, batch.log_ratio.exp(), clip_low=clip_low, clip_high=clip_high)
    return (-(batch.log_probs + batch.entropy) * batch.advantages * kept).detach()

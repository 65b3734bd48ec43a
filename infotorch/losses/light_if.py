r"""Light-IF: Entropy-SFT, fine-tuning that leaves entropy for later, and TEA, an entropy bonus by covariance.

Entropy-SFT trains on the tokens that are wrong and confident: those whose cross-entropy exceeds ``coef`` times their
entropy most. What is fitted already, or uncertain anyway, is left alone. TEA weighs an entropy bonus by a softmax,
within each response, over the covariance of advantage and log-probability: the tokens that are about to collapse.

When to use: Entropy-SFT in place of cross-entropy before reinforcement learning; TEA in place of a plain entropy bonus.
TEA's weights sum to at most ``scale`` per response, so the bonus falls with the length of responses.

Reference:
    "Light-IF: Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking for Complex Instruction
    Following", 2025, arXiv:2508.03178.

Deviations from the authors' code:
    - Their released training never applies TEA (the branch is dead); here it is what their function computes.
    - TEA's weights are constants; ``detach=False`` sends a gradient through them, as the function there does.
    - A row or a batch without tokens gives 0 (there: NaN, or a failed assertion). Ties go to the lowest index.
    - ``scope="global"`` chooses and averages over all data-parallel ranks (there: each micro-batch of each GPU).
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean, masked_share
from infotorch.losses._select import Pool, lowest, summed
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.cov_entropy import token_covariance
from infotorch.losses.ppo import AggregationLike, aggregate_loss, reduce_loss
from infotorch.losses.registry import Part, register


@register("entropy_sft", "policy", requires=("entropy",), example={"ratio": 0.5})
def entropy_sft(
    batch: TokenBatch,
    *,
    ratio: float = 0.8,
    coef: float = 0.8,
    scope: str = "local",
) -> LossOutput:
    r"""Entropy-SFT: cross-entropy of the tokens that are most wrong for their confidence.

    .. math:: L = \frac{1}{k} \sum_{n \in K} -\log p_n, \qquad
              K = \text{the } k = \max(\lfloor \rho N \rfloor, 1) \text{ largest of } -\log p_n - c\,H_n

    Args:
        batch: Reads ``log_probs`` (of the labels) and ``entropy``. With ``num_tokens``, the tokens of the whole
            optimizer step, the divisor is ``floor(ratio * num_tokens)``.
        ratio: Fraction of the N labels to train on. 1: plain cross-entropy.
        coef: Weight ``c`` of the entropy. 0 ranks by cross-entropy alone.
        scope: Rank over this batch, or over all data-parallel ranks (``"global"``).

    Returns:
        Loss and the metrics ``selected_fraction``, ``cross_entropy`` (of all labels) and ``entropy``.

    Raises:
        ValueError: ``entropy`` is missing, a ratio outside ``[0, 1]``, a negative ``coef``, an unknown scope.

    Reference: "Light-IF", 2025, arXiv:2508.03178.

    >>> batch = TokenBatch(log_probs=torch.tensor([[-0.1, -2.0, -2.0]]), mask=torch.ones(1, 3, dtype=torch.bool),
    ...                    entropy=torch.tensor([[0.1, 0.5, 2.5]]))
    >>> entropy_sft(batch, ratio=0.34).per_token  # of two equally wrong tokens, the confident one
    tensor([[0., 2., 0.]])
    """
    batch.require("entropy_sft", "entropy")
    check_range("ratio", ratio, 0.0, 1.0)
    check_range("coef", coef, 0.0)
    assert batch.entropy is not None
    pool = Pool(batch.mask, scope)
    surplus = -batch.log_probs.detach() - coef * batch.entropy.detach()
    count = _share(pool.mask.sum(), ratio)
    chosen = pool.own(lowest(-pool.flat(surplus), pool.mask, count))
    metrics = {
        "selected_fraction": masked_share(chosen, batch.mask),
        "cross_entropy": masked_mean(-batch.log_probs.detach(), batch.mask),
        "entropy": masked_mean(batch.entropy.detach(), batch.mask),
    }
    divisor = count if batch.num_tokens is None else _share(torch.as_tensor(batch.num_tokens), ratio)
    return reduce_loss(batch, -batch.log_probs, "token-mean", metrics, mask=chosen, num_tokens=divisor)


def _share(count: Tensor, ratio: float) -> Tensor:
    """``max(int(ratio * count), 1)``, with the rounding of the authors' product of doubles."""
    return (count.double() * ratio).floor().clamp(min=1)


@register("tea", "regularizer", requires=("advantages", "entropy"), surrogate=True, neutral={"coef": 0.0})
def tea(
    batch: TokenBatch,
    *,
    coef: float = 1.0,
    scale: float = 10.0,
    cap: float = 5.0,
    softmax_over: str = "sequence",
    normalize: str = "official",
    detach: bool = True,
    scope: str = "local",
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""TEA: an entropy bonus on the tokens where advantage and log-probability go together.

    .. math:: L = -\beta\, \mathrm{mean}_{it}\, w_{it} H_{it}, \qquad
              w_{it} = \min(s\,\mathrm{softmax}_t(C_{it}),\, u), \qquad
              C_{it} = (A_{it} - \bar A)(\log \pi_{it} - \overline{\log \pi})

    Equal advantages make the weights uniform: the bonus does not vanish where there is nothing to learn.

    Args:
        batch: Reads ``log_probs``, ``advantages``, ``entropy`` (which must carry a gradient).
        coef: Weight of the whole term.
        scale: Sum of the weights of a response before the cap.
        cap: Largest weight.
        softmax_over: Within each response (``"sequence"``), or over all tokens (``"batch"``).
        normalize: ``"official"`` averages over tokens; ``"weighted_mean"`` divides by the sum of the weights, so that
            the bonus does not depend on length.
        detach: Whether the weights are constants.
        scope: Means, and a softmax over the batch, over this batch or over all data-parallel ranks.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics ``tea_weight`` (mean) and ``tea_entropy`` (weighted).

    Raises:
        ValueError: A missing field, an option out of range, an unknown choice.

    Reference: "Light-IF", 2025, arXiv:2508.03178.

    >>> batch = TokenBatch(log_probs=torch.tensor([[-1.0, -1.0]]), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    advantages=torch.zeros(1), entropy=torch.tensor([[1.0, 3.0]]))
    >>> tea(batch, scale=2.0).loss  # uniform weights of 1
    tensor(-2.)
    """
    batch.require("tea", "advantages", "entropy")
    check_range("coef", coef, 0.0)
    check_range("scale", scale, 0.0, low_open=True)
    check_range("cap", cap, 0.0, low_open=True)
    check_choice("softmax_over", softmax_over, ("sequence", "batch"))
    check_choice("normalize", normalize, ("official", "weighted_mean"))
    assert batch.entropy is not None
    weights = _tea_weights(token_covariance(batch, scope=scope, detach=detach), batch.mask, softmax_over, scope)
    weights = (scale * weights).clamp(max=cap)
    per_token = weights * batch.entropy
    total = torch.stack((weights.sum(), batch.mask.sum().to(weights.dtype)))
    if normalize == "weighted_mean":
        mass, tokens = summed(total, scope)
        per_token = per_token * (tokens / mass.clamp(min=torch.finfo(mass.dtype).tiny))
    metrics = {
        "tea_weight": masked_mean(weights, batch.mask),
        "tea_entropy": masked_mean(per_token, batch.mask),
    }
    return aggregate_loss(batch, -coef * per_token, aggregation, metrics)


def _tea_weights(covariance: Tensor, mask: Tensor, softmax_over: str, scope: str) -> Tensor:
    """Softmax under the mask; rows without tokens get zeros."""
    lowest_value = torch.finfo(covariance.dtype).min
    masked = torch.where(mask, covariance, lowest_value)
    over = 1 if softmax_over == "sequence" else (0, 1)
    shared = softmax_over == "batch" and scope == "global"
    top = masked.detach().amax(over, keepdim=True)
    if shared:
        top = distributed.all_reduce_max(top)
    mass = torch.where(mask, (masked - top).exp(), 0.0)
    total = mass.sum(over, keepdim=True)
    if shared:
        total = distributed.all_reduce_sum_with_grad(total)
    # A total is 1 at least. Clamping would stop the gradient of one that is exactly 1.
    return mass / torch.where(total > 0, total, 1.0)


class EntropySFT(Part, name="entropy_sft"):
    """Module of :func:`entropy_sft`."""


class TEA(Part, name="tea"):
    """Module of :func:`tea`."""

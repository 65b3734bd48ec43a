"""80/20: policy gradient on the high-entropy minority of tokens.

Most tokens of a chain of thought are near certain; a fifth are forks where the answer is decided. The loss keeps
the fork tokens and drops the rest. When to use: long reasoning traces on large models; also as an ablation (train
on the other 80 % and watch it fail). With :func:`infotorch.core.token_stats` the dropped tokens cost no backward.

Reference:
    S. Wang et al., "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning
    for LLM Reasoning", 2025, arXiv:2506.01939.

Deviations from the authors' code:
    - The loss is divided by all valid tokens, as in the paper (``normalize="kept"``: by the kept ones, as the
      released code, which makes it ``1 / ratio`` times larger under token-mean).
    - Ties go to the lowest index, so that exactly the asked number is kept; ``method="quantile"`` keeps all ties
      as TRL does.
    - An empty mask gives 0, and rows that keep no token are left out of sequence means (there: NaN).
    - ``scope="global"`` takes the threshold over all data-parallel ranks (there: each micro-batch).
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core._choice import zero_outside
from infotorch.core.reduce import masked_mean, masked_quantile
from infotorch.losses._select import Pool, lowest
from infotorch.losses.batch import LossOutput, TokenBatch, widen
from infotorch.losses.ppo import (
    AggregationLike,
    check_clip,
    clipped_surrogate,
    importance_ratio,
    reduce_loss,
    token_mean,
)
from infotorch.losses.registry import Part, register


def forking_mask(
    entropy: Tensor,
    mask: Tensor,
    *,
    ratio: float = 0.2,
    select: str = "top",
    method: str = "count",
    threshold: float | None = None,
    scope: str = "local",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Boolean mask of the tokens to keep.

    Args:
        entropy: Token entropies in nats, shape ``(B, T)``.
        mask: Valid tokens, boolean, shape ``(B, T)``.
        ratio: Fraction kept, over the whole batch (not per row).
        select: ``"top"``; ``"bottom"`` keeps exactly the tokens that ``"top"`` drops; ``"random"`` as many as
            ``"top"``.
        method: ``"count"`` keeps ``max(1, ceil(ratio * N))`` tokens; ``"quantile"`` keeps entropies at or above
            the ``1 - ratio`` quantile (linear interpolation), ties included.
        threshold: Keep entropies at or above this many nats instead.
        scope: Over this batch, or over all data-parallel ranks (``"global"``).
        generator: For ``select="random"``; rank 0's if ``scope="global"``.

    Returns:
        Boolean, shape ``(B, T)``.

    Raises:
        ValueError: ``ratio`` outside ``[0, 1]``, unknown ``select``, ``method`` or ``scope``.
        TypeError: A mask that is not boolean.

    >>> entropy = torch.tensor([[0.1, 2.0, 0.3, 0.2, 1.0]])
    >>> forking_mask(entropy, torch.ones(1, 5, dtype=torch.bool), ratio=0.4)
    tensor([[False,  True, False, False,  True]])
    """
    check_range("ratio", ratio, 0.0, 1.0)
    check_choice("select", select, ("top", "bottom", "random"))
    check_choice("method", method, ("count", "quantile"))
    check_bool_mask("mask", mask, entropy.shape)
    if threshold is not None:
        check_range("threshold", threshold)
    pool = Pool(mask, scope)
    h, valid = pool.flat(widen(entropy)), pool.mask
    if threshold is not None:
        top = valid & (h >= threshold)
    elif method == "quantile":
        # In float32, as the authors; without a valid token the quantile is NaN, which no entropy reaches.
        top = valid & (h >= masked_quantile(h.float(), valid, 1 - ratio))
    else:
        # The authors' ceiling: a product that exceeds an integer by less than 1e-4 still counts as that integer.
        count = (valid.sum().double() * ratio + 0.9999).floor().clamp(min=1)
        top = lowest(-h, valid, count)
    if select == "bottom":
        top = valid & ~top
    elif select == "random":
        top = lowest(pool.draw(generator), valid, top.sum())
    return pool.own(top)


@register(
    "forking_tokens",
    "policy",
    requires=("advantages", "entropy"),
    neutral={"ratio": 1.0, "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0},
    base="ppo",
)
def forking_tokens(
    batch: TokenBatch,
    *,
    ratio: float = 0.2,
    normalize: str = "all",
    select: str = "top",
    method: str = "count",
    threshold: float | None = None,
    scope: str = "local",
    generator: torch.Generator | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = 10.0,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""The clipped surrogate on the tokens of highest entropy only.

    .. math:: L = \frac{1}{\sum m} \sum_{it} m_{it}\, 1[H_{it} \ge \tau_\rho]\, \ell_{it}

    with DAPO's :math:`\ell` and :math:`\tau_\rho` the batch's top-``ratio`` threshold. Entropies come from the
    current policy and send no gradient.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``, ``entropy``.
        ratio: Fraction of tokens kept.
        normalize: ``"all"`` divides by all valid tokens (paper, TRL), ``"kept"`` by the kept ones (authors' code).
        select: See :func:`forking_mask`, like the next four.
        method: Count or quantile.
        threshold: Fixed threshold in nats.
        scope: Local or global.
        generator: For random selection.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        dual_clip: See :func:`infotorch.losses.ppo`.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics of :func:`infotorch.losses.ppo` (over all valid tokens) plus ``kept_fraction`` and
        ``kept_entropy``.

    Raises:
        ValueError: Missing advantages or entropy, an option out of range.

    Reference: S. Wang et al., 2025, arXiv:2506.01939.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 4), mask=torch.ones(1, 4, dtype=torch.bool),
    ...                    advantages=torch.ones(1), entropy=torch.tensor([[0.0, 2.0, 0.1, 0.0]]))
    >>> forking_tokens(batch, ratio=0.25).per_token
    tensor([[ 0., -1.,  0.,  0.]])
    """
    batch.require("forking_tokens", "advantages", "entropy")
    check_choice("normalize", normalize, ("all", "kept"))
    check_clip(clip_low, clip_high, dual_clip)
    assert batch.entropy is not None
    kept = forking_mask(
        batch.entropy,
        batch.mask,
        ratio=ratio,
        select=select,
        method=method,
        threshold=threshold,
        scope=scope,
        generator=generator,
    )
    about = {"kept_fraction": token_mean(kept, batch), "kept_entropy": masked_mean(batch.entropy.detach(), kept)}
    per_token, metrics = clipped_surrogate(
        importance_ratio(batch, log_ratio_bound),
        batch,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    metrics |= about
    if normalize == "all":
        return reduce_loss(batch, zero_outside(per_token, kept), aggregation, metrics, zeroed=True)
    # The kept tokens of all ranks where the choice was global; else each batch divides by its own.
    count = distributed.all_reduce_sum(kept.sum()) if scope == "global" else None
    return reduce_loss(batch, per_token, aggregation, metrics, mask=kept, num_tokens=count)


class ForkingTokens(Part, name="forking_tokens"):
    """Module of :func:`forking_tokens`."""

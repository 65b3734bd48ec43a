"""CISPO: REINFORCE with a clipped importance weight that carries no gradient.

Reference: MiniMax, "MiniMax-M1", 2025, arXiv:2506.13585.
"""

from __future__ import annotations

import torch

from infotorch.core._choice import indicator
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.ppo import AggregationLike, approx_kl, bounded, check_clip, reduce_loss, token_mean
from infotorch.losses.registry import Part, register


@register("cispo", "policy", requires=("advantages",), surrogate=True)
def cispo(
    batch: TokenBatch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""CISPO: every token keeps its gradient, weighted by a clipped ratio.

    .. math:: \ell = -\mathrm{sg}[\mathrm{clip}(r, 1 - \epsilon_-, 1 + \epsilon_+)]\, A \log \pi

    PPO's clip silences tokens whose ratio left the window; here only their weight is bounded.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        clip_low: Width of the clip below 1; at least 1 leaves the ratio unbounded below, as TRL does.
        clip_high: Width above 1 (TRL's ``epsilon_high`` is the cap itself, ``1 + clip_high``).
        log_ratio_bound: Log-ratios are clamped to this size first; None for none.
        aggregation: How tokens become a scalar.

    Raises:
        ValueError: Missing advantages, a negative clip width.

    Reference: MiniMax, 2025, arXiv:2506.13585.

    >>> batch = TokenBatch(log_probs=torch.tensor([[-1.0]]), old_log_probs=torch.tensor([[-2.0]]),
    ...                    mask=torch.ones(1, 1, dtype=torch.bool), advantages=torch.ones(1))
    >>> cispo(batch).loss  # 1.2 times 1.0
    tensor(1.2000)
    """
    batch.require("cispo", "advantages")
    check_clip(clip_low, clip_high)
    assert batch.advantages is not None
    ratio = bounded(batch.log_ratio.detach(), log_ratio_bound).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = batch.log_probs * (weight * -batch.advantages)
    metrics = {
        "clip_fraction": token_mean(indicator(torch.ne, weight, ratio), batch),
        "approx_kl": approx_kl(batch),
    }
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


class CISPO(Part, name="cispo"):
    """Module of :func:`cispo`."""

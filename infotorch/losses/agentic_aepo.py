r"""Agentic AEPO: a clip that keeps the gradient of rewarded tokens, and advantages that grow with entropy.

PPO's clip silences a rewarded token once its ratio exceeds :math:`1 + \epsilon_+`; those are often the uncertain tokens
where exploration happens. Here the bound keeps its value but carries gradient: the clipped token still pushes with
weight :math:`1 + \epsilon_+`. Advantages are scaled by the token's standardized entropy.

When to use: tool-using agents with tree-like rollouts and several updates per batch (in a single on-policy update no
ratio is clipped, and only the advantages differ). What the method does while sampling is in
:mod:`infotorch.rollout.agentic_branching`. Not to be confused with arbitrary entropy policy optimization, also AEPO
(arXiv:2510.08141).

Reference:
    "Agentic Entropy-Balanced Policy Optimization", 2025, arXiv:2510.14545.

Deviations from the authors' code (known from public forks that carry it):
    - The factor :math:`1 + \alpha z` does not fall below 0, so that no advantage changes its sign (``clamp=False``: it
      may).
    - The entropy is computed whenever this loss runs. There, a configuration with an entropy coefficient of 0 skips the
      scaled advantages without a word.
    - An empty mask gives 0 (there: a division by 0); a single token has z = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core.reduce import masked_mean, zero_outside
from infotorch.losses._select import SCOPES, summed
from infotorch.losses.batch import LossOutput, TokenBatch, widen
from infotorch.losses.ppo import AggregationLike, check_clip, clipped_surrogate, importance_ratio, reduce_loss
from infotorch.losses.registry import Part, register


def entropy_zscore(entropy: Tensor, mask: Tensor, *, scope: str = "local") -> Tensor:
    """Entropies standardized over all valid tokens, ``(H - mean) / std`` with the sample deviation.

    Args:
        entropy: Nats, shape ``(B, T)``.
        mask: Boolean, shape ``(B, T)``: the policy's own tokens, without what tools wrote.
        scope: Over this batch, or over all data-parallel ranks (``"global"``).

    Returns:
        Shape ``(B, T)``, without gradient, 0 outside the mask and where all entropies are equal.

    Raises:
        ValueError: Unknown scope, shapes that differ.
        TypeError: A mask that is not boolean.

    Reference: arXiv:2510.14545, 2025.

    >>> entropy_zscore(torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]]))
    tensor([[-1.,  0.,  1.,  0.]])
    """
    check_choice("scope", scope, SCOPES)
    check_bool_mask("mask", mask, entropy.shape)
    # In float64, so that the sums over ranks give what one process gets.
    h = zero_outside(entropy.detach().double(), mask)
    total, count = summed(torch.stack((h.sum(), mask.sum().double())), scope)
    mean = total / count.clamp(min=1)
    centered = zero_outside(h - mean, mask)
    std = (summed(centered.square().sum(), scope) / (count - 1).clamp(min=1)).sqrt()
    # What rounding leaves of equal entropies is no deviation.
    spread = std > 16 * torch.finfo(h.dtype).eps * mean.abs()
    return torch.where(spread, centered / std.where(spread, 1.0), 0.0).to(widen(entropy).dtype)


def entropy_aware_advantages(advantages: Tensor, z: Tensor, *, alpha: float = 0.2, clamp: bool = True) -> Tensor:
    r"""Advantages scaled by the standardized entropy, :math:`A' = A (1 + \alpha z)`.

    Args:
        advantages: Any shape.
        z: From :func:`entropy_zscore`, of that shape.
        alpha: Strength.
        clamp: Keep the factor at least 0: below :math:`z = -1/\alpha` (five deviations) a sign would flip.

    Raises:
        ValueError: A negative ``alpha``.

    Reference: arXiv:2510.14545, 2025 (there without the clamp).

    >>> entropy_aware_advantages(torch.ones(3), torch.tensor([-6.0, 0.0, 1.0]))
    tensor([0.0000, 1.0000, 1.2000])
    """
    check_range("alpha", alpha, 0.0)
    factor = 1 + alpha * z
    return advantages * (factor.clamp(min=0) if clamp else factor)


@register(
    "agentic_aepo",
    "policy",
    requires=("advantages", "entropy"),
    surrogate=True,
    neutral={"alpha": 0.0, "preserve": "none"},
    base="ppo",
)
def agentic_aepo(
    batch: TokenBatch,
    *,
    alpha: float = 0.2,
    clamp: bool = True,
    preserve: str = "above",
    gate: str = "all",
    scope: str = "local",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""Agentic AEPO: PPO's value with a gradient above the clip, on advantages scaled by entropy.

    .. math:: \ell = \max\Big(-A' r,\; -A'\,\mathrm{clip}\big(r,\; 1 - \epsilon_-,\;
              \frac{1 + \epsilon_+}{\mathrm{sg}(r)}\, r\big)\Big), \qquad A' = A (1 + \alpha z)

    The upper bound is :math:`1 + \epsilon_+` in value. In closed form, for :math:`A' > 0` the gradient with respect to
    :math:`\log \pi` is :math:`-A' \min(r, 1 + \epsilon_+)`; for :math:`A' < 0` it is PPO's.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``, ``entropy``.
        alpha: Strength of the scaled advantages; 0 switches them off.
        clamp: See :func:`entropy_aware_advantages`.
        preserve: Where a clipped token keeps its gradient: ``"above"`` (the method); ``"none"`` (PPO); ``"both"``, also
            below :math:`1 - \epsilon_-` where :math:`A' < 0` (GPPO and CE-GPPO with coefficients of 1, as a control).
        gate: ``"all"`` tokens (authors' code), or those of ``"positive_z"``, more uncertain than the mean (the paper's
            text: high-entropy tokens).
        scope: Mean and deviation of the entropy over this batch, or over all data-parallel ranks.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        dual_clip: See :func:`infotorch.losses.ppo`.
        log_ratio_bound: See :func:`infotorch.losses.ppo`; a preserved gradient is not cut off by it.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics of :func:`infotorch.losses.ppo` plus ``preserved_fraction``, the tokens outside the clip
        that keep a gradient.

    Raises:
        ValueError: Missing advantages or entropy, an option out of range.

    Reference: arXiv:2510.14545, 2025.

    >>> log_probs = torch.tensor([[0.5, 0.0]], requires_grad=True)
    >>> batch = TokenBatch(log_probs=log_probs, old_log_probs=torch.zeros(1, 2), advantages=torch.ones(1),
    ...                    mask=torch.ones(1, 2, dtype=torch.bool), entropy=torch.ones(1, 2))
    >>> out = agentic_aepo(batch, aggregation="token-sum")
    >>> out.loss.backward()
    >>> log_probs.grad  # PPO's would be 0 at the first token
    tensor([[-1.2000, -1.0000]])
    """
    batch.require("agentic_aepo", "advantages", "entropy")
    check_choice("preserve", preserve, ("above", "none", "both"))
    check_choice("gate", gate, ("all", "positive_z"))
    check_clip(clip_low, clip_high, dual_clip)
    assert batch.advantages is not None
    assert batch.entropy is not None
    z = entropy_zscore(batch.entropy, batch.mask, scope=scope)
    advantages = entropy_aware_advantages(batch.advantages, z, alpha=alpha, clamp=clamp)
    ratio = importance_ratio(batch, log_ratio_bound)
    within = ratio.clamp(1 - clip_low, 1 + clip_high)
    open_ = z > 0 if gate == "positive_z" else batch.mask
    above = open_ & (ratio > 1 + clip_high)
    below = open_ & (ratio < 1 - clip_low)
    # The bound in value, its multiple of r / sg(r) in gradient.
    unit = (batch.log_ratio - batch.log_ratio.detach()).exp()
    if preserve != "none":
        within = torch.where(above, (1 + clip_high) * unit, within)
    if preserve == "both":
        within = torch.where(below, (1 - clip_low) * unit, within)
    per_token, metrics = clipped_surrogate(
        ratio,
        batch.replace(advantages=advantages),
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        within=within,
    )
    kept = torch.zeros_like(batch.mask)
    if preserve != "none":
        kept = above & (advantages > 0)
    if preserve == "both":
        kept = kept | (below & (advantages < 0))
    metrics["preserved_fraction"] = masked_mean(kept.to(per_token.dtype), batch.mask)
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


class AgenticAEPO(Part, name="agentic_aepo"):
    """Module of :func:`agentic_aepo`."""


def own_tokens(mask: Tensor, branch_start: Tensor) -> Tensor:
    """The mask without the prefix that a branch shares with its parent, so that every sampled token counts once.

    Branches of one tree repeat their common prefix in every row; with the full mask a prefix weighs as often as it has
    descendants (authors' code). Form the record with this mask and all counts follow.

    Args:
        mask: Boolean, shape ``(B, T)``.
        branch_start: First position that the row sampled itself, integers, ``(B,)``; 0 for rows that are no branch.

    Returns:
        Boolean, shape ``(B, T)``.

    Raises:
        ValueError: Shapes that do not fit.
        TypeError: A mask that is not boolean, positions that are no integers.

    Reference: arXiv:2510.14545, 2025 (there every row counts its whole prefix).

    >>> own_tokens(torch.ones(2, 4, dtype=torch.bool), torch.tensor([0, 3]))
    tensor([[ True,  True,  True,  True],
            [False, False, False,  True]])
    """
    check_bool_mask("mask", mask)
    if branch_start.shape != mask.shape[:1]:
        raise ValueError(f"branch_start: expected shape ({mask.shape[0]},), got {tuple(branch_start.shape)}")
    if branch_start.is_floating_point() or branch_start.dtype == torch.bool:
        raise TypeError(f"branch_start: expected integers, got {branch_start.dtype}")
    return mask & (torch.arange(mask.shape[1], device=mask.device) >= branch_start.unsqueeze(1))

"""The clipped surrogate: PPO, dual clip, DAPO's clip-higher, TRL's two-sided clip; and GSPO's sequence ratio.

References:
    J. Schulman et al., "Proximal Policy Optimization Algorithms", 2017, arXiv:1707.06347.
    D. Ye et al., "Mastering Complex Control in MOBA Games" (dual clip), 2019, arXiv:1912.09729.
    Q. Yu et al., "DAPO", 2025, arXiv:2503.14476.
    C. Zheng et al., "Group Sequence Policy Optimization", 2025, arXiv:2507.18071.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from infotorch.core._checks import check_choice, check_range
from infotorch.core._choice import indicator, larger, ones_inside, smaller, zero_outside
from infotorch.core.reduce import Aggregation
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.registry import Part, register

AggregationLike = str | Mapping[str, Any] | Aggregation


def reduce_loss(
    batch: TokenBatch,
    per_token: Tensor,
    aggregation: AggregationLike = "token-mean",
    metrics: Mapping[str, Tensor] | None = None,
    *,
    mask: Tensor | None = None,
    num_tokens: Tensor | None = None,
    zeroed: bool = False,
) -> LossOutput:
    """Weight by ``rollout_weights``, aggregate with the batch's global counts, and detach the metrics.

    ``mask`` replaces the batch's own where a method divides by the tokens it kept, ``num_tokens`` is then
    their global count. ``zeroed`` says that the values are 0 outside the mask by themselves, as everything is that
    is multiplied with the advantages; that spares a pass over them.
    """
    if batch.rollout_weights is not None:
        per_token = per_token * batch.rollout_weights
    return aggregate_loss(batch, per_token, aggregation, metrics, mask=mask, num_tokens=num_tokens, zeroed=zeroed)


def aggregate_loss(
    batch: TokenBatch,
    per_token: Tensor,
    aggregation: AggregationLike = "token-mean",
    metrics: Mapping[str, Tensor] | None = None,
    *,
    mask: Tensor | None = None,
    num_tokens: Tensor | None = None,
    zeroed: bool = False,
) -> LossOutput:
    """The same without ``rollout_weights``, which concern the policy loss alone."""
    kept = batch.inside if mask is None else ones_inside(mask, per_token.dtype)
    if not zeroed:
        per_token = zero_outside(per_token, kept)
    loss = Aggregation.of(aggregation).of_zeroed(
        per_token,
        kept,
        num_tokens=batch.num_tokens if mask is None else num_tokens,
        num_sequences=batch.num_sequences,
        world_size=batch.world_size,
    )
    return LossOutput(loss, per_token, {k: v.detach() for k, v in (metrics or {}).items()})


def approx_kl(batch: TokenBatch, log_ratio: Tensor | None = None) -> Tensor:
    """Mean of ``old_log_probs - log_probs``, Schulman's first estimate of the divergence; no gradient.

    Each difference counts within +-20, as in verl: one token that has become impossible is not the mean of all.
    ``log_ratio`` is that of the batch, where it has been formed already.
    """
    log_ratio = batch.log_ratio if log_ratio is None else log_ratio
    return -token_mean(hardtanh(log_ratio.detach(), -20, 20), batch)


def token_mean(x: Tensor, batch: TokenBatch) -> Tensor:
    """Mean over the valid tokens of what is 0 at all others already, for metrics; without gradient."""
    return x.detach().sum() / batch.num_valid


def check_clip(clip_low: float, clip_high: float, dual_clip: float | None = None) -> None:
    """Raise for clip widths that no method can mean."""
    check_range("clip_low", clip_low, 0.0)
    check_range("clip_high", clip_high, 0.0)
    if dual_clip is not None:
        check_range("dual_clip", dual_clip, 1.0, low_open=True)


def check_bounds(log_ratio_bound: float | None, ratio_cap: float | None = None) -> None:
    """Raise for bounds that are not positive."""
    for name, value in (("log_ratio_bound", log_ratio_bound), ("ratio_cap", ratio_cap)):
        if value is not None:
            check_range(name, value, 0.0, low_open=True)


def bounded(log_ratio: Tensor, bound: float | None) -> Tensor:
    """Clamp log-ratios to ``+-bound``; beyond it the ratio is constant and sends no gradient."""
    check_bounds(bound)
    # What `clamp` does, with a gradient that costs a CPU a third of the time.
    return log_ratio if bound is None else hardtanh(log_ratio, -bound, bound)


def importance_ratio(batch: TokenBatch, bound: float | None) -> Tensor:
    """``exp(log_probs - old_log_probs)`` of each token, with log-ratios :func:`bounded`; 1 outside the mask."""
    return bounded(batch.log_ratio, bound).exp()


def _between(x: Tensor, low: Any, high: Any) -> Tensor:
    return x.clamp(low, high)


def outside_clip(
    ratio: Tensor, advantages: Tensor, clip_low: float | Tensor, clip_high: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Boolean: updates that the clip silences, those of negative advantage below it and of positive one above it.

    >>> outside_clip(torch.tensor([0.5, 0.5, 1.5]), torch.tensor([-1.0, 1.0, 1.0]), 0.2, 0.2)
    (tensor([ True, False, False]), tensor([False, False,  True]))
    """
    return (ratio < 1 - clip_low) & (advantages < 0), (ratio > 1 + clip_high) & (advantages > 0)


def clipped_surrogate(
    ratio: Tensor,
    batch: TokenBatch,
    *,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    within: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token clipped loss for ratios ``(B, T)``, or ``(B, 1)``, one a row, and metrics.

    The widths may be tensors, one for all tokens or one each (both or none). ``within`` replaces the clipped ratio,
    for a method that gives it another gradient.
    """
    assert batch.advantages is not None
    advantages, kl = batch.advantages, approx_kl(batch)
    plain = ratio_cap is None and within is None
    seen = ratio if ratio_cap is None else ratio.clamp(max=ratio_cap)
    if within is None:
        # Where the clipped ratio decides it is constant, unless a cap is narrower than the clip.
        within = _between(ratio.detach() if plain else ratio, 1 - clip_low, 1 + clip_high)
    gain = smaller(advantages * seen, advantages * within)
    silenced = indicator(torch.lt, gain, advantages * seen)
    metrics = {"clip_fraction": token_mean(silenced, batch), "clip_fraction_lower": gain.new_zeros(())}
    if not plain:  # otherwise these are the same tokens
        silenced = ones_inside(torch.logical_or(*outside_clip(seen, advantages, clip_low, clip_high)), gain.dtype)
    by_row = ratio.shape[1] == 1  # one ratio a row: count rows, empty ones too
    metrics["clip_region"] = silenced.amax(1).mean() if by_row else token_mean(silenced, batch)
    del within, silenced  # as large as the batch, and more are to come
    if dual_clip is not None and dual_clip < inf:
        least = dual_clip * advantages.clamp(max=0)  # 0 for positive advantages, whose gain is never below it
        metrics["clip_fraction_lower"] = token_mean(indicator(torch.lt, gain, least), batch)
        gain = larger(gain, least)
    return -gain, {**metrics, "approx_kl": kl}


@register("ppo", "policy", requires=("advantages",))
def ppo(
    batch: TokenBatch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    ratio_cap: float | None = None,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""PPO's clipped surrogate with dual clip.

    .. math:: \ell = \max(-A r,\; -A\,\mathrm{clip}(r, 1 - \epsilon_-, 1 + \epsilon_+)), \qquad
              \ell \leftarrow \min(\ell, -A c) \text{ where } A < 0

    with :math:`r = \exp(\log \pi - \log \pi_{old})`. DAPO's clip-higher is ``clip_high=0.28``.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        dual_clip: Bound ``c > 1`` on the ratio where the advantage is negative; None for none.
        ratio_cap: TRL's ``delta``: caps the unclipped ratio for both signs of the advantage.
        log_ratio_bound: Log-ratios are clamped to this size and send no gradient beyond (None as TRL).
        aggregation: How tokens become a scalar, see :func:`infotorch.core.aggregate`.

    Returns:
        Loss and the metrics ``clip_fraction``, ``clip_fraction_lower``, ``clip_region``, ``approx_kl``.

    Raises:
        ValueError: Missing advantages, a negative clip width, ``dual_clip <= 1``, a bound that is not positive.

    Reference: J. Schulman et al., 2017, arXiv:1707.06347; D. Ye et al., 2019, arXiv:1912.09729.

    Deviations: an empty mask gives loss 0 (verl: NaN).

    >>> log_probs = torch.tensor([[0.5, 0.0]])
    >>> batch = TokenBatch(log_probs=log_probs, old_log_probs=torch.zeros(1, 2),
    ...                    mask=torch.ones(1, 2, dtype=torch.bool), advantages=torch.ones(1))
    >>> ppo(batch).per_token  # exp(0.5) = 1.65 is clipped to 1.2
    tensor([[-1.2000, -1.0000]])
    """
    batch.require("ppo", "advantages")
    check_clip(clip_low, clip_high, dual_clip)
    check_bounds(log_ratio_bound, ratio_cap)
    per_token, metrics = clipped_surrogate(
        importance_ratio(batch, log_ratio_bound),
        batch,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        ratio_cap=ratio_cap,
    )
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


@register("gspo", "policy", requires=("advantages",), surrogate=True)
def gspo(
    batch: TokenBatch,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    form: str = "token",
    ratio_cap: float | None = None,
    log_ratio_bound: float | None = 10.0,
    aggregation: AggregationLike = "seq-mean-token-mean",
) -> LossOutput:
    r"""GSPO: one importance ratio a sequence, the geometric mean of its tokens' ratios.

    .. math:: s_i = \exp\Big(\frac{1}{n_i} \sum_t m_{it} (\log \pi_{it} - \log \pi^{old}_{it})\Big)

    in place of the token's ratio, then the plain clip (no dual clip). Widths are far smaller than PPO's
    because a geometric mean moves little.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        form: ``"token"`` routes each token's gradient through its own log-probability (verl; token-wise
            advantages are respected), ``"sequence"`` through the mean (TRL). Value and gradient agree where a
            row's advantage is constant.
        ratio_cap: TRL's ``delta``.
        log_ratio_bound: Upper bound on the log-ratio; None for none.
        aggregation: How tokens become a scalar; the paper's is the default.

    Raises:
        ValueError: Missing advantages, a negative clip width, an unknown form.

    Reference: C. Zheng et al., 2025, arXiv:2507.18071.

    >>> batch = TokenBatch(log_probs=torch.tensor([[0.2, 0.0]]), old_log_probs=torch.zeros(1, 2),
    ...                    mask=torch.ones(1, 2, dtype=torch.bool), advantages=-torch.ones(1))
    >>> gspo(batch).loss  # exp(0.1), a negative advantage leaves it unclipped
    tensor(1.1052)
    """
    batch.require("gspo", "advantages")
    check_clip(clip_low, clip_high)
    check_bounds(log_ratio_bound, ratio_cap)
    check_choice("form", form, ("token", "sequence"))
    log_ratio = zero_outside(batch.log_ratio if form == "sequence" else batch.log_ratio.detach(), batch.inside)
    log_ratio = (log_ratio.sum(1) / batch.inside.sum(1).clamp(min=1)).unsqueeze(1)
    if form == "token":
        log_ratio = log_ratio + (batch.log_probs - batch.log_probs.detach())
    if log_ratio_bound is not None:
        log_ratio = hardtanh(log_ratio, -inf, log_ratio_bound)
    per_token, metrics = clipped_surrogate(
        log_ratio.exp(), batch, clip_low=clip_low, clip_high=clip_high, ratio_cap=ratio_cap
    )
    # Masked here, since a row's ratio stands outside the mask too and may be infinite.
    return reduce_loss(batch, per_token, aggregation, metrics)


class PPO(Part, name="ppo"):
    """Module of :func:`ppo`."""


class GSPO(Part, name="gspo"):
    """Module of :func:`gspo`."""

r"""STEER: lighter weights on the tokens whose update would move the policy's entropy most.

Each token's step changes the entropy of its state by an amount that can be estimated from its probability, its
advantage and the entropy itself, in either direction. STEER multiplies the token's loss by a weight in ``(0, 1]`` that
is smallest where that estimate is largest. It needs no forward pass beyond PPO's where the sampling policy's entropies
are at hand.

When to use: as a drop-in for the clipped surrogate where entropy moves too fast, above all with a loose clip. The
effect is moderate by design: no token's weight is below ``weight_min``.

Where the estimate comes from: with loss :math:`-A r` inside the clip range, one gradient step on a state's logits is
:math:`\eta A \frac{\pi_y}{q_y}(1_y - \pi)`, and to first order

.. math:: \Delta H = -\eta \frac{A \pi_y}{q_y} \Big[\pi_y(\log\pi_y + H) - \sum_a \pi_a^2 (\log\pi_a + H)\Big].

That is ``metric="exact"``. Keeping only the sampled token's logit gives ``"sampled_logit"``; the authors' metric drops
one more factor :math:`\pi_y`. All three rank tokens alike in the main, none of the last two is an unbiased estimate.

Reference:
    Z. Hao et al., "Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective", 2025, arXiv:2510.10150.

Deviations from the authors' code:
    - The default smallest weight is 0.7, the paper's (scripts: 0.8).
    - An empty mask gives loss 0 (there: an error); half precision is widened (there: float32 only).
    - ``1 - pi`` is computed without cancellation.
    - ``scope="global"`` takes the largest value over all data-parallel ranks (there: each micro-batch of each GPU, so
      that its size changes the method); ``quantile`` keeps one outlier from setting the scale.
    - As in the code and unlike the paper's formula, tokens that the clip has silenced count for the largest value;
      ``skip_clipped`` leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core.reduce import masked_mean, masked_quantile, zero_outside
from infotorch.losses._select import SCOPES, Pool
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.ppo import (
    AggregationLike,
    check_clip,
    clipped_surrogate,
    importance_ratio,
    outside_clip,
    reduce_loss,
)
from infotorch.losses.registry import Part, register

METRICS = ("official", "sampled_logit", "exact")
_LEAST = 1e-8  # the authors' bound on probabilities


def entropy_change(batch: TokenBatch, *, metric: str = "official") -> Tensor:
    r"""Estimated decrease of each state's entropy per unit learning rate, :math:`\Omega`, in nats.

    .. math:: \Omega = \frac{A}{q}\,\pi(1 - \pi)(\log \pi + H) \quad (\text{official})

    ``"sampled_logit"`` has one factor :math:`\pi` more; ``"exact"`` is the first-order change itself, with its sum over
    the vocabulary. Positive where the update makes the policy more certain.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages`` and the sampling policy's entropy; for ``"exact"``
            ``entropy`` and ``extras["entropy_covariance"]`` of the current policy.
        metric: One of the three.

    Returns:
        Shape ``(B, T)``, without gradient; 0 outside the mask and where the estimate is not finite.

    Raises:
        ValueError: A field is missing, unknown metric.

    Reference: Z. Hao et al., 2025, arXiv:2510.10150 (deviations: see the module).

    >>> batch = TokenBatch(log_probs=torch.tensor([[0.5]]).log(), mask=torch.ones(1, 1, dtype=torch.bool),
    ...                    advantages=torch.ones(1), entropy=torch.full((1, 1), 1.0))
    >>> entropy_change(batch)  # (1 / 0.5) 0.5 0.5 (log 0.5 + 1)
    tensor([[0.1534]])
    """
    check_choice("metric", metric, METRICS)
    batch.require("steer", "advantages", "sampling_entropy")
    assert batch.advantages is not None
    assert batch.old_log_probs is not None
    advantages, log_p = batch.advantages.detach(), batch.log_probs.detach().clamp(math.log(_LEAST), 0.0)
    importance = advantages / batch.old_log_probs.detach().exp().clamp(_LEAST, 1.0)
    p = log_p.exp()
    if metric == "exact":
        batch.require("steer", "entropy", "extras.entropy_covariance")
        assert batch.entropy is not None
        own = p * (log_p + batch.entropy.detach())
        change = importance * p * (own - batch.extras["entropy_covariance"].detach())
    else:
        change = importance * p * -torch.expm1(log_p) * (log_p + batch.sampling_entropy)
        if metric == "sampled_logit":
            change = change * p
    return torch.where(batch.mask & change.isfinite(), change, 0.0)


def steer_weights(
    change: Tensor,
    mask: Tensor,
    *,
    mapping: str = "exponential",
    weight_min: float = 0.7,
    weight_max: float = 1.2,
    floor: float = 0.02,
    quantile: float = 1.0,
    scope: str = "local",
) -> Tensor:
    r"""Weights from estimated entropy changes.

    With :math:`m = |\Omega|` and :math:`m_{max}` its largest value over valid tokens:

    .. math:: w = w_{min}^{\,m / \max(m_{max}, f)} \quad (\text{exponential}), \qquad
              w = w_{max} - (w_{max} - w_{min}) \frac{m - m_{min}}{m_{max} - m_{min}} \quad (\text{linear})

    within :math:`[w_{min}, 1]` or :math:`[w_{min}, w_{max}]`. Where all values are equal the linear weight is the mean
    of the two.

    Args:
        change: Shape ``(B, T)``, of either sign.
        mask: Boolean, shape ``(B, T)``.
        mapping: ``"exponential"`` or ``"linear"``.
        weight_min: Smallest weight, in ``(0, 1]``.
        weight_max: Largest weight of the linear mapping.
        floor: Below this largest value the exponential weights stay closer to 1.
        quantile: Quantile of the values that stands for their largest; less than 1 keeps an outlier from setting the
            scale. What lies above it gets ``weight_min``.
        scope: Largest and least value over this batch (``"local"``) or all data-parallel ranks (``"global"``).

    Returns:
        Shape ``(B, T)``, without gradient; 0 outside the mask.

    Raises:
        ValueError: An option out of range.
        TypeError: A mask that is not boolean.

    Reference: Z. Hao et al., 2025, arXiv:2510.10150 (deviations: see the module).

    >>> steer_weights(torch.tensor([[0.0, -1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool), weight_min=0.25)
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    check_choice("mapping", mapping, ("exponential", "linear"))
    check_choice("scope", scope, SCOPES)
    check_bool_mask("mask", mask, change.shape)
    check_range("weight_min", weight_min, 0.0, 1.0, low_open=True)
    check_range("weight_max", weight_max, weight_min)
    check_range("floor", floor, 0.0)
    check_range("quantile", quantile, 0.0, 1.0, low_open=True)
    size = change.detach().abs()
    least, most = _extent(size, mask, quantile, scope)
    if mapping == "exponential":
        scale = most.clamp(min=max(floor, torch.finfo(size.dtype).tiny))
        weights = (math.log(weight_min) * (size / scale).clamp(max=1)).exp()
    else:
        span = most - least
        share = ((size - least) / torch.where(span > 0, span, 1.0)).clamp(0, 1)
        weights = weight_max - (weight_max - weight_min) * torch.where(span > 0, share, 0.5)
    return zero_outside(weights, mask)


def _extent(size: Tensor, mask: Tensor, quantile: float, scope: str) -> tuple[Tensor, Tensor]:
    """Least and greatest value (or quantile) of valid tokens; 0 and 0 where there are none."""
    low, high = torch.where(mask, size, torch.inf).amin(), torch.where(mask, size, -torch.inf).amax()
    if scope == "global":
        low, high = distributed.all_reduce_max(torch.stack((-low, high))) * size.new_tensor([-1.0, 1.0])
    if quantile < 1:
        pool = Pool(mask, scope)
        high = masked_quantile(pool.flat(size), pool.mask, quantile)
    some = low.isfinite()
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)


def _silenced(batch: TokenBatch, ratio: Tensor, low: float, high: float, dual_clip: float | None) -> Tensor:
    """Tokens whose clipped surrogate sends no gradient."""
    assert batch.advantages is not None
    below, above = outside_clip(ratio, batch.advantages, low, high)
    if dual_clip is not None:
        above = above | ((batch.advantages < 0) & (ratio > dual_clip))
    return below | above


@register(
    "steer",
    "policy",
    requires=("advantages", "sampling_entropy"),
    surrogate=True,  # the weights are constants, though they move with the log-probabilities
    neutral={"weight_min": 1.0, "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0},
    base="ppo",
)
def steer(
    batch: TokenBatch,
    *,
    metric: str = "official",
    mapping: str = "exponential",
    weight_min: float = 0.7,
    weight_max: float = 1.2,
    floor: float = 0.02,
    quantile: float = 1.0,
    skip_clipped: bool | None = None,
    scope: str = "local",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = 10.0,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""STEER: the clipped surrogate, weighted down where it would move the entropy most.

    .. math:: \ell = w(|\Omega|)\, \ell^{PPO}

    with DAPO's :math:`\ell^{PPO}`, :math:`\Omega` of :func:`entropy_change` and :math:`w` of :func:`steer_weights`; no
    gradient flows through the weights. Token means divide by the number of tokens, not by the sum of weights.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``, and ``old_entropy`` or else ``entropy``; for
            ``metric="exact"`` see :func:`entropy_change`.
        metric: How the change of entropy is estimated.
        mapping: From estimate to weight; see :func:`steer_weights`, like the next five.
        weight_min: Smallest weight; 1 is the plain loss.
        weight_max: Largest weight of the linear mapping.
        floor: Least scale of the exponential mapping.
        quantile: What stands for the largest value.
        skip_clipped: Leave tokens that the clip has silenced out of the largest value. None: only with
            ``metric="exact"``, as in the paper's formula.
        scope: Local or global.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        dual_clip: See :func:`infotorch.losses.ppo`.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics of :func:`infotorch.losses.ppo` plus ``weight`` (mean) and ``entropy_change`` (mean
        estimated change per unit learning rate, negative where entropy falls).

    Raises:
        ValueError: Missing advantages or entropy, an option out of range.

    Reference: Z. Hao et al., 2025, arXiv:2510.10150.

    >>> batch = TokenBatch(log_probs=torch.tensor([[0.5, 0.9]]).log(), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    advantages=torch.ones(1), entropy=torch.tensor([[1.0, 0.4]]))
    >>> steer(batch, weight_min=0.5).per_token  # the first token would move the entropy most
    tensor([[-0.5000, -0.8754]])
    """
    batch.require("steer", "advantages", "sampling_entropy")
    check_clip(clip_low, clip_high, dual_clip)
    ratio = importance_ratio(batch, log_ratio_bound)
    per_token, metrics = clipped_surrogate(ratio, batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    change = entropy_change(batch, metric=metric)
    counted = change
    if metric == "exact" if skip_clipped is None else skip_clipped:
        counted = torch.where(_silenced(batch, ratio.detach(), clip_low, clip_high, dual_clip), 0.0, change)
    weights = steer_weights(
        counted,
        batch.mask,
        mapping=mapping,
        weight_min=weight_min,
        weight_max=weight_max,
        floor=floor,
        quantile=quantile,
        scope=scope,
    )
    metrics |= {"weight": masked_mean(weights, batch.mask), "entropy_change": -masked_mean(change, batch.mask)}
    return reduce_loss(batch, per_token * weights, aggregation, metrics)


class Steer(Part, name="steer"):
    """Module of :func:`steer`; with ``metric="exact"`` it asks trainers for ``extras["entropy_covariance"]``."""

    def token_options(self) -> Mapping[str, Any]:
        """The covariance, where the metric reads it."""
        return {"extras": ("entropy_covariance",)} if self.options.get("metric") == "exact" else {}

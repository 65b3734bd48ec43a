"""SAPO: a sigmoid gate in place of the hard clip.

Reference: C. Gao et al., "Soft Adaptive Policy Optimization", 2025, arXiv:2511.20347.
"""

from __future__ import annotations

import torch

from infotorch.core._checks import check_range
from infotorch.core._choice import indicator
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.ppo import AggregationLike, approx_kl, bounded, reduce_loss
from infotorch.losses.registry import Part, register


@register("sapo", "policy", requires=("advantages",))
def sapo(
    batch: TokenBatch,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "seq-mean-token-mean",
) -> LossOutput:
    r"""SAPO: the ratio's influence fades smoothly away from 1.

    .. math:: \ell = -A\, \frac{4}{\tau}\, \sigma(\tau (r - 1))

    whose gradient at :math:`r = 1` is that of :math:`-A r`. A higher ``tau`` fades sooner.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        tau_positive: Temperature of the gate where ``A > 0``.
        tau_negative: The same elsewhere.
        log_ratio_bound: Log-ratios are clamped to this size first; None for none.
        aggregation: How tokens become a scalar.

    Raises:
        ValueError: Missing advantages, a temperature that is not positive.

    Reference: C. Gao et al., 2025, arXiv:2511.20347.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool),
    ...                    advantages=torch.ones(1))
    >>> sapo(batch).loss
    tensor(-2.)
    """
    batch.require("sapo", "advantages")
    check_range("tau_positive", tau_positive, 0.0, low_open=True)
    check_range("tau_negative", tau_negative, 0.0, low_open=True)
    assert batch.advantages is not None
    log_ratio = batch.log_ratio
    metrics = {"approx_kl": approx_kl(batch, log_ratio)}
    ratio = bounded(log_ratio, log_ratio_bound).exp()
    tau = tau_positive + (tau_negative - tau_positive) * indicator(torch.le, batch.advantages, 0.0)
    per_token = torch.sigmoid(tau * (ratio - 1)) * (-4 * batch.advantages / tau)
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


class SAPO(Part, name="sapo"):
    """Module of :func:`sapo`."""

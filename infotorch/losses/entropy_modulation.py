r"""HAPO's signal: how uncertain a token is among those of its batch, from -1 to 1; and temperatures that follow it.

Reference:
    "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature" (v2: "Heterogeneous Adaptive
    Policy Optimization"), 2025, arXiv:2509.16591. Deviations from the authors' code: :mod:`infotorch.losses.hapo`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core.reduce import masked_mean, masked_quantile, zero_outside
from infotorch.losses._select import Pool
from infotorch.losses.batch import widen


@dataclass(frozen=True)
class ModulationState:
    """Statistics that turn an entropy into the signal; scalars.

    Attributes:
        quantile: Pivot of the log-entropies.
        spread: Their spread around it.
        scale_high: One over the largest standardized deviation above the pivot.
        scale_low: The same below (negative where the sign error is kept).
    """

    quantile: Tensor
    spread: Tensor
    scale_high: Tensor
    scale_low: Tensor

    def deviation(self, entropy: Tensor, *, floor: float, slack: float = 0.0) -> Tensor:
        """``(log max(H, floor) - quantile) / (spread + slack)``."""
        return (entropy.clamp(min=floor).log() - self.quantile) / (self.spread + slack)

    def signal(self, entropy: Tensor, *, floor: float = 1e-8, slack: float = 0.0) -> Tensor:
        """The signal h in [-1, 1] at entropies (nats) of any shape, clamped where they exceed those seen."""
        z = self.deviation(entropy, floor=floor, slack=slack)
        return (z * torch.where(z > 0, self.scale_high, self.scale_low)).clamp(-1, 1)


def entropy_modulation(
    entropy: Tensor,
    mask: Tensor,
    *,
    pivot: float = 0.8,
    eps: float = 1e-8,
    spread: str = "rms",
    sign_bug_compat: bool = False,
    scope: str = "local",
) -> tuple[Tensor, ModulationState]:
    r"""The signal that every part of HAPO reads.

    .. math:: z = (x - q) / s, \qquad x = \log \max(H, \epsilon), \qquad
              h = z / z_{max} \text{ where } z > 0, \quad z / |z_{min}| \text{ elsewhere}

    with :math:`q` the ``pivot``-quantile of :math:`x` (nearest entry) and :math:`s` the root mean square of
    :math:`x - q`.

    Args:
        entropy: Nats, shape ``(B, T)``.
        mask: Boolean, shape ``(B, T)``.
        pivot: Quantile, in ``[0, 1]``.
        eps: Floor of the entropy, of :math:`s^2` and of the scales. A token of entropy 0 lies at
            :math:`\log \epsilon`, dominates the scale below and squeezes all other certain tokens towards 0; 1e-4
            softens that.
        spread: ``"rms"`` about the pivot (authors' code), ``"std"`` about the mean (paper).
        sign_bug_compat: Divide by :math:`z_{min}` itself, as the authors' code: h is then never negative.
        scope: Statistics over this batch, or over all data-parallel ranks (``"global"``).

    Returns:
        h, shape ``(B, T)``, without gradient, 0 outside the mask; and its statistics. An empty mask gives h = 0 with
        scales of 0, under which every entropy has signal 0.

    Raises:
        ValueError: An option out of range, unknown names.
        TypeError: A mask that is not boolean.

    Reference: arXiv:2509.16591, 2025.

    >>> mask = torch.ones(1, 4, dtype=torch.bool)
    >>> entropy_modulation(torch.tensor([[0.01, 0.1, 1.0, 2.0]]), mask, pivot=0.6)[0]  # the pivot is 1 nat
    tensor([[-1.0000, -0.5000,  0.0000,  1.0000]])
    """
    check_range("pivot", pivot, 0.0, 1.0)
    check_range("eps", eps, 0.0, low_open=True)
    check_choice("spread", spread, ("rms", "std"))
    check_bool_mask("mask", mask, entropy.shape)
    state = _statistics(entropy, mask, pivot, eps, spread, sign_bug_compat, scope)
    h = state.signal(entropy.detach().double(), floor=eps)
    return zero_outside(h, mask).to(widen(entropy).dtype), state


def _statistics(
    entropy: Tensor, mask: Tensor, pivot: float, eps: float, spread: str, sign_bug_compat: bool, scope: str
) -> ModulationState:
    """In float64, so that a quantile over ranks is the one over the concatenated batch."""
    pool = Pool(mask, scope)
    x, valid = pool.flat(entropy.detach().double().clamp(min=eps).log()), pool.mask
    some = valid.any()
    q = torch.where(some, masked_quantile(x, valid, pivot, interpolation="nearest"), 0.0)
    center = q if spread == "rms" else masked_mean(x, valid)
    s = masked_mean((x - center).square(), valid).clamp(min=eps).sqrt()
    z = torch.where(valid, (x - q) / s, 0.0)
    high, low = z.max().clamp(min=eps), z.min().clamp(max=-eps)
    return ModulationState(
        q, s, torch.where(some, 1 / high, 0.0), torch.where(some, 1 / low if sign_bug_compat else -1 / low, 0.0)
    )


@torch.no_grad()
def adaptive_temperature(
    logits: Tensor, state: ModulationState, *, base: float = 1.0, tau: float = 0.05, form: str = "scaled"
) -> Tensor:
    r"""Temperature of a decoding step, :math:`T = T_{base} (1 + \tau h)` with h at the entropy of its distribution.

    The statistics are those of the previous rollout batch. Truncation (min-p, top-p, top-k) comes after. What is
    sampled so is not the policy at :math:`T_{base}`, for which the trainer usually computes log-probabilities: either
    record those of the tempered distribution or accept the bias, as the authors do.

    Args:
        logits: Before any temperature, shape ``(N, V)``; computed in float32.
        state: From :func:`entropy_modulation`.
        base: :math:`T_{base}`.
        tau: Strength, in ``[0, 1)`` (paper 0.1, authors' scripts 0.05; they warn of collapse for large ones).
        form: ``"scaled"`` clamps h to ``[-1, 1]`` (authors' code); ``"paper"`` takes :math:`h = (x - q) / s`, and keeps
            T above a hundredth of the base.

    Returns:
        Shape ``(N,)``, float32.

    Raises:
        ValueError: An option out of range.

    Reference: arXiv:2509.16591, 2025.

    >>> _, state = entropy_modulation(torch.tensor([[0.1, 0.5, 1.0]]), torch.ones(1, 3, dtype=torch.bool), pivot=0.5)
    >>> adaptive_temperature(torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), state, tau=0.1)
    tensor([1.1000, 0.9000])
    """
    check_range("base", base, 0.0, low_open=True)
    check_range("tau", tau, 0.0, 1.0, high_open=True)
    check_choice("form", form, ("scaled", "paper"))
    entropy = categorical.entropy(logits.float())
    own = ModulationState(*(x.to(entropy) for x in (state.quantile, state.spread, state.scale_high, state.scale_low)))
    if form == "scaled":
        return base * (1 + tau * own.signal(entropy, floor=1e-6, slack=1e-6))
    return (base * (1 + tau * own.deviation(entropy, floor=1e-6, slack=1e-6))).clamp(min=0.01 * base)

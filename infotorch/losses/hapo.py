r"""HAPO: one continuous signal from a token's entropy steers its temperature, its advantage and its clip.

The signal h in [-1, 1] says how far a token's log-entropy lies above or below a high quantile of the batch. Four
parts: (A) temperatures of the next rollout, higher where the policy is uncertain; (B) advantages normalized over tokens
instead of completions, so that long wrong answers weigh no more than others; (C) advantages raised for uncertain tokens
that already move and lowered for certain ones that do not; (D) a wider clip, below for certain tokens and above for
uncertain ones. The recipe ``"hapo"`` has all four.

When to use: DAPO on long reasoning traces, where most tokens are near certain. The reported gains come from code whose
signal has a sign error (below): treat the mechanism as unproven, and compare with plain DAPO.

Reference:
    "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature" (v2: "Heterogeneous Adaptive
    Policy Optimization"), 2025, arXiv:2509.16591.

Deviations from the authors' code:
    - There, a negative deviation is divided by the negative minimum, which makes h positive for certain tokens as well:
      they get the wider upper clip, the larger advantage and the higher temperature, against the paper's text.
      ``sign_bug_compat=True`` restores it.
    - The signal's statistics are taken once per rollout batch, from the policy that sampled (``statistics="batch"``: of
      what the loss is given, as there in every micro-batch).
    - Advantages outside the mask are 0 and take no part in the fallback (there, padding counts as a reward of 0).
    - An empty mask gives h = 0 (there: an error); logits of minus infinity count as probability 0 (there: NaN).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean, zero_outside
from infotorch.losses._groups import Groups
from infotorch.losses.advantages import group_advantages
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.entropy_modulation import ModulationState, adaptive_temperature, entropy_modulation
from infotorch.losses.ppo import (
    AggregationLike,
    check_clip,
    clipped_surrogate,
    importance_ratio,
    outside_clip,
    reduce_loss,
)
from infotorch.losses.registry import Part, Temperatures, register, register_recipe

# ---------------------------------------------------------------------------------------------------------
# Advantages over tokens
# ---------------------------------------------------------------------------------------------------------


@register("hapo_advantage", "advantage", requires=("rewards", "group"))
def hapo_advantage(
    batch: TokenBatch, *, scale: str = "group", eps: float = 1e-6, fallback: float | None = 5.0
) -> Tensor:
    r"""HAPO's token-level group average: reward minus the mean over the prompt's tokens, over their deviation.

    .. math:: A_i = (R_i - \mu) / (\sigma + \epsilon), \qquad \mu = \frac{\sum_i l_i R_i}{\sum_i l_i}

    with lengths :math:`l_i` and :math:`\sigma` the (population) standard deviation over tokens. Advantages sum to 0
    over the prompt's tokens, so that under a token mean long wrong answers do not dominate.

    Args:
        batch: Reads ``rewards``, ``group`` and the lengths in ``mask``.
        scale: ``"group"`` divides by the deviation, ``"none"`` does not.
        eps: Added to the deviation.
        fallback: Where some :math:`|A|` of a group reaches this, the group gets GRPO's advantages instead; None: never.

    Returns:
        Shape ``(B, T)``. Groups of one, or of equal rewards, get 0.

    Raises:
        ValueError: Missing rewards or group, an option out of range.

    Reference: arXiv:2509.16591, 2025; the fallback is in the authors' code only.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 3), mask=torch.tensor([[True, False, False], [True, True, True]]),
    ...                    rewards=torch.tensor([1.0, 0.0]), group=torch.tensor([0, 0]))
    >>> hapo_advantage(batch)  # 3/4 to one token, -1/4 to three, over a deviation of 0.433
    tensor([[ 1.7320,  0.0000,  0.0000],
            [-0.5773, -0.5773, -0.5773]])
    """
    batch.require("hapo_advantage", "rewards", "group")
    check_choice("scale", scale, ("group", "none"))
    check_range("eps", eps, 0.0)
    assert batch.rewards is not None
    assert batch.group is not None
    rewards, lengths = batch.rewards.detach(), batch.mask.sum(1).to(batch.rewards.dtype)
    groups, some = Groups(batch.group), lengths > 0
    tokens = groups.sum(lengths).clamp(min=1)
    centered = rewards - groups.sum(lengths * rewards) / tokens
    # Groups of equal rewards are exactly 0, not the rounding error of their mean divided by eps.
    differ = groups.min(rewards.where(some, torch.inf)) < groups.max(rewards.where(some, -torch.inf))
    values = centered = torch.where(some & differ, centered, 0.0)
    if scale == "group":
        std = (groups.sum(lengths * centered.square()) / tokens).sqrt()
        values = centered / (torch.where(differ, std, 1.0) + eps)
    if fallback is not None:
        check_range("fallback", fallback, 0.0, low_open=True)
        usual = group_advantages(rewards, batch.group, scale=scale, eps=eps)
        values = torch.where(groups.any(values.abs() >= fallback), usual, values)
    return values.unsqueeze(1) * batch.mask


class HAPOAdvantage(Part, name="hapo_advantage"):
    """Module of :func:`hapo_advantage`."""


# ---------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------


def adaptive_clip_widths(
    signal: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.28, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Clip widths of every token, below and above 1.

    .. math:: \epsilon_- (1 - \alpha \min(h, 0)), \qquad \epsilon_+ (1 + \alpha \max(h, 0))

    Args:
        signal: h, any shape.
        clip_low: Width below where h > 0.
        clip_high: Width above where h <= 0.
        alpha: Strength.

    Returns:
        Two tensors of the signal's shape.

    Raises:
        ValueError: A negative width or strength.

    Reference: arXiv:2509.16591, 2025.

    >>> adaptive_clip_widths(torch.tensor([-1.0, 0.5]))
    (tensor([0.4000, 0.2000]), tensor([0.2800, 0.4200]))
    """
    check_clip(clip_low, clip_high)
    check_range("alpha", alpha, 0.0)
    below = clip_low * (1 - alpha * signal.clamp(max=0))
    return below, clip_high * (1 + alpha * signal.clamp(min=0))


def redistribute_advantages(
    advantages: Tensor,
    signal: Tensor,
    ratio: Tensor,
    *,
    clip_low: float | Tensor = 0.2,
    clip_high: float | Tensor = 0.28,
    beta: float = 1.0,
) -> Tensor:
    r"""Multiply by :math:`1 + \beta h`: uncertain tokens (h > 0) that moved, certain ones that did not.

    Moved means a ratio outside :math:`(1 - \epsilon_-/2,\; 1 + \epsilon_+/2)`; a ratio on a border is outside.

    Args:
        advantages: Any shape.
        signal: h, of that shape.
        ratio: Of that shape.
        clip_low: Width of the clip below 1, a number or one a token.
        clip_high: Width above.
        beta: Strength, in ``[0, 1]``.

    Raises:
        ValueError: ``beta`` out of range.

    Reference: arXiv:2509.16591, 2025.

    >>> h, ratio = torch.tensor([0.5, 0.5, -0.5, -0.5]), torch.tensor([1.0, 1.5, 1.0, 1.5])
    >>> redistribute_advantages(torch.ones(4), h, ratio)
    tensor([1.0000, 1.5000, 0.5000, 1.0000])
    """
    check_range("beta", beta, 0.0, 1.0)
    still = (ratio > 1 - clip_low / 2) & (ratio < 1 + clip_high / 2)
    return torch.where((signal > 0) ^ still, advantages * (1 + beta * signal), advantages)


@register(
    "hapo",
    "policy",
    requires=("advantages", "entropy"),
    surrogate=True,
    neutral={"alpha": 0.0, "beta": 0.0, "clip_high": 0.2, "dual_clip": 3.0},
    base="ppo",
)
def hapo(
    batch: TokenBatch,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    tau: float = 0.05,
    pivot: float = 0.8,
    eps: float = 1e-8,
    spread: str = "rms",
    statistics: str = "rollout",
    neutral_zone: str = "adaptive",
    sign_bug_compat: bool = False,
    scope: str = "local",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = 10.0,
    log_ratio_bound: float | None = 20.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""HAPO's loss: DAPO's, with clip widths and advantages of each token set by its entropy.

    .. math:: \ell = \max(-A' r,\; -A'\,\mathrm{clip}(r, 1 - \epsilon_-, 1 + \epsilon_+)), \qquad
              \ell \leftarrow \min(\ell, -c A') \text{ where } A' < 0

    with widths from :func:`adaptive_clip_widths` and :math:`A'` from :func:`redistribute_advantages`, at the signal of
    :func:`entropy_modulation`. The gradient flows through r alone.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``, ``entropy``, and ``old_entropy`` if it is there.
        alpha: Strength of the adaptive clip; 0 switches it off.
        beta: Strength of the redistribution; 0 switches it off.
        tau: Strength of the temperatures that :class:`HAPO` hands to the sampler; 0 switches them off. The loss does
            not read it.
        pivot: See :func:`entropy_modulation`, like the next two and ``sign_bug_compat``.
        eps: Floor.
        spread: Of the log-entropies.
        statistics: ``"rollout"``: the signal is that of the policy that sampled, with statistics of the whole rollout
            batch, which :class:`HAPO` observes (the function alone takes those of its batch). ``"batch"``: of the
            current policy over the batch that the loss is given (authors' code).
        neutral_zone: Half widths of ``"adaptive"`` clips (authors' code), or of the ``"base"`` ones (paper).
        sign_bug_compat: Keep the sign error of the authors' code.
        scope: Statistics over this process, or all data-parallel ranks.
        clip_low: Base width below 1.
        clip_high: Base width above 1 (paper 0.28, authors' scripts 0.2).
        dual_clip: See :func:`infotorch.losses.ppo`.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics of :func:`infotorch.losses.ppo` plus ``modulation`` (mean h) and, of all tokens of low and
        high entropy each, the shares clipped below and above: ``clip_low_certain``, ``clip_high_certain``,
        ``clip_low_uncertain``, ``clip_high_uncertain``.

    Raises:
        ValueError: Missing advantages or entropy, an option out of range.

    Reference: arXiv:2509.16591, 2025.

    >>> batch = TokenBatch(log_probs=torch.full((1, 3), 0.35), old_log_probs=torch.zeros(1, 3),
    ...                    mask=torch.ones(1, 3, dtype=torch.bool), advantages=torch.ones(1),
    ...                    entropy=torch.tensor([[0.01, 0.5, 2.0]]))
    >>> hapo(batch, pivot=0.5).per_token  # a ratio of 1.42 is clipped to 1.28, but not where entropy is highest
    tensor([[-1.2800, -1.2800, -2.8381]])
    """
    entropy = _entropy_for(batch, statistics)
    _, state = entropy_modulation(
        entropy, batch.mask, pivot=pivot, eps=eps, spread=spread, sign_bug_compat=sign_bug_compat, scope=scope
    )
    return _loss(
        batch,
        entropy,
        state,
        alpha=alpha,
        beta=beta,
        eps=eps,
        neutral_zone=neutral_zone,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        log_ratio_bound=log_ratio_bound,
        aggregation=aggregation,
    )


def _entropy_for(batch: TokenBatch, statistics: str) -> Tensor:
    batch.require("hapo", "advantages", "entropy")
    check_choice("statistics", statistics, ("rollout", "batch"))
    assert batch.entropy is not None
    return batch.entropy.detach() if statistics == "batch" else batch.sampling_entropy


def _loss(
    batch: TokenBatch,
    entropy: Tensor,
    state: ModulationState,
    *,
    alpha: float,
    beta: float,
    eps: float,
    neutral_zone: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    log_ratio_bound: float | None,
    aggregation: AggregationLike,
) -> LossOutput:
    check_choice("neutral_zone", neutral_zone, ("adaptive", "base"))
    check_clip(clip_low, clip_high, dual_clip)
    assert batch.advantages is not None
    h = zero_outside(state.signal(entropy.double(), floor=eps), batch.mask).to(entropy.dtype)
    low, high = adaptive_clip_widths(h, clip_low=clip_low, clip_high=clip_high, alpha=alpha)
    ratio = importance_ratio(batch, log_ratio_bound)
    zone = (low, high) if neutral_zone == "adaptive" else (clip_low, clip_high)
    advantages = redistribute_advantages(
        batch.advantages, h, ratio.detach(), clip_low=zone[0], clip_high=zone[1], beta=beta
    )
    per_token, metrics = clipped_surrogate(
        ratio, batch.replace(advantages=advantages), clip_low=low, clip_high=high, dual_clip=dual_clip
    )
    below, above = outside_clip(ratio, advantages, low, high)
    metrics["modulation"] = masked_mean(h, batch.mask)
    for name, among in (("certain", batch.mask & (h <= 0)), ("uncertain", batch.mask & (h > 0))):
        metrics[f"clip_low_{name}"] = masked_mean(below.to(h.dtype), among)
        metrics[f"clip_high_{name}"] = masked_mean(above.to(h.dtype), among)
    return reduce_loss(batch, per_token, aggregation, metrics, zeroed=True)


_SIGNAL_OPTIONS = ("pivot", "eps", "spread", "sign_bug_compat", "scope")
_LOSS_OPTIONS = (
    "alpha",
    "beta",
    "eps",
    "neutral_zone",
    "clip_low",
    "clip_high",
    "dual_clip",
    "log_ratio_bound",
    "aggregation",
)


class HAPO(Part, name="hapo"):
    """Module of :func:`hapo`; it holds the statistics of the last rollout batch, for the loss and for the sampler."""

    observed: Tensor
    quantile: Tensor
    spread: Tensor
    scale_high: Tensor
    scale_low: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._observed = False  # of the buffer, so that the hot path does not look at the device
        check_range("tau", self.settings["tau"], 0.0, 1.0, high_open=True)
        check_choice("statistics", self.settings["statistics"], ("rollout", "batch"))
        self.register_buffer("observed", torch.tensor(False))
        # Before the first rollout batch every entropy has signal 0.
        for name, value in (("quantile", 0.0), ("spread", 1.0), ("scale_high", 0.0), ("scale_low", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_load_state_dict_post_hook(_mirror)

    @property
    def modulation(self) -> ModulationState:
        """Statistics of the last rollout batch."""
        return ModulationState(self.quantile, self.spread, self.scale_high, self.scale_low)

    def observe(self, batch: TokenBatch) -> None:
        """Take the statistics of a rollout batch.

        Raises:
            ValueError: The batch has no entropies, and the loss was to use their statistics.
        """
        if batch.entropy is None and batch.old_entropy is None:
            if self.settings["statistics"] == "batch":
                return
            raise ValueError(
                "hapo needs TokenBatch.entropy of the rollout batch when it is prepared, which is missing: pass "
                "entropy=... of shape (B, T), or set statistics='batch'"
            )
        options = {name: self.settings[name] for name in _SIGNAL_OPTIONS}
        _, state = entropy_modulation(batch.sampling_entropy, batch.mask, **options)
        self.observed.fill_(True)
        self._observed = True
        for name in ("quantile", "spread", "scale_high", "scale_low"):
            getattr(self, name).copy_(getattr(state, name))

    def forward(self, batch: TokenBatch) -> LossOutput:
        """The loss, with the statistics of the rollout batch once one was observed."""
        if not self._observed or self.settings["statistics"] == "batch":
            return super().forward(batch)
        options = {name: self.settings[name] for name in _LOSS_OPTIONS}
        return _loss(batch, _entropy_for(batch, "rollout"), self.modulation, **options)

    def sampling_temperature(self, base: float) -> Temperatures | None:
        """:func:`adaptive_temperature` with the statistics of the last rollout batch; None where ``tau`` is 0."""
        if self.settings["tau"] == 0:
            return None
        state = ModulationState(*(x.clone() for x in vars(self.modulation).values()))
        return partial(adaptive_temperature, state=state, base=base, tau=self.settings["tau"])


def _mirror(module: HAPO, _: Any) -> None:
    module._observed = bool(module.observed)


register_recipe("hapo", advantage="hapo_advantage", policy="hapo")

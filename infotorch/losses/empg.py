r"""EMPG: advantages of agents, scaled by how sure the policy was at each step.

The gradient of a softmax policy is larger where its entropy is high (:func:`expected_score_norm`). With one reward for
a whole dialogue, EMPG turns that round: confident steps get more of the trajectory's advantage, uncertain ones less,
and a step that leads to a confident one gets a bonus.

When to use: agents over many steps with one outcome reward, where uncertain steps are noise (exploring rooms that do
not matter). Where the hard and decisive step is the uncertain one it takes credit from it; plain GRPO is the control,
and the same scales on shuffled steps (``shuffle=True``) another.

Reference:
    "Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents", 2025, arXiv:2509.09265.

Deviations: no code was released. Steps without a valid token are left out (an entropy of 0 would be the least), and
entropies that differ by rounding only count as equal. Two flaws of the method are kept by default and have an option
beside them: groups whose rewards are all equal still get the bonus, a pull towards confidence alone
(``bonus_on_zero_adv=False``); one outlier squeezes the scales of all other steps (``clip_quantile``).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.categorical import log_softmax
from infotorch.core.reduce import masked_quantile, segment_ids, segment_mean, segment_spread
from infotorch.losses._select import SCOPES, summed
from infotorch.losses._turns import turns_of
from infotorch.losses.advantages import group_advantages, group_index
from infotorch.losses.batch import TokenBatch
from infotorch.losses.registry import Part, register


@dataclass(frozen=True)
class EMPGSteps:
    """What EMPG makes of the steps of a batch, in their order by trajectory and turn; shapes ``(B * T,)``.

    Attributes:
        segment: Number of each token's step, ``(B, T)``; -1 outside steps.
        used: Which slots hold a step; the others hold 0.
        entropy: Mean token entropy, nats.
        normalized: The same from 0 (least of the batch) to 1.
        scale: Factor of the advantage, mean 1.
        confidence: What a step gives the one before it, times ``zeta``.
        modulated: Scaled advantage plus bonus.
        final: The same minus its mean.
    """

    segment: Tensor
    used: Tensor
    entropy: Tensor
    normalized: Tensor
    scale: Tensor
    confidence: Tensor
    modulated: Tensor
    final: Tensor


def empg_steps(
    batch: TokenBatch,
    *,
    k: float = 1.0,
    k_f: float = 1.0,
    zeta: float = 0.05,
    eps: float = 1e-8,
    center: bool = True,
    bonus_on_zero_adv: bool = True,
    clip_quantile: float = 0.0,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    scope: str = "local",
) -> EMPGSteps:
    r"""Modulate given advantages step by step.

    With the mean entropy :math:`H_s` of each step and its trajectory's advantage :math:`A`:

    .. math:: \tilde H_s = \frac{H_s - \min H}{\max H - \min H + \epsilon}, \qquad
              g_s = \frac{e^{-k \tilde H_s}}{\mathrm{mean}\, e^{-k \tilde H} + \epsilon}, \qquad
              A'_s = A\, g_s + \zeta\, e^{-k_f \tilde H_{s+1}}

    without the last term where the trajectory ends, then minus the mean of :math:`A'` over steps.

    Args:
        batch: Reads ``old_entropy`` (else ``entropy``), ``turn``, ``advantages`` (equal within a trajectory), and
            ``trajectory`` where rows are turns.
        k: Strength of the scaling.
        k_f: Of the bonus.
        zeta: Weight of the bonus.
        eps: Added to denominators.
        center: Subtract the mean, every step having one vote.
        bonus_on_zero_adv: If False, trajectories of advantage 0 get no bonus, no vote, and stay at 0.
        clip_quantile: Entropies are clipped to this quantile and its opposite first (0.01: to 1 % and 99 %).
        shuffle: A control: the entropies of this process's steps change places.
        generator: For ``shuffle``.
        scope: Least, greatest and means of this batch, or over all ranks (``"global"``).

    Raises:
        ValueError: A missing field, an option out of range.

    Reference: 2025, arXiv:2509.09265 (deviations: see the module).

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 3), mask=torch.ones(1, 3, dtype=torch.bool),
    ...                    advantages=torch.ones(1), entropy=torch.tensor([[0.0, 0.0, 1.0]]),
    ...                    turn=torch.tensor([[0, 0, 1]]))
    >>> empg_steps(batch, zeta=0.0, center=False).final[:2]  # 1 and exp(-1), over their mean
    tensor([1.4621, 0.5379])
    """
    batch.require("empg", "sampling_entropy", "turn", "advantages")
    check_choice("scope", scope, SCOPES)
    for name, value in (("k", k), ("k_f", k_f), ("zeta", zeta), ("eps", eps)):
        check_range(name, value, 0.0)
    check_range("clip_quantile", clip_quantile, 0.0, 0.5, high_open=True)
    assert batch.advantages is not None
    shared = scope == "global"

    def mean(x: Tensor, over: Tensor) -> Tensor:
        sums = torch.stack((torch.where(over, x, 0.0).sum(), over.sum().to(x.dtype)))
        total, count = summed(sums, scope)
        return total / count.clamp(min=1)

    turns = turns_of(batch)
    used, segment = turns.used, turns.segment
    entropy = segment_mean(batch.sampling_entropy, segment)
    advantage = segment_mean(batch.advantages.detach(), segment)
    judged = entropy
    if shuffle:
        noise = torch.rand(used.shape, device=used.device, generator=generator)
        judged = entropy[torch.where(used, noise, torch.inf).argsort()]  # steps fill the first slots, and keep to them
    least, greatest = _range(judged, used, clip_quantile, shared)
    judged = judged.clamp(least, greatest)
    # Means of equal entropies differ by rounding, which eps does not hide in float32.
    differ = used & (greatest - least > 16 * torch.finfo(judged.dtype).eps * greatest.abs())
    normalized = torch.where(differ, (judged - least) / (greatest - least + eps), 0.0)
    scale = (-k * normalized).exp()
    scale = torch.where(used, scale / (mean(scale, used) + eps), 0.0)
    confidence = torch.where(used, (-k_f * normalized).exp(), 0.0)
    voters = used if bonus_on_zero_adv else used & (advantage != 0)
    # Steps are in order, so that the next slot is the next step, if it belongs to the same trajectory.
    follows = voters[:-1] & (turns.owner[1:] == turns.owner[:-1])
    bonus = torch.nn.functional.pad(torch.where(follows, zeta * confidence[1:], 0.0), (0, 1))
    modulated = advantage * scale + bonus
    final = modulated - mean(modulated, voters) if center else modulated
    return EMPGSteps(segment, used, entropy, normalized, scale, confidence, modulated, torch.where(voters, final, 0.0))


def _range(entropy: Tensor, used: Tensor, quantile: float, shared: bool) -> tuple[Tensor, Tensor]:
    """Least and greatest entropy, or two opposite quantiles; 0 and 0 where there is no step."""
    if quantile > 0:
        if shared:
            entropy, used = distributed.gather_cat(entropy), distributed.gather_cat(used)
        pair = torch.stack([masked_quantile(entropy, used, q) for q in (quantile, 1 - quantile)])
    else:
        pair = torch.stack([torch.where(used, sign * entropy, -torch.inf).max() for sign in (-1, 1)])
        pair = distributed.all_reduce_max(pair) if shared else pair
        pair = torch.stack((-pair[0], pair[1]))
    least, greatest = torch.where(pair.isfinite(), pair, 0.0)
    return least, greatest


@register("empg", "advantage", requires=("rewards", "group", "sampling_entropy", "turn"))
def empg_advantage(
    batch: TokenBatch,
    *,
    k: float = 1.0,
    k_f: float = 1.0,
    zeta: float = 0.05,
    eps: float = 1e-8,
    center: bool = True,
    bonus_on_zero_adv: bool = True,
    clip_quantile: float = 0.0,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    scope: str = "local",
    scale: str = "group",
    group_eps: float = 1e-6,
    singleton: str = "raw",
) -> Tensor:
    r"""EMPG: group-relative advantages, more for confident steps, and a bonus for leading to one.

    The reward of a trajectory is normalized within its group, every trajectory having one vote, and modulated as
    :func:`empg_steps` says. The steps of a trajectory must not be spread over processes.

    Args:
        batch: Reads ``rewards`` (every row of a trajectory carries its outcome), ``group``, ``turn``, ``old_entropy``
            (else ``entropy``), and ``trajectory`` where rows are turns.
        k: See :func:`empg_steps`, like the next nine.
        k_f: Strength of the bonus's fall.
        zeta: Weight of the bonus.
        eps: Added to denominators.
        center: Subtract the mean.
        bonus_on_zero_adv: Whether groups of equal rewards get the bonus.
        clip_quantile: Clip outlying entropies.
        shuffle: Control with shuffled steps.
        generator: For it.
        scope: Local or global.
        scale: ``"group"`` divides by the group's standard deviation, ``"none"`` does not.
        group_eps: Added to that deviation.
        singleton: See :func:`group_advantages`.

    Returns:
        Advantages ``(B, T)``, 0 outside steps.

    Raises:
        ValueError: A missing field, an option out of range.

    Reference: 2025, arXiv:2509.09265 (deviations: see the module).

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool),
    ...                    rewards=torch.tensor([1.0, 0.0]), group=torch.tensor([0, 0]),
    ...                    entropy=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), turn=torch.tensor([[0, 1], [0, 1]]))
    >>> empg_advantage(batch, zeta=0.0)  # the confident step takes more of the credit, and of the blame
    tensor([[ 1.0339,  0.3803],
            [-0.3803, -1.0339]])
    """
    batch.require("empg", "rewards", "group", "sampling_entropy", "turn")
    check_choice("scale", scale, ("group", "none"))
    check_range("group_eps", group_eps, 0.0)
    values = _trajectory_advantages(batch, scale=scale, eps=group_eps, singleton=singleton)
    steps = empg_steps(
        batch.replace(advantages=values),
        k=k,
        k_f=k_f,
        zeta=zeta,
        eps=eps,
        center=center,
        bonus_on_zero_adv=bonus_on_zero_adv,
        clip_quantile=clip_quantile,
        shuffle=shuffle,
        generator=generator,
        scope=scope,
    )
    return segment_spread(steps.final, steps.segment)


def _trajectory_advantages(batch: TokenBatch, **options: Any) -> Tensor:
    """Group-relative advantage of each row's trajectory, ``(B,)``."""
    assert batch.rewards is not None
    assert batch.group is not None
    if batch.trajectory is None:
        return group_advantages(batch.rewards, batch.group, **options)
    trajectory = segment_ids(batch.trajectory)
    rewards = segment_mean(batch.rewards, trajectory)
    # One slot per trajectory; those that stay empty are a group of their own.
    group = torch.full_like(trajectory, -1).scatter(0, trajectory, group_index(batch.group))
    return group_advantages(rewards, group, **options)[trajectory]


class EMPG(Part, name="empg"):
    """Module of :func:`empg_advantage`. Warns (:class:`UserWarning`) where the batch is a single step.

    Centering leaves nothing of a single step: there is no learning signal unless ``center=False``.
    """

    def observe(self, batch: TokenBatch) -> None:
        """Look for a batch of a single step."""
        if self.settings["center"] and int(summed(turns_of(batch).used.sum(), self.settings["scope"])) == 1:
            warnings.warn(
                "empg: the batch is a single step, whose centered advantage is 0; use larger batches or center=False",
                stacklevel=2,
            )


def expected_score_norm(logits: Tensor) -> Tensor:
    r"""Mean squared norm of a softmax policy's score, which grows with entropy; EMPG's reason to scale.

    .. math:: E_{a \sim p} \|\nabla_z \log p_a\|^2 = 1 - \sum_a p_a^2 = 1 - e^{-H_2}

    with the Renyi entropy :math:`H_2` of order 2 in nats.

    Args:
        logits: Shape ``(..., V)``.

    Returns:
        Shape ``(...)``, in ``[0, 1 - 1/V]``, exact near 0 too.

    Reference: 2025, arXiv:2509.09265.

    >>> expected_score_norm(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
    tensor([5.0000e-01, 3.8575e-22])
    """
    log_p = log_softmax(logits)
    p, top = log_p.exp(), log_p.argmax(-1, keepdim=True)
    # 1 - p is lost to rounding where p is near 1; the sum of the other probabilities is not.
    others = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True).exp()
    return (p * (1 - p).scatter(-1, top, others)).sum(-1)

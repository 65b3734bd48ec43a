"""Group-relative advantages: how good a completion is, compared with the others of its prompt.

GRPO divides by the group's standard deviation, Dr. GRPO does not; both give every token of a completion the
same number. Rewards and advantages are constants: no gradient flows through them.

References:
    Z. Shao et al., "DeepSeekMath", 2024, arXiv:2402.03300 (GRPO).
    Z. Liu et al., "Understanding R1-Zero-Like Training", 2025, arXiv:2503.20783 (Dr. GRPO).
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import segment_ids
from infotorch.losses._groups import Groups
from infotorch.losses.batch import TokenBatch, widen
from infotorch.losses.registry import Part, register

SCALES = ("group", "batch", "none")


def group_index(group: Tensor) -> Tensor:
    """Renumber arbitrary ids to ``0, 1, ...`` with fixed shapes (``unique`` would not compile).

    >>> group_index(torch.tensor([7, -3, 7]))
    tensor([1, 0, 1])
    """
    return segment_ids(group)


def uniform_groups(rewards: Tensor, group: Tensor) -> Tensor:
    """Boolean ``(B,)``: whether all completions of this row's prompt got the same reward.

    Such groups carry no learning signal; DAPO's dynamic sampling drops them and draws others.

    Reference: Q. Yu et al., "DAPO", 2025, arXiv:2503.14476.

    >>> uniform_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    tensor([ True,  True, False, False])
    """
    return Groups(group).uniform(rewards)


def group_advantages(
    rewards: Tensor,
    group: Tensor,
    *,
    scale: str = "group",
    eps: float = 1e-6,
    singleton: str = "raw",
    across_ranks: bool = False,
) -> Tensor:
    r"""Group-normalized rewards, :math:`A_i = (R_i - \bar R_g) / (\sigma_g + \epsilon)`.

    Args:
        rewards: Shape ``(B,)``.
        group: Integer prompt ids, shape ``(B,)``; the rows of a group need not be neighbors.
        scale: ``"group"`` divides by the group's standard deviation (with Bessel's correction), ``"batch"`` by
            that of all rewards, ``"none"`` not at all.
        eps: Added to the standard deviation (verl 1e-6, TRL 1e-4).
        singleton: A group of one has no spread: ``"raw"`` keeps mean 0 and deviation 1, so ``A = R / (1 +
            eps)`` as verl does; ``"zero"`` gives 0.
        across_ranks: Take the deviation of ``scale="batch"`` over all data-parallel ranks.

    Returns:
        Shape ``(B,)``.

    Raises:
        ValueError: Unknown ``scale`` or ``singleton``.

    Deviations:
        Equal rewards give exactly 0 (rounding of their mean, divided by ``eps``, can reach 1e-2 elsewhere).

    Reference: Z. Shao et al., 2024, arXiv:2402.03300; without division Z. Liu et al., 2025, arXiv:2503.20783.

    >>> group_advantages(torch.tensor([0.0, 1.0]), torch.tensor([5, 5]), eps=0.0)
    tensor([-0.7071,  0.7071])
    """
    check_choice("scale", scale, SCALES)
    check_choice("singleton", singleton, ("raw", "zero"))
    check_range("eps", eps, 0.0)
    rewards = widen(rewards.detach())
    groups = Groups(group)
    alone = groups.size == 1
    centered = rewards - torch.where(alone, 0.0, groups.mean(rewards))
    if scale == "group":
        centered = centered / (torch.where(alone, 1.0, groups.std(rewards)) + eps)
    elif scale == "batch":
        pool = distributed.gather_cat(rewards) if across_ranks else rewards
        std = pool.std() if pool.numel() > 1 else torch.ones_like(pool[0])
        centered = centered / (std + eps)
    # A group of equal rewards is exactly 0, not its rounding error divided by eps, nor 0/0 without one.
    nothing = groups.uniform(rewards) & (True if singleton == "zero" else ~alone)
    return torch.where(nothing, 0.0, centered)


def _spread(batch: TokenBatch, advantages: Tensor) -> Tensor:
    return advantages.unsqueeze(1).expand_as(batch.mask) * batch.mask


@register("grpo", "advantage", requires=("rewards", "group"))
def grpo_advantage(
    batch: TokenBatch,
    *,
    scale: str = "group",
    eps: float = 1e-6,
    singleton: str = "raw",
    across_ranks: bool = False,
) -> Tensor:
    """GRPO: reward minus the prompt's mean, over the prompt's standard deviation, on every token.

    Options are those of :func:`group_advantages`. Reads ``rewards`` and ``group``.

    Raises:
        ValueError: ``rewards`` or ``group`` is missing, an option out of range.

    Reference: Z. Shao et al., 2024, arXiv:2402.03300.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool),
    ...                    rewards=torch.tensor([0.0, 1.0]), group=torch.tensor([0, 0]))
    >>> grpo_advantage(batch, scale="none")
    tensor([[-0.5000, -0.5000],
            [ 0.5000,  0.5000]])
    """
    batch.require("grpo", "rewards", "group")
    assert batch.rewards is not None
    assert batch.group is not None
    values = group_advantages(
        batch.rewards, batch.group, scale=scale, eps=eps, singleton=singleton, across_ranks=across_ranks
    )
    return _spread(batch, values)


@register("dr_grpo", "advantage", requires=("rewards", "group"))
def dr_grpo_advantage(batch: TokenBatch, *, singleton: str = "raw") -> Tensor:
    """Dr. GRPO: reward minus the prompt's mean, undivided, on every token.

    Dividing by the standard deviation favors prompts that are nearly always right or nearly always wrong.

    Raises:
        ValueError: ``rewards`` or ``group`` is missing, unknown ``singleton``.

    Reference: Z. Liu et al., 2025, arXiv:2503.20783.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 1), mask=torch.ones(2, 1, dtype=torch.bool),
    ...                    rewards=torch.tensor([0.0, 1.0]), group=torch.tensor([0, 0]))
    >>> dr_grpo_advantage(batch).squeeze(1)
    tensor([-0.5000,  0.5000])
    """
    batch.require("dr_grpo", "rewards", "group")
    assert batch.rewards is not None
    assert batch.group is not None
    return _spread(batch, group_advantages(batch.rewards, batch.group, scale="none", singleton=singleton))


class GRPO(Part, name="grpo"):
    """Module of :func:`grpo_advantage`."""


class DrGRPO(Part, name="dr_grpo"):
    """Module of :func:`dr_grpo_advantage`."""

r"""A reward for calling tools that fades as training goes on: the curriculum of SPEAR.

An agent that never calls its tools never finds out that they help. A small reward for every turn that calls one, for
right and wrong answers alike, teaches the form; with a constant weight it would teach calling tools for their own sake.

When to use: agents with tools and rare success. The controls are no such reward and a constant one.

Reference:
    "Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement
    Learning", 2025, arXiv:2509.22601.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.losses._schedule import as_steps, cosine_fade
from infotorch.losses.batch import TokenBatch
from infotorch.losses.registry import ScheduledPart, register

SCHEDULES = ("none", "constant", "cosine")


def tool_value(turns: Tensor, *, per_turn: float = 0.1, cap: float = 1.0) -> Tensor:
    r"""Reward for the number of turns with a tool call, :math:`\min(c, 0.1\, n)`.

    Args:
        turns: Numbers of turns.
        per_turn: Reward for each.
        cap: Greatest reward :math:`c`.

    >>> tool_value(torch.tensor([0, 3, 20]))
    tensor([0.0000, 0.3000, 1.0000])
    """
    return (per_turn * turns).clamp(max=cap)


def tool_weight(step: float | Tensor, *, schedule: str = "cosine", decay: int = 200) -> Tensor:
    r"""Weight of the tool reward: 0, 1, or :math:`(1 + \cos(\pi k / T)) / 2` up to :math:`k = T`, then 0.

    Args:
        step: Step :math:`k`, counted from 0.
        schedule: ``"none"``, ``"constant"`` or ``"cosine"``.
        decay: :math:`T`.

    Raises:
        ValueError: Unknown schedule, ``decay < 1``.

    >>> tool_weight(torch.tensor([0.0, 100.0, 300.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_range("decay", decay, 1)
    k = as_steps(step)
    if schedule != "cosine":
        return torch.full_like(k, float(schedule == "constant"))
    return cosine_fade(k, decay)


@register(
    "tool_reward",
    "reward",
    requires=("rewards", "extras.tool_turns"),
    neutral={"schedule": "none"},
    example={"step": 20},
)
def tool_reward(
    batch: TokenBatch,
    *,
    per_turn: float = 0.1,
    cap: float = 1.0,
    schedule: str = "cosine",
    decay: int = 200,
    step: float | Tensor = 0,
) -> Tensor:
    r"""A fading reward for turns with a tool call, :math:`R + \mu_k \min(c, 0.1\, n)`.

    Args:
        batch: Reads ``rewards`` and ``extras["tool_turns"]``, the number of such turns of each row's trajectory.
        per_turn: See :func:`tool_value`.
        cap: Greatest reward.
        schedule: See :func:`tool_weight`.
        decay: Step at which the weight has become 0.
        step: The present one; :class:`ToolReward` counts.

    Returns:
        Rewards ``(B,)``.

    Raises:
        ValueError: A missing field, an option out of range.

    Reference: 2025, arXiv:2509.22601 (SPEAR).

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 1), mask=torch.ones(2, 1, dtype=torch.bool),
    ...                    rewards=torch.tensor([1.0, 0.0]), extras={"tool_turns": torch.tensor([0, 4])})
    >>> tool_reward(batch)
    tensor([1.0000, 0.4000])
    """
    batch.require("tool_reward", "rewards", "extras.tool_turns")
    check_range("per_turn", per_turn, 0.0)
    check_range("cap", cap, 0.0)
    assert batch.rewards is not None
    weight = tool_weight(torch.as_tensor(step).to(batch.rewards), schedule=schedule, decay=decay)
    value = tool_value(batch.extras["tool_turns"].to(batch.rewards), per_turn=per_turn, cap=cap)
    return batch.rewards + weight * value


class ToolReward(ScheduledPart, name="tool_reward"):
    """Module of :func:`tool_reward`; counts the steps."""

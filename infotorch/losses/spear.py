r"""SPEAR: an agent imitates its own best trajectories, once it has learned to use its tools.

Four pieces that can be used apart: a fading reward for tool calls (:func:`infotorch.losses.tool_reward`),
group-relative advantages on the groups that teach most (:func:`dr_bot_advantage`), a buffer of good trajectories whose
advantages are judged again when they are repeated (:class:`ReplayBuffer`), and Clip-Cov
(:func:`infotorch.losses.clip_cov`) in the loss of this step and in that of the repeated rows (:func:`self_imitation`).

When to use: agents with tools whose success is rare. The recipe ``"spear"`` is advantages, Clip-Cov and replay; add
``rewards=["tool_reward"]`` where the batches count tool calls. A trainer must support :meth:`Recipe.replay`.

Reference:
    "Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement
    Learning", 2025, arXiv:2509.22601.

Written from a description of the method, not from its code. Deviations from what is known of that code:
    - Rows that are repeated are trained on together with those of the step (``combine="sum"``, the paper's objective);
      there in optimizer steps of their own (``"alternate"``), where Adam divides most of the loss's weight out.
    - Clip-Cov's window and fraction are the paper's; the options of the code that should set them are read nowhere.
    - Losses are divided by rows and length; there by a fixed length alone.
    - At least one group is kept. The share of rows is the same for any number of processes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core.reduce import masked_mean
from infotorch.losses._groups import Groups
from infotorch.losses._schedule import as_steps, cosine_fade
from infotorch.losses._select import Pool, fraction, lowest
from infotorch.losses.advantages import group_advantages
from infotorch.losses.batch import REPLAY, LossOutput, Replay, TokenBatch
from infotorch.losses.cov_entropy import clip_cov
from infotorch.losses.ppo import AggregationLike, ppo
from infotorch.losses.registry import Part, ScheduledPart, register, register_recipe
from infotorch.losses.replay_buffer import ReplayBuffer


def informative_groups(rewards: Tensor, group: Tensor, *, ratio: float = 0.75, scope: str = "local") -> Tensor:
    r"""Boolean ``(B,)``: the :math:`\max(1, \lfloor \rho G \rfloor)` of the G groups whose rewards differ most.

    Args:
        rewards: Shape ``(B,)``.
        group: Integer ids, ``(B,)``.
        ratio: Fraction :math:`\rho`.
        scope: Among this batch's groups, or those of all ranks (``"global"``).

    Raises:
        ValueError: ``ratio`` outside ``[0, 1]``, unknown scope.

    >>> informative_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]), ratio=0.5)
    tensor([False, False,  True,  True])
    """
    check_range("ratio", ratio, 0.0, 1.0)
    groups = Groups(group)
    pool = Pool(groups.first(), scope)  # one row stands for each group
    chosen = lowest(-pool.flat(groups.std(rewards)), pool.mask, fraction(pool.mask.sum(), ratio))
    return groups.any(pool.own(chosen))


@register("dr_bot", "advantage", requires=("rewards", "group"))
def dr_bot_advantage(
    batch: TokenBatch,
    *,
    keep: float = 0.75,
    scale: str = "none",
    eps: float = 1e-6,
    singleton: str = "raw",
    scope: str = "local",
) -> Tensor:
    """SPEAR's advantages: reward minus group mean on the groups whose rewards differ most, 0 on the others.

    Args:
        batch: Reads ``rewards`` and ``group``.
        keep: Fraction of the groups, see :func:`informative_groups`.
        scale: ``"none"``, or ``"group"`` to divide by the group's standard deviation.
        eps: Added to that deviation.
        singleton: See :func:`group_advantages`.
        scope: Whether groups are chosen from this batch or from all ranks (``"global"``).

    Returns:
        Advantages ``(B, T)``.

    Raises:
        ValueError: A missing field, an option out of range.

    Reference: 2025, arXiv:2509.22601 (there "Dr.BoT").

    >>> batch = TokenBatch(log_probs=torch.zeros(4, 1), mask=torch.ones(4, 1, dtype=torch.bool),
    ...                    rewards=torch.tensor([1.0, 0.0, 0.5, 0.5]), group=torch.tensor([0, 0, 1, 1]))
    >>> dr_bot_advantage(batch).squeeze(1)
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    batch.require("dr_bot", "rewards", "group")
    check_choice("scale", scale, ("none", "group"))
    check_range("keep", keep, 0.0, 1.0)
    assert batch.rewards is not None
    assert batch.group is not None
    values = group_advantages(batch.rewards, batch.group, scale=scale, eps=eps, singleton=singleton)
    kept = informative_groups(batch.rewards, batch.group, ratio=keep, scope=scope)
    return torch.where(kept, values, 0.0).unsqueeze(1) * batch.mask


class DrBoT(Part, name="dr_bot"):
    """Module of :func:`dr_bot_advantage`."""


def screened_mask(
    mask: Tensor,
    *,
    overlong: Tensor | None = None,
    unfinished: Tensor | None = None,
    repetitive: Tensor | None = None,
    unreadable: Tensor | None = None,
    tool_turns: Tensor | None = None,
) -> Tensor:
    """Empty the mask of responses that should teach nothing; an unfinished one that called a tool stays, as a failure.

    Args:
        mask: Boolean, ``(B, T)``.
        overlong: Boolean, ``(B,)``, like the next three: which responses are.
        unfinished: Without a final answer.
        repetitive: Repeating themselves.
        unreadable: Of broken form.
        tool_turns: Number of turns with a tool call, ``(B,)``.

    Raises:
        TypeError: A flag that is not boolean.
        ValueError: A flag of another shape.

    >>> mask = torch.ones(2, 2, dtype=torch.bool)
    >>> screened_mask(mask, unfinished=torch.tensor([True, True]), tool_turns=torch.tensor([0, 2]))
    tensor([[False, False],
            [ True,  True]])
    """
    rows = mask.shape[:1]
    dropped = torch.zeros_like(mask[:, 0])
    flags = {"overlong": overlong, "unfinished": unfinished, "repetitive": repetitive, "unreadable": unreadable}
    for name, flag in flags.items():
        if flag is None:
            continue
        flag = check_bool_mask(name, flag, rows)
        dropped = dropped | (flag & (tool_turns == 0) if name == "unfinished" and tool_turns is not None else flag)
    return mask & ~dropped.unsqueeze(1)


def replay_weight(step: float | Tensor, *, coef: float = 1.0, warmup: int = 200) -> Tensor:
    r"""Weight of the imitation loss: :math:`c\,(1 - \cos(\pi k / T)) / 2` up to :math:`k = T`, then :math:`c`.

    Args:
        step: Step :math:`k`, counted from 0.
        coef: :math:`c`.
        warmup: :math:`T`; 0 for none.

    Raises:
        ValueError: Negative ``coef`` or ``warmup``.

    >>> replay_weight(torch.tensor([0.0, 100.0, 300.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    check_range("coef", coef, 0.0)
    check_range("warmup", warmup, 0)
    k = as_steps(step)
    if warmup == 0:
        return torch.full_like(k, coef)
    return coef * (1 - cosine_fade(k, warmup))


@register(
    "self_imitation",
    "regularizer",
    requires=("advantages",),
    source=REPLAY,
    neutral={"coef": 0.0},
    example={"step": 150, "ratio": 1.0, "lower": 0.1},
)
def self_imitation(
    batch: TokenBatch,
    *,
    coef: float = 1.0,
    warmup: int = 200,
    step: float | Tensor = 0,
    covariance_clip: bool = True,
    ratio: float = 0.02,
    lower: float = 1.0,
    upper: float = 40.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    log_ratio_bound: float | None = 20.0,
    combine: str = "sum",
    buffer: Mapping[str, Any] | None = None,
    scope: str = "local",
    generator: torch.Generator | None = None,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    r"""SPEAR's imitation of good earlier trajectories: the clipped loss on repeated rows, with a weight that rises.

    :math:`\gamma_k L(\pi, \pi_{old}, \tilde A)` with :func:`replay_weight` :math:`\gamma_k`, the policy
    :math:`\pi_{old}` that produced the rows, and their advantages as :class:`ReplayBuffer` judges them again.
    :class:`SelfImitation` holds that buffer; in a recipe the function sees the repeated rows only.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``advantages``.
        coef: Weight after the warm-up.
        warmup: Steps over which it rises.
        step: The present one; :class:`SelfImitation` counts.
        covariance_clip: Use Clip-Cov; otherwise plain PPO with dual clip 10.
        ratio: Fraction of the tokens that Clip-Cov silences.
        lower: Least covariance of such a token.
        upper: Greatest (agents: 2 and 60).
        clip_low: Width of the ratio's clip below 1.
        clip_high: Width above 1.
        log_ratio_bound: Log-ratios of stale rows are clamped to this size.
        combine: ``"sum"``: trained on together with the rows of the step; ``"alternate"``: in optimizer steps of their
            own after these.
        buffer: Options of :class:`ReplayBuffer`.
        scope: Clip-Cov's means and choice: this batch, or all ranks (``"global"``).
        generator: Source of its draw.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics ``replay_weight``, ``replay_rows``, ``replay_silenced`` (share of tokens), and
        ``replay_kl``, the mean of :math:`\log \pi_{old} - \log \pi`.

    Raises:
        ValueError: Missing advantages, an option out of range.

    Reference: 2025, arXiv:2509.22601 (deviations: see the module).

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    advantages=torch.ones(1))
    >>> self_imitation(batch, step=100).loss  # half way through the warm-up
    tensor(-0.5000)
    """
    batch.require("self_imitation", "advantages")
    check_choice("combine", combine, ("sum", "alternate"))
    weight = replay_weight(torch.as_tensor(step).to(batch.log_probs.detach()), coef=coef, warmup=warmup)
    clip = {"clip_low": clip_low, "clip_high": clip_high, "log_ratio_bound": log_ratio_bound}
    rows = batch.replace(rollout_weights=None)
    if covariance_clip:
        choice = {"ratio": ratio, "lower": lower, "upper": upper, "scope": scope, "generator": generator}
        out = clip_cov(rows, **clip, **choice, aggregation=aggregation)
    else:
        out = ppo(rows, **clip, dual_clip=10.0, aggregation=aggregation)
    metrics = {
        "replay_weight": weight.detach(),
        "replay_rows": batch.mask.any(1).sum().to(weight.dtype),
        "replay_silenced": out.metrics.get("selected_fraction", torch.zeros_like(weight)),
        "replay_kl": masked_mean(-batch.log_ratio, batch.mask).detach(),
    }
    return LossOutput(weight * out.loss, weight * out.per_token, metrics)


class SelfImitation(ScheduledPart, name="self_imitation"):
    """Module of :func:`self_imitation`; its ``buffer`` is in ``state_dict``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        defaults = self.settings
        self.combine = check_choice("combine", defaults["combine"], ("sum", "alternate"))
        of_buffer = defaults["buffer"] or {}
        for name in of_buffer:
            check_choice("buffer", name, list(inspect.signature(ReplayBuffer).parameters))
        self.buffer = ReplayBuffer(**of_buffer)
        self.coef, self.warmup = defaults["coef"], defaults["warmup"]

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Apply the function at the present step; metrics tell how many rows the buffer held and found good again."""
        out: LossOutput = super().forward(batch)
        for name in ("stored", "kept"):
            out.metrics[f"replay_{name}"] = out.loss.new_tensor(self.buffer.latest.get(name, 0.0))
        return out

    @property
    def replays_apart(self) -> bool:
        """Whether repeated rows get optimizer steps of their own."""
        return self.combine == "alternate"

    def replay(self, batch: TokenBatch, payload: Mapping[str, Sequence[Tensor]]) -> Replay | None:
        """Store the good rows of this step, and hand some back if there are enough.

        Nothing is repeated while its weight is 0: an optimizer step with no gradient would still move by momentum.
        """
        step = int(self.step)
        self.buffer.store(batch, payload, step)
        if float(replay_weight(self.step, coef=self.coef, warmup=self.warmup)) == 0:
            return None
        found = self.buffer.draw(step, batch.mask.device)
        return None if found is None else dataclasses.replace(found, separate=self.replays_apart)


register_recipe(
    "spear",
    advantage="dr_bot",
    policy={"name": "clip_cov", "ratio": 0.02, "lower": 1.0, "upper": 40.0, "clip_low": 0.2, "clip_high": 0.28},
    regularizers=["self_imitation"],
    aggregation="batch-mean-token-sum-norm",
)

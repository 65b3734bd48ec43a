r"""PEAR: among correct answers, more reward to those whose thinking was less uncertain.

A reasoning model's chain of thought is longest where its tokens are uncertain. PEAR takes the mean entropy of the
thinking part, less that of the answer, off the reward of a correct answer, so that length falls without a target.

When to use: a model that thinks too long, with a token that closes the thinking part. Watch the entropy of the answers:
a policy can gain by raising it, since it offsets the penalty.

Reference:
    "PEAR: Phase Entropy Aware Reward for Efficient Reasoning", 2025, arXiv:2510.08026.

The authors' code was not available; the formulas are the paper's. Where they leave a choice:
    - Without a closing token the whole response is thinking (``paper_k=True``: all but its last token).
    - A correct answer may score below a wrong one; ``floor`` bounds it from below, and :class:`PEAR` warns.
    - The recipe gives a group of one completion advantage 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_range
from infotorch.core.reduce import masked_mean
from infotorch.losses.batch import TokenBatch, widen
from infotorch.losses.registry import Part, register, register_recipe


def closing_span(tokens: Tensor, mask: Tensor, think_end: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """First and one past the last position of the first closing mark; ``T`` for both where there is none.

    Args:
        tokens: Ids, shape ``(B, T)``.
        mask: Valid tokens, boolean, ``(B, T)``; the mark must lie within it.
        think_end: Id of the closing token, or the ids of a mark of several tokens.

    Returns:
        Two integer tensors ``(B,)``.

    Raises:
        ValueError: An empty mark.

    >>> closing_span(torch.tensor([[5, 9, 2, 9]]), torch.ones(1, 4, dtype=torch.bool), 9)
    (tensor([1]), tensor([2]))
    """
    mark = [think_end] if isinstance(think_end, int) else list(think_end)
    if not mark:
        raise ValueError("think_end: expected at least one token id, got none")
    length = tokens.shape[1]
    width = length - len(mark) + 1
    if width < 1:
        none = torch.full_like(tokens[:, 0], length)
        return none, none
    hit = torch.stack([(tokens[:, i : i + width] == t) & mask[:, i : i + width] for i, t in enumerate(mark)]).all(0)
    found = hit.any(1)
    start = torch.where(found, hit.to(torch.uint8).argmax(1), length)
    return start, torch.where(found, start + len(mark), length)


def phase_entropies(entropy: Tensor, mask: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Mean entropies of the tokens before a position and of those from another on, nats, ``(B,)`` each.

    Args:
        entropy: Token entropies, ``(B, T)``.
        mask: Valid tokens, boolean, ``(B, T)``.
        start: Where thinking ends (exclusive), ``(B,)``.
        stop: Where the answer begins, ``(B,)``.

    Returns:
        Entropies of thinking and of the answer; 0 for an empty phase.

    >>> h, mask = torch.tensor([[1.0, 3.0, 9.0, 0.5]]), torch.ones(1, 4, dtype=torch.bool)
    >>> phase_entropies(h, mask, torch.tensor([2]), torch.tensor([3]))
    (tensor([2.]), tensor([0.5000]))
    """
    check_bool_mask("mask", mask, entropy.shape)
    at = torch.arange(mask.shape[1], device=mask.device)
    thinking, answer = mask & (at < start.unsqueeze(1)), mask & (at >= stop.unsqueeze(1))
    return masked_mean(entropy, thinking, dim=1), masked_mean(entropy, answer, dim=1)


@register("pear", "reward", requires=("rewards", "tokens", "sampling_entropy"), example={"think_end": 3})
def pear_reward(
    batch: TokenBatch,
    *,
    think_end: int | Sequence[int] | None = None,
    alpha: float = 1.0,
    score: float = 1.0,
    wrong: float = 0.0,
    correct_above: float = 0.5,
    floor: float | None = None,
    paper_k: bool = False,
) -> Tensor:
    r"""Rewards less the excess of thinking entropy over answer entropy.

    .. math:: R = \min(1,\; s - \max(0,\, \bar H_{think} - \alpha \bar H_{answer}))

    for a correct answer, and a constant for any other. Entropies are those of the sampling policy.

    Args:
        batch: Reads ``rewards``, ``tokens``, ``old_entropy`` (or ``entropy``) and the mask.
        think_end: Id of the token that closes the thinking part, or the ids of a mark of several tokens; the first
            one counts. None: everything is thinking.
        alpha: Weight of the answer's entropy. 0 judges thinking alone.
        score: Reward ``s`` of a correct answer without penalty, in ``(0, 1]``.
        wrong: Reward of any other response, in ``[0, 1)``.
        correct_above: Rewards above this count as correct.
        floor: Least reward of a correct answer, 1 at most, such as ``wrong``; None: none, as in the paper.
        paper_k: Where no token closes the thinking part, leave the last token out of it.

    Returns:
        Rewards, shape ``(B,)``.

    Raises:
        ValueError: A missing field, a number out of range.

    Reference: "PEAR", 2025, arXiv:2510.08026.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 3), mask=torch.ones(1, 3, dtype=torch.bool),
    ...                    rewards=torch.ones(1), tokens=torch.tensor([[5, 9, 6]]),
    ...                    entropy=torch.tensor([[0.5, 0.0, 0.2]]))
    >>> pear_reward(batch, think_end=9)  # 1 - (0.5 - 0.2)
    tensor([0.7000])
    """
    batch.require("pear", "rewards", "tokens", "sampling_entropy")
    check_range("score", score, 0.0, 1.0, low_open=True)
    check_range("wrong", wrong, 0.0, 1.0, high_open=True)
    check_range("alpha", alpha, -math.inf, math.inf, low_open=True, high_open=True)
    if floor is not None:
        check_range("floor", floor, high=1.0)
    assert batch.rewards is not None
    thinking, answer = _phases(batch, think_end, paper_k)
    reward = (score - (thinking - alpha * answer).clamp(min=0)).clamp(max=1)
    if floor is not None:
        reward = reward.clamp(min=floor)
    return torch.where(batch.rewards > correct_above, reward.to(batch.rewards.dtype), wrong)


def _phases(batch: TokenBatch, think_end: int | Sequence[int] | None, paper_k: bool) -> tuple[Tensor, Tensor]:
    assert batch.tokens is not None
    length = batch.mask.shape[1]
    if think_end is None:
        start = stop = torch.full_like(batch.tokens[:, 0], length)
    else:
        start, stop = closing_span(batch.tokens, batch.mask, think_end)
    if paper_k:
        at = torch.arange(length, device=batch.mask.device)
        last = torch.where(batch.mask, at, -1).amax(1)
        start = torch.where(start == length, last, start)
    return phase_entropies(widen(batch.sampling_entropy), batch.mask, start, stop)


class PEAR(Part, name="pear"):
    """Module of :func:`pear_reward`; it also reports what the formula hides.

    Metrics: ``pear_think_entropy``, ``pear_answer_entropy`` (watch this one), ``pear_no_mark`` (share of responses
    without a closing mark) and ``pear_below_wrong`` (share of the correct answers that score below a wrong one). The
    first time that this share is not 0, a warning says so.
    """

    _warned = False

    def forward(self, batch: TokenBatch) -> Tensor:
        """Rewards; the scalars are kept for the logs."""
        options = self.settings
        rewards = pear_reward(batch, **self.options)
        assert batch.rewards is not None
        assert batch.tokens is not None
        thinking, answer = _phases(batch, options["think_end"], options["paper_k"])
        correct = batch.rewards > options["correct_above"]
        below = (correct & (rewards < options["wrong"])).sum() / correct.sum().clamp(min=1)
        open_end = torch.ones_like(correct)
        if options["think_end"] is not None:
            open_end = closing_span(batch.tokens, batch.mask, options["think_end"])[0] == batch.mask.shape[1]
        self._metrics = {
            "pear_think_entropy": thinking.mean().detach(),
            "pear_answer_entropy": answer.mean().detach(),
            "pear_no_mark": open_end.to(rewards.dtype).mean(),
            "pear_below_wrong": below,
        }
        return rewards

    def observe(self, batch: TokenBatch) -> None:
        """Look for correct answers that score below a wrong one, until some do."""
        if not self._warned and bool(self.rollout_metrics().get("pear_below_wrong", 0.0) > 0):
            self._warned = True
            warnings.warn(
                "pear: some correct answers score below a wrong one, since nothing bounds the penalty; "
                "floor=<the constant of wrong answers> keeps them above",
                UserWarning,
                stacklevel=2,
            )

    def rollout_metrics(self) -> Mapping[str, Tensor]:
        """What the last rollout batch showed."""
        return getattr(self, "_metrics", {})


# A group of one completion teaches nothing.
register_recipe("pear", rewards=["pear"], advantage={"name": "grpo", "singleton": "zero"}, policy="ppo")

r"""An entropy target without extra samples: correct answers count more where a tempered policy prefers them.

Every token of a correct answer gets, besides its advantage, the ratio of its probability at temperature T to that at
temperature 1. Above 1 the temperature favors unlikely tokens, so entropy rises; the weight of the second part grows
with the distance to the target. The released code of arbitrary entropy policy optimization holds this option under the
name DCPO (it is not in the paper, and not the Dynamic Clipping Policy Optimization of arXiv:2509.02333).

When to use: as the cheap alternative to :mod:`infotorch.losses.arbitrary_entropy`; it costs one scoring pass.

Reference:
    Released code of C. Wang et al., "Arbitrary Entropy Policy Optimization", 2025, arXiv:2510.08141.

Deviations from that code:
    - Without a correct answer the weight is 0 (there: a division by zero).
    - The logarithm of the ratio is bounded by 20, so that a token that the policy thinks impossible stays finite.
    - The entropy is that of the present batch (there: an estimate from the last update).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_sum
from infotorch.losses._select import SCOPES, summed
from infotorch.losses.advantages import grpo_advantage
from infotorch.losses.batch import TokenBatch
from infotorch.losses.entropy_target import SCHEDULES, EntropyTargetController
from infotorch.losses.registry import AuxiliarySampling, Part, register


def tempered_weight(entropy: Tensor, target: float, correct: Tensor, *, max_gap: float = 0.1) -> Tensor:
    r"""Weight of the tempered part, :math:`\alpha = a / (1 + a)` with :math:`a = \min(|H^* - H|, g) / c`.

    Args:
        entropy: Present entropy :math:`H`, nats.
        target: :math:`H^*`.
        correct: Share :math:`c` of correct answers; 0 gives weight 0.
        max_gap: :math:`g`.

    Reference: released code of C. Wang et al., 2025, arXiv:2510.08141.

    >>> tempered_weight(torch.tensor(0.4), 0.5, torch.tensor(0.5))
    tensor(0.1667)
    """
    gap = (target - entropy).abs().clamp(max=max_gap)
    share = torch.where(correct > 0, gap / torch.where(correct > 0, correct, 1.0), 0.0)
    return share / (1 + share)


def blend_tempered(
    advantages: Tensor, old_log_probs: Tensor, tempered_log_probs: Tensor, correct: Tensor, weight: Tensor
) -> Tensor:
    r"""Advantages :math:`(1 - \alpha) A + \alpha\, 1[\text{correct}]\, \pi^T / \pi`, shape ``(B, T)``.

    Args:
        advantages: Shape ``(B, T)``.
        old_log_probs: Of the sampled tokens at the training temperature, ``(B, T)``.
        tempered_log_probs: The same at temperature T.
        correct: Boolean, shape ``(B,)``.
        weight: :math:`\alpha`.

    Reference: released code of C. Wang et al., 2025, arXiv:2510.08141.

    >>> blend_tempered(torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.5).log(), torch.tensor([True]),
    ...                torch.tensor(0.5))
    tensor([[0.2500]])
    """
    ratio = (tempered_log_probs - old_log_probs).clamp(max=20).exp()
    return (1 - weight) * advantages + weight * correct.unsqueeze(1) * ratio


@register(
    "tempered_advantage",
    "advantage",
    requires=("rewards", "group", "sampling_entropy", "extras.tempered_log_probs"),
    example={"threshold": 0.0},
)
def tempered_advantage(
    batch: TokenBatch,
    *,
    target: float = 0.5,
    max_gap: float = 0.1,
    threshold: float = 0.5,
    schedule: str = "two_level",
    temperature_low: float = 0.8,
    temperature_high: float = 1.2,
    scale: str = "group",
    eps: float = 1e-6,
    scope: str = "local",
) -> Tensor:
    r"""GRPO's advantage, blended with the tempered policy's preference among the tokens of correct answers.

    .. math:: (1 - \alpha) A + \alpha\, 1[R > \theta]\, \frac{\pi^T(o_t)}{\pi(o_t)}

    with :math:`\alpha` of :func:`tempered_weight` and the mean entropy of the batch.

    Args:
        batch: Reads ``rewards``, ``group``, ``old_log_probs``, ``old_entropy`` or else ``entropy``, and
            ``extras["tempered_log_probs"]``, the log-probabilities at temperature T, which trainers supply.
        target: Entropy to hold, nats per token.
        max_gap: Largest distance to it that counts.
        threshold: :math:`\theta`: an answer with a greater reward is correct.
        schedule: How T follows the entropy; see :func:`target_temperature`, like the next two.
        temperature_low: Lowest temperature.
        temperature_high: Highest.
        scale: See :func:`infotorch.losses.group_advantages`.
        eps: Likewise.
        scope: Entropy and share of correct answers over this process's rollout batch (``"local"``) or over all ranks.

    Returns:
        Shape ``(B, T)``.

    Raises:
        ValueError: A field is missing, an option out of range.

    Reference: released code of C. Wang et al., 2025, arXiv:2510.08141.

    >>> batch = TokenBatch(log_probs=torch.full((2, 1), -1.0), mask=torch.ones(2, 1, dtype=torch.bool),
    ...                    rewards=torch.tensor([1.0, 0.0]), group=torch.tensor([0, 0]), entropy=torch.ones(2, 1),
    ...                    extras={"tempered_log_probs": torch.full((2, 1), -0.8)})
    >>> tempered_advantage(batch, scale="none").squeeze(1)  # a = 0.1 / 0.5
    tensor([ 0.6202, -0.4167])
    """
    batch.require(
        "tempered_advantage", "rewards", "group", "sampling_entropy", "extras.tempered_log_probs", "old_log_probs"
    )
    check_range("target", target, 0.0)
    check_range("max_gap", max_gap, 0.0)
    check_range("threshold", threshold)
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    check_range("temperature_low", temperature_low, 0.0, 1.0, low_open=True)
    check_range("temperature_high", temperature_high, 1.0)
    assert batch.rewards is not None
    assert batch.old_log_probs is not None
    correct = batch.rewards > threshold
    entropy = batch.sampling_entropy
    filled = batch.mask.any(1)
    numbers = [masked_sum(entropy, batch.mask), batch.mask.sum(), (correct & filled).sum(), filled.sum()]
    sums = summed(torch.stack([x.to(entropy.dtype) for x in numbers]), scope)
    mean, share = sums[0] / sums[1].clamp(min=1), sums[2] / sums[3].clamp(min=1)
    blended = blend_tempered(
        grpo_advantage(batch, scale=scale, eps=eps, across_ranks=scope == "global"),
        batch.old_log_probs.detach(),
        batch.extras["tempered_log_probs"],
        correct,
        tempered_weight(mean, target, share, max_gap=max_gap),
    )
    return blended * batch.mask


class TemperedAdvantage(Part, name="tempered_advantage"):
    """Module of :func:`tempered_advantage`; it asks trainers for the log-probabilities at temperature T."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.controller = EntropyTargetController.of_part(self.settings, momentum=0.0)

    def auxiliary(self, batch: TokenBatch) -> AuxiliarySampling:
        """The temperature at which to score the ordinary responses once more."""
        self.controller.observe(batch)
        return AuxiliarySampling(self.controller.temperature(), rescore=True)

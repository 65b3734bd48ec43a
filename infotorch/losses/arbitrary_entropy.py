r"""Arbitrary entropy policy optimization (AEPO, later SCOPE-RL): correct answers of another temperature as positives.

Besides the ordinary responses a few are sampled at a temperature above 1 where entropy is below its target, and below 1
where it is above. The correct ones among them are imitated under the policy at temperature 1. Imitating pi^T moves the
policy towards it (:mod:`infotorch.losses.entropy_target`), and since only correct answers are imitated, entropy is paid
with no reward, unlike with a bonus.

When to use: to hold entropy near a number of your choice without a bonus. It costs the extra samples. The pull is weak
on states that are sharp already, since a temperature of 1.2 hardly changes them.

Not to be confused with agentic entropy-balanced policy optimization, which is also called AEPO.

Reference:
    C. Wang et al., "Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning", 2025,
    arXiv:2510.08141 (later versions: "SCOPE-RL").

Two algorithms go by this name. ``variant="paper"`` (later versions) adds a term of weight ``alpha``.
``variant="repo"`` (the authors' code) lets the auxiliary answers take the place of ordinary ones in the update, with
advantage 1; the recipe ``arbitrary_entropy_repo`` has all of the code's settings. Its ratio is clipped in log space,
which gives the values of the plain clip.

Deviations:
    - The entropy is that of the tokens' distributions, averaged over rollout batches, and of the present batch (code:
      minus the mean log-probability of the last update's tokens, tempered ones among them, and 0 before the first).
      ``estimate="sampled"``, ``momentum=0`` come close.
    - Without a positive auxiliary answer the term is 0 (code: an error).
    - The prompts that are sampled again are spread over the batch (code: its first quarter).
    - With several processes, ``"repo"`` replaces rows in each process (code: in one place for all).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean
from infotorch.losses._select import fraction as whole_number
from infotorch.losses.advantages import group_advantages
from infotorch.losses.batch import AUXILIARY, ON_POLICY, LossOutput, TokenBatch
from infotorch.losses.entropy_target import ESTIMATES, SCHEDULES, EntropyTargetController
from infotorch.losses.ppo import AggregationLike, aggregate_loss, check_clip, importance_ratio
from infotorch.losses.registry import AuxiliarySampling, Part, register, register_recipe

VARIANTS = ("paper", "repo")
# 60 answers in the place of 60 of 512 prompts x 5.
_REPLACED = 60 / 2560


def first_positives(advantages: Tensor, count: int, *, margin: float = 0.05, halve: bool = False) -> Tensor:
    """The auxiliary answers that the authors' code takes: the first ``count`` whose advantage exceeds a margin.

    Args:
        advantages: One per answer, within the auxiliary groups, shape ``(n,)``.
        count: Most answers taken.
        margin: A group in which all are correct has advantages 0 and gives none.
        halve: Take half of them, rounded down (the code does so above the target).

    Returns:
        Boolean, shape ``(n,)``.

    Reference: released code of C. Wang et al., 2025, arXiv:2510.08141.

    >>> first_positives(torch.tensor([1.0, -1.0, 0.5, 0.7]), count=2)
    tensor([ True, False,  True, False])
    """
    positive = advantages > margin
    taken = positive.sum().clamp(max=count)
    return positive & (positive.cumsum(0) <= (taken // 2 if halve else taken))


def mix_batches(batch: TokenBatch, selected: Tensor) -> TokenBatch:
    """The authors' update batch: the selected auxiliary rows take the place of as many of the first ordinary rows.

    Rows stay where they are and exchange their source; the selected ones get advantage 1 on every token.

    Args:
        batch: With ``source`` and ``advantages``.
        selected: Boolean, shape ``(B,)``: auxiliary rows, at most as many as there are ordinary ones.

    Raises:
        ValueError: A selected row that is not auxiliary, more rows than can be replaced.

    Reference: released code of C. Wang et al., 2025, arXiv:2510.08141.

    >>> batch = TokenBatch(log_probs=torch.zeros(3, 1), mask=torch.ones(3, 1, dtype=torch.bool),
    ...                    advantages=torch.tensor([0.5, -0.5, 0.0]), source=torch.tensor([0, 0, 1]))
    >>> mixed = mix_batches(batch, torch.tensor([False, False, True]))
    >>> mixed.source, mixed.advantages.squeeze(1)
    (tensor([1, 0, 0]), tensor([ 0.5000, -0.5000,  1.0000]))
    """
    batch.require("mix_batches", "source", "advantages")
    assert batch.source is not None
    assert batch.advantages is not None
    ordinary = batch.source == ON_POLICY
    if bool((selected & (batch.source != AUXILIARY)).any()):
        raise ValueError("selected: expected auxiliary rows (source 1) only")
    count = selected.sum()
    if count > ordinary.sum():
        raise ValueError(f"selected: expected at most {int(ordinary.sum())} rows, the ordinary ones, got {int(count)}")
    replaced = ordinary & (ordinary.cumsum(0) <= count)
    source = batch.source.masked_fill(replaced, AUXILIARY).masked_fill(selected, ON_POLICY)
    advantages = torch.where(selected.unsqueeze(1), 1.0, batch.advantages)
    return batch.replace(source=source, advantages=advantages)


@register(
    "arbitrary_entropy",
    "regularizer",
    requires=("rewards",),
    source=AUXILIARY,
    neutral={"alpha": 0.0},
    example={"alpha": 0.5, "threshold": 0.0},
)
def arbitrary_entropy(
    batch: TokenBatch,
    *,
    target: float = 0.5,
    alpha: float = 1 / 64,
    variant: str = "paper",
    weighting: str = "filter",
    threshold: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    log_ratio_bound: float | None = 20.0,
    schedule: str = "continuous",
    temperature_low: float = 0.8,
    temperature_high: float = 1.2,
    estimate: str = "exact",
    momentum: float = 0.5,
    fraction: float = 0.25,
    samples: int | None = None,
    replaced: float = _REPLACED,
    margin: float = 0.05,
    aggregation: AggregationLike = "seq-mean-token-mean",
) -> LossOutput:
    r"""Arbitrary entropy policy optimization: imitate the correct ones among answers sampled at another temperature.

    .. math:: L = -\frac{\alpha}{G'} \sum_{i=1}^{G'} 1[R_i > \theta] \frac{1}{|o_i|} \sum_t
              \min(r_{it},\, \mathrm{clip}(r_{it}, 1 - \epsilon_-, 1 + \epsilon_+))

    over the auxiliary rows, with :math:`r` against the sampling policy at the training temperature: the temperature is
    not corrected for, since moving towards the tempered policy is the purpose. With ``variant="repo"`` the term is 0
    and the module lets rows change places instead, see :func:`mix_batches`.

    Args:
        batch: Reads ``log_probs``, ``old_log_probs``, ``rewards``. A recipe shows it the auxiliary rows only.
        target: Entropy to hold, nats per token.
        alpha: Weight of the term; 0 samples nothing.
        variant: ``"paper"`` or ``"repo"``.
        weighting: ``"filter"`` counts rewards above ``threshold`` as 1 and others as 0; ``"reward"`` weights by the
            reward itself (the paper's first version).
        threshold: :math:`\theta`.
        clip_low: Width of the clip below 1.
        clip_high: Width above 1.
        log_ratio_bound: See :func:`infotorch.losses.ppo`.
        schedule: How the temperature follows the entropy; see :class:`EntropyTargetController`, like the next four.
        temperature_low: Lowest temperature.
        temperature_high: Highest.
        estimate: Which entropy is followed.
        momentum: Weight of the past in its moving average.
        fraction: Share of the prompts that are sampled again.
        samples: Answers to each; None: as many as ordinary ones.
        replaced: ``"repo"``: most rows replaced, as a share of the ordinary ones (at least one); 0 samples nothing.
        margin: ``"repo"``: least advantage within the auxiliary group.
        aggregation: How tokens become a scalar.

    Returns:
        Loss and the metrics ``positive_fraction`` and ``auxiliary_ratio``; the module adds ``temperature`` and
        ``entropy_estimate``.

    Raises:
        ValueError: ``rewards`` are missing, an option out of range.

    Reference: C. Wang et al., 2025, arXiv:2510.08141.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool),
    ...                    rewards=torch.tensor([1.0, 0.0]))
    >>> arbitrary_entropy(batch, alpha=1.0).per_token
    tensor([[-1., -1.],
            [-0., -0.]])
    """
    check_choice("variant", variant, VARIANTS)
    check_choice("weighting", weighting, ("filter", "reward"))
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("estimate", estimate, ESTIMATES)
    check_range("alpha", alpha, 0.0)
    check_range("fraction", fraction, 0.0, 1.0)
    check_range("replaced", replaced, 0.0, 1.0)
    check_range("threshold", threshold)
    check_range("margin", margin)
    check_clip(clip_low, clip_high)
    batch.require("arbitrary_entropy", "rewards")
    assert batch.rewards is not None
    ratio = importance_ratio(batch, log_ratio_bound)
    weight = batch.rewards if weighting == "reward" else (batch.rewards > threshold).to(ratio.dtype)
    strength = alpha if variant == "paper" else 0.0
    kept = torch.minimum(ratio, ratio.clamp(1 - clip_low, 1 + clip_high))
    filled = batch.mask.any(1)
    metrics = {
        "positive_fraction": masked_mean((batch.rewards > threshold).to(ratio.dtype), filled),
        "auxiliary_ratio": masked_mean(ratio, batch.mask),
    }
    return aggregate_loss(batch, -strength * weight.unsqueeze(1) * kept, aggregation, metrics)


class ArbitraryEntropy(Part, name="arbitrary_entropy"):
    """Module of :func:`arbitrary_entropy`; it follows the entropy and asks trainers for the second sample set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.chosen = self.settings
        self.controller = EntropyTargetController.of_part(self.chosen)
        self.temperature: float | None = None

    @property
    def replaces(self) -> bool:
        """Whether rows change places, instead of a term being added."""
        return self.chosen["variant"] == "repo"

    def auxiliary(self, batch: TokenBatch) -> AuxiliarySampling | None:
        """Follow the entropy of the ordinary responses; the temperature for the second sample set."""
        if not self.chosen["replaced" if self.replaces else "alpha"]:
            return None
        self.controller.observe(batch)
        self.temperature = self.controller.temperature()
        return AuxiliarySampling(self.temperature, fraction=self.chosen["fraction"], samples=self.chosen["samples"])

    def rearrange(self, batch: TokenBatch) -> TokenBatch:
        """With ``variant="repo"``: put auxiliary answers in the place of ordinary ones."""
        if not self.replaces or batch.source is None:
            return batch
        batch.require("arbitrary_entropy", "rewards", "group")
        assert batch.rewards is not None
        assert batch.group is not None
        rows = (batch.source == AUXILIARY).nonzero().squeeze(1)
        if not len(rows):
            return batch
        count = int(whole_number((batch.source == ON_POLICY).sum(), self.chosen["replaced"]))
        halve = bool(self.controller.entropy > self.controller.target)
        advantages = group_advantages(batch.rewards[rows], batch.group[rows])
        taken = first_positives(advantages, count, margin=self.chosen["margin"], halve=halve)
        selected = torch.zeros_like(batch.source, dtype=torch.bool)
        selected[rows[taken]] = True
        return mix_batches(batch, selected)

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Apply the function; its metrics and the controller's state."""
        out: LossOutput = super().forward(batch)
        if self.temperature is not None:
            out.metrics["temperature"] = batch.log_probs.new_tensor(self.temperature)
            out.metrics["entropy_estimate"] = self.controller.entropy.clone()
        return out


register_recipe(
    "arbitrary_entropy_repo",
    advantage="grpo",
    policy="ppo",
    regularizers=[
        {
            "name": "arbitrary_entropy",
            "variant": "repo",
            "schedule": "two_level",
            "estimate": "sampled",
            "momentum": 0.0,
        }
    ],
)

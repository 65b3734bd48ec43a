"""The plain entropy bonus, and a controller that switches it on only below a target.

The bonus is the control every entropy method must be compared with: on small vocabularies it is hard to beat;
with 150,000 entries and long answers the same coefficient can make entropy explode.

References:
    R. J. Williams and J. Peng, "Function optimization using connectionist RL algorithms", 1991.
    J. He et al., "Skywork Open Reasoner 1 Technical Report", 2025, arXiv:2505.22312 (the controller).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.reduce import masked_mean, masked_sum
from infotorch.losses._window import StepMean
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.ppo import AggregationLike, aggregate_loss
from infotorch.losses.registry import Part, register


@register("entropy_bonus", "regularizer", requires=("entropy",), neutral={"coef": 0.0})
def entropy_bonus(
    batch: TokenBatch, *, coef: float | Tensor = 0.01, aggregation: AggregationLike = "token-mean"
) -> LossOutput:
    """Minus ``coef`` times the mean token entropy.

    Args:
        batch: Reads ``entropy``, which must carry a gradient to have any effect.
        coef: Weight, in loss units per nat.
        aggregation: How tokens become a scalar (verl: that of the policy loss; TRL: always token-mean).

    Raises:
        ValueError: ``entropy`` is missing, a negative ``coef``.

    Reference: R. J. Williams and J. Peng, 1991.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    entropy=torch.tensor([[1.0, 3.0]]))
    >>> entropy_bonus(batch, coef=0.5).loss
    tensor(-1.)
    """
    batch.require("entropy_bonus", "entropy")
    if not isinstance(coef, Tensor):
        check_range("coef", coef, 0.0)
    assert batch.entropy is not None
    metrics = {"entropy": masked_mean(batch.entropy, batch.mask)}
    return aggregate_loss(batch, -coef * batch.entropy, aggregation, metrics)


class EntropyBonus(Part, name="entropy_bonus"):
    """Module of :func:`entropy_bonus`."""


@register("adaptive_entropy_bonus", "regularizer", requires=("entropy",), neutral={"initial": 0.0})
def adaptive_entropy_bonus(
    batch: TokenBatch,
    *,
    initial: float = 0.0,
    target: float = 0.2,
    delta: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
    aggregation: AggregationLike = "token-mean",
) -> LossOutput:
    """An entropy bonus whose coefficient :class:`AdaptiveEntropyBonus` moves after each optimizer step.

    The function applies ``initial``, the coefficient before the first move, and is what the module computes at
    its present coefficient. After each step the coefficient rises by ``delta`` if the entropy of the step's
    tokens was at most ``target``, else falls by it, within ``[low, high]``; it acts only while the last step's
    entropy was at most ``target``.

    Args:
        batch: Reads ``entropy``.
        initial: Coefficient at the start.
        target: Entropy to hold, in nats.
        delta: Change a step.
        low: Least coefficient.
        high: Greatest coefficient.
        aggregation: How tokens become a scalar.

    Raises:
        ValueError: ``entropy`` is missing, a range that is none.

    Reference: J. He et al., 2025, arXiv:2505.22312; defaults as in TRL 1.16.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool),
    ...                    entropy=torch.ones(1, 1))
    >>> adaptive_entropy_bonus(batch, initial=0.5).loss
    tensor(-0.5000)
    """
    _check_controller(initial, target, delta, low, high)
    return entropy_bonus(batch, coef=initial, aggregation=aggregation)


def _check_controller(initial: float, target: float, delta: float, low: float, high: float) -> None:
    check_range("delta", delta, 0.0)
    check_range("target", target, 0.0)
    check_range("low", low, 0.0)
    check_range("high", high, low)
    check_range("initial", initial, low, high)


class AdaptiveEntropyBonus(Part, name="adaptive_entropy_bonus"):
    """Entropy bonus under a controller; coefficient, last entropy and the open step are in ``state_dict``."""

    coef: Tensor
    last_entropy: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        defaults = self.settings
        self.target, self.delta = defaults["target"], defaults["delta"]
        self.low, self.high = defaults["low"], defaults["high"]
        _check_controller(defaults["initial"], self.target, self.delta, self.low, self.high)
        self.register_buffer("coef", torch.tensor(float(defaults["initial"])))
        self.register_buffer("last_entropy", torch.tensor(float("inf")))
        self.window = StepMean()

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Apply the present coefficient and note the batch's entropy."""
        batch.require("adaptive_entropy_bonus", "entropy")
        assert batch.entropy is not None
        coef = torch.where(self.last_entropy <= self.target, self.coef, 0.0)
        out = entropy_bonus(batch, coef=coef, aggregation=self.settings["aggregation"])
        if self.training:
            self.window.add(masked_sum(batch.entropy.detach().double(), batch.mask), batch.mask.sum())
        out.metrics["entropy_coef"] = coef.detach().clone()
        return out

    def after_step(self) -> None:
        """Close the window: move the coefficient towards the target."""
        mean, seen = self.window.close()
        entropy = mean.to(self.coef.dtype)
        step = torch.where(entropy <= self.target, self.delta, -self.delta)
        self.coef.copy_(torch.where(seen, (self.coef + step).clamp(self.low, self.high), self.coef))
        self.last_entropy.copy_(torch.where(seen, entropy, self.last_entropy))

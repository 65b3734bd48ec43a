r"""Holding the policy's entropy at a target through the temperature of a second sample set.

For a softmax policy p over one state and its tempered version :math:`q = \mathrm{softmax}(z / T)`, learning to imitate
samples of q moves p towards q: :math:`E_{a \sim q}[\nabla_z \log p(a)] = q - p`. Entropy rises for T > 1, falls for
T < 1, and stays for T = 1. So a temperature that depends on the distance to a target makes the target a fixed point.

Reference:
    C. Wang et al., "Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning", 2025,
    arXiv:2510.08141.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_sum
from infotorch.losses.batch import TokenBatch

SCHEDULES = ("continuous", "two_level")
ESTIMATES = ("exact", "sampled")


def target_temperature(
    entropy: Tensor, target: float, *, low: float = 0.8, high: float = 1.2, schedule: str = "continuous"
) -> Tensor:
    r"""Sampling temperature for the present entropy.

    .. math:: T = \mathrm{clip}(1 + H^* - H,\, T_{low},\, T_{high}) \;(\text{continuous}), \qquad
              T = T_{high} \text{ if } H \le H^* \text{ else } T_{low} \;(\text{two-level})

    Args:
        entropy: Nats, any shape.
        target: :math:`H^*` in nats.
        low: Lowest temperature, in ``(0, 1]``.
        high: Highest, at least 1.
        schedule: ``"continuous"`` (later versions of the paper) or ``"two_level"`` (first version and code).

    Returns:
        Of the shape of ``entropy``.

    Raises:
        ValueError: An option out of range.

    Reference: C. Wang et al., 2025, arXiv:2510.08141.

    >>> target_temperature(torch.tensor([0.1, 0.4, 0.9]), target=0.5)
    tensor([1.2000, 1.1000, 0.8000])
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_range("target", target, 0.0)
    check_range("low", low, 0.0, 1.0, low_open=True)
    check_range("high", high, 1.0, float("inf"), high_open=True)
    if schedule == "two_level":
        return torch.where(entropy <= target, torch.full_like(entropy, high), low)
    return (1 + target - entropy).clamp(low, high)


class EntropyTargetController(nn.Module):
    """Follows the policy's entropy and says at which temperature to sample besides.

    The estimate (an exponential moving average over rollout batches, on all ranks) is in ``state_dict``.

    Args:
        target: Entropy to hold, in nats per token.
        low: Lowest temperature.
        high: Highest.
        schedule: See :func:`target_temperature`.
        momentum: Weight of the past in the moving average; 0 takes each batch's own value.
        estimate: ``"exact"``: mean entropy of the tokens' distributions; ``"sampled"``: minus the mean log-probability
            of the tokens drawn, as the authors' code.
        patience: After so many rollout batches in a row at one end of the range a warning says that the target is out
            of reach.

    Raises:
        ValueError: An option out of range, a temperature asked for before any entropy is known.

    Reference: C. Wang et al., 2025, arXiv:2510.08141.

    >>> controller = EntropyTargetController(0.5)
    >>> round(controller.temperature(0.6), 4)
    0.9
    """

    entropy: Tensor
    batches: Tensor
    streak: Tensor

    def __init__(
        self,
        target: float,
        *,
        low: float = 0.8,
        high: float = 1.2,
        schedule: str = "continuous",
        momentum: float = 0.5,
        estimate: str = "exact",
        patience: int = 100,
    ) -> None:
        super().__init__()
        check_choice("estimate", estimate, ESTIMATES)
        check_range("momentum", momentum, 0.0, 1.0, high_open=True)
        check_range("patience", patience, 1)
        self.target, self.low, self.high, self.schedule = target, low, high, schedule
        self.momentum, self.estimate, self.patience = momentum, estimate, patience
        target_temperature(torch.zeros(()), target, low=low, high=high, schedule=schedule)  # checks its options
        self.register_buffer("entropy", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("streak", torch.tensor(0))

    @torch.no_grad()
    def observe(self, batch: TokenBatch) -> None:
        """Take note of a rollout batch."""
        if self.estimate == "sampled":
            values = -batch.log_probs
        else:
            batch.require("EntropyTargetController", "sampling_entropy")
            values = batch.sampling_entropy
        total, count = distributed.all_reduce_sum(
            torch.stack((masked_sum(values.detach().double(), batch.mask), batch.mask.sum().double()))
        )
        present = total / count.clamp(min=1)
        mixed = torch.where(self.batches == 0, present, torch.lerp(present, self.entropy, self.momentum))
        self.entropy.copy_(torch.where(count > 0, mixed, self.entropy))
        self.batches += count > 0

    def temperature(self, entropy: float | None = None) -> float:
        """Temperature for the given entropy, or for the estimate.

        Warns:
            UserWarning: The estimate's temperature has stood at one end of the range for ``patience`` calls.
        """
        h = float(self.entropy) if entropy is None else entropy
        if entropy is None and self.batches == 0:
            raise ValueError("EntropyTargetController: no entropy is known yet: call observe on a rollout batch first")
        given = torch.tensor(h, dtype=torch.float64)
        found = float(target_temperature(given, self.target, low=self.low, high=self.high, schedule=self.schedule))
        if entropy is None:
            side = int(found >= self.high) - int(found <= self.low)
            streak = int(self.streak)
            self.streak.fill_(side if side * streak <= 0 else streak + side)
            if abs(int(self.streak)) == self.patience:
                warnings.warn(
                    f"EntropyTargetController: the temperature has stood at {found:g} for {self.patience} rollout "
                    f"batches; entropy {h:.3f} does not get to the target {self.target:g} (widen low and high, or "
                    "choose a target within reach)",
                    UserWarning,
                    stacklevel=2,
                )
        return found

    @classmethod
    def of_part(cls, settings: Mapping[str, Any], **fixed: Any) -> EntropyTargetController:
        """The controller that a part's options describe, under the names which they have there."""
        check_range("temperature_low", settings["temperature_low"], 0.0, 1.0, low_open=True)
        check_range("temperature_high", settings["temperature_high"], 1.0, float("inf"), high_open=True)
        rest = {name: settings[name] for name in ("schedule", "momentum", "estimate") if name in settings}
        return cls(
            settings["target"], low=settings["temperature_low"], high=settings["temperature_high"], **rest, **fixed
        )

    def extra_repr(self) -> str:
        """Target and range."""
        return f"target={self.target}, low={self.low}, high={self.high}, schedule={self.schedule!r}"

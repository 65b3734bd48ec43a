r"""A histogram whose range follows the targets, for values whose size nobody knows beforehand.

Targets are standardized by the mean and the standard deviation of all targets seen so far, and the histogram covers a
fixed range of what results:

.. math:: z = \frac{y - \mu}{\sigma}, \qquad \hat y = \mu + \sigma \, \hat z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from infotorch.core import distributed as dist
from infotorch.core._checks import check_bool_mask, check_range
from infotorch.core.reduce import zero_outside
from infotorch.nn.c51 import C51
from infotorch.nn.histogram import Histogram, RangeReport

__all__ = ["RunningRange"]


class RunningRange(nn.Module):
    r"""A histogram head in units of the targets' running mean and standard deviation.

    In training mode every :meth:`loss` first takes its targets into the statistics: those of all single targets, over
    batches and processes (the mean of the batches' means would have too small a spread). In evaluation they rest. What
    the logits say moves with them, so that early predictions shift; with a range that is known, give it to the head.

    Args:
        head: A head for standardized targets, whose range is in standard deviations around the mean.
        decay: What earlier targets count at each update: 1 weighs all alike, 0.99 forgets those of some hundred
            batches ago, for targets that move.

    Attributes:
        stats: Count, mean and sum of squared deviations of the targets, float64, part of ``state_dict``.

    Raises:
        TypeError: ``head`` is no :class:`~infotorch.nn.HLGauss` or :class:`~infotorch.nn.TwoHot`.
        ValueError: ``decay`` outside (0, 1].

    Reference: none; the formula by which batches merge is that of T. Chan, G. Golub and R. LeVeque, 1983.

    >>> from infotorch.nn import HLGauss
    >>> head = RunningRange(HLGauss(-3.0, 3.0, 51, pad_sigma=3))
    >>> y = torch.linspace(900.0, 1100.0, 101)
    >>> loss = head.loss(torch.zeros(101, 51), y)
    >>> print(f"{head.v_min:.0f} to {head.v_max:.0f}, {head(torch.zeros(51)):.0f}")
    825 to 1175, 1000
    """

    stats: Tensor

    def __init__(self, head: Histogram, *, decay: float = 1.0) -> None:
        super().__init__()
        if not isinstance(head, Histogram) or isinstance(head, C51):  # whose distributions live on a fixed support
            raise TypeError(f"head: expected HLGauss or TwoHot, got {type(head).__name__}")
        self.head, self.bins = head, head.bins
        self.decay = check_range("decay", decay, 0.0, 1.0, low_open=True)
        self.register_buffer("stats", torch.zeros(3, dtype=torch.float64))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        exact = self.stats
        super()._apply(fn, recurse)
        if self.stats.device.type != "meta":  # half precision would misplace the range
            self.stats = exact.to(self.stats.device, torch.float32 if self.stats.device.type == "mps" else exact.dtype)
        return self

    @property
    def location(self) -> Tensor:
        """Mean of the targets, 0-d; 0 before the first."""
        return self.stats[1]

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the targets, 0-d; 1 before two that differ."""
        variance = self.stats[2] / self.stats[0].clamp(min=1e-12)
        return torch.where(variance > 0, variance, 1.0).sqrt()

    @property
    def v_min(self) -> float:
        """Smallest value now."""
        return float(self._back(torch.tensor(self.head.v_min, dtype=self.stats.dtype)))

    @property
    def v_max(self) -> float:
        """Largest value now."""
        return float(self._back(torch.tensor(self.head.v_max, dtype=self.stats.dtype)))

    @torch.no_grad()
    def update(self, target: Tensor, mask: Tensor | None = None) -> None:
        """Take targets ``(...)`` into the statistics, those under the mask, of all processes.

        Infinite targets are left out: they are clamped, and have no mean.
        """
        y = target.detach().to(self.stats.dtype)
        kept = y.isfinite() if mask is None else y.isfinite() & mask
        y = zero_outside(y, kept)
        count, total = dist.all_reduce_sum(torch.stack((kept.sum().to(y.dtype), y.sum())))
        mean = total / count.clamp(min=1)
        scatter = dist.all_reduce_sum(zero_outside((y - mean).square(), kept).sum())
        old, location, spread = self.decay * self.stats[0], self.stats[1], self.decay * self.stats[2]
        share = count / (old + count).clamp(min=1e-12)
        gap = mean - location
        merged = torch.stack((old + count, location + share * gap, spread + scatter + gap.square() * share * old))
        self.stats.copy_(torch.where(count > 0, merged, self.stats))

    def _standard(self, target: Tensor) -> Tensor:
        return ((target.detach().to(self.stats.dtype) - self.location) / self.scale).to(self.head.edges.dtype)

    def _back(self, values: Tensor) -> Tensor:
        return (self.location + self.scale * values.to(self.stats.dtype)).to(values.dtype)

    def forward(self, logits: Tensor) -> Tensor:
        """Values of logits ``(..., m)``: shape ``(...)``, at least float32."""
        return self._scaled(self.head(logits))

    def _scaled(self, z: Tensor) -> Tensor:
        return self.location.to(z.dtype) + self.scale.to(z.dtype) * z

    def mean(self, probs: Tensor) -> Tensor:
        """Values of probabilities ``(..., m)``."""
        return self._scaled(self.head.mean(probs))

    def std(self, logits: Tensor) -> Tensor:
        """Standard deviation of the distribution that the logits describe, ``(...)``, in the targets' units."""
        return self.scale.to(self.head.edges.dtype) * self.head.std(logits)

    def probs(self, target: Tensor) -> Tensor:
        """Histograms ``(..., m)`` of targets ``(...)``; the statistics stay as they are."""
        return self.head.probs(self._standard(target))

    def loss(self, logits: Tensor, target: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Cross-entropy as of :meth:`Histogram.loss <infotorch.nn.Histogram.loss>`, after an update in training mode.

        Raises:
            TypeError: ``mask`` is not boolean.
            ValueError: Shapes that do not fit, a target that is NaN.
        """
        if mask is not None:
            check_bool_mask("mask", mask, target.shape)
        if self.training:
            self.update(target, mask)
        return self.head.loss(logits, self._standard(target), mask=mask, reduction=reduction)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss minus its floor, shape ``(...)``, in nats."""
        return self.head.divergence(logits, self._standard(target))

    def range_report(self, target: Tensor) -> RangeReport:
        """How many targets lie outside the range as it is now, how far, and how much mass the support cuts off."""
        found = self.head.range_report(self._standard(target))
        return found._replace(distance=self.scale.to(found.distance.dtype) * found.distance)

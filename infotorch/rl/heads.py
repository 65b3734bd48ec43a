"""Heads of value functions by name, and the network that gives every action one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_bool_mask, check_choice, check_no_nan
from infotorch.core.reduce import masked_mean, zero_outside
from infotorch.nn import C51, HLGauss, RangeReport, RunningRange, TwoHot, mlp

__all__ = ["HEADS", "PlanesBody", "QNetwork", "ScalarHead", "ValueHead", "value_head"]

HEADS = ("hl_gauss", "two_hot", "c51", "mse", "huber")


class ScalarHead(nn.Module):
    r"""One output that is the value, with the squared error :math:`(v - y)^2` or Huber's loss.

    The interface is that of :class:`~infotorch.nn.Histogram` with one bin, so that heads can be exchanged.

    Args:
        loss: ``"mse"`` or ``"huber"`` (quadratic up to an error of 1).
        v_min: Targets are clamped to ``[v_min, v_max]`` where given: the control that shares the clamping, and nothing
            else, with a histogram.
        v_max: See ``v_min``.

    Raises:
        ValueError: An unknown loss, ``v_min >= v_max``.

    >>> ScalarHead("mse").loss(torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor(4.)
    """

    bins = 1

    def __init__(self, loss: str = "mse", v_min: float = -math.inf, v_max: float = math.inf) -> None:
        super().__init__()
        self.kind = check_choice("loss", loss, ("mse", "huber"))
        if not v_min < v_max:
            raise ValueError(f"v_min, v_max: expected v_min < v_max, got {v_min} and {v_max}")
        self.v_min, self.v_max = v_min, v_max

    def forward(self, logits: Tensor) -> Tensor:
        """Values ``(...)`` of outputs ``(..., 1)``, at least float32."""
        return logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, logits: Tensor, target: Tensor, *, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The error of outputs ``(..., 1)`` for targets ``(...)``, the latter without gradient.

        Raises:
            ValueError: Shapes that do not fit, targets that are NaN.
        """
        check_choice("reduction", reduction, ("mean", "none"))
        if logits.shape != (*target.shape, 1):
            raise ValueError(f"target: expected shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}")
        value, y = self(logits), target.detach().to(torch.promote_types(target.dtype, torch.float32))
        if mask is not None:
            check_bool_mask("mask", mask, target.shape)
            value, y = zero_outside(value, mask), zero_outside(y, mask)
        y = check_no_nan("target", y).clamp(self.v_min, self.v_max).to(value.dtype)
        function = nn.functional.mse_loss if self.kind == "mse" else nn.functional.huber_loss
        each = function(value, y, reduction="none")
        if mask is None:
            return each if reduction == "none" else each.mean() if each.numel() else each.sum()
        return masked_mean(each, mask) if reduction == "mean" else zero_outside(each, mask)

    @torch.no_grad()
    def range_report(self, target: Tensor) -> RangeReport:
        """How many targets are clamped."""
        below, above = (target < self.v_min).float(), (target > self.v_max).float()
        distance = (self.v_min - target).clamp(min=0) + (target - self.v_max).clamp(min=0)
        return RangeReport(below.mean(), above.mean(), distance.mean(), (below + above).mean())

    def extra_repr(self) -> str:
        """Loss and range."""
        return f"{self.kind}, v_min={self.v_min:g}, v_max={self.v_max:g}"


ValueHead = HLGauss | TwoHot | C51 | RunningRange | ScalarHead


def value_head(name: str, v_min: float, v_max: float, bins: int = 51, **options: Any) -> ValueHead:
    """A head by its name.

    Args:
        name: ``"hl_gauss"``, ``"two_hot"``, ``"c51"``, ``"mse"`` or ``"huber"``.
        v_min: Smallest value; the scalar heads ignore the range.
        v_max: Largest.
        bins: Of the histograms.
        **options: Of :class:`~infotorch.nn.HLGauss` and its kin.

    Raises:
        ValueError: An unknown name, options for a scalar head, and what the heads refuse.

    >>> value_head("two_hot", 0.0, 10.0, 11)
    TwoHot(v_min=0, v_max=10, bins=11)
    """
    check_choice("name", name, HEADS)
    if name in ("mse", "huber"):
        if options:
            raise ValueError(f"options: expected none for {name}, got {', '.join(options)}")
        return ScalarHead(name)
    return {"hl_gauss": HLGauss, "two_hot": TwoHot, "c51": C51}[name](v_min, v_max, bins, **options)


class PlanesBody(nn.Module):
    """Features of small images with channels last, as MinAtar's: one 3 x 3 convolution and one dense layer.

    Args:
        shape: ``(height, width, channels)``, height and width at least 3.
        channels: Of the convolution.
        width: Features.

    Raises:
        ValueError: A shape that is not such.

    Reference: K. Young and T. Tian, "MinAtar", 2019, arXiv:1903.03176.

    >>> PlanesBody((10, 10, 4))(torch.zeros(2, 10, 10, 4)).shape
    torch.Size([2, 128])
    """

    def __init__(self, shape: Sequence[int], *, channels: int = 16, width: int = 128) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[:2]) < 3:
            raise ValueError(f"shape: expected (height, width, channels) of at least 3 x 3, got {tuple(shape)}")
        self.conv = nn.Conv2d(shape[2], channels, 3)
        self.dense = nn.Linear(channels * (shape[0] - 2) * (shape[1] - 2), width)

    def forward(self, obs: Tensor) -> Tensor:
        """Features ``(B, width)`` of ``(B, height, width, channels)``."""
        return self.dense(self.conv(obs.movedim(-1, 1)).relu().flatten(1)).relu()


class QNetwork(nn.Module):
    r"""Action values: features, one linear layer with m outputs an action, and a head that reads them.

    Args:
        shape: Of an observation. Vectors go through a multilayer perceptron, images through :class:`PlanesBody`.
        actions: Number of actions.
        head: Reads values from outputs.
        hidden: Widths of the perceptron; of an image the last one counts.
        body: Module from observations ``(B, *shape)`` to features ``(B, F)`` instead.

    Raises:
        ValueError: No action, no hidden layer, an observation that is neither vector nor image.

    >>> network = QNetwork((3,), 2, HLGauss(0.0, 1.0, 11))
    >>> logits = network(torch.zeros(5, 3))
    >>> logits.shape, network.head(logits).shape
    (torch.Size([5, 2, 11]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        actions: int,
        head: ValueHead,
        *,
        hidden: Sequence[int] = (128, 128),
        body: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if actions < 1:
            raise ValueError(f"actions: expected a positive int, got {actions}")
        if body is None and not hidden:
            raise ValueError("hidden: expected at least one width, got none")
        if body is None and len(shape) not in (1, 3):
            raise ValueError(f"shape: expected a vector or (height, width, channels), got {tuple(shape)}; pass a body")
        if body is None and len(shape) == 3:
            body = PlanesBody(shape, width=hidden[-1])
        elif body is None:
            body = nn.Sequential(mlp((shape[0], *hidden)), nn.ReLU())
        self.body, self.head, self.actions = body, head, actions
        features = body(torch.zeros(1, *shape)).shape[-1]
        self.out = nn.Linear(features, actions * head.bins)

    def forward(self, obs: Tensor) -> Tensor:
        """Outputs ``(B, actions, m)``; bytes are divided by 255."""
        x = obs.to(self.out.weight.dtype)
        if obs.dtype == torch.uint8:
            x = x / 255
        return self.out(self.body(x)).unflatten(-1, (self.actions, self.head.bins))

    def values(self, obs: Tensor) -> Tensor:
        """Action values ``(B, actions)``."""
        return self.head(self(obs))

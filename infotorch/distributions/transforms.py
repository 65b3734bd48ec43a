r"""Invertible maps of samples ``(n, d)``: they change the shape of a distribution and none of its information.

Reference: P. Czyż et al., "Beyond normal: On the evaluation of mutual information estimators", 2023,
arXiv:2306.11078.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def half_cube(x: Tensor) -> Tensor:
    r""":math:`x \sqrt{|x|}`: longer tails.

    >>> half_cube(torch.tensor([4.0, -4.0]))
    tensor([ 8., -8.])
    """
    return x * x.abs().sqrt()


def normal_cdf(x: Tensor) -> Tensor:
    """Normal to uniform marginals.

    >>> normal_cdf(torch.zeros(1))
    tensor([0.5000])
    """
    return torch.erfc(x * -math.sqrt(0.5)) / 2  # torch's ndtr adds 1 to erf and loses the lower tail


def wiggly_x(x: Tensor) -> Tensor:
    r""":math:`x + 0.4 \sin x + 0.2 \sin(1.7x + 1) + 0.03 \sin(3.3x - 2.5)`.

    >>> wiggly_x(torch.zeros(1))
    tensor([0.1503])
    """
    return x + 0.4 * x.sin() + 0.2 * (1.7 * x + 1).sin() + 0.03 * (3.3 * x - 2.5).sin()


def wiggly_y(y: Tensor) -> Tensor:
    r""":math:`y - 0.4 \sin 0.4y + 0.17 \sin(1.3y + 3.5) + 0.02 \sin(4.3y - 2.5)`.

    >>> wiggly_y(torch.zeros(1))
    tensor([-0.0716])
    """
    return y - 0.4 * (0.4 * y).sin() + 0.17 * (1.3 * y + 3.5).sin() + 0.02 * (4.3 * y - 2.5).sin()


def swiss_roll(u: Tensor) -> Tensor:
    r"""A uniform column onto a spiral in the plane: :math:`(t \cos t, t \sin t) / 21`, :math:`t = 1.5 \pi (1 + 2u)`.

    Raises:
        ValueError: Not one column.

    >>> swiss_roll(torch.zeros(1, 1)).shape
    torch.Size([1, 2])
    """
    if u.ndim != 2 or u.shape[1] != 1:
        raise ValueError(f"u: expected shape (n, 1), got {tuple(u.shape)}")
    t = 1.5 * math.pi * (1 + 2 * u)
    return torch.cat((t * t.cos(), t * t.sin()), 1) / 21


def spiral(v: Tensor, *, plane: tuple[int, int] = (0, 1), speed: float | None = None) -> Tensor:
    r"""Turn each point in a plane by an angle that grows with its distance from the origin, :math:`s \|v\|^2`.

    Args:
        v: Shape ``(n, d)``.
        plane: The two coordinates that are mixed.
        speed: ``s``; default: ``1 / d``.

    Raises:
        ValueError: A plane that is not two of the columns.

    >>> spiral(torch.tensor([[1.0, 0.0]]), speed=math.pi / 2).round(decimals=4)
    tensor([[-0., 1.]])
    """
    i, j = plane
    d = v.shape[1]
    if i == j or not (0 <= i < d and 0 <= j < d):
        raise ValueError(f"plane: expected two different columns below {d}, got {plane}")
    angle = (1 / d if speed is None else speed) * v.square().sum(1)
    turned = v.clone()
    turned[:, i] = angle.cos() * v[:, i] - angle.sin() * v[:, j]
    turned[:, j] = angle.sin() * v[:, i] + angle.cos() * v[:, j]
    return turned


def normal_to_mixture(weights: Sequence[float], means: Sequence[float]) -> Callable[[Tensor], Tensor]:
    r"""The increasing map from a standard normal variable to a mixture of unit normals.

    Args:
        weights: Positive; they are normalized.
        means: As many.

    Returns:
        A function of tensors of any shape.

    Raises:
        ValueError: Different lengths, or a weight that is not positive.

    >>> shift = normal_to_mixture([1.0], [3.0])
    >>> shift(torch.zeros(1))
    tensor([3.])
    """
    if len(weights) != len(means) or not weights or min(weights) <= 0:
        raise ValueError(f"weights, means: expected equal lengths and positive weights, got {weights} and {means}")
    total = sum(weights)

    def apply(z: Tensor) -> Tensor:
        center = torch.tensor(means, dtype=torch.float64, device=z.device)
        share = torch.tensor(weights, dtype=torch.float64, device=z.device) / total
        # Each half in its own tail, where the probabilities keep their relative precision.
        side = torch.where(z > 0, -1.0, 1.0).double()
        target = normal_cdf(side * z.double())
        low, high = z.double() + center.min(), z.double() + center.max()  # F lies between its shifted components
        for _ in range(60):
            middle = (low + high) / 2
            tail = (share * normal_cdf(side.unsqueeze(-1) * (middle.unsqueeze(-1) - center))).sum(-1)
            above = torch.where(side > 0, tail > target, tail < target)
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return ((low + high) / 2).to(z.dtype)

    return apply

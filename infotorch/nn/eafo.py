r"""Corrections of activation functions from the entropy of their output.

The input of an activation :math:`f` has density :math:`p`; with the inverse :math:`y = f^{-1}` the output has density
:math:`p(y(u))\,y'(u)` and entropy :math:`H[y] = -\int p(y) y' \log(p(y) y')\,du`. Its first variation along
:math:`\zeta` is :math:`\int [p'(y) y' + p(y) y''/y']\, \zeta\, du`, so entropy falls fastest along

.. math:: \eta(u) = -\Big[ p'(y)\, y' + p(y) \frac{y''}{y'} \Big].

With :math:`y + t\eta` for an inverse, the activation itself moves, to first order, by :math:`t` times

.. math:: \delta(x) = p'(x) - p(x) \frac{f''(x)}{f'(x)},

which needs no inverse and is this library's own form of it. Where :math:`f` is the distribution function of its input
the output is uniform, the most entropy a bounded range allows, and :math:`\eta = 0`: the worst activation, in this
reading.

Reference: H. Sun et al., "A method on searching better activation functions", 2024, arXiv:2405.12954.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotorch.core._checks import check_range
from infotorch.core._samples import as_samples

Function = Callable[[Tensor], Tensor]
_STEEP = 1e-6  # an activation flatter than this carries no inverse


class Prior(Protocol):
    """Density of an activation's input."""

    def density(self, x: Tensor) -> Tensor:
        """``p(x)``."""
        ...

    def slope(self, x: Tensor) -> Tensor:
        """``p'(x)``."""
        ...


@dataclass(frozen=True)
class NormalPrior:
    """A normal density.

    Raises:
        ValueError: ``std`` is not positive.

    >>> NormalPrior().density(torch.zeros(1))
    tensor([0.3989])
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_range("std", self.std, 0.0, low_open=True)

    def density(self, x: Tensor) -> Tensor:
        """``p(x)``."""
        z = (x - self.mean) / self.std
        return (z.square() / -2).exp() / (self.std * math.sqrt(2 * math.pi))

    def slope(self, x: Tensor) -> Tensor:
        """``p'(x)``."""
        return self.density(x) * (self.mean - x) / self.std**2


class KernelPrior:
    """Normal kernels on a sample of inputs, say of the pre-activations that a network shows.

    Args:
        samples: Shape ``(n,)``, finite.
        bandwidth: Of the kernels; None: Silverman's, ``1.06 std n**-0.2``.

    Raises:
        ValueError: Values that are not finite, all alike, or a bandwidth that is not positive.

    >>> prior = KernelPrior(torch.randn(2000, generator=torch.Generator().manual_seed(0)))
    >>> round(float(prior.density(torch.zeros(1))), 1)
    0.4
    """

    def __init__(self, samples: Tensor, bandwidth: float | None = None) -> None:
        self.samples = as_samples("samples", samples).flatten()
        if len(self.samples) < 2 and bandwidth is None:
            raise ValueError("samples: expected at least two values, or a bandwidth, got one")
        silverman = 1.06 * float(self.samples.std()) * len(self.samples) ** -0.2
        self.bandwidth = check_range("bandwidth", silverman if bandwidth is None else bandwidth, 0.0, low_open=True)

    def density(self, x: Tensor) -> Tensor:
        """``p(x)``."""
        return self._mean(x, lambda z: 1.0)

    def slope(self, x: Tensor) -> Tensor:
        """``p'(x)``."""
        return self._mean(x, lambda z: -z / self.bandwidth)

    def _mean(self, x: Tensor, factor: Callable[[Tensor], Tensor | float]) -> Tensor:
        z = (x.double().unsqueeze(-1) - self.samples.to(x.device)) / self.bandwidth
        kernel = (z.square() / -2).exp() / (self.bandwidth * math.sqrt(2 * math.pi))
        return (kernel * factor(z)).mean(-1).to(x.dtype)


INVERSES: dict[str, tuple[Function, Function]] = {
    "identity": (lambda x: x, lambda u: u),
    "sigmoid": (torch.sigmoid, torch.logit),
    "tanh": (torch.tanh, torch.atanh),
    "softplus": (F.softplus, lambda u: u + torch.log(-torch.expm1(-u))),
    "elu": (F.elu, lambda u: torch.where(u < 0, torch.log1p(u.clamp(max=0)), u)),
    "normal_cdf": (torch.special.ndtr, torch.special.ndtri),
}
"""Activations with an inverse in closed form, by name: both functions."""


def leaky_relu_pair(slope: float = 0.01) -> tuple[Function, Function]:
    """A leaky ReLU and its inverse.

    Raises:
        ValueError: ``slope`` is not positive.

    >>> f, y = leaky_relu_pair(0.1)
    >>> y(f(torch.tensor([-2.0, 3.0])))
    tensor([-2.,  3.])
    """
    check_range("slope", slope, 0.0, low_open=True)
    return (lambda x: F.leaky_relu(x, slope), lambda u: torch.where(u < 0, u / slope, u))


def entropy_direction(u: Tensor, inverse: Function, prior: Prior | None = None) -> Tensor:
    r""":math:`\eta(u)`: how to move an inverse so that the entropy of the output falls fastest.

    Args:
        u: Outputs of the activation, inside its range, any shape, floating.
        inverse: ``y(u)``, twice differentiable by autograd.
        prior: Density of the input; None: standard normal.

    Returns:
        Shape of ``u``, 0 where ``y'`` is infinite.

    Raises:
        ValueError: A ``u`` outside the activation's range.

    >>> entropy_direction(torch.tensor([0.1, 0.5], dtype=torch.float64), torch.special.ndtri).abs().max() < 1e-12
    tensor(True)
    """
    prior = prior or NormalPrior()
    y, first, second = _derivatives(inverse, u)
    if bool(y.isnan().any()):
        raise ValueError("u: expected values in the activation's range, got one where its inverse is NaN")
    eta = -(prior.slope(y) * first + prior.density(y) * second / first)
    return torch.where(first.isfinite() & second.isfinite() & (first > 0), eta, 0.0)


def activation_direction(x: Tensor, activation: Function, prior: Prior | None = None) -> Tensor:
    r""":math:`\delta(x) = p'(x) - p(x) f''(x) / f'(x)`: the same for the activation itself, without an inverse.

    Args:
        x: Inputs, any shape, floating.
        activation: Twice differentiable by autograd.
        prior: Density of the input; None: standard normal.

    Returns:
        Shape of ``x``, 0 where the activation is flat.

    >>> x = torch.tensor([1.0])
    >>> -activation_direction(x, lambda x: x) * (2 * torch.pi) ** 0.5  # CRReLU's bump, x exp(-x^2 / 2)
    tensor([0.6065])
    """
    return _direction(x, prior or NormalPrior(), *_derivatives(activation, x)[1:])


def _direction(x: Tensor, prior: Prior, first: Tensor, second: Tensor) -> Tensor:
    steep = first.abs() > _STEEP
    return torch.where(steep, prior.slope(x) - prior.density(x) * second / torch.where(steep, first, 1.0), 0.0)


def _derivatives(function: Function, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative, elementwise and without a graph."""
    with torch.enable_grad():
        value, first, second = _with_graph(function, x.detach().requires_grad_())
    return value.detach(), first.detach(), second.detach()


def _with_graph(function: Function, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = function(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    second = None
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True, allow_unused=True)
    return value, first, torch.zeros_like(x) if second is None else second


class CorrectedActivation(nn.Module):
    """An activation plus a learnable multiple of its correction.

    Made by `eafo_correction`.

    Args:
        activation: The activation.
        correction: The correction.
        epsilon: Start of the multiple.
        learnable: False keeps it there.
    """

    epsilon: Tensor

    def __init__(self, activation: Function, correction: nn.Module, epsilon: float, learnable: bool) -> None:
        super().__init__()
        self.activation, self.correction = activation, correction
        start = torch.tensor(float(epsilon))
        if learnable:
            self.epsilon = nn.Parameter(start)
        else:
            self.register_buffer("epsilon", start)

    def forward(self, x: Tensor) -> Tensor:
        """Activate."""
        return self.activation(x) + (self.epsilon * self.correction(x)).to(x.dtype)


class _Table(nn.Module):
    """A function by its values at increasing, equally spaced points: linear between, constant beyond."""

    grid: Tensor
    values: Tensor

    def __init__(self, grid: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("grid", grid)
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        cells = len(self.grid) - 1
        place = (x.to(self.grid.dtype) - self.grid[0]) / (self.grid[-1] - self.grid[0]) * cells
        place = place.clamp(0, cells)
        low = place.detach().long().clamp(0, cells - 1)  # NaN has no index
        share = place - low
        return self.values[low] * (1 - share) + self.values[low + 1] * share


class _Exact(nn.Module):
    """The correction at every input, by differentiating the activation there."""

    def __init__(self, activation: Function, prior: Prior, scale: float) -> None:
        super().__init__()
        self.activation, self.prior, self.scale = activation, prior, scale

    def forward(self, x: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            leaf = x if wanted else x.detach().requires_grad_()
            wide = leaf.to(torch.promote_types(x.dtype, torch.float32))
            _, first, second = _with_graph(self.activation, wide)
            found = self.scale * _direction(wide, self.prior, first, second)
        return found if wanted else found.detach()


def eafo_correction(
    activation: Function,
    prior: Prior | None = None,
    *,
    epsilon: float = 0.0,
    learnable: bool = True,
    scale: float = math.sqrt(2 * math.pi),
    reach: float = 6.0,
    points: int = 2049,
    exact: bool = False,
) -> CorrectedActivation:
    r"""An activation with its entropy correction: :math:`f(x) + \epsilon\, s\, \delta(x)`.

    :math:`\epsilon > 0` lowers the entropy of the output, to first order. For the identity and the default scale it is
    the bump of CRReLU with the other sign.

    Args:
        activation: A function, or a module without parameters of its own.
        prior: Density of its input; None: standard normal.
        epsilon: Start.
        learnable: False keeps it there.
        scale: :math:`s`.
        reach: The correction is tabulated on ``[-reach, reach]``.
        points: Of the table.
        exact: True differentiates the activation at every input, anew in every call, in place of the table.

    Raises:
        TypeError: ``activation`` cannot be called.
        ValueError: ``reach`` not positive, fewer than two points, an ``epsilon`` that is not finite, or an activation
            that is not finite there.

    Warns:
        UserWarning: At ``epsilon`` the corrected activation falls somewhere that the activation rises.

    >>> layer = eafo_correction(torch.tanh, epsilon=0.1)
    >>> layer(torch.zeros(1)).item()
    0.0
    """
    if not callable(activation):
        raise TypeError(f"activation: expected a function or a module, got {type(activation).__name__}")
    check_range("epsilon", epsilon, -math.inf, math.inf, low_open=True, high_open=True)
    check_range("reach", reach, 0.0, math.inf, low_open=True, high_open=True)
    check_range("points", points, 2)
    grid = torch.linspace(-reach, reach, points, dtype=torch.float64)
    delta = scale * activation_direction(grid, activation, prior)
    if not bool(delta.isfinite().all()):
        raise ValueError(f"activation: expected finite derivatives on [-{reach:g}, {reach:g}], got NaN or infinity")
    plain = activation(grid).detach()
    rises, corrected = plain.diff() > 0, (plain + epsilon * delta).diff()
    if bool((rises & (corrected <= 0)).any()):
        warnings.warn(
            f"epsilon: at {epsilon:g} the corrected activation falls where the activation rises; it has no inverse "
            "there and the entropy argument does not hold",
            stacklevel=2,
        )
    kind = torch.get_default_dtype()
    correction = _Exact(activation, prior or NormalPrior(), scale) if exact else _Table(grid.to(kind), delta.to(kind))
    return CorrectedActivation(activation, correction, epsilon, learnable)

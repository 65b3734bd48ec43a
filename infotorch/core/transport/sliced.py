r"""Wasserstein distances on a line, exact for any sizes and weights, and their mean over directions.

On a line the optimal plan matches quantiles: :math:`W_p^p = \int_0^1 |F^{-1}(q) - G^{-1}(q)|^p \, dq`, two sorts and a
sum. The sliced distance averages that over random directions. It needs no plan, its gradients are exact, and
directions are taken a few at a time, so that memory does not grow with their number, also backwards.

References:
    - N. Bonneel, J. Rabin, G. Peyré and H. Pfister, "Sliced and Radon Wasserstein barycenters of measures", 2015.
    - I. Deshpande et al., "Max-sliced Wasserstein distance and its use for GANs", 2019, arXiv:1904.05877.

Deviations from POT: samples of different weight are refused; where the distance is 0 its gradient is 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core._checks import check_range, check_tensor
from infotorch.core._kernels import check_finite
from infotorch.core._sort import argsort

_CHUNK = 1 << 20  # projected points at a time


def wasserstein_1d(
    u: Tensor,
    v: Tensor,
    *,
    p: float = 1.0,
    u_weights: Tensor | None = None,
    v_weights: Tensor | None = None,
    power: bool = False,
) -> Tensor:
    r"""Wasserstein distance :math:`W_p` between samples on a line.

    Args:
        u: Shape ``(n,)``, or ``(n, k)`` for k independent problems.
        v: Shape ``(m,)`` or ``(m, k)``.
        p: At least 1.
        u_weights: Shape ``(n,)``, non-negative; 1/n each by default.
        v_weights: Shape ``(m,)``, of the same sum.
        power: Return :math:`W_p^p`, whose gradient is finite where the distance is 0.

    Returns:
        0-d or ``(k,)``; differentiable in values and weights.

    Raises:
        TypeError: An argument is not a floating tensor.
        ValueError: Shapes that do not agree, values that are not finite, negative weights, weights of different sums,
            ``p < 1``.

    >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]))
    tensor(3.)
    >>> wasserstein_1d(torch.tensor([0.0, 3.0]), torch.tensor([1.0]), p=2.0, power=True)
    tensor(2.5000)
    """
    u, v = _samples("u", u), _samples("v", v)
    if u.ndim != v.ndim or u.shape[1:] != v.shape[1:] or u.ndim > 2:
        raise ValueError(
            f"u, v: expected shapes (n,) and (m,), or (n, k) and (m, k), got {tuple(u.shape)}, {tuple(v.shape)}"
        )
    check_range("p", p, 1.0, math.inf, high_open=True)
    a, b = _weights("u_weights", u_weights, len(u), "v_weights", v_weights, len(v))
    dtype = torch.promote_types(u.dtype, v.dtype)
    cost = _quantile_cost(u.movedim(0, -1).to(dtype), v.movedim(0, -1).to(dtype), a, b, p)
    return cost if power else _root(cost, p)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    projections: Tensor | int = 100,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    power: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sliced Wasserstein distance, :math:`(\frac{1}{L} \sum_l W_p^p(x \theta_l, y \theta_l))^{1/p}`.

    The error of the mean over directions falls as :math:`L^{-1/2}` at any dimension. With gradients, they are
    computed along with the value; backward only scales them.

    Args:
        x: Shape ``(n, d)``.
        y: Shape ``(m, d)``.
        p: At least 1.
        projections: Number L of random directions, or the directions themselves, ``(d, L)``.
        x_weights: Shape ``(n,)``, non-negative; 1/n each by default.
        y_weights: Shape ``(m,)``, of the same sum.
        power: Return the mean of :math:`W_p^p`, whose gradient is finite where the distance is 0.
        generator: Source of the directions; default: torch's.

    Returns:
        0-d; differentiable in points and weights.

    Raises:
        TypeError: An argument is not a floating tensor.
        ValueError: Shapes that do not agree, values that are not finite, negative weights, weights of different sums,
            ``p < 1``.

    Reference: N. Bonneel et al., 2015.

    >>> x = torch.zeros(3, 2)
    >>> sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), projections=torch.eye(2))  # the root of 9 / 2
    tensor(2.1213)
    """
    x, y, theta, a, b = _prepare(x, y, p, projections, x_weights, y_weights, generator)
    mean = _SlicedMean.apply(x, y, a, b, theta, p)
    assert isinstance(mean, Tensor)
    return mean if power else _root(mean, p)


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    projections: Tensor | int = 100,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    power: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Largest :math:`W_p` over the given directions: a lower bound of the max-sliced Wasserstein distance.

    Arguments, result and errors are those of :func:`sliced_wasserstein`; the gradient is that of the direction where
    the maximum lies.

    Reference: I. Deshpande et al., 2019, arXiv:1904.05877.

    >>> x = torch.zeros(3, 2)
    >>> max_sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), projections=torch.eye(2))
    tensor(3.)
    """
    x, y, theta, a, b = _prepare(x, y, p, projections, x_weights, y_weights, generator)
    with torch.no_grad():
        costs = [_projected_cost(x, y, a, b, part, p) for part in _chunks(theta, len(x) + len(y))]
        best = torch.cat(costs).argmax()
    cost = _projected_cost(x, y, a, b, theta.index_select(1, best.unsqueeze(0)), p).squeeze(0)
    return cost if power else _root(cost, p)


def random_directions(
    dim: int,
    count: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform directions on the unit sphere, shape ``(dim, count)``.

    >>> random_directions(3, 5).shape
    torch.Size([3, 5])
    """
    check_range("count", count, 1)
    home = generator.device if generator is not None else device
    theta = torch.randn(dim, count, generator=generator, dtype=dtype, device=home).to(device)
    return torch.nn.functional.normalize(theta, dim=0)


class _SlicedMean(torch.autograd.Function):
    """Mean cost over directions; the forward pass already computes the gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, theta: Tensor, p: float) -> Tensor:
        leaves = [
            None if t is None else t.detach().requires_grad_(w)
            for t, w in zip((x, y, a, b), ctx.needs_input_grad, strict=False)
        ]
        sources = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        totals = [torch.zeros_like(source) for source in sources]
        u, v, u_weights, v_weights = leaves
        assert u is not None
        assert v is not None
        value = x.new_zeros(())
        for part in _chunks(theta, len(x) + len(y)):
            with torch.set_grad_enabled(bool(sources)):
                cost = _projected_cost(u, v, u_weights, v_weights, part, p).sum()
            if sources:
                for total, grad in zip(totals, torch.autograd.grad(cost, sources), strict=True):
                    total += grad
            value += cost.detach()
        count = theta.shape[1]
        found = iter(totals)
        ctx.save_for_backward(*(next(found) / count if w else None for w in ctx.needs_input_grad[:4]))
        return value / count

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if saved is None else grad * saved for saved in ctx.saved_tensors), None, None


def _projected_cost(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, theta: Tensor, p: float) -> Tensor:
    """``W_p^p`` along every direction of ``theta [d, l]``, shape ``(l,)``."""
    return _quantile_cost(theta.T @ x.T, theta.T @ y.T, a, b, p)


def _quantile_cost(u: Tensor, v: Tensor, a: Tensor | None, b: Tensor | None, p: float) -> Tensor:
    """``W_p^p`` between ``u [..., n]`` and ``v [..., m]``; weights ``[n]`` and ``[m]``, or None for equal ones."""
    n, m = u.shape[-1], v.shape[-1]
    if a is None or b is None:
        u, v = _sorted(u)[0], _sorted(v)[0]
        if n == m:
            return _power(u - v, p).mean(-1)
        # Quantiles i/n and j/m on the common grid of 1/(n m), in integers.
        steps = [torch.arange(1, k + 1, device=u.device) * other for k, other in ((n, m), (m, n))]
        grid = torch.cat(steps).unique()
        width = torch.diff(grid, prepend=grid.new_zeros(1)).to(u.dtype) / (n * m)
        return _power(u[..., (grid - 1) // m] - v[..., (grid - 1) // n], p) @ width
    u, u_mass = _sorted(u, a)
    v, v_mass = _sorted(v, b)
    both = torch.cat((u_mass, v_mass), -1)
    order = argsort(both)
    grid = both.gather(-1, order)
    width = torch.diff(grid, prepend=torch.zeros_like(grid[..., :1])).to(u.dtype)
    # The quantile functions at a grid point stand at the first value whose mass is not below it: as many values
    # are passed over as masses come before. Tied masses come in any order, since all but the first have width 0.
    from_u = order < n
    u_place = from_u.cumsum(-1) - from_u.long()
    v_place = torch.arange(n + m, device=u.device) - u_place
    difference = u.gather(-1, u_place.clamp_(max=n - 1)) - v.gather(-1, v_place.clamp_(max=m - 1))
    return (_power(difference, p) * width).sum(-1)


def _sorted(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``x [..., n]`` in ascending order, and the running sum of its weights in float64."""
    if weights is None and not x.requires_grad and x.device.type == "cpu":
        found = torch.from_numpy(np.sort(x.numpy(), axis=-1))
        return found, found
    index = argsort(x)
    mass = x if weights is None else weights.double().expand(x.shape).gather(-1, index).cumsum(-1)
    return x.gather(-1, index), mass


def _power(x: Tensor, p: float) -> Tensor:
    if p == 2:
        return x.square()
    return x.abs() if p == 1 else x.abs().pow(p)


def _root(cost: Tensor, p: float) -> Tensor:
    """``cost ** (1 / p)``, with gradient 0 at 0."""
    if p == 1:
        return cost
    positive = cost > 0
    return torch.where(positive, torch.where(positive, cost, 1.0).pow(1 / p), 0.0)


def _chunks(theta: Tensor, points: int) -> tuple[Tensor, ...]:
    return theta.split(max(1, _CHUNK // points), dim=1)


def _samples(name: str, x: object) -> Tensor:
    x = check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(f"{name}: expected at least one point, got shape {tuple(x.shape)}")
    return check_finite(name, x if x.dtype in (torch.float32, torch.float64) else x.float())


def _weights(
    first: str, a: Tensor | None, n: int, second: str, b: Tensor | None, m: int
) -> tuple[Tensor | None, Tensor | None]:
    """Both weights, or None for both where all points of a sample weigh the same."""
    if a is None and b is None:
        return None, None
    given = a if a is not None else b
    assert given is not None
    filled = []
    for name, weights, size in ((first, a, n), (second, b, m)):
        weights = torch.full((size,), 1 / size, dtype=given.dtype, device=given.device) if weights is None else weights
        if tuple(weights.shape) != (size,):
            raise ValueError(f"{name}: expected shape ({size},), got {tuple(weights.shape)}")
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError(f"{name}: expected finite non-negative numbers, got a negative or non-finite one")
        filled.append(weights)
    sums = [float(weights.detach().double().sum()) for weights in filled]
    if not math.isclose(*sums, rel_tol=1e-4) or sums[0] <= 0:
        raise ValueError(f"{first}, {second}: expected equal positive sums, got {sums[0]:g} and {sums[1]:g}")
    return filled[0], filled[1]


def _prepare(
    x: Tensor,
    y: Tensor,
    p: float,
    projections: Tensor | int,
    a: Tensor | None,
    b: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    x, y = _samples("x", x), _samples("y", y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x, y: expected shapes (n, d) and (m, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    check_range("p", p, 1.0, math.inf, high_open=True)
    dtype, dim = torch.promote_types(x.dtype, y.dtype), x.shape[1]
    if isinstance(projections, Tensor):
        if projections.ndim != 2 or projections.shape[0] != dim or projections.shape[1] == 0:
            raise ValueError(f"projections: expected shape ({dim}, L), got {tuple(projections.shape)}")
        theta = projections.detach().to(x.device, dtype)
    else:
        theta = random_directions(dim, projections, generator=generator, dtype=dtype, device=x.device)
    return x.to(dtype), y.to(dtype), theta, *_weights("x_weights", a, len(x), "y_weights", b, len(y))

"""A transport problem at the border: costs and masses that fit each other."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_tensor


def as_problem(cost: Tensor, a: Tensor | None, b: Tensor | None, *, balanced: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cost ``[..., n, m]`` in at least float32, with masses ``[..., n]`` and ``[..., m]`` of its type."""
    cost = check_tensor("cost", cost)
    if not cost.is_floating_point():
        raise TypeError(f"cost: expected a floating-point tensor, got {cost.dtype}")
    if cost.ndim < 2 or 0 in cost.shape:
        raise ValueError(f"cost: expected shape (..., n, m), not empty, got {tuple(cost.shape)}")
    cost = cost if cost.dtype in (torch.float32, torch.float64) else cost.float()
    a = _masses("a", a, cost, cost.shape[-2])
    b = _masses("b", b, cost, cost.shape[-1])
    sums = a.detach().double().sum(-1), b.detach().double().sum(-1)
    if balanced and not torch.allclose(*sums, rtol=1e-4 if cost.dtype == torch.float32 else 1e-8, atol=0.0):
        raise ValueError(
            f"a, b: expected equal sums, got {sums[0].flatten()[0]:.10g} and {sums[1].flatten()[0]:.10g} "
            "(normalize them, or allow mass to vanish with rho)"
        )
    if not bool((sums[0] > 0).all() & (sums[1] > 0).all()):
        raise ValueError("a, b: expected a positive sum, got 0")
    _check_cost(cost.detach(), a, b)
    return cost, a, b


def _masses(name: str, given: Tensor | None, cost: Tensor, size: int) -> Tensor:
    shape = (*cost.shape[:-2], size)
    if given is None:
        return cost.new_full((size,), 1 / size).expand(shape)
    given = check_tensor(name, given)
    if given.shape[-1:] != (size,) or given.ndim > len(shape):
        raise ValueError(f"{name}: expected shape {shape} or ({size},), got {tuple(given.shape)}")
    if not bool((given >= 0).all() & given.isfinite().all()):
        raise ValueError(f"{name}: expected finite non-negative masses, got a negative or non-finite one")
    return given.to(cost).expand(shape)


def _check_cost(cost: Tensor, a: Tensor, b: Tensor) -> None:
    """No NaN; and where infinite costs forbid pairs, every mass must still have somewhere to go."""
    if bool(cost.isfinite().all()):
        return
    if not bool((cost > -torch.inf).all()):  # false for NaN too
        raise ValueError("cost: expected finite values, or inf for forbidden pairs; got NaN or -inf")
    allowed = cost < torch.inf
    stuck = ((allowed & (b > 0).unsqueeze(-2)).any(-1) | (a == 0)).all()
    unreached = ((allowed & (a > 0).unsqueeze(-1)).any(-2) | (b == 0)).all()
    if not bool(stuck & unreached):
        raise ValueError("cost: a point with positive mass has only forbidden (infinite) pairs")

"""Gradients of entropic transport without unrolling: envelope for the value, implicit for the plan."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core.transport._scaling import Problem

_MAX_STEPS = 500


def dual_value(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """The regularized value, shape ``(...)``, with the envelope theorem's gradient in cost and masses."""
    return _DualValue.apply(  # pyright: ignore[reportReturnType]
        problem.cost, problem.a, problem.b, f, g, problem.eps, problem.rho
    )


def plan_of(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """The plan, shape ``(..., n, m)``, with the implicit gradient in cost and masses."""
    return _Plan.apply(  # pyright: ignore[reportReturnType]
        problem.cost, problem.a, problem.b, f, g, problem.eps, problem.rho
    )


def _density(cost: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    return torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / eps)


def _plan(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    return _density(cost, f, g, eps) * a.unsqueeze(-1) * b.unsqueeze(-2)


class _DualValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, rho: float) -> Tensor:
        ctx.save_for_backward(cost, a, b, f, g)
        ctx.eps, ctx.rho = eps, rho
        # The rows' masses are exact after an update of f.
        mass = (a * _kept(f, rho)).sum(-1)
        gain = (a * _gain(f, rho)).sum(-1) + (b * _gain(g, rho)).sum(-1)
        return gain - eps * (mass - a.sum(-1) * b.sum(-1))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cost, a, b, f, g = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            grads[0] = grad[..., None, None] * _plan(cost, a, b, f, g, ctx.eps)
        for i, (potential, other) in enumerate(((f, b), (g, a)), start=1):
            if ctx.needs_input_grad[i]:
                kept = _kept(potential, ctx.rho) - other.sum(-1, keepdim=True)
                grads[i] = grad.unsqueeze(-1) * (_gain(potential, ctx.rho) - ctx.eps * kept)
        return tuple(grads)


def _kept(potential: Tensor, rho: float) -> Tensor:
    """Share of every point's mass that is moved."""
    return torch.ones_like(potential) if math.isinf(rho) else torch.exp(-potential / rho)


def _gain(potential: Tensor, rho: float) -> Tensor:
    """What a unit of mass adds to the dual objective."""
    return potential if math.isinf(rho) else -rho * torch.expm1(-potential / rho)


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: float, rho: float) -> Tensor:
        plan = _plan(cost, a, b, f, g, eps)
        ctx.save_for_backward(plan, f, g)
        ctx.eps, ctx.rho = eps, rho
        return plan

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        r"""Differentiate :math:`P 1 = a e^{-f/\rho}`, :math:`P^\top 1 = b e^{-g/\rho}` and solve the adjoint system.

        It is :math:`\kappa p \alpha + P \beta = (G \circ P) 1`,
        :math:`P^\top \alpha + \kappa q \beta = (G \circ P)^\top 1` with the plan's marginals p and q and
        :math:`\kappa = 1 + \varepsilon / \rho`.
        """
        plan, f, g = ctx.saved_tensors
        kappa = 1.0 if math.isinf(ctx.rho) else 1 + ctx.eps / ctx.rho
        rows, columns = kappa * plan.sum(-1), kappa * plan.sum(-2)
        weighted = grad * plan
        by_row, by_column = _inverse(rows), _inverse(columns)
        row_load = weighted.sum(-1)
        load = weighted.sum(-2) - _times(plan.mT, by_row * row_load)

        def reduced(x: Tensor) -> Tensor:
            return columns * x - _times(plan.mT, by_row * _times(plan, x))

        beta = _conjugate_gradients(reduced, load, by_column)
        alpha = by_row * (row_load - _times(plan, beta))
        moved = plan * (alpha.unsqueeze(-1) + beta.unsqueeze(-2))
        return (
            (moved - weighted) / ctx.eps,
            kappa * _kept(f, ctx.rho) * alpha,
            kappa * _kept(g, ctx.rho) * beta,
            *(None,) * 4,
        )


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / torch.where(x > 0, x, 1.0), 0.0)


def _conjugate_gradients(operator: Any, load: Tensor, preconditioner: Tensor) -> Tensor:
    """Solve a batch of positive semi-definite systems with consistent right-hand sides."""
    tolerance = 1e-12 if load.dtype == torch.float64 else 1e-6
    x, residual = torch.zeros_like(load), load
    z = preconditioner * residual
    direction, rho = z, (residual * z).sum(-1, keepdim=True)
    target = tolerance**2 * rho
    for step in range(_MAX_STEPS):
        image = operator(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        # A solved system of the batch has nothing left to move along.
        active = (rho > target) & (curvature > 0)
        length = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)
        x = x + length * direction
        residual = residual - length * image
        z = preconditioner * residual
        new = (residual * z).sum(-1, keepdim=True)
        direction = z + torch.where(active, new / torch.where(rho > 0, rho, 1.0), 0.0) * direction
        rho = torch.where(active, new, torch.zeros_like(new))
        if step % 10 == 9 and not bool((rho > target).any()):
            break
    return x

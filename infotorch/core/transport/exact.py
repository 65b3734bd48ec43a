"""Exact optimal transport, through POT's network simplex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._autograd import first_order
from infotorch.core.transport._problem import as_problem


@dataclass(frozen=True)
class ExactTransport:
    """Solution of an optimal transport problem.

    Attributes:
        value: 0-d; differentiable in cost and masses (in the masses up to a constant).
        plan: Shape ``(n, m)``, without gradient.
    """

    value: Tensor
    plan: Tensor


def exact_transport(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, max_iter: int = 100_000
) -> ExactTransport:
    r"""Least cost :math:`\min_P \langle P, C \rangle` of moving mass ``a`` to ``b``, and the plan that attains it.

    Needs the package POT, and runs on the CPU in float64. Up to about a thousand points it is as fast as the
    entropic approximation.

    Args:
        cost: Shape ``(n, m)``, finite.
        a: Shape ``(n,)``, non-negative; 1/n each by default.
        b: Shape ``(m,)``, of the same sum.
        max_iter: Most pivots of the simplex method.

    Raises:
        TypeError: An argument is not a floating tensor.
        ValueError: Shapes that do not agree, costs that are not finite, negative masses, unequal sums.
        RuntimeError: No optimum within ``max_iter``.
        ImportError: POT is not installed.

    Reference: N. Bonneel et al., "Displacement interpolation using Lagrangian mass transport", 2011 (the solver).

    >>> exact_transport(torch.tensor([[0.0, 2.0], [2.0, 1.0]])).value
    tensor(0.5000)
    """
    cost, a, b = as_problem(cost, a, b, balanced=True)
    if cost.ndim != 2:
        raise ValueError(f"cost: expected shape (n, m), got {tuple(cost.shape)}")
    if not bool(cost.isfinite().all()):
        raise ValueError("cost: expected finite values, got infinity")
    value, plan = _Exact.apply(cost, a, b, max_iter)  # pyright: ignore[reportGeneralTypeIssues]
    return ExactTransport(value, plan)


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, a: Tensor, b: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
        import ot

        mass = a.double().sum()
        arrays = [t.detach().double().cpu().numpy() for t in (a, b * (mass / b.double().sum()), cost)]
        plan, log = ot.emd(*arrays, numItermax=max_iter, log=True, check_marginals=False)
        if log["warning"] is not None:
            raise RuntimeError(f"max_iter: no optimum after {max_iter} pivots: {log['warning']}")
        plan, u, v = (torch.as_tensor(t).to(cost) for t in (plan, log["u"], log["v"]))
        ctx.save_for_backward(plan, u, v)
        ctx.mark_non_differentiable(plan)
        return cost.new_tensor(float(log["cost"])), plan

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(grad * saved for saved in ctx.saved_tensors), None

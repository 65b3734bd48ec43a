r"""Entropic optimal transport by Sinkhorn's iterations: balanced, unbalanced, batched, differentiable.

:math:`\mathrm{OT}_\varepsilon(a, b) = \min_P \langle P, C \rangle + \varepsilon\,\mathrm{KL}(P | a b^\top)
+ \rho\,\mathrm{KL}(P 1 | a) + \rho\,\mathrm{KL}(P^\top 1 | b)` with
:math:`\mathrm{KL}(x | y) = \sum x \log(x / y) - x + y`; :math:`\rho = \infty` makes the marginals exact. Values
have the unit of the cost.

Potentials f and g give the plan :math:`P_{ij} = a_i b_j \exp((f_i + g_j - C_{ij}) / \varepsilon)`. Their updates are
matrix products with a kernel that has absorbed the last potentials, and log-sum-exps where that would overflow.

Nothing is unrolled. The value has the envelope theorem's gradient; plan and sharp cost are differentiated implicitly,
by conjugate gradients on the optimality conditions.

References:
    - M. Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", 2013, arXiv:1306.0895.
    - L. Chizat et al., "Scaling algorithms for unbalanced optimal transport problems", 2018, arXiv:1607.05816.
    - B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems", 2019,
      arXiv:1610.06519 (absorption, annealing).
    - J. Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences", 2019,
      arXiv:1810.08278.

Deviations from POT:
    - Masses of different sums are refused unless ``rho`` is finite.
    - The gradient of the value in the masses is that of the value (f and g). ``ot.solve(grad="envelope")`` returns
      ``f + eps * log(a)``, which belongs to the value with entropy in place of the divergence from ``a b^T``.
    - Iterations start from zero potentials, that is from scalings a and b, not from ones
      (``init=-eps * a.log()`` starts where POT does).
    - POT's reference measure without masses (``reg_type="entropy"``) is the cost ``C + eps * log(a b^T)`` here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core._kernels import check_finite, check_points, squared_distances
from infotorch.core.transport import _scaling
from infotorch.core.transport._implicit import dual_value, plan_of
from infotorch.core.transport._problem import as_problem

COSTS = ("sqeuclidean", "half_sqeuclidean", "euclidean")


@dataclass(frozen=True)
class SinkhornResult:
    """Solution of an entropic transport problem.

    Attributes:
        value: Shape ``(...)``: the regularized value; differentiable in cost and masses.
        f: Shape ``(..., n)``: potential of a, without gradient.
        g: Shape ``(..., m)``: potential of b, without gradient.
        iterations: How many were made.
        error: Largest L1 deviation of the columns' masses from their optimality conditions.
        converged: Whether that is at most ``tol``.
    """

    value: Tensor
    f: Tensor
    g: Tensor
    iterations: int
    error: float
    converged: bool
    _problem: _scaling.Problem

    @property
    def eps(self) -> float:
        """Strength of the entropic term, in the unit of the cost."""
        return self._problem.eps

    @cached_property
    def plan(self) -> Tensor:
        """Shape ``(..., n, m)``; differentiable in cost and masses, by implicit differentiation."""
        return plan_of(self._problem, self.f, self.g)

    @cached_property
    def transport_cost(self) -> Tensor:
        """Shape ``(...)``: the sharp cost, without the regularizer; differentiable as the plan is."""
        cost = self._problem.cost
        return (self.plan * cost.masked_fill(cost == math.inf, 0.0)).sum((-1, -2))


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float,
    relative: bool = False,
    rho: float = math.inf,
    max_iter: int = 1000,
    tol: float | None = None,
    annealing: float | None = None,
    init: Tensor | None = None,
    check_every: int = 10,
) -> SinkhornResult:
    r"""Solve an entropic transport problem, or a batch of them.

    Args:
        cost: Shape ``(..., n, m)``; infinite entries are forbidden pairs.
        a: Shape ``(..., n)`` or ``(n,)``, non-negative (zeros are padding); 1/n each by default.
        b: Shape ``(..., m)`` or ``(m,)``; 1/m each by default.
        eps: Strength of the entropic term, in the unit of the cost; a twentieth of its mean is a start.
        relative: Take ``eps`` as a multiple of the mean finite cost (of the whole batch, without gradient).
        rho: Price of mass that does not arrive. Convergence slows down where ``rho`` is many times ``eps``.
        max_iter: Most iterations, those of the annealing included.
        tol: On the L1 error of the column masses (rows are exact); default 1e-9, or 1e-6 in float32.
        annealing: Factor in (0, 1): start from ``eps = max(cost)`` and go down by it, ``check_every`` iterations each.
            Saves most iterations where ``eps`` is small.
        init: Shape ``(..., n)``: potential f to start from, such as that of a similar problem.
        check_every: Iterations between two looks at the error; the only synchronization with a GPU.

    Warns:
        UserWarning: The error is above ``tol`` after ``max_iter`` (not where ``tol`` is 0).

    Raises:
        TypeError: An argument is not a floating tensor.
        ValueError: Shapes that do not agree, negative masses, unequal sums without ``rho``, a point whose pairs are
            all forbidden, an option out of range.

    Reference: M. Cuturi, 2013, arXiv:1306.0895; L. Chizat et al., 2018, arXiv:1607.05816.

    >>> sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), eps=0.5).plan
    tensor([[0.4404, 0.0596],
            [0.0596, 0.4404]])
    """
    check_range("rho", rho, 0.0, low_open=True)
    check_range("max_iter", max_iter, 1)
    check_range("check_every", check_every, 1)
    if annealing is not None:
        check_range("annealing", annealing, 0.0, 1.0, low_open=True, high_open=True)
    cost, a, b = as_problem(cost, a, b, balanced=math.isinf(rho))
    eps = _strength(eps, cost, relative)
    tol = (1e-9 if cost.dtype == torch.float64 else 1e-6) if tol is None else check_range("tol", tol, 0.0)
    problem = _scaling.Problem(cost, a, b, eps, rho)
    if init is not None and init.shape[-1:] != a.shape[-1:]:
        raise ValueError(f"init: expected shape {tuple(a.shape)}, got {tuple(init.shape)}")
    with torch.no_grad():
        start = torch.zeros_like(a) if init is None else init.detach().to(a).expand(a.shape)
        f, g, iterations, error = _scaling.solve(problem.detached(), start, max_iter, tol, annealing, check_every)
    _warn(error, tol, iterations)
    return SinkhornResult(dual_value(problem, f, g), f, g, iterations, error, error <= tol, problem)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float,
    relative: bool = False,
    cost: str | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    max_iter: int = 1000,
    tol: float | None = None,
    annealing: float | None = None,
) -> Tensor:
    r"""Debiased entropic transport cost: non-negative, and 0 exactly for equal measures.

    :math:`\mathrm{OT}_\varepsilon(a, b) - (\mathrm{OT}_\varepsilon(a, a) + \mathrm{OT}_\varepsilon(b, b)) / 2`. Every
    term is the regularized value, not the sharp cost. Without the two own terms, minimizing would shrink x
    towards its mean.

    Args:
        x: Shape ``(..., n, d)``.
        y: Shape ``(..., m, d)``.
        a: Shape ``(..., n)`` or ``(n,)``, non-negative; 1/n each by default.
        b: Shape ``(..., m)`` or ``(m,)``, of the same sum.
        eps: Strength of the entropic term, in the unit of the cost.
        relative: Take ``eps`` as a multiple of the mean cost between x and y (without gradient).
        cost: ``"sqeuclidean"``, ``"half_sqeuclidean"`` (geomloss with ``p=2``, its ``blur`` being the root of eps),
            ``"euclidean"``, or a symmetric function of two sets of points.
        max_iter: Most iterations for each term.
        tol: On the L1 error of the masses; default 1e-9, or 1e-6 in float32.
        annealing: As in :func:`sinkhorn`.

    Returns:
        Shape ``(...)``; differentiable in points and masses.

    Raises:
        TypeError: An argument is not a floating tensor.
        ValueError: As :func:`sinkhorn`; dimensions that differ, points that are not finite, an unknown cost.

    Reference: J. Feydy et al., 2019, arXiv:1810.08278.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> sinkhorn_divergence(x, x + 2, eps=1.0)
    tensor(4.)
    """
    function = _COSTS[check_choice("cost", cost, COSTS)] if isinstance(cost, str) else cost
    x, y = (check_finite(name, check_points(name, points)) for name, points in (("x", x), ("y", y)))
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x, y: expected shapes (..., n, d) and (..., m, d), got {tuple(x.shape)}, {tuple(y.shape)}")
    costs = function(x, y)
    if relative:
        eps = _strength(eps, costs, relative)
    across = sinkhorn(costs, a, b, eps=eps, max_iter=max_iter, tol=tol, annealing=annealing)
    own = [_own_value(function(z, z), masses, eps, max_iter, tol) for z, masses in ((x, a), (y, b))]
    return across.value - (own[0] + own[1]) / 2


def _own_value(cost: Tensor, masses: Tensor | None, eps: float, max_iter: int, tol: float | None) -> Tensor:
    """The value between a measure and itself, where both potentials are the same."""
    cost, a, _ = as_problem(cost, masses, masses, balanced=True)
    tol = (1e-9 if cost.dtype == torch.float64 else 1e-6) if tol is None else tol
    problem = _scaling.Problem(cost, a, a, eps, math.inf)
    with torch.no_grad():
        f, g, iterations, error = _scaling.solve_symmetric(problem.detached(), max_iter, tol)
    _warn(error, tol, iterations)
    return dual_value(problem, f, g)


def _strength(eps: float, cost: Tensor, relative: bool) -> float:
    """``eps`` in the unit of the cost."""
    check_range("eps", eps, 0.0, math.inf, low_open=True, high_open=True)
    if not relative:
        return eps
    mean = float(cost.detach()[cost < math.inf].mean())
    if not 0 < mean < math.inf:
        raise ValueError(f"eps: expected a positive mean cost to be relative to, got {mean:g}")
    return eps * mean


def _warn(error: float, tol: float, iterations: int) -> None:
    if tol > 0 and not error <= tol:
        warnings.warn(
            f"max_iter: error {error:.2g} is above tol {tol:.2g} after {iterations} iterations; allow more of them, "
            "raise eps, or set annealing",
            stacklevel=3,
        )


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    squared = squared_distances(x, y)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


_COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sqeuclidean": squared_distances,
    "half_sqeuclidean": lambda x, y: squared_distances(x, y) / 2,
    "euclidean": _euclidean,
}

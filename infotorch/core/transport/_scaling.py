"""Sinkhorn's iterations on the potentials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """``cost [..., n, m]``, masses ``[..., n]`` and ``[..., m]``, strength of the entropy, price of lost mass."""

    cost: Tensor
    a: Tensor
    b: Tensor
    eps: float
    rho: float

    @property
    def damping(self) -> float:
        """By how much a finite ``rho`` shrinks every update."""
        return 1.0 if math.isinf(self.rho) else self.rho / (self.rho + self.eps)

    def detached(self) -> Problem:
        """The same problem without gradients."""
        return Problem(self.cost.detach(), self.a.detach(), self.b.detach(), self.eps, self.rho)

    def with_eps(self, eps: float) -> Problem:
        """The same problem with another strength."""
        return Problem(self.cost, self.a, self.b, eps, self.rho)

    def update_f(self, g: Tensor) -> Tensor:
        """``-k eps log sum_j b_j exp((g_j - C_ij) / eps)``."""
        exponents = (self.b.log() + g / self.eps).unsqueeze(-2) - self.cost / self.eps
        return self._potential(torch.logsumexp(exponents, -1))

    def update_g(self, f: Tensor) -> Tensor:
        """``-k eps log sum_i a_i exp((f_i - C_ij) / eps)``."""
        exponents = (self.a.log() + f / self.eps).unsqueeze(-1) - self.cost / self.eps
        return self._potential(torch.logsumexp(exponents, -2))

    def _potential(self, log_sum: Tensor) -> Tensor:
        # A point of mass 0 whose pairs are all forbidden has no potential; any number serves.
        return torch.where(log_sum.isfinite(), -self.damping * self.eps * log_sum, 0.0)

    def error(self, g: Tensor, wanted: Tensor) -> float:
        """Largest L1 deviation of column masses, given the potential that would make them right."""
        return float((self.b * torch.expm1((g - wanted) / self.eps).abs()).sum(-1).max())


def solve(
    problem: Problem, f: Tensor, max_iter: int, tol: float, annealing: float | None, check_every: int
) -> tuple[Tensor, Tensor, int, float]:
    """Iterate ``g`` then ``f`` until the columns' masses are right: potentials, iterations, error."""
    done = 0
    for eps in _schedule(problem, annealing):
        steps = min(check_every, max_iter - check_every - done)
        if steps <= 0:
            break
        f, _ = _block(problem.with_eps(eps), f, problem.with_eps(eps).update_g(f), steps)
        done += steps
    wanted = problem.update_g(f)
    while True:
        steps = min(check_every, max_iter - done)
        f, g = _block(problem, f, wanted, steps)
        done += steps
        wanted = problem.update_g(f)
        error = problem.error(g, wanted)
        if error <= tol or done >= max_iter or not math.isfinite(error):
            return f, g, done, error


def solve_symmetric(problem: Problem, max_iter: int, tol: float) -> tuple[Tensor, Tensor, int, float]:
    """Both potentials of a measure with itself, by averaging one potential with its update."""
    f = torch.zeros_like(problem.a)
    error, done = math.inf, 0
    for done in range(1, max_iter + 1):
        updated = problem.update_f(f)
        if done % 5 == 0 or done == max_iter:
            error = problem.error(f, updated)
            if error <= tol:
                break
        f = (f + updated) / 2
    return problem.update_f(f), f, done, error


def _schedule(problem: Problem, annealing: float | None) -> list[float]:
    """Strengths before the last one."""
    if annealing is None:
        return []
    finite = problem.cost[problem.cost < math.inf]
    eps, found = float(finite.abs().max()), []
    while eps > problem.eps:
        found.append(eps)
        eps *= annealing
    return found


def _block(problem: Problem, f: Tensor, g: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """``steps`` iterations, of which the first update of ``g`` has been made.

    The kernel with both potentials absorbed has row sums of one, so matrix products with it are safe as long as
    the potentials do not move far. Where they do, the block is done again by log-sum-exps.
    """
    f = problem.update_f(g)
    if steps == 1:
        return f, g
    limit = 1e30 if f.dtype == torch.float64 else 1e10
    kernel = torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - problem.cost) / problem.eps)
    k = problem.damping
    # With damping, the absorbed part of a potential is damped again at every update.
    left, right = (torch.exp((k - 1) * h / problem.eps) if k < 1 else torch.ones_like(h) for h in (f, g))
    u, v = torch.ones_like(f), torch.ones_like(g)
    for _ in range(steps - 1):
        v = right * (kernel.mT @ (problem.a * u).unsqueeze(-1)).squeeze(-1).pow(-k)
        u = left * (kernel @ (problem.b * v).unsqueeze(-1)).squeeze(-1).pow(-k)
    extremes = torch.stack([h.amax() for h in (u, v, 1 / u, 1 / v)])
    if bool((extremes < limit).all()):  # false for NaN too
        return f + problem.eps * u.log(), g + problem.eps * v.log()
    for _ in range(steps - 1):
        g = problem.update_g(f)
        f = problem.update_f(g)
    return f, g

r"""Zero-sum matrix games: quantal response equilibria, and what annealed temperatures do to gradient play.

The row player chooses x to raise :math:`x^\top A y`, the column player y to lower it; each gets an entropy bonus with
a temperature of its own. The smallest laboratory for QARL's claim that an adversary which becomes rational slowly
keeps training stable.

References:
    - R. McKelvey and T. Palfrey, "Quantal response equilibria for normal form games", 1995.
    - A. Reddi et al., 2024, arXiv:2311.01642.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from infotorch.core._checks import check_range, check_tensor

__all__ = [
    "MATCHING_PENNIES",
    "ROCK_PAPER_SCISSORS",
    "Play",
    "QuantalResponse",
    "exploitability",
    "gradient_play",
    "logit_qre",
    "nash",
]

#: The row player wins if both show the same side.
MATCHING_PENNIES = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
#: Each action beats one of the others and loses to the other.
ROCK_PAPER_SCISSORS = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)


class QuantalResponse(NamedTuple):
    """Logit equilibria.

    Attributes:
        x, y: Strategies of the players, ``(..., m)`` and ``(..., n)``.
        value: What the row player gets without bonuses, ``(...)``.
        residual: Largest change of a log-probability that one more response would make.
        iterations: Responses that it took.
    """

    x: Tensor
    y: Tensor
    value: Tensor
    residual: float
    iterations: int


def logit_qre(
    payoff: Tensor, tau: float | Tensor, alpha: float | Tensor, *, tol: float = 1e-10, max_iter: int = 200_000
) -> QuantalResponse:
    r"""Logit quantal response equilibrium :math:`x \propto e^{A y / \tau}, y \propto e^{-A^\top x / \alpha}`.

    It is the only saddle point of :math:`x^\top A y + \tau H(x) - \alpha H(y)`, found by damped responses of the
    logits. With the damping :math:`1 / (1 + \|\bar A\|^2 / 4 \tau \alpha)`, where :math:`\bar A` is A without the means
    of its rows and columns, the responses contract around it; iterations grow like :math:`\|\bar A\|^2 / \tau \alpha`.

    Args:
        payoff: The row player's, shape ``(m, n)``.
        tau: Positive temperature of the row player, a number or a tensor.
        alpha: That of the column player; the two broadcast.
        tol: Largest change of a log-probability at which to stop, in nats.
        max_iter: Most responses.

    Returns:
        Strategies in float64.

    Raises:
        TypeError: ``payoff`` is no tensor.
        ValueError: ``payoff`` is not a finite matrix, a temperature is not positive.
        RuntimeError: No convergence within ``max_iter`` responses: the temperatures are too low.

    >>> found = logit_qre(torch.tensor([[3.0, -1.0], [-1.0, 1.0]]), 1.0, 1.0)
    >>> found.x
    tensor([0.4661, 0.5339], dtype=torch.float64)
    """
    a = _payoff(payoff)
    row, column = torch.broadcast_tensors(_temperature("tau", tau), _temperature("alpha", alpha))
    row, column = row.unsqueeze(-1), column.unsqueeze(-1)
    # A constant added to a row or a column of the payoff changes no response.
    centered = a - a.mean(0, keepdim=True) - a.mean(1, keepdim=True) + a.mean()
    damping = 1 / (1 + torch.linalg.matrix_norm(centered, 2).square() / (4 * row * column))
    log_x = row.new_full((*row.shape[:-1], a.shape[0]), -math.log(a.shape[0]))
    log_y = row.new_full((*row.shape[:-1], a.shape[1]), -math.log(a.shape[1]))
    residual = math.inf
    for iteration in range(1, max_iter + 1):
        step_x = torch.log_softmax(log_y.exp() @ a.T / row, -1) - log_x
        step_y = torch.log_softmax(-(log_x.exp() @ a) / column, -1) - log_y
        if iteration % 10 == 1:
            residual = float(torch.maximum(step_x.abs().max(), step_y.abs().max()))
            if residual <= tol:
                x, y = log_x.exp(), log_y.exp()
                return QuantalResponse(x, y, ((x @ a) * y).sum(-1), residual, iteration)
        log_x = torch.log_softmax(log_x + damping * step_x, -1)
        log_y = torch.log_softmax(log_y + damping * step_y, -1)
    raise RuntimeError(
        f"logit_qre: no convergence to {tol:g} in {max_iter} responses (now {residual:.2g}); raise the temperatures "
        "or max_iter"
    )


def exploitability(payoff: Tensor, x: Tensor, y: Tensor) -> Tensor:
    r"""What best responses would gain, :math:`\max_i (A y)_i - \min_j (A^\top x)_j`; 0 at a Nash equilibrium only.

    Args:
        payoff: Shape ``(m, n)``.
        x: Strategies of the row player, shape ``(..., m)``.
        y: Strategies of the column player, shape ``(..., n)``.

    Returns:
        Shape ``(...)``, in units of the payoff.

    Raises:
        TypeError: An argument that is no tensor.
        ValueError: Shapes that do not fit, strategies that are no distributions.

    >>> exploitability(MATCHING_PENNIES, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    tensor(1., dtype=torch.float64)
    """
    a = _payoff(payoff)
    x, y = _strategy("x", x, a.shape[0]), _strategy("y", y, a.shape[1])
    return (y @ a.T).amax(-1) - (x @ a).amin(-1)


def nash(payoff: Tensor) -> QuantalResponse:
    r"""A Nash equilibrium and the game's value, by linear programming.

    .. math:: \max_{x, v} v \quad\text{with}\quad A^\top x \ge v, \quad x \in \Delta

    Args:
        payoff: Shape ``(m, n)``.

    Raises:
        TypeError: ``payoff`` is no tensor.
        ValueError: It is not a finite matrix.

    >>> nash(torch.tensor([[3.0, -1.0], [-1.0, 1.0]])).value
    tensor(0.3333, dtype=torch.float64)
    """
    a = _payoff(payoff)
    x = _maximin(a)
    y = _maximin(-a.T)
    return QuantalResponse(x, y, x @ a @ y, float(exploitability(a, x, y)), 1)


def _maximin(a: Tensor) -> Tensor:
    from scipy.optimize import linprog

    m, n = a.shape
    found = linprog(
        [0.0] * m + [-1.0],
        A_ub=torch.cat((-a.T, torch.ones(n, 1, dtype=a.dtype)), 1).numpy(),
        b_ub=[0.0] * n,
        A_eq=[[1.0] * m + [0.0]],
        b_eq=[1.0],
        bounds=[(0, 1)] * m + [(None, None)],
    )
    x = torch.as_tensor(found.x[:m]).clamp_min(0)
    return x / x.sum()


class Play(NamedTuple):
    """A run of gradient play.

    Attributes:
        x, y: Strategies after every step, ``(steps + 1, m)`` and ``(steps + 1, n)``, the start first.
        exploitability: Of each, ``(steps + 1,)``.
    """

    x: Tensor
    y: Tensor
    exploitability: Tensor


def gradient_play(
    payoff: Tensor,
    *,
    steps: int,
    lr: float = 0.1,
    tau: float = 0.0,
    alpha: float | Callable[[float], float] = 0.0,
    generator: Generator | None = None,
) -> Play:
    r"""Both players follow the gradients of :math:`x^\top A y + \tau H(x) - \alpha H(y)` at once, in their logits.

    Args:
        payoff: Shape ``(m, n)``.
        steps: How many.
        lr: Step size.
        tau: The row player's temperature, may be 0.
        alpha: The column player's, or a function of the share of steps made (0 to 1): a curriculum.
        generator: Of the start, normal logits.

    Raises:
        TypeError: ``payoff`` is no tensor.
        ValueError: It is not a finite matrix; steps, step size or temperature out of range.

    >>> play = gradient_play(MATCHING_PENNIES, steps=2000, alpha=1.0, generator=torch.Generator().manual_seed(0))
    >>> float(play.exploitability[-1]) < 0.01 < float(play.exploitability[0])
    True
    """
    a = _payoff(payoff)
    check_range("steps", steps, 1)
    check_range("lr", lr, 0.0, math.inf, low_open=True, high_open=True)
    check_range("tau", tau, 0.0, math.inf, high_open=True)
    schedule = alpha if callable(alpha) else lambda progress: alpha
    u, v = (torch.randn(size, generator=generator, dtype=a.dtype) for size in a.shape)
    xs, ys = [], []
    for step in range(steps + 1):
        log_x, log_y = torch.log_softmax(u, 0), torch.log_softmax(v, 0)
        x, y = log_x.exp(), log_y.exp()
        xs.append(x)
        ys.append(y)
        temperature = check_range("alpha", schedule(step / steps), 0.0, math.inf, high_open=True)
        gain, cost = a @ y - tau * log_x, x @ a + temperature * log_y
        u = u + lr * x * (gain - x @ gain)
        v = v - lr * y * (cost - y @ cost)
    x, y = torch.stack(xs), torch.stack(ys)
    return Play(x, y, exploitability(a, x, y))


def _payoff(payoff: Tensor) -> Tensor:
    if check_tensor("payoff", payoff).ndim != 2 or not payoff.numel():
        raise ValueError(f"payoff: expected shape (m, n), got {tuple(payoff.shape)}")
    if not bool(payoff.isfinite().all()):
        raise ValueError("payoff: expected finite numbers, got NaN or infinity")
    return payoff.detach().double().cpu()


def _temperature(name: str, value: float | Tensor) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float64)
    if not bool(((found > 0) & found.isfinite()).all()):
        raise ValueError(f"{name}: expected positive temperatures, got {value}")
    return found


def _strategy(name: str, value: Tensor, actions: int) -> Tensor:
    if check_tensor(name, value).ndim < 1 or value.shape[-1] != actions:
        raise ValueError(f"{name}: expected shape (..., {actions}), got {tuple(value.shape)}")
    value = value.double()
    if not bool(((value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < 1e-5)).all()):
        raise ValueError(f"{name}: expected probabilities that sum to one, got sums {value.sum(-1)}")
    return value

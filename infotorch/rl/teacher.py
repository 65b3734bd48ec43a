r"""The teacher of QARL's curriculum: how far the temperature's distribution may move, solved exactly.

Temperatures are drawn from a Gamma distribution of fixed rate, so that its shape is the one unknown and the teacher's
problem is one on a line.

Reference: A. Reddi et al., "Robust adversarial reinforcement learning via bounded rationality curricula", 2024,
arXiv:2311.01642.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, gammaln
from torch import Tensor

from infotorch.core._checks import check_range, check_tensor

__all__ = ["TeacherStep", "gamma_kl", "importance_return", "teacher_step"]

# Points of the walk at which the performance is looked at; the crossing between two of them is then solved for.
SCAN = 2049
Status = Literal["moved", "frozen", "reached", "skipped"]


def gamma_kl(a: Any, b: Any) -> Any:
    r"""Divergence of Gamma distributions of one rate, :math:`(a - b)\psi(a) - \log\Gamma(a) + \log\Gamma(b)`, in nats.

    Args:
        a: Positive shape of the first, a number or an array.
        b: That of the second; the two broadcast.

    Raises:
        ValueError: A shape that is not positive.

    >>> round(float(gamma_kl(50.0, 40.0)), 4)
    1.0859
    >>> float(gamma_kl(2.0, 2.0))
    0.0
    """
    for name, value in (("a", a), ("b", b)):
        if not bool(np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name}: expected positive shapes, got {value}")
    return (a - b) * digamma(a) - gammaln(a) + gammaln(b)


def importance_return(temperatures: Tensor, returns: Tensor, shape: Any, old: float, rate: float = 1000.0) -> Any:
    r"""Return that temperatures of another shape would give, from episodes at temperatures of the old one.

    .. math:: J(k) = \frac1M \sum_m \frac{\Gamma(\alpha_m; k, w)}{\Gamma(\alpha_m; k_0, w)} R_m

    Args:
        temperatures: Shape ``(M,)``, of M episodes.
        returns: Shape ``(M,)``, what the episodes earned.
        shape: The shape k asked about, a number or an array.
        old: The shape k_0 that the temperatures were drawn with.
        rate: The rate w of both.

    Returns:
        Of the form of ``shape``. Ratios are computed as logarithms and kept below the largest float.

    Raises:
        ValueError: Shapes that differ or are empty, temperatures or shapes that are not positive, returns that are not
            finite.

    >>> import torch
    >>> importance_return(torch.tensor([0.04, 0.05]), torch.tensor([1.0, 3.0]), 50.0, 50.0)
    2.0
    """
    alpha, earned = _episodes(temperatures, returns)
    k = np.asarray(shape, dtype=np.float64)
    if not bool((k > 0).all()) or not old > 0:
        raise ValueError(f"shape: expected positive shapes, got {shape} and {old}")
    found = _importance(alpha, earned, k, old, rate)
    return float(found) if k.ndim == 0 else found


class TeacherStep(NamedTuple):
    """What a teacher's update found.

    Attributes:
        shape: The new shape.
        performance: Mean return of the episodes, the estimate at the old shape.
        kl_to_old, kl_to_target: Divergence of the new distribution from the old one and from the target, in nats.
        status: ``"moved"``; ``"reached"`` the target; ``"frozen"``, as the return is below the bound; ``"skipped"``,
            as there were fewer than two episodes or a return that is not finite.
    """

    shape: float
    performance: float
    kl_to_old: float
    kl_to_target: float
    status: Status


def teacher_step(
    temperatures: Tensor,
    returns: Tensor,
    shape: float,
    *,
    target: float = 1.0,
    rate: float = 1000.0,
    max_kl: float = 0.5,
    performance_bound: float = 10.0,
    min_shape: float = 1e-8,
    target_kl: float = 0.01,
) -> TeacherStep:
    r"""The teacher's problem, solved exactly.

    .. math::

        \min_k \mathrm{KL}(\Gamma_k \| \Gamma_{k^*})
        \quad\text{with}\quad \mathrm{KL}(\Gamma_k \| \Gamma_{k_0}) \le \epsilon, \quad J(k) \ge \xi

    Both divergences are monotone between :math:`k_0` and :math:`k^*`, so the answer is the point farthest on the way
    from the one to the other that the trust region allows, or the first at which J falls to :math:`\xi`.

    Args:
        temperatures: Shape ``(M,)``, of M episodes.
        returns: Shape ``(M,)``, the episodes' discounted returns.
        shape: The old shape :math:`k_0`.
        target: The shape :math:`k^*` aimed at, below or above.
        rate: Rate of all distributions.
        max_kl: Trust region, in nats.
        performance_bound: The return :math:`\xi` that has to be kept.
        min_shape: Smallest shape, while farther than ``target_kl`` nats from the target.
        target_kl: See ``min_shape``.

    Raises:
        ValueError: Shapes, rate, or trust region that are not positive, temperatures and returns of different
            shapes, temperatures that are not positive.

    Reference: A. Reddi et al., 2024, arXiv:2311.01642.

    Deviation from the authors' code: an exact solution on a line replaces scipy's trust-constr, which stops a few
    hundredths short of the boundary and keeps the old shape where it fails.

    >>> import torch
    >>> alpha = torch.tensor([0.045, 0.05, 0.055])
    >>> teacher_step(alpha, torch.tensor([20.0, 20.0, 20.0]), 50.0, performance_bound=0.0).status
    'moved'
    >>> teacher_step(alpha, torch.tensor([5.0, 5.0, 5.0]), 50.0).status
    'frozen'
    """
    for name, value in {"shape": shape, "target": target, "rate": rate, "max_kl": max_kl}.items():
        check_range(name, value, 0.0, math.inf, low_open=True, high_open=True)
    check_tensor("temperatures", temperatures)
    check_tensor("returns", returns)
    if temperatures.shape == returns.shape and (returns.numel() < 2 or not bool(returns.isfinite().all())):
        return TeacherStep(shape, math.nan, 0.0, float(gamma_kl(shape, target)), "skipped")
    alpha, earned = _episodes(temperatures, returns)
    goal = target if gamma_kl(shape, target) <= target_kl else max(target, min_shape)
    performance = float(earned.mean())
    if performance < performance_bound:
        return TeacherStep(shape, performance, 0.0, float(gamma_kl(shape, target)), "frozen")
    end = goal
    if gamma_kl(goal, shape) > max_kl:
        end = _zero(lambda k: gamma_kl(k, shape) - max_kl, shape, goal)
    way = np.linspace(shape, end, SCAN)
    short = _importance(alpha, earned, way, shape, rate) < performance_bound
    if short.any():
        first = int(short.argmax())

        def excess(k: float) -> float:
            return float(_importance(alpha, earned, k, shape, rate)) - performance_bound

        # At the bound from the start: the sum of a row may round otherwise than that of a vector.
        stays = first == 0 or excess(way[first - 1]) <= 0 or excess(way[first]) >= 0
        end = float(way[max(first - 1, 0)]) if stays else _zero(excess, way[first - 1], way[first])
    status = "reached" if end == target else "moved"
    return TeacherStep(end, performance, float(gamma_kl(end, shape)), float(gamma_kl(end, target)), status)


def _episodes(temperatures: Tensor, returns: Tensor) -> tuple[np.ndarray, np.ndarray]:
    check_tensor("temperatures", temperatures)
    if temperatures.ndim != 1 or not len(temperatures) or temperatures.shape != check_tensor("returns", returns).shape:
        raise ValueError(
            f"temperatures, returns: expected two of shape (M,), got {tuple(temperatures.shape)} "
            f"and {tuple(returns.shape)}"
        )
    if not bool(((temperatures > 0) & temperatures.isfinite()).all()):
        raise ValueError(f"temperatures: expected positive numbers, got {temperatures.min()}")
    if not bool(returns.isfinite().all()):
        raise ValueError("returns: expected finite numbers, got NaN or infinity")
    return temperatures.detach().double().cpu().numpy(), returns.detach().double().cpu().numpy()


def _importance(alpha: np.ndarray, earned: np.ndarray, k: Any, old: float, rate: float) -> Any:
    k = np.asarray(k)[..., None]
    log_ratio = (k - old) * (np.log(alpha) + math.log(rate)) - gammaln(k) + gammaln(old)
    return (np.exp(np.minimum(log_ratio, 700.0)) * earned).mean(-1)


def _zero(excess: Callable[[float], float], start: float, end: float) -> float:
    """The zero between two points at which the signs differ."""
    return float(brentq(excess, start, end, xtol=1e-12, rtol=1e-14))  # pyright: ignore[reportArgumentType]

r"""Curricula over the adversary's temperature: from a bound on its rationality to none.

QARL draws the temperature of every episode from a Gamma distribution. A teacher moves the distribution's shape towards
a rational adversary, no further at a time than a trust region allows and only while the protagonist's return stays
above a bound. With one free parameter the teacher's problem has an exact solution on a line.

Reference: A. Reddi et al., "Robust adversarial reinforcement learning via bounded rationality curricula", 2024,
arXiv:2311.01642.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import digamma, gammaln
from torch import Generator, Tensor

from infotorch.core._checks import check_range, check_tensor

__all__ = [
    "Curriculum",
    "FixedTemperature",
    "GammaCurriculum",
    "LinearTemperature",
    "TeacherStep",
    "gamma_kl",
    "importance_return",
    "teacher_step",
]

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


class Curriculum(Protocol):
    """What decides the temperature of the next episodes."""

    @property
    def mean(self) -> float:
        """Mean of the temperatures drawn now."""
        ...

    def sample(self, count: int, generator: Generator | None = None) -> Tensor:
        """Temperatures of the next episodes, shape ``(count,)``."""
        ...

    def update(self, temperatures: Tensor, returns: Tensor, progress: float) -> None:
        """Take in the episodes of an iteration, after a share ``progress`` of all."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


@dataclass
class FixedTemperature:
    """One temperature throughout.

    Args:
        value: The temperature.

    Raises:
        ValueError: It is not positive.

    >>> FixedTemperature(0.01).sample(2)
    tensor([0.0100, 0.0100])
    """

    value: float = 0.001

    def __post_init__(self) -> None:
        check_range("value", self.value, 0.0, math.inf, low_open=True, high_open=True)

    @property
    def mean(self) -> float:
        """The temperature."""
        return self.value

    def sample(self, count: int, generator: Generator | None = None) -> Tensor:
        """The temperature, ``count`` times."""
        return torch.full((count,), self.mean)

    def update(self, temperatures: Tensor, returns: Tensor, progress: float) -> None:
        """Nothing changes."""

    def state_dict(self) -> dict[str, Any]:
        """The temperature."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.value = state["value"]


class LinearTemperature(FixedTemperature):
    """A line from one temperature to another over the first part of training.

    Args:
        start, end: The temperatures.
        fraction: Share of training over which they change.

    Raises:
        ValueError: A temperature that is not positive, a share outside (0, 1].

    >>> curriculum = LinearTemperature(0.05, 0.01, fraction=0.5)
    >>> curriculum.update(torch.empty(0), torch.empty(0), progress=0.25)
    >>> round(curriculum.mean, 6)
    0.03
    """

    def __init__(self, start: float = 0.05, end: float = 0.001, fraction: float = 2 / 3) -> None:
        super().__init__(start)
        check_range("end", end, 0.0, math.inf, low_open=True, high_open=True)
        check_range("fraction", fraction, 0.0, 1.0, low_open=True)
        self.start, self.end, self.fraction = start, end, fraction

    def update(self, temperatures: Tensor, returns: Tensor, progress: float) -> None:
        """Move along the line."""
        self.value = self.start + (self.end - self.start) * min(progress / self.fraction, 1.0)


@dataclass
class GammaCurriculum:
    r"""The self-paced curriculum: temperatures :math:`\Gamma(k, w)` whose shape :func:`teacher_step` moves.

    Args:
        start, target: Shape at the beginning and shape aimed at.
        rate: The rate; the mean temperature is shape / rate.
        max_kl: Trust region of an update, in nats.
        performance_bound: Discounted return below which the curriculum stands still. It depends on the environment:
            the authors take 1 to 100.
        episodes: Episodes that an update waits for.
        capacity: Most episodes that it looks at.
        high: Temperatures above are cut to it.

    Raises:
        ValueError: An option out of range.

    A curriculum that stands still five updates in a row warns: the bound is then probably out of reach.

    >>> curriculum = GammaCurriculum(performance_bound=0.0, episodes=2)
    >>> curriculum.mean
    0.05
    >>> curriculum.update(torch.tensor([0.05, 0.04]), torch.tensor([1.0, 1.0]), progress=0.1)
    >>> curriculum.mean < 0.05
    True
    """

    start: float = 50.0
    target: float = 1.0
    rate: float = 1000.0
    max_kl: float = 0.5
    performance_bound: float = 10.0
    episodes: int = 30
    capacity: int = 100
    high: float = math.inf
    steps: list[TeacherStep] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("start", "target", "rate", "max_kl"):
            check_range(name, getattr(self, name), 0.0, math.inf, low_open=True, high_open=True)
        check_range("high", self.high, 0.0, low_open=True)
        if not 2 <= self.episodes <= self.capacity:
            raise ValueError(f"episodes: expected 2 to {self.capacity} (the capacity), got {self.episodes}")
        self.shape, self._kept = self.start, torch.empty(2, 0, dtype=torch.float64)

    @property
    def mean(self) -> float:
        """Mean of the distribution, cut to ``high``."""
        return min(self.shape / self.rate, self.high)

    def sample(self, count: int, generator: Generator | None = None) -> Tensor:
        """Draw temperatures; a draw too small for a float becomes the smallest positive one."""
        drawn = torch._standard_gamma(torch.full((count,), self.shape, dtype=torch.float64), generator=generator)
        return (drawn / self.rate).clamp(torch.finfo(torch.float32).tiny, self.high).float()

    def update(self, temperatures: Tensor, returns: Tensor, progress: float) -> None:
        """Keep the episodes, and let the teacher move the shape as soon as there are enough."""
        fresh = torch.stack((temperatures.double(), returns.double()))
        self._kept = torch.cat((self._kept, fresh), 1)[:, -self.capacity :]
        if self._kept.shape[1] < self.episodes:
            return
        alpha, earned = self._kept
        step = teacher_step(
            alpha,
            earned,
            self.shape,
            target=self.target,
            rate=self.rate,
            max_kl=self.max_kl,
            performance_bound=self.performance_bound,
        )
        self.steps.append(step)
        self.shape, self._kept = step.shape, self._kept[:, :0]
        if len(self.steps) % 5 == 0 and all(s.status in ("frozen", "skipped") for s in self.steps[-5:]):
            warnings.warn(
                f"performance_bound: five updates in a row found a return below {self.performance_bound:g} (the last "
                f"{step.performance:.3g}); the curriculum stands still at temperature {self.mean:.3g}",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The shape, the episodes that wait and the steps made."""
        return {"shape": self.shape, "kept": self._kept.clone(), "steps": [tuple(step) for step in self.steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.shape, self._kept = state["shape"], state["kept"].clone()
        self.steps = [TeacherStep(*step) for step in state["steps"]]

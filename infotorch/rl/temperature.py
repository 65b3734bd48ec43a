r"""Curricula over the adversary's temperature: from a bound on its rationality to none.

QARL draws the temperature of every episode from a Gamma distribution. A teacher moves the distribution's shape towards
a rational adversary, no further at a time than a trust region allows and only while the protagonist's return stays
above a bound.

Reference: A. Reddi et al., "Robust adversarial reinforcement learning via bounded rationality curricula", 2024,
arXiv:2311.01642.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from infotorch.core._checks import check_range
from infotorch.rl.teacher import TeacherStep, teacher_step

__all__ = ["Curriculum", "FixedTemperature", "GammaCurriculum", "LinearTemperature"]


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

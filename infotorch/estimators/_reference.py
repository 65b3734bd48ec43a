"""What an estimator makes of normal data like the user's, for which the truth is known: its bias in figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core.gaussian import normal_scores

_FLOOR = 0.25  # nats: with less between the sides there is nothing to lose, and a loss would not show
_ABSOLUTE, _RELATIVE, _ERRORS = 0.05, 0.15, 3.0  # a bias beyond all three gives a warning
_POINTS = 2000  # simulated in all, at least


@dataclass(frozen=True)
class Reference:
    """Estimate and truth on normal data with the number of points, columns and correlations of the user's.

    Attributes:
        truth: Mutual information of the normal distribution, nats.
        mean: Average estimate from its samples.
        error: Standard error of that average, about.
    """

    truth: float
    mean: float
    error: float

    @property
    def bias(self) -> float:
        """Average estimate minus truth."""
        return self.mean - self.truth

    @property
    def alarming(self) -> bool:
        """More than 0.05 nats, 15 % of the truth and 3 standard errors."""
        return abs(self.bias) > max(_ABSOLUTE, _RELATIVE * self.truth, _ERRORS * self.error)

    def text(self, names: str, columns: str, n: int) -> str:
        """The warning."""
        side = "low" if self.bias < 0 else "high"
        return (
            f"{names}: {n} points in {columns} dimensions leave neighbors too far apart: on normal data with "
            f"correlations like these and {self.truth:.2f} nats the estimator says {self.mean:.2f}; expect a value too "
            f"{side}, which the interval does not show"
        )


def normal_reference(
    x: Tensor,
    y: Tensor,
    z: Tensor | None,
    value_of: Callable[[Tensor, Tensor, Tensor | None], float],
    generator: torch.Generator,
) -> Reference:
    r"""Run an estimator on normal samples with the correlations of the data.

    Correlations are those of the normal scores, so that tails do not matter. Those between x and y (given z) are
    scaled by a common factor, for the truth to be the Gaussian estimate without its bias :math:`d_x d_y / 2n`, and
    0.25 nats at least.

    Args:
        x: Shape ``(n, dx)``, columns that vary.
        y: Shape ``(n, dy)``.
        z: Condition, or None.
        value_of: The estimator.
        generator: Of the samples, on the CPU.
    """
    blocks = [x, y] if z is None else [x, y, z]
    n, dx, dy = len(x), x.shape[1], y.shape[1]
    scores = torch.cat([normal_scores(b).cpu() for b in blocks], 1)
    scale = torch.cat([b.std(0) for b in blocks]).cpu()
    scores = scores / scores.std(0)
    s = scores.T @ scores / (n - 1)
    d = len(s)
    s = (s + 1e-6 * torch.eye(d, dtype=s.dtype)) if n > 2 * d else (s + torch.eye(d, dtype=s.dtype)) / 2
    cross, rest_x, rest_y, through = _partial(s, dx, dy)
    lx, ly = torch.linalg.cholesky(rest_x), torch.linalg.cholesky(rest_y)
    canonical = torch.linalg.svdvals(torch.linalg.solve(lx, torch.linalg.solve(ly, cross.T).T)).clamp(max=1 - 1e-9)
    target = max(_FLOOR, _information(canonical) - dx * dy / (2 * n))
    factor = _factor(canonical, target)
    s[:dx, dx : dx + dy] = through + factor * cross
    s[dx : dx + dy, :dx] = s[:dx, dx : dx + dy].T
    root = torch.linalg.cholesky(s) * scale.unsqueeze(1)
    repeats = min(8, math.ceil(_POINTS / n))
    values = []
    for _ in range(repeats):
        drawn = (torch.randn(n, d, dtype=torch.float64, generator=generator) @ root.T).to(x.device)
        sides = drawn.split([b.shape[1] for b in blocks], 1)
        values.append(value_of(sides[0], sides[1], sides[2] if z is not None else None))
    return Reference(_information(factor * canonical), sum(values) / repeats, 1 / math.sqrt(n * repeats))


def _partial(s: Tensor, dx: int, dy: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Covariance of x and y, and of each alone, given the rest; and what of the first goes through the rest."""
    d = dx + dy
    given = s[d:, :d]
    explained = given.T @ torch.linalg.solve(s[d:, d:], given) if len(given) else torch.zeros_like(s[:d, :d])
    rest = s[:d, :d] - explained
    return rest[:dx, dx:], rest[:dx, :dx], rest[dx:, dx:], explained[:dx, dx:]


def _information(canonical: Tensor) -> float:
    return -float(torch.log1p(-canonical.square()).sum()) / 2


def _factor(canonical: Tensor, target: float) -> float:
    """What to multiply canonical correlations with for the information to be ``target``."""
    low, high = 0.0, (1 - 1e-9) / max(float(canonical.max()), 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _information(middle * canonical) < target else (low, middle)
    return low

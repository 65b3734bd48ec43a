r"""How far an estimate would move with other data: half-samples and the bootstrap.

Nearest-neighbor estimators do not survive the ordinary bootstrap. Drawing with replacement repeats points; a
repeated point is its own neighbor at distance 0, so that every radius shrinks and the estimate explodes. Half of the
points, drawn without repetition, are a sample of the same kind as the data, only smaller, and
:math:`\mathrm{Var}(T_n) \approx \frac{b}{n - b} \mathrm{Var}_\text{draws}(T_b)`: the factor turns the spread of
samples of b into one of samples of n, and allows for the points that two draws share. Much smaller samples would
have relatively larger neighborhoods and too little spread.

An interval is the estimate plus and minus a multiple of that error. It says where the *mean* of the estimator lies.
The estimator's bias is not in it.

Reference: D. Politis, J. Romano and M. Wolf, "Subsampling", 1999.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.estimators.base import recorded, warn

Interval = tuple[float, float]
_LARGEST = 4096  # points of a sub-sample: beyond, smaller ones show the same
STRETCHES = 20  # of a series


def check_confidence(confidence: float | None, resamples: int) -> None:
    """``confidence`` in (0, 1), or None for no interval; at least 2 resamples."""
    if confidence is not None:
        check_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
        if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 2:
            raise ValueError(f"resamples: expected an int >= 2, got {resamples!r}")


def half_sample_error(
    value_of: Callable[[Tensor], float], n: int, *, resamples: int, generator: torch.Generator, least: int = 2
) -> float | None:
    """Standard error from sub-samples; None, with a warning, where half of the points are too few.

    Args:
        value_of: The estimate from the points of the given numbers.
        n: Number of points.
        resamples: How many sub-samples.
        generator: Of the draws.
        least: Fewest points that can be estimated from.
    """
    size = min(n // 2, _LARGEST)
    if size < least:
        warn(f"x: {n} points are too few for a confidence interval, which takes estimates from {size} of them")
        return None
    draws = (torch.randperm(n, generator=generator)[:size] for _ in range(resamples))
    return _error(value_of, draws, size / (n - size))


def stretch_error(
    value_of: Callable[[Tensor], float], n: int, *, resamples: int, generator: torch.Generator, least: int = 2
) -> float | None:
    """Standard error of an estimate from a series: half of its stretches, for each to keep its own dependence.

    A series of n steps is cut into 20 stretches; dependence that reaches further than one of them is missed.
    """
    length = n // STRETCHES
    size = length * STRETCHES // 2
    if size < least or not length:
        warn(f"x: {n} steps are too few for a confidence interval, which takes estimates from {size} of them")
        return None
    steps = torch.arange(length * STRETCHES).view(STRETCHES, length)
    draws = (
        steps[torch.randperm(STRETCHES, generator=generator)[: STRETCHES // 2]].flatten() for _ in range(resamples)
    )
    return _error(value_of, draws, size / (n - size))


def bootstrap_error(
    value_of: Callable[[Tensor], float], n: int, *, resamples: int, generator: torch.Generator
) -> float:
    """Standard error from samples with replacement, for estimators that stand repeated points."""
    draws = (torch.randint(n, (n,), generator=generator) for _ in range(resamples))
    return _error(value_of, draws, 1.0)


def _error(value_of: Callable[[Tensor], float], draws: object, scale: float) -> float:
    with recorded():  # what is wrong with the data has been said about all of them
        values = torch.tensor([value_of(rows) for rows in draws], dtype=torch.float64)  # pyright: ignore[reportGeneralTypeIssues]
    return float(values.std()) * math.sqrt(scale)


def interval_of(value: float, error: float, confidence: float, freedom: float = math.inf) -> Interval:
    """``value`` plus and minus the Student quantile times ``error``.

    >>> low, high = interval_of(1.0, 0.1, 0.95)
    >>> round(low, 3), round(high, 3)
    (0.804, 1.196)
    """
    from scipy.special import ndtri, stdtrit

    tail = 1 - (1 - confidence) / 2
    reach = error * float(ndtri(tail) if math.isinf(freedom) else stdtrit(freedom, tail))
    return value - reach, value + reach

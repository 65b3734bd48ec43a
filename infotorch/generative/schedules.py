r"""Noise schedules, the grids of times that samplers walk along, and what a network's output says about clean data.

A noisy sample is :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`. The EDM form has :math:`\alpha = 1, \sigma = t`; the
variance-preserving (VP) form has :math:`\alpha^2 + \sigma^2 = 1`. All schedule quantities are float64.

References:
    - T. Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, arXiv:2206.00364.
    - C. Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    - C. Saharia et al., "Photorealistic text-to-image diffusion models", 2022, arXiv:2205.11487 (thresholding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range, check_tensor

__all__ = [
    "PREDICTIONS",
    "SPACINGS",
    "DiscreteVP",
    "EDMSchedule",
    "LinearVP",
    "NoiseGrid",
    "NoiseSchedule",
    "as_grid",
    "denoised_from",
    "dynamic_threshold",
    "time_grid",
]

SPACINGS = ("logsnr", "karras", "time_uniform", "time_quadratic")
PREDICTIONS = ("denoised", "epsilon", "v")


@dataclass(frozen=True)
class NoiseGrid:
    r"""Times from most to least noise, with signal and noise levels; all of shape ``(N + 1,)``, float64.

    Attributes:
        times: What the network is called with.
        alphas: Signal levels, positive.
        sigmas: Noise levels; ``sigmas / alphas`` falls from each point to the next. The last one may be 0.
        shares: How much the released EVODiff trusts what it measures; by default
            :math:`\frac12 (1 - (\frac{t_i + t_N}{t_0 + t_N})^2)`.

    Raises:
        ValueError: Fewer than 3 points, shapes that differ, values that are not finite, or noise that does not fall.
    """

    times: Tensor
    alphas: Tensor
    sigmas: Tensor
    shares: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("times", "alphas", "sigmas"):
            value = check_tensor(name, getattr(self, name)).detach().to("cpu", torch.float64)
            if value.ndim != 1 or value.shape != self.times.shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(self.times.shape)} (one axis), got {tuple(value.shape)}"
                )
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name}: expected finite numbers, got {value.tolist()}")
            object.__setattr__(self, name, value)
        if self.shares is None:
            object.__setattr__(self, "shares", _shares(self.times))
        if len(self.times) < 3:
            raise ValueError(f"sigmas: expected at least 3 points (2 steps, NFE >= 2), got {len(self.times)}")
        if not bool((self.alphas > 0).all()) or not bool((self.sigmas[:-1] > 0).all()) or bool(self.sigmas[-1] < 0):
            raise ValueError("sigmas: expected positive signal and noise levels (the last noise level may be 0)")
        kappas = self.sigmas / self.alphas
        if not bool((kappas.diff() < 0).all()):
            raise ValueError(f"sigmas: expected noise-to-signal ratios that fall at every step, got {kappas.tolist()}")

    @property
    def steps(self) -> int:
        """Number of steps N, one less than points."""
        return len(self.times) - 1

    @property
    def lambdas(self) -> Tensor:
        r"""Half log signal-to-noise ratios :math:`\log(\alpha / \sigma)`; infinite where the last noise level is 0."""
        return (self.alphas / self.sigmas).log()


def _shares(times: Tensor, start: float | None = None, end: float | None = None) -> Tensor:
    """In the type of ``times``."""
    first, last = float(times[0]) if start is None else start, float(times[-1]) if end is None else end
    return 0.5 * (1 - ((times + last) / (first + last)).square())


def as_grid(sigmas: Tensor | Sequence[float] | NoiseGrid) -> NoiseGrid:
    """A grid as it is; noise levels alone as the EDM grid that they stand for.

    >>> as_grid([80.0, 1.0, 0.0]).alphas
    tensor([1., 1., 1.], dtype=torch.float64)
    """
    if isinstance(sigmas, NoiseGrid):
        return sigmas
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    return NoiseGrid(levels, torch.ones_like(levels), levels)


class NoiseSchedule(Protocol):
    """Signal and noise levels as functions of time, and time as a function of half the log signal-to-noise ratio."""

    @property
    def start(self) -> float:
        """First time, of most noise."""
        ...

    @property
    def end(self) -> float:
        """Last time."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level."""
        ...

    def time(self, lam: Tensor) -> Tensor:
        r"""Time at which :math:`\log(\alpha / \sigma)` is ``lam``."""
        ...


@dataclass(frozen=True)
class EDMSchedule:
    r""":math:`\alpha = 1`, :math:`\sigma = t`, from 80 down to 0.002.

    >>> EDMSchedule().sigma(torch.tensor(2.0))
    tensor(2.)
    """

    start: float = 80.0
    end: float = 0.002

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def time(self, lam: Tensor) -> Tensor:
        """Noise level at half the log signal-to-noise ratio."""
        return (-lam).exp()


@dataclass(frozen=True)
class LinearVP:
    r"""Variance-preserving with linear :math:`\beta`, :math:`\log\alpha = -t^2(\beta_1-\beta_0)/4 - t\beta_0/2`.

    >>> schedule = LinearVP()
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> schedule.time((schedule.alpha(t) / schedule.sigma(t)).log())
    tensor(0.5000, dtype=torch.float64)
    """

    beta0: float = 0.1
    beta1: float = 20.0
    start: float = 1.0
    end: float = 1e-3

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -t.square() * (self.beta1 - self.beta0) / 4 - t * self.beta0 / 2

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level."""
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level."""
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def time(self, lam: Tensor) -> Tensor:
        """Time at half the log signal-to-noise ratio."""
        loss = torch.nn.functional.softplus(-2 * lam) / 2  # minus log alpha
        return 2 * loss / (self.beta0 / 2 + (self.beta0**2 / 4 + (self.beta1 - self.beta0) * loss).sqrt())


class DiscreteVP:
    r"""Variance-preserving with given :math:`\bar\alpha` at times 0, 1, ..., T - 1; linear in :math:`\lambda` between.

    Args:
        alphas_cumprod: :math:`\alpha^2` at every training time, shape ``(T,)``, falling, in (0, 1).

    Raises:
        ValueError: Values out of range or that do not fall.

    >>> DiscreteVP(torch.tensor([0.99, 0.5, 0.01])).sigma(torch.tensor(1.0))
    tensor(0.7071, dtype=torch.float64)
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        squares = check_tensor("alphas_cumprod", alphas_cumprod).detach().to("cpu", torch.float64)
        if squares.ndim != 1 or len(squares) < 2:
            raise ValueError(f"alphas_cumprod: expected shape (T,) with T >= 2, got {tuple(squares.shape)}")
        if not bool(((squares > 0) & (squares < 1)).all()) or not bool((squares.diff() < 0).all()):
            raise ValueError("alphas_cumprod: expected numbers in (0, 1) that fall with time")
        self.lambdas = (squares.log() - (-squares).log1p()) / 2
        self.start, self.end = len(squares) - 1.0, 0.0

    def _lambda(self, t: Tensor) -> Tensor:
        t = t.to("cpu", torch.float64).clamp(0, self.start)
        below = t.floor().long().clamp(max=len(self.lambdas) - 2)
        return torch.lerp(self.lambdas[below], self.lambdas[below + 1], t - below)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level."""
        return (2 * self._lambda(t)).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level."""
        return (-2 * self._lambda(t)).sigmoid().sqrt()

    def time(self, lam: Tensor) -> Tensor:
        """Time at half the log signal-to-noise ratio."""
        lam = lam.to("cpu", torch.float64)
        above = torch.searchsorted(-self.lambdas, -lam.contiguous()).clamp(1, len(self.lambdas) - 1)
        high, low = self.lambdas[above - 1], self.lambdas[above]
        return above - 1 + ((high - lam) / (high - low)).clamp(0, 1)


def time_grid(
    schedule: NoiseSchedule,
    steps: int,
    spacing: str = "logsnr",
    *,
    start: float | None = None,
    end: float | None = None,
    rho: float = 7.0,
    single: bool = False,
) -> NoiseGrid:
    r"""``steps + 1`` points of a schedule from its start (most noise) to its end.

    Args:
        schedule: `EDMSchedule`, `LinearVP`, `DiscreteVP`, or anything with their methods.
        steps: N, at least 2.
        spacing: ``"logsnr"``: uniform in :math:`\lambda = \log(\alpha/\sigma)`; ``"karras"``: uniform in
            :math:`(\sigma/\alpha)^{1/\rho}` as in Karras et al. (2022); ``"time_uniform"``: in t;
            ``"time_quadratic"``: in :math:`\sqrt t`.
        start: First time; the schedule's own by default.
        end: Last time, likewise.
        rho: Of ``"karras"``.
        single: Round where EVODiff's authors do, through float32, for their numbers to the last digit.

    Raises:
        ValueError: Unknown spacing, fewer than 2 steps, ``end`` not below ``start``.

    >>> time_grid(EDMSchedule(), 2).sigmas
    tensor([8.0000e+01, 4.0000e-01, 2.0000e-03], dtype=torch.float64)
    """
    check_choice("spacing", spacing, SPACINGS)
    check_range("steps", steps, 2)
    first, last = schedule.start if start is None else start, schedule.end if end is None else end
    if not 0 <= last < first:
        raise ValueError(f"end: expected a time in [0, start) with start={first}, got {last}")
    ends = torch.tensor([first, last], dtype=torch.float64)
    ratios = schedule.alpha(ends) / schedule.sigma(ends)

    def line(high: float, low: float) -> Tensor:
        return torch.linspace(high, low, steps + 1, dtype=torch.float32 if single else torch.float64)

    if spacing == "time_uniform":
        times = line(first, last).double()
    elif spacing == "time_quadratic":
        times = line(math.sqrt(first), math.sqrt(last)).square().double()
    else:
        if spacing == "logsnr":
            lambdas = line(*ratios.log().tolist()).double()
        else:
            check_range("rho", rho, 0.0, low_open=True, high_open=True)
            high, low = (1 / ratios).pow(1 / rho).tolist()
            part = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            lambdas = -rho * (high + part * (low - high)).log()
        times = schedule.time(lambdas.float().double() if single else lambdas)
        if single and isinstance(schedule, EDMSchedule):
            times = times.float().double()
    # A line in time stays in float32 in the released code, unless the form is EDM.
    narrow = single and spacing.startswith("time") and not isinstance(schedule, EDMSchedule)
    shares = _shares(times.float() if narrow else times, first, last)
    return NoiseGrid(times, schedule.alpha(times), schedule.sigma(times), shares)


def denoised_from(output: Tensor, x: Tensor, alpha: float, sigma: float, prediction: str = "denoised") -> Tensor:
    r"""Clean data from what a network predicts.

    Args:
        output: The network's output, of the shape of ``x``.
        x: What it saw.
        alpha: Signal level.
        sigma: Noise level.
        prediction: ``"denoised"``; ``"epsilon"``: noise, :math:`(x - \sigma\epsilon)/\alpha`; ``"v"``:
            :math:`v = \alpha\epsilon - \sigma x_0`, :math:`(\alpha x - \sigma v)/(\alpha^2 + \sigma^2)`.

    Raises:
        ValueError: Unknown prediction.

    >>> denoised_from(torch.tensor(1.0), torch.tensor(2.0), 0.5, 0.5, "epsilon")
    tensor(3.)
    """
    check_choice("prediction", prediction, PREDICTIONS)
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "v":
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
    return output


def dynamic_threshold(m: Tensor, quantile: float = 0.995, maximum: float = 1.0) -> Tensor:
    r"""Dynamic thresholding, :math:`\mathrm{clamp}(m, -s, s) \cdot c / s`, with s at least ``maximum``.

    Args:
        m: Predicted clean data, shape ``(B, ...)``.
        quantile: s is this quantile of a sample's absolute values.
        maximum: c, the largest size of clean data.

    Raises:
        ValueError: ``quantile`` outside [0, 1], ``maximum`` not positive.

    Reference: C. Saharia et al., 2022, arXiv:2205.11487.

    >>> dynamic_threshold(torch.tensor([[4.0, -2.0, 0.5]]), quantile=1.0)
    tensor([[ 1.0000, -0.5000,  0.1250]])
    """
    check_range("quantile", quantile, 0.0, 1.0)
    check_range("maximum", maximum, 0.0, low_open=True, high_open=True)
    size = m.flatten(1).float() if m.dtype in (torch.float16, torch.bfloat16) else m.flatten(1)
    # Not torch.quantile, which refuses more than 2^24 numbers.
    ranks = size.abs().sort(1).values
    place = quantile * (ranks.shape[1] - 1)
    below = math.floor(place)
    s = torch.lerp(ranks[:, below], ranks[:, min(below + 1, ranks.shape[1] - 1)], place - below)
    s = s.clamp(min=maximum).to(m.dtype).reshape(-1, *[1] * (m.ndim - 1))
    return m.clamp(-s, s) * (maximum / s)

"""Weighted least-squares fit of a power law to a spectrum."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_tensor
from infotorch.core._kernels import check_finite

MIN_RANKS = 20  # fewer points than this do not make a slope
_FLOOR = 1e-12  # of the largest eigenvalue; below is rounding
_TAIL, _HEAD = 500, 100  # last ranks of the two measures of fit


@dataclass(frozen=True)
class PowerLaw:
    r"""A fitted law :math:`e_r = e^{c}\, r^{-\alpha}`.

    Attributes:
        alpha: Exponent, 0-d; NaN where there was too little to fit.
        log_scale: :math:`c`, 0-d.
        r2: Coefficient of determination of :math:`\log e` over the ranks after the fit's first, to 500.
        r2_head: The same, to rank 100.
        first: First rank of the fit, counted from 1.
        last: Last one; lower than asked for where the spectrum ends before.
    """

    alpha: Tensor
    log_scale: Tensor
    r2: Tensor
    r2_head: Tensor
    first: int
    last: int

    def predict(self, ranks: Tensor) -> Tensor:
        """Eigenvalues at the given ranks, counted from 1.

        >>> spectrum = torch.arange(1.0, 101.0).pow(-1)
        >>> fit_power_law(spectrum).predict(torch.tensor([1.0, 50.0]))
        tensor([1.0000, 0.0200], dtype=torch.float64)
        """
        return (self.log_scale - self.alpha * ranks.to(self.alpha.dtype).log()).exp()


def fit_power_law(spectrum: Tensor, *, ranks: tuple[int, int] = (12, 100), weights: str = "inverse_rank") -> PowerLaw:
    r"""Fit :math:`\log e_r = c - \alpha \log r` by weighted least squares, in closed form.

    Eigenvalues below 1e-12 of the largest count as 0. Where fewer than ``ranks[1]`` remain, the fit ends one
    before the last of them. Both measures of fit are unweighted, start one rank after the fit's first and stay
    ten ranks clear of the end of spectra shorter than 512, as in the code that the field reports them from.

    Args:
        spectrum: Eigenvalues, largest first, shape ``(k,)``; differentiable.
        ranks: First and last rank of the fit, counted from 1, both included.
        weights: ``"inverse_rank"`` (:math:`1 / r`, equal weight to equal stretches of :math:`\log r`) or
            ``"uniform"``.

    Returns:
        A :class:`PowerLaw`, float64; all NaN where fewer than 20 ranks remain.

    Raises:
        ValueError: Another shape, values that are not finite, unknown ``weights``, an empty range of ranks.

    Warns:
        UserWarning: The range had to be shortened, or nothing was left of it.

    Reference: C. Stringer et al., "High-dimensional geometry of population responses in visual cortex", 2019.

    Deviations: weights in float64 (there float32: 1e-7 of alpha); nothing is changed in place.

    >>> fit_power_law(torch.arange(1.0, 301.0, dtype=torch.float64) ** -0.5).alpha
    tensor(0.5000, dtype=torch.float64)
    """
    check_choice("weights", weights, ("inverse_rank", "uniform"))
    check_tensor("spectrum", spectrum)
    if spectrum.ndim != 1 or spectrum.numel() == 0:
        raise ValueError(f"spectrum: expected shape (k,), got {tuple(spectrum.shape)}")
    check_finite("spectrum", spectrum)
    first, last = ranks
    if not 1 <= first < last:
        raise ValueError(f"ranks: expected (first, last) with 1 <= first < last, got {ranks}")
    spectrum = spectrum.double()
    usable = int((spectrum > _FLOOR * spectrum[0]).sum())
    if usable < last:
        last = usable - 1
    if last - first + 1 < MIN_RANKS:
        warnings.warn(f"fit_power_law: {usable} eigenvalues are too few to fit ranks {ranks}; NaN", stacklevel=2)
        nan = torch.full_like(spectrum[0], math.nan)
        return PowerLaw(nan, nan, nan, nan, first, last)
    if last < ranks[1]:
        warnings.warn(f"fit_power_law: the spectrum ends early; fitted ranks {first} to {last}", stacklevel=2)

    rank = torch.arange(1, usable + 1, dtype=torch.float64, device=spectrum.device)
    x, y = -rank.log(), spectrum[:usable].log()
    used = slice(first - 1, last)
    w = rank[used].reciprocal() if weights == "inverse_rank" else torch.ones_like(rank[used])
    w = w / w.sum()
    x_mean, y_mean = (w * x[used]).sum(), (w * y[used]).sum()
    dx = x[used] - x_mean
    alpha = (w * dx * y[used]).sum() / (w * dx.square()).sum()
    log_scale = y_mean - alpha * x_mean

    tail = _TAIL if len(spectrum) >= 512 else len(spectrum) - 10
    r2, r2_head = (_r2(y[first:end], (log_scale + alpha * x)[first:end]) for end in (min(tail, usable), _HEAD))
    return PowerLaw(alpha, log_scale, r2, r2_head, first, last)


def _r2(y: Tensor, predicted: Tensor) -> Tensor:
    if len(y) < 2:
        return torch.full_like(y.sum(), math.nan)
    return 1 - (y - predicted).square().sum() / (y - y.mean()).square().sum()

"""Forecasts to beat: the last value, the last season, and linear maps of trend and remainder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DLinear", "repeat_last", "seasonal_naive"]


def repeat_last(x: Tensor, horizon: int) -> Tensor:
    """The last value for all steps to come, ``(B, L, C)`` to ``(B, horizon, C)``.

    >>> repeat_last(torch.tensor([[[1.0], [3.0]]]), 2).flatten()
    tensor([3., 3.])
    """
    return seasonal_naive(x, horizon, 1)


def seasonal_naive(x: Tensor, horizon: int, period: int) -> Tensor:
    """The last period over and over, ``(B, L, C)`` to ``(B, horizon, C)``.

    Raises:
        ValueError: ``period`` is not in [1, L], ``horizon`` is not positive.

    >>> seasonal_naive(torch.tensor([[[9.0], [1.0], [2.0]]]), 3, period=2).flatten()
    tensor([1., 2., 1.])
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected a positive integer, got {horizon}")
    if not 1 <= period <= x.shape[1]:
        raise ValueError(f"period: expected an integer in [1, {x.shape[1]}] (the window's length), got {period}")
    return x[:, torch.arange(horizon, device=x.device) % period + x.shape[1] - period]


class DLinear(nn.Module):
    """A linear map of the moving average and one of what remains, shared by the channels.

    Args:
        lookback: Steps L of a window.
        horizon: Steps H to forecast.
        kernel: Odd width of the moving average; ends are continued by their values.

    Raises:
        ValueError: A size that is not positive, an even ``kernel``.

    Reference: A. Zeng et al., "Are transformers effective for time series forecasting?", 2022, arXiv:2205.13504.

    >>> DLinear(24, 4)(torch.zeros(3, 24, 2)).shape
    torch.Size([3, 4, 2])
    """

    def __init__(self, lookback: int = 96, horizon: int = 96, *, kernel: int = 25) -> None:
        super().__init__()
        for name, size in {"lookback": lookback, "horizon": horizon, "kernel": kernel}.items():
            if size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size}")
        if kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd integer, got {kernel}")
        self.kernel = kernel
        self.trend, self.remainder = nn.Linear(lookback, horizon), nn.Linear(lookback, horizon)
        for layer in (self.trend, self.remainder):
            nn.init.constant_(layer.weight, 1 / lookback)

    def forward(self, x: Tensor) -> Tensor:
        """Forecast ``(B, H, C)`` from ``(B, L, C)``."""
        rows, half = x.transpose(1, 2), self.kernel // 2
        trend = F.avg_pool1d(F.pad(rows, (half, half), mode="replicate"), self.kernel, stride=1)
        return (self.trend(trend) + self.remainder(rows - trend)).transpose(1, 2)

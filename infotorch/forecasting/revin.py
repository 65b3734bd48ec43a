r"""Reversible instance normalization: every window and channel is standardized by its own history, and back.

Reference: T. Kim et al., "Reversible instance normalization for accurate time-series forecasting against distribution
shift", ICLR 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_tensor

__all__ = ["RevIN", "instance_statistics"]


def instance_statistics(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    r"""Mean and :math:`\sqrt{\mathrm{var} + \epsilon}` over time, without gradient.

    Args:
        x: Shape ``(B, L, C)``.
        eps: Added to the (biased) variance; a constant window has the deviation ``sqrt(eps)``.

    Returns:
        Two tensors of shape ``(B, 1, C)``, in at least float32.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: ``x`` has another number of dimensions, or no time step.

    >>> mean, std = instance_statistics(torch.tensor([[[1.0], [3.0]]]))
    >>> mean.item(), round(std.item(), 3)
    (2.0, 1.0)
    """
    if check_tensor("x", x).ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"x: expected shape (B, L, C) with L > 0, got {tuple(x.shape)}")
    wide = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
    return wide.mean(1, keepdim=True), (wide.var(1, correction=0, keepdim=True) + eps).sqrt()


class RevIN(nn.Module):
    r"""Standardize windows, and undo it on the forecast.

    :math:`z = w (x - \mu) / \sigma + b` with :math:`\mu, \sigma` of each window and channel, and back
    :math:`\hat x = \sigma (\hat z - b) / (w + 10^{-10}) + \mu`. Where ``z`` is turned into tokens, ``w`` and ``b``
    learn through the inverse alone.

    Args:
        channels: Number of channels C.
        affine: Learn ``w`` and ``b``; else they are 1 and 0.
        eps: Added to the variance.

    Raises:
        ValueError: The number of channels is not positive, or a window has another one.

    >>> revin, x = RevIN(1), torch.tensor([[[1.0], [3.0]]])
    >>> z, mean, std = revin.normalize(x)
    >>> torch.allclose(revin.denormalize(z, mean, std), x)
    True
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected a positive integer, got {channels}")
        self.channels, self.eps = channels, eps
        for name, value in (("weight", torch.ones(channels)), ("bias", torch.zeros(channels))):
            self.register_parameter(name, nn.Parameter(value, requires_grad=affine))

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``z``, mean and deviation of windows ``(B, L, C)``."""
        if x.ndim == 3 and x.shape[2] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels, got shape {tuple(x.shape)}")
        mean, std = instance_statistics(x, self.eps)
        return (x - mean) / std * self.weight + self.bias, mean, std

    def denormalize(self, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Forecasts ``(B, H, C)`` in the units of the window."""
        return (z - self.bias) / (self.weight + 1e-10) * std + mean

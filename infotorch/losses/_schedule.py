"""Weights that follow the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def as_steps(step: float | Tensor) -> Tensor:
    """Steps as floating point, integers in the default type."""
    k = torch.as_tensor(step)
    return k if k.is_floating_point() else k.to(torch.get_default_dtype())


def cosine_fade(step: Tensor, length: float) -> Tensor:
    r"""From 1 to 0: :math:`(1 + \cos(\pi k / T)) / 2` up to step :math:`k = T`, then 0.

    >>> cosine_fade(torch.tensor([0.0, 100.0, 300.0]), 200)
    tensor([1.0000, 0.5000, 0.0000])
    """
    return torch.where(step <= length, (1 + torch.cos(math.pi * step / length)) / 2, 0.0)

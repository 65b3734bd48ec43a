"""The plain multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them.

    Args:
        sizes: Inputs, hidden layers, outputs.

    Raises:
        ValueError: Fewer than two sizes, a size that is no positive int.

    >>> mlp((3, 8, 1))
    Sequential(
      (0): Linear(in_features=3, out_features=8, bias=True)
      (1): ReLU(inplace=True)
      (2): Linear(in_features=8, out_features=1, bias=True)
    )
    """
    if len(sizes) < 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"sizes: expected at least two positive ints, got {tuple(sizes)}")
    layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
    for inputs, outputs in pairwise(sizes[1:]):
        layers += [nn.ReLU(inplace=True), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)

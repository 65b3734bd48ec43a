"""The value on held-out pairs and its standard error, by a jackknife of the score matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 16

Bound = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class HeldOut:
    """A bound on held-out pairs.

    Attributes:
        value: Mean over batches, each weighing as many pairs as it has.
        std_error: Of the value, for the critic as it is.
        freedom: Degrees of freedom of the standard error.
    """

    value: float
    std_error: float
    freedom: int

    def interval(self, confidence: float) -> tuple[float, float]:
        """Student-t interval around the value."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.std_error
        return self.value - half, self.value + half


def mean_value(bound: Bound, scored: Iterable[tuple[Tensor, Tensor | None]]) -> float:
    """A bound over batches of pairs, each weighing as many pairs as it has."""
    seen = [(float(bound(matrix.double(), baseline)), len(matrix)) for matrix, baseline in scored]
    return sum(value * n for value, n in seen) / sum(n for _, n in seen)


def evaluate(bound: Bound, scored: Iterable[tuple[Tensor, Tensor | None]]) -> HeldOut:
    """A bound over batches of held-out pairs.

    A group of pairs takes part in a row and a column of the matrix each, so their removal gives the variance that
    a bound of all pairs of a batch has: the deleted-group jackknife.

    Args:
        bound: Of a score matrix and its log-baselines.
        scored: Score matrices ``(B, B)``, B at least 3, with log-baselines ``(B,)`` or None.
    """
    values, variances, sizes, freedom = [], [], [], 0
    for matrix, baseline in scored:
        matrix, n = matrix.double(), len(matrix)
        groups = torch.arange(n).tensor_split(min(GROUPS, n))
        left_out = torch.stack([_without(bound, matrix, baseline, group) for group in groups])
        values.append(float(bound(matrix, baseline)))
        g = len(groups)
        variances.append(float((left_out - left_out.mean()).square().sum()) * (g - 1) / g)
        sizes.append(n)
        freedom += g - 1
    total = sum(sizes)
    value = sum(v * n for v, n in zip(values, sizes, strict=True)) / total
    variance = sum(v * (n / total) ** 2 for v, n in zip(variances, sizes, strict=True))
    return HeldOut(value, math.sqrt(variance), freedom)


def _without(bound: Bound, matrix: Tensor, baseline: Tensor | None, group: Tensor) -> Tensor:
    keep = torch.ones(len(matrix), dtype=torch.bool)
    keep[group] = False
    rows = keep.nonzero().squeeze(1).to(matrix.device)
    return bound(matrix[rows][:, rows], None if baseline is None else baseline[rows])

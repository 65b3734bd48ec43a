"""Statistics of the completions of one prompt, with fixed shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core.reduce import segment_count, segment_ids, segment_sum


class Groups:
    """The groups of a batch of rows; every statistic has one entry per row, that of the row's group.

    Args:
        group: Integer ids, shape ``(B,)``; the rows of a group need not be neighbors.

    >>> groups = Groups(torch.tensor([7, -3, 7]))
    >>> groups.size, groups.mean(torch.tensor([1.0, 5.0, 2.0]))
    (tensor([2, 1, 2]), tensor([1.5000, 5.0000, 1.5000]))
    """

    def __init__(self, group: Tensor) -> None:
        self.index = segment_ids(group)
        self._counts = segment_count(self.index)
        self.size = self._counts[self.index]

    def sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over the group."""
        return segment_sum(x, self.index)[self.index]

    def mean(self, x: Tensor) -> Tensor:
        """Mean of ``x`` over the group."""
        return self.sum(x) / self.size

    def mean_of(self, x: Tensor, rows: Tensor) -> Tensor:
        """Mean of ``x`` over those of the group's rows that are marked; 0 where none is.

        >>> Groups(torch.tensor([0, 0, 1])).mean_of(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, False, False]))
        tensor([1., 1., 0.])
        """
        return self.sum(torch.where(rows, x, 0.0)) / self.sum(rows.to(x.dtype)).clamp(min=1)

    def std(self, x: Tensor) -> Tensor:
        """Standard deviation of ``x`` over the group, with Bessel's correction; 0 for a group of one."""
        squares = self.sum((x - self.mean(x)).square())
        return (squares / (self.size - 1).clamp(min=1)).sqrt()

    def max(self, x: Tensor) -> Tensor:
        """Largest ``x`` of the group."""
        return torch.empty_like(x).scatter_reduce(0, self.index, x, "amax", include_self=False)[self.index]

    def min(self, x: Tensor) -> Tensor:
        """Least ``x`` of the group."""
        return torch.empty_like(x).scatter_reduce(0, self.index, x, "amin", include_self=False)[self.index]

    def uniform(self, x: Tensor) -> Tensor:
        """Whether all of the group have the same ``x``."""
        return self.min(x) == self.max(x)

    def any(self, rows: Tensor) -> Tensor:
        """Whether one of the group's rows is marked."""
        return self.sum(rows.to(torch.int64)) > 0

    def rank(self, key: Tensor | None = None) -> Tensor:
        """Place ``0, 1, ...`` within the group in ascending order of ``key``; ties, or no key: in row order.

        >>> Groups(torch.tensor([0, 1, 0, 0])).rank(torch.tensor([2.0, 5.0, 1.0, 2.0]))
        tensor([1, 0, 0, 2])
        """
        rows = torch.arange(self.index.numel(), device=self.index.device)
        order = rows if key is None else key.sort(stable=True).indices
        order = order[self.index[order].sort(stable=True).indices]
        starts = self._counts.cumsum(0) - self._counts
        return torch.empty_like(order).scatter_(0, order, rows) - starts[self.index]

    def first(self) -> Tensor:
        """Boolean: the first row of each group, for statistics that count every group once."""
        return self.rank() == 0

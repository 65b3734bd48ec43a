"""Pairs of categories with a given table of probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core._checks import check_range, check_tensor
from infotorch.core._kernels import check_finite
from infotorch.distributions.joint import Entropies, Joint


@dataclass(frozen=True, eq=False)
class DiscreteTable(Joint):
    """Two categories drawn from a table of joint probabilities. Samples are their numbers, from 0.

    Attributes:
        table: Shape ``(K, L)``, non-negative; it is normalized. Rows are values of X, columns those of Y; all zeros are
            a value that never occurs.

    Raises:
        TypeError: ``table`` is not a real tensor.
        ValueError: Another shape, entries that are negative or not finite, or none that is positive.

    >>> joint = DiscreteTable(torch.tensor([[0.4, 0.1], [0.1, 0.4]]))
    >>> round(joint.mutual_information(), 6)
    0.192745
    >>> joint.sample(3, dtype=torch.int64)[0].shape
    torch.Size([3, 1])
    """

    table: Tensor
    dim_x = 1
    dim_y = 1

    def __post_init__(self) -> None:
        table = check_tensor("table", self.table).detach()
        if table.is_complex() or table.dtype is torch.bool:
            raise TypeError(f"table: expected real numbers, got {table.dtype}")
        if table.ndim != 2 or table.numel() == 0:
            raise ValueError(f"table: expected shape (K, L), not empty, got {tuple(table.shape)}")
        table = check_finite("table", table.double())
        if bool((table < 0).any()) or not bool((table > 0).any()):
            raise ValueError("table: expected non-negative entries that are not all 0")
        object.__setattr__(self, "table", table / table.sum())

    def mutual_information(self) -> float:
        """``sum p(x, y) log (p(x, y) / (p(x) p(y)))``, without the cancellation of a difference of entropies."""
        product = self.table.sum(1, keepdim=True) * self.table.sum(0)
        occurs = self.table > 0
        ratio = torch.where(occurs, self.table, 1.0) / torch.where(occurs, product, 1.0)
        return float((self.table * ratio.log()).sum().clamp(min=0))

    def entropies(self) -> Entropies:
        """Shannon entropies."""
        parts = self.table.sum(1), self.table.sum(0), self.table.flatten()
        return Entropies(*(float(categorical.entropy(probs=p)) for p in parts))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cells by inversion of their running sum: any number of cells."""
        edges = self.table.flatten().cumsum(0).to(generator.device)
        place = torch.rand(n, dtype=torch.float64, device=generator.device, generator=generator) * edges[-1]
        cell = torch.searchsorted(edges, place, right=True).clamp(max=self._last)
        columns = self.table.shape[1]
        x, y = (cell // columns).unsqueeze(1), (cell % columns).unsqueeze(1)
        return x.double(), y.double()

    @property
    def _last(self) -> int:
        """The last cell that can occur: rounding must not step beyond."""
        return int(self.table.flatten().nonzero()[-1])


def symmetric_channel(symbols: int, error: float) -> DiscreteTable:
    r"""A uniform symbol and what a noisy channel makes of it: another one, uniformly, with probability ``error``.

    :math:`I = \log K - h(\epsilon) - \epsilon \log (K - 1)` with the binary entropy :math:`h`.

    Raises:
        ValueError: Fewer than two symbols, ``error`` outside [0, 1].

    >>> round(symmetric_channel(4, 0.0).mutual_information(), 4)  # log 4
    1.3863
    """
    check_range("symbols", symbols, 2)
    check_range("error", error, 0.0, 1.0)
    table = torch.full((symbols, symbols), error / (symbols - 1), dtype=torch.float64)
    return DiscreteTable(table.fill_diagonal_(1 - error))

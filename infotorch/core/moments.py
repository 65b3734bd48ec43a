"""Count, mean and scatter of features in float64, merged over batches and processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import all_finite, check_choice, check_tensor
from infotorch.core._kernels import check_finite

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_CPU_ROWS = {torch.float64: 256, torch.float32: 512}  # rows at a time: few enough that their copy stays in cache
_CUDA_ENTRIES = 1 << 25  # entries at a time: a float64 copy of 256 MiB
_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_PANEL = 128  # rows of the product; what lies above its diagonal is not computed, up to one panel


def as_rows(name: str, features: object) -> Tensor:
    """``features`` of shape ``(n, ...)`` as a matrix ``(n, d)``."""
    features = check_tensor(name, features)
    if not features.is_floating_point():
        raise TypeError(f"{name}: expected floating-point features, got {features.dtype} (write {name}.float())")
    if features.ndim < 2 or features.numel() == 0:
        raise ValueError(f"{name}: expected features of shape (n, d) or (n, ...), got {tuple(features.shape)}")
    return features.flatten(1)


@dataclass(frozen=True, eq=False)
class Moments:
    r"""First and second moments of the rows seen so far: O(d²) memory, whatever their number.

    Batches and processes merge by the formula of Chan, Golub and LeVeque, which centers each part at its own mean:
    the result is that of all rows at once up to float64 rounding, and a large common mean costs no digits.
    No gradient passes.

    Attributes:
        count: Number of rows, 0-d.
        mean: Shape ``(d,)``.
        scatter: :math:`\sum_i (x_i - \bar x)(x_i - \bar x)^\top`, shape ``(d, d)``.

    Reference: T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", 1983.

    >>> moments = Moments.zero(2)
    >>> for batch in torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[5.0, 6.0]]]):
    ...     moments = moments.add(batch)
    >>> moments.mean
    tensor([3., 2.], dtype=torch.float64)
    >>> moments.covariance()
    tensor([[ 4.,  6.],
            [ 6., 12.]], dtype=torch.float64)
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def zero(cls, d: int, device: torch.device | str | None = None) -> Moments:
        """Moments of no rows of ``d`` features."""
        return cls(
            count=torch.zeros((), dtype=torch.float64, device=device),
            mean=torch.zeros(d, dtype=torch.float64, device=device),
            scatter=torch.zeros(d, d, dtype=torch.float64, device=device),
        )

    @classmethod
    def of(cls, features: Tensor, *, precision: str = "float64") -> Moments:
        """Moments of the rows of ``features``.

        Args:
            features: Shape ``(n, ...)``.
            precision: Of the products within blocks of rows, whose sum is float64 in any case. ``"float32"`` takes
                about half the time and knows nothing of eigenvalues below some 1e-7 of the largest.

        Raises:
            TypeError: ``features`` is not a floating tensor.
            ValueError: It has fewer than two dimensions, or entries that are not finite; unknown precision.
        """
        rows = as_rows("features", features)
        return cls.zero(rows.shape[1], rows.device).add(rows, precision=precision)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)`` of the rows seen."""
        return int(self.count), self.mean.shape[0]

    def add(self, features: Tensor, *, precision: str = "float64") -> Moments:
        """Moments with the rows of ``features`` added; nothing changes in place. Arguments as of :meth:`of`.

        Raises:
            TypeError: ``features`` is not a floating tensor.
            ValueError: Another number of features, entries that are not finite, unknown precision.
        """
        check_choice("precision", precision, _PRECISIONS)
        dtype = _PRECISIONS[precision]
        rows = as_rows("features", features).detach()
        n, d = rows.shape
        if d != self.mean.shape[0]:
            raise ValueError(f"features: expected {self.mean.shape[0]} of them, got {d}")
        blocks = rows.split(_CPU_ROWS[dtype] if rows.device.type == "cpu" else max(1, _CUDA_ENTRIES // d))
        mean = torch.zeros_like(self.mean)
        for block in blocks:
            mean += block.sum(0, dtype=torch.float64)
        mean /= n
        # A sum hides no NaN and no infinity, and is d numbers to look at instead of n d.
        if not all_finite(mean):
            check_finite("features", rows)
        count, part, delta = self._joined(torch.full_like(self.count, n), mean)
        scatter = torch.addr(self.scatter, delta * (self.count * part), delta)
        centered = torch.empty(len(blocks[0]), d, dtype=dtype, device=rows.device)
        work = torch.empty(d, len(blocks[0]), dtype=dtype, device=rows.device)
        for block in blocks:
            torch.sub(block, mean, out=centered[: len(block)])
            _add_products(scatter, work[:, : len(block)].copy_(centered[: len(block)].mT))
        return Moments(count, self.mean + delta * part, _mirror(scatter))

    def _joined(self, count: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number of rows with ``count`` more of another mean, the share of those, and how far apart the means are."""
        total = self.count + count
        return total, count / total.clamp(min=1), mean - self.mean

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows.

        Raises:
            ValueError: The number of features differs.
        """
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"other: expected {self.mean.shape[0]} features, got {other.mean.shape[0]}")
        count, part, delta = self._joined(other.count, other.mean)
        return Moments(
            count=count,
            mean=self.mean + delta * part,
            scatter=(self.scatter + other.scatter).addr_(delta * (self.count * part), delta),
        )

    def all_reduce(self, group: ProcessGroup | None = None) -> Moments:
        """Moments of the rows of all processes, on each of them; the same moments without a process group."""
        count = distributed.all_reduce_sum(self.count, group)
        mean = distributed.all_reduce_sum(self.count * self.mean, group) / count.clamp(min=1)
        delta = self.mean - mean
        scatter = torch.addr(self.scatter, self.count * delta, delta)
        return Moments(count, mean, distributed.all_reduce_sum(scatter, group))

    def covariance(self, correction: int = 1) -> Tensor:
        """Covariance ``scatter / (n - correction)``, shape ``(d, d)``.

        Raises:
            ValueError: Not more than ``correction`` rows.
        """
        if not int(self.count) > correction:
            raise ValueError(f"count: expected more than {correction} rows, got {int(self.count)}")
        return self.scatter / (self.count - correction)


def _add_products(total: Tensor, columns: Tensor) -> None:
    """Add ``columns columns^T`` to the lower triangle of ``total``; above it anything may be."""
    for start in range(0, len(columns), _PANEL):
        stop = start + _PANEL
        target, panel = total[start:stop, :stop], columns[start:stop]
        if target.dtype == panel.dtype:
            target.addmm_(panel, columns[:stop].mT)
        else:
            target.add_(panel @ columns[:stop].mT)


def _mirror(lower: Tensor) -> Tensor:
    """Copy the lower triangle to the upper one, in place, by tiles that fit the cache."""
    for start in range(0, len(lower), _PANEL):
        stop = start + _PANEL
        lower[:start, start:stop] = lower[start:stop, :start].mT
        corner = lower[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
    return lower

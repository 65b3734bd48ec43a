r"""Real values as tokens: each series is divided by its mean absolute value and sorted into uniform bins.

The first ids are special (0 for a missing value), the others the bins in ascending order. Values beyond the range fall
into the outermost bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_range, check_tensor
from infotorch.core.reduce import masked_mean, masked_quantile

__all__ = ["PAD", "Quantizer", "bins", "mean_scale", "tokenize"]

PAD = 0


def bins(low: float, high: float, count: int) -> tuple[Tensor, Tensor]:
    """Centers of ``count`` uniform bins from ``low`` to ``high``, and the ``count - 1`` edges between them.

    >>> bins(-1.0, 1.0, 3)
    (tensor([-1.,  0.,  1.]), tensor([-0.5000,  0.5000]))
    """
    centers = torch.linspace(low, high, count)
    return centers, (centers[1:] + centers[:-1]) / 2


def mean_scale(x: Tensor) -> Tensor:
    """Mean absolute value of each row that is known (not NaN), ``(N, L)`` to ``(N, 1)``; 1 where that is 0 or nothing.

    >>> mean_scale(torch.tensor([[1.0, -3.0, float("nan")], [0.0, 0.0, 0.0]]))
    tensor([[2.],
            [1.]])
    """
    scale = masked_mean(x.abs(), ~x.isnan(), dim=1).unsqueeze(1)
    return torch.where(scale > 0, scale, 1.0)


def tokenize(x: Tensor, edges: Tensor, scale: Tensor | None = None, *, special: int = 4) -> Tensor:
    """Ids of the bins of ``x / scale``; a value on an edge belongs to the bin above it, NaN to id 0.

    Args:
        x: Shape ``(N, L)``.
        edges: Ascending, those between the bins.
        scale: Shape ``(N, 1)``; by default that of :func:`mean_scale`. Give the history's for values that follow it.
        special: Ids before the first bin is ``special + 1``, as in the authors' code, which leaves ``special`` unused.

    Raises:
        TypeError: ``x`` is not a tensor.
        ValueError: ``x`` is not a matrix, or holds infinite values.

    >>> tokenize(torch.tensor([[-9.0, 0.5, 1.0, float("nan")]]), torch.tensor([0.0, 1.0]), torch.ones(1, 1))
    tensor([[5, 6, 7, 0]])
    """
    if check_tensor("x", x).ndim != 2:
        raise ValueError(f"x: expected shape (N, L), got {tuple(x.shape)}")
    if bool(x.isinf().any()):
        raise ValueError("x: expected finite values, or NaN for missing ones; got an infinite one")
    return token_ids(x, edges, scale, special)


def token_ids(x: Tensor, edges: Tensor, scale: Tensor | None, special: int) -> Tensor:
    """:func:`tokenize`, unchecked: it leaves the device alone."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    scaled = x / (mean_scale(x) if scale is None else scale)
    ids = torch.bucketize(scaled, edges.to(scaled), right=True) + special + 1
    return ids.masked_fill(x.isnan(), PAD)


class Quantizer(nn.Module):
    """Tokens of real series; the range of its bins is learned from training data.

    Args:
        low: Center of the lowest bin, in mean absolute values.
        high: Center of the highest one.
        vocabulary: Number of ids, the special ones included.
        special: Special ids.

    Raises:
        ValueError: An empty range, or no room for two bins.

    Deviation from the authors' code: :meth:`fit` estimates the range on the values that are binned (normalized, divided
    by their scale), not on standardized windows before either step; values below -1e20 fall into the lowest bin.

    >>> quantizer = Quantizer().fit(torch.randn(100, 96, generator=torch.Generator().manual_seed(0)))
    >>> quantizer(torch.tensor([[0.0, 1.0, -1.0, 2.0, 100.0, -100.0]]), torch.ones(1, 1)).tolist()
    [[130, 181, 78, 232, 255, 5]]
    """

    centers: Tensor
    edges: Tensor

    def __init__(self, low: float = -2.5, high: float = 2.5, *, vocabulary: int = 256, special: int = 4) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"low, high: expected finite numbers with low < high, got {low} and {high}")
        if special < 1 or vocabulary - special < 3:
            raise ValueError(
                f"vocabulary, special: expected at least one special id and two bins, got {vocabulary} and {special}"
            )
        self.vocabulary, self.special = vocabulary, special
        centers, edges = bins(low, high, vocabulary - special - 1)
        self.register_buffer("centers", centers)
        self.register_buffer("edges", edges)

    @torch.no_grad()
    def fit(self, x: Tensor, tail: float = 0.025) -> Quantizer:
        """Let the range be that of all but a share ``tail`` on either side of the scaled values of ``x``, ``(N, L)``.

        Raises:
            ValueError: ``x`` is not a matrix, ``tail`` not in [0, 0.5), or fewer than two different values.
        """
        check_range("tail", tail, 0.0, 0.5, high_open=True)
        if check_tensor("x", x).ndim != 2:
            raise ValueError(f"x: expected shape (N, L), got {tuple(x.shape)}")
        scaled = x / mean_scale(x)
        low, high = (float(masked_quantile(scaled, scaled.isfinite(), q)) for q in (tail, 1 - tail))
        if not low < high:
            raise ValueError(f"x: expected values that spread, got {low} and {high} as quantiles")
        for mine, new in zip((self.centers, self.edges), bins(low, high, len(self.centers)), strict=True):
            mine.copy_(new)
        return self

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Ids of ``x``, see :func:`tokenize`."""
        return tokenize(x, self.edges, scale, special=self.special)

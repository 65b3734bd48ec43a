"""Permutation tests: is a measure of dependence, or of difference, larger than chance makes it?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.dependence import _line, _tiles
from infotorch.core.dependence._counts import information_statistics
from infotorch.core.dependence._variables import PairMeans, Variable, as_variable, as_weights, check_lengths
from infotorch.core.dependence.distance import check_enough, u_statistic
from infotorch.core.dependence.kernel import (
    Sigma,
    gaussian,
    kernel_sides,
    pooled,
    u_mmd_of_sums,
    without_diagonal,
)

MEASURES = ("distance_covariance", "hsic", "mutual_information")
_BATCH = 1 << 20  # points times permutations sorted at once
_DENSE = 1 << 24  # entries of a matrix that may be kept


@dataclass(frozen=True)
class PermutationTest:
    """Result of a permutation test.

    Attributes:
        statistic: The measure on the data, 0-d float64.
        p_value: Share of permutations (the data's own order counted in) with at least this statistic.
        null: The statistic under every random permutation, float64.
    """

    statistic: Tensor
    p_value: float
    null: Tensor

    @classmethod
    def of(cls, found: Tensor) -> PermutationTest:
        """From the data's statistic followed by those of the permutations."""
        statistic, null = found[0], found[1:]
        # Equal orders give equal sums only up to rounding.
        slack = 1e-12 * found.abs().max()
        return cls(statistic, (1 + int((null >= statistic - slack).sum())) / (1 + len(null)), null)


def independence_test(
    x: Tensor,
    y: Tensor,
    *,
    measure: str = "distance_covariance",
    permutations: int = 999,
    exponent: float = 1.0,
    sigma: Sigma | tuple[Sigma, Sigma] = "median",
    generator: torch.Generator | None = None,
) -> PermutationTest:
    r"""Permutation test of the independence of x and y.

    The p-value :math:`(1 + \#\{T_\pi \ge T\}) / (1 + \#\pi)` is exact at any n: under independence it is at most
    :math:`\alpha` with probability at most :math:`\alpha`. All permutations are sorted at once where one variable is on
    a line and the other on a line or of categories. Whether the covariance or the correlation is tested makes no
    difference: permuting leaves the denominators alone.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``; integers and booleans of shape ``(n,)`` are categories.
        y: Likewise.
        measure: ``"distance_covariance"`` or ``"hsic"``, the unbiased estimate of either; or
            ``"mutual_information"`` of two categories, plug-in (the G-test), at a cost that does not grow with n
            where the table is dense.
        permutations: How many, at least 1.
        exponent: Power of the distances, for distance covariance.
        sigma: Width of the Gaussian kernels, for HSIC.
        generator: Source of the permutations; default: torch's.

    Raises:
        TypeError: An argument is not a tensor, or floats where categories are needed.
        ValueError: Shapes that do not agree, fewer than 4 points or 1 permutation, values that are not finite.

    Reference: G. Székely et al., 2007, arXiv:0803.4101, section 5.

    >>> x = torch.linspace(-1, 1, 60)
    >>> independence_test(x, x.square(), permutations=99, generator=torch.Generator().manual_seed(0)).p_value
    0.01
    """
    check_choice("measure", measure, MEASURES)
    check_range("permutations", permutations, 1)
    a, b = as_variable("x", x.detach(), exponent), as_variable("y", y.detach(), exponent)
    check_enough(check_lengths(x=a, y=b))
    if measure == "mutual_information":
        if a.cell is None or b.cell is None:
            raise TypeError(f"x, y: expected integers or booleans for mutual_information, got {x.dtype} and {y.dtype}")
        return PermutationTest.of(information_statistics(a.cell, b.cell, permutations, generator))
    orders = permutation_orders(len(a), permutations, generator, a.device)
    if measure == "distance_covariance" and a.line is not None and b.line is not None:
        return PermutationTest.of(torch.cat([_line_statistics(a.line, b.line, part) for part in orders]))
    if measure == "distance_covariance" and a.line is not None and b.is_categories:
        return PermutationTest.of(torch.cat([_cell_statistics(a, b, part, first=False) for part in orders]))
    if measure == "distance_covariance" and b.line is not None and a.is_categories:
        return PermutationTest.of(torch.cat([_cell_statistics(b, a, part, first=True) for part in orders]))
    sides, sign = kernel_sides(a, b, sigma) if measure == "hsic" else ([a.side, b.side], 1.0)
    return PermutationTest.of(sign * _paired_statistics(sides, as_weights(None, a), orders))


def two_sample_test(
    x: Tensor,
    y: Tensor,
    *,
    permutations: int = 999,
    sigma: Sigma = "median",
    generator: torch.Generator | None = None,
) -> PermutationTest:
    """Permutation test of whether two samples come from one distribution, by the unbiased squared MMD.

    One pass over all pairs serves all permutations.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``, floats.
        y: Shape ``(m,)`` or ``(m, d)``.
        permutations: How many, at least 1.
        sigma: Width of the Gaussian kernel; ``"median"`` over the pooled sample.
        generator: Source of the permutations; default: torch's.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: Dimensions that differ, a sample of fewer than 2 points, fewer than 1 permutation.

    Reference: A. Gretton et al., 2012, arXiv:0805.2368.

    >>> x = torch.linspace(-1, 1, 30)
    >>> two_sample_test(x, x + 1, permutations=99, generator=torch.Generator().manual_seed(0)).p_value
    0.01
    """
    check_range("permutations", permutations, 1)
    z, n = pooled(x.detach(), y.detach())
    if min(n, len(z) - n) < 2:
        raise ValueError(f"x, y: expected at least 2 points in each sample, got {n} and {len(z) - n}")
    side, ones = gaussian(z, sigma), torch.ones_like(z[:, :1])
    totals = _tiles.kernel_sums(z, side, ones).squeeze(1)
    found = []
    for part in permutation_orders(len(z), permutations, generator, z.device):
        first = z.new_zeros(part.T.shape).scatter_(0, part.T[:n], 1.0)
        found.append(u_mmd_of_sums(first, _tiles.kernel_sums(z, side, first), totals))
    return PermutationTest.of(torch.cat(found))


def permutation_orders(n: int, count: int, generator: torch.Generator | None, device: torch.device) -> Iterator[Tensor]:
    """The identity and then ``count`` random permutations, ``[rows, n]`` at a time.

    >>> first, rest = permutation_orders(3, 2, torch.Generator().manual_seed(0), torch.device("cpu"))
    >>> first.tolist(), rest.shape
    ([[0, 1, 2]], torch.Size([2, 3]))
    """
    home = generator.device if generator is not None else device
    rows = max(1, _BATCH // n)
    yield torch.arange(n, device=device).unsqueeze(0)
    for start in range(0, count, rows):
        # Drawn one by one, so that the draws do not depend on how many fit into a batch.
        draws = [torch.randperm(n, generator=generator, device=home) for _ in range(min(rows, count - start))]
        yield torch.stack(draws).to(device)


def _line_statistics(x: Tensor, y: Tensor, orders: Tensor) -> Tensor:
    """Unbiased distance covariances of ``x [n]`` and every order of ``y [n]``."""
    w = torch.full_like(x, 1 / len(x))
    means = _line.pair_means(x.expand(orders.shape).contiguous(), y[orders], w)
    return u_statistic(PairMeans(*means))


def _cell_statistics(line: Variable, cells: Variable, orders: Tensor, *, first: bool) -> Tensor:
    """Unbiased distance covariances of a variable on a line and categories; ``first``: the line is permuted.

    All that depends on the pairing is the distance within categories, and that follows from one sort: of the
    sorted points of a category the i-th counts ``2 i - n_c + 1`` times.
    """
    x, cell = line.line, cells.cell
    assert x is not None
    assert cell is not None
    n, w = len(x), as_weights(None, line)
    values, by_value = x.sort()
    rank = torch.empty_like(by_value).scatter_(0, by_value, torch.arange(n, device=x.device))
    ranks, groups = (rank[orders], cell) if first else (rank, cell[orders])
    sizes = torch.bincount(cell)
    sizes = sizes[sizes > 0].repeat_interleave(sizes[sizes > 0])
    place = torch.arange(n, device=x.device)
    start = torch.cat((place.new_zeros(1), (torch.bincount(cell).cumsum(0)[:-1])))[cell.sort().values]
    times = (2 * (place - start) - sizes + 1).double()
    within = 2 * values[(groups * n + ranks).sort(-1).values % n] @ times
    x_means, cell_means = line.means(w), cells.means(w)
    means = (x_means[orders], cell_means) if first else (x_means, cell_means[orders])
    return u_statistic(PairMeans(x_means.sum() / n - within / n**2, *means))


def _paired_statistics(sides: list[_tiles.Points | _tiles.Cells], w: Tensor, orders: Iterator[Tensor]) -> Tensor:
    """Unbiased statistics under every order of the second variable."""
    n, (x, y) = len(w), sides
    if n * n > _DENSE:
        empty = w.new_empty(0)
        taken = (y.take(order) for part in orders for order in part)
        means = (PairMeans(*_tiles.pair_means(empty, empty, x, other, w)) for other in taken)
        return torch.stack([u_statistic(without_diagonal(m, x, y)) for m in means])
    # With one matrix centered the other needs no centering.
    whole = slice(0, n)
    a = x.tile(whole, whole).fill_diagonal_(0.0)
    shift = a.sum(1) / (n - 2) - a.sum() / (2 * (n - 1) * (n - 2))
    a = a.sub_(shift).sub_(shift.unsqueeze(1)).fill_diagonal_(0.0)
    b = y.tile(whole, whole)
    return torch.stack([(a * b[o].index_select(1, o)).sum() for part in orders for o in part]) / (n * (n - 3))

r"""Mutual information of categories beyond what chance alone would show.

With many levels and few rows a level, the plug-in estimate is large even between independent variables: it counts
coincidences. Their size is known exactly, because under independence every table with the same margins has a known
probability. Corrections that treat the three entropies apart (Miller-Madow and the others of
:mod:`infotorch.core.discrete`) leave most of it where tables are sparse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infotorch.core._checks import check_tensor
from infotorch.core._samples import check_paired
from infotorch.core.discrete import encode, plugin_entropy

_CHUNK = 1 << 20  # terms of the sum that are held at once


def expected_mutual_information(rows: Tensor, columns: Tensor) -> Tensor:
    r"""Mean plug-in mutual information of all tables with the given margins, under independence.

    :math:`\sum_{ij} \sum_m \frac mN \log\frac{N m}{a_i b_j} \, P(m)` with ``P`` hypergeometric: of ``N`` points ``a_i``
    are marked and ``b_j`` drawn. Levels of equal count share their terms, and terms that are 0 in double precision
    are not visited.

    Args:
        rows: Counts :math:`a_i`, shape ``(Kx,)``, whole numbers.
        columns: Counts :math:`b_j`, shape ``(Ky,)``, with the same sum.

    Returns:
        0-d float64, nats.

    Raises:
        ValueError: Wrong shapes, negative or fractional counts, sums that differ or are 0.

    Reference: N. Vinh, J. Epps and J. Bailey, "Information theoretic measures for clusterings comparison", 2010.

    >>> expected_mutual_information(torch.tensor([1, 1]), torch.tensor([1, 1]))  # both tables are diagonal
    tensor(0.6931, dtype=torch.float64)
    """
    a, times_a = _margin("rows", rows)
    b, times_b = _margin("columns", columns)
    total = float(times_a @ a)
    if total != float(times_b @ b):
        raise ValueError(f"rows, columns: expected equal sums, got {total:g} and {float(times_b @ b):g}")
    a, b = (z.unsqueeze(1) for z in torch.cartesian_prod(a, b).T)
    weight = torch.outer(times_a, times_b).flatten()
    # The hypergeometric's mass beyond this many deviations is below 1e-20.
    mean = a * b / total
    reach = 12 * (mean * (1 - a / total)).clamp(min=0).sqrt() + 40
    low = torch.maximum((mean - reach).ceil(), (a + b - total).clamp(min=1))
    high = torch.minimum((mean + reach).floor(), torch.minimum(a, b))
    width = int((high - low).max()) + 1
    found = a.new_zeros(())
    for part in torch.arange(len(weight)).split(max(1, _CHUNK // width)):
        found = found + weight[part] @ _terms(a[part], b[part], low[part], high[part], total)
    return found


def adjusted_mutual_information(x: Tensor, y: Tensor, *, normalized: bool = False) -> Tensor:
    r"""Mutual information of discrete samples, adjusted for chance.

    :math:`H \cdot (I - E) / (H - E)` with the plug-in ``I``, its expectation ``E`` under independence given the
    margins, and the most that I can be, :math:`H = \min(H(X), H(Y))`. Its mean is 0 under independence, however
    sparse the table; it is H where one variable determines the other; in dense tables it agrees with the Miller-Madow
    correction.

    Args:
        x: Integers or booleans, ``(n,)`` or ``(n, d)``.
        y: Likewise.
        normalized: Leave out the first factor: the score of 0 to 1 that scikit-learn calls
            ``adjusted_mutual_info_score(..., average_method="min")``.

    Returns:
        0-d float64; 0 where a variable is constant or no two points share a level, so that nothing exceeds chance.

    Raises:
        TypeError: Floating-point columns.
        ValueError: Wrong shapes, different lengths.

    Reference: as :func:`expected_mutual_information`; the return to nats is ours.

    >>> x = torch.tensor([0, 0, 1, 1])
    >>> adjusted_mutual_information(x, x), adjusted_mutual_information(x, torch.tensor([0, 1, 2, 3]))
    (tensor(0.6931, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    x, y = encode(x=x), encode(y=y)
    check_paired(x=x, y=y)
    rows, columns = torch.bincount(x), torch.bincount(y)
    hx, hy = plugin_entropy(rows), plugin_entropy(columns)
    joint = plugin_entropy(torch.unique(x * len(columns) + y, return_counts=True)[1])
    most = torch.minimum(hx, hy)
    chance = expected_mutual_information(rows, columns)
    room = most - chance
    if float(room) < 1e-9 * max(1.0, float(most)):
        return torch.zeros_like(most)
    share = (hx + hy - joint - chance) / room
    return share if normalized else share * most


def _margin(name: str, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct positive counts in float64, and how many levels have each."""
    n = check_tensor(name, counts).double()
    if n.ndim != 1 or not len(n):
        raise ValueError(f"{name}: expected shape (K,), not empty, got {tuple(n.shape)}")
    if not bool((n.isfinite() & (n >= 0) & (n == n.round())).all()) or not bool(n.any()):
        raise ValueError(f"{name}: expected whole numbers >= 0, not all 0, got a minimum of {float(n.min()):g}")
    values, times = torch.unique(n[n > 0], return_counts=True)
    return values, times.double()


def _terms(a: Tensor, b: Tensor, low: Tensor, high: Tensor, total: float) -> Tensor:
    """Sum over m for every pair of counts; all arguments ``[pairs, 1]``."""
    width = int((high - low).max()) + 1
    m = low + torch.arange(width, dtype=low.dtype)
    inside = m <= high
    m = torch.where(inside, m, low)
    log_p = _log_choose(a, m) + _log_choose(total - a, b - m) - _log_choose(torch.full_like(b, total), b)
    value = m / total * (m.log() + math.log(total) - a.log() - b.log())
    return torch.where(inside & (m >= 1), value * log_p.exp(), 0.0).sum(1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

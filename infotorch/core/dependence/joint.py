r"""Joint forms of distance covariance: mutual independence of many variables, and of one variable with a group.

``x`` may be independent of every attribute and still depend on their combination (``x = a xor b``). Both measures
here see that: :func:`jdcov_sqr` multiplies centered distances, :func:`ccdcov_sqr` concatenates the attributes.

Variables are those of :func:`~infotorch.core.dependence.distance_covariance_sqr`: floats are numbers (standardize them
first: their scales weigh them against each other), integers and booleans are categories at distance 1, which is the
Euclidean distance of one-hot vectors over the root of 2.

References:
    - S. Chakraborty and X. Zhang, "Distance metrics for measuring joint dependence with application to causal
      inference", 2019, arXiv:1711.09179 (JdCov).
    - Lee, Antonio, Avanzi, Marchi and Zhou, "Machine learning with multitype protected attributes: intersectional
      fairness through regularisation", 2025, arXiv:2509.08163 (both as penalties).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.dependence._joint import MAX_CELLS, joint_mean
from infotorch.core.dependence._variables import (
    PairMeans,
    Variable,
    as_variable,
    as_weights,
    check_lengths,
    pair_means,
)
from infotorch.core.dependence.distance import (
    check_enough,
    correlation,
    result_dtype,
    safe_sqrt,
    u_statistic,
    v_statistic,
)

PARTS = ("all", "first")


def jdcov_sqr(
    variables: Sequence[Tensor],
    *,
    c: float = 1.0,
    part: str = "all",
    exponent: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Squared joint distance covariance (V-statistic): 0 in the population exactly under mutual independence.

    :math:`\frac{1}{n^2} \sum_{ij} \prod_{m=1}^{M} (c - A^m_{ij}) - c^M`, which is the sum of the distance covariances
    of all subsets of at least two variables, those of size k weighted with :math:`c^{M-k}`. Non-negative.

    Args:
        variables: M of them, each of shape ``(n,)`` or ``(n, d)``.
        c: Positive; the larger, the more pairs count against higher orders.
        part: ``"all"``, or ``"first"`` for only the subsets that hold the first variable, which is 0 in the
            population exactly where that one is independent of all others together, however these depend on each
            other. The gradient in the first variable is the same.
        exponent: Power of the distances, in (0, 2).
        weights: Shape ``(n,)``, non-negative; all means become weighted means.

    Returns:
        0-d; float64 if a variable is, else float32. For categories with G cells that occur it takes
        ``O(n log n + n G)`` time with at most one variable on a line beside them, ``O(G n log n)`` with two (in single
        columns of numbers, ``exponent=1``). With more numbers every pair is visited: ``O(n^2)`` time, about a second
        per 10,000 points on a CPU core; take the unbiased statistic of mini-batches there. Memory is ``O(n)``
        always, also backwards.

    Raises:
        TypeError: A variable is not a tensor.
        ValueError: No variables, shapes that do not agree, values that are not finite, ``c``, ``part`` or
            ``exponent`` out of range.

    Reference: S. Chakraborty and X. Zhang, 2019, arXiv:1711.09179.

    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> jdcov_sqr([a, b]), jdcov_sqr([a, b, a ^ b])  # each pair is independent, the three are not
    (tensor(0.), tensor(0.1250))
    """
    return _jdcov(variables, c, part, exponent, weights, unbiased=False)


def u_jdcov_sqr(variables: Sequence[Tensor], *, c: float = 1.0, part: str = "all", exponent: float = 1.0) -> Tensor:
    r"""Squared joint distance covariance with U-centered distances; may be negative.

    :math:`\frac{1}{n(n-3)} \sum_{ij} \prod_m (c - A^m_{ij}) - \frac{n}{n-3} c^M`. For two variables this is
    :func:`~infotorch.core.dependence.u_distance_covariance_sqr`. Arguments, result and errors are those of
    :func:`jdcov_sqr`; fewer than 4 points are refused too.

    Reference: S. Chakraborty and X. Zhang, 2019, arXiv:1711.09179.

    >>> x = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> u_jdcov_sqr([x, x])
    tensor(0.6667)
    """
    return _jdcov(variables, c, part, exponent, None, unbiased=True)


def jdcor_sqr(
    variables: Sequence[Tensor],
    *,
    c: float = 1.0,
    part: str = "all",
    exponent: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    r"""Joint distance correlation (V-statistic): :func:`jdcov_sqr` of variables scaled to distance variance 1.

    :math:`A^m` is divided by :math:`\mathrm{dCov}(x_m, x_m)`, the root of its mean square, so that no variable's
    scale counts. For two variables this is :func:`~infotorch.core.dependence.distance_correlation_sqr`; for more it is
    not bounded by 1. A constant variable is independent of all. Arguments, result and errors are those of
    :func:`jdcov_sqr`.

    Reference: S. Chakraborty and X. Zhang, 2019, arXiv:1711.09179.

    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> jdcor_sqr([a, b]), jdcor_sqr([a, b, a ^ b])
    (tensor(0.), tensor(1.))
    """
    return _jdcov(variables, c, part, exponent, weights, unbiased=False, scaled=True)


def u_jdcor_sqr(variables: Sequence[Tensor], *, c: float = 1.0, part: str = "all", exponent: float = 1.0) -> Tensor:
    """Joint distance correlation with U-centered distances; may be negative. As :func:`jdcor_sqr`.

    >>> x = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> u_jdcor_sqr([x, 3 * x])
    tensor(1.)
    """
    return _jdcov(variables, c, part, exponent, None, unbiased=True, scaled=True)


def ccdcov_sqr(
    x: Tensor, attributes: Sequence[Tensor], *, exponent: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    r"""Squared distance covariance (V-statistic) between ``x`` and all attributes as one vector.

    Distances between attributes are :math:`(\sum_k b^k_{ij}{}^2)^{1/2}`, with :math:`b^k` the distance of numbers or
    the 0/1 distance of categories. Where all attributes are categories and ``x`` is on a line it takes
    ``O(n log n + n G)`` time for G cells that occur. With a number among several attributes the root does not separate:
    ``O(n^2)`` time, half a second per 10,000 points on a CPU core, and ``O(n)`` memory; the unbiased statistic of
    mini-batches (:func:`u_ccdcov_sqr`) estimates the same at a fraction of that.

    Args:
        x: Shape ``(n,)`` or ``(n, d)``.
        attributes: One or more, of shape ``(n,)`` or ``(n, e)``.
        exponent: Power of the distances, in (0, 2).
        weights: Shape ``(n,)``, non-negative; all means become weighted means.

    Returns:
        0-d; float64 if a variable is, else float32.

    Raises:
        TypeError: A variable is not a tensor.
        ValueError: No attributes, shapes that do not agree, values that are not finite, ``exponent`` out of range.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> ccdcov_sqr((a ^ b).float(), [a]), ccdcov_sqr((a ^ b).float(), [a, b])
    (tensor(0.), tensor(0.0732))
    """
    one, group = _with_attributes(x, attributes, exponent)
    w = as_weights(weights, one)
    return v_statistic(pair_means(one, group, w), w).to(result_dtype(x, *attributes))


def u_ccdcov_sqr(x: Tensor, attributes: Sequence[Tensor], *, exponent: float = 1.0) -> Tensor:
    """Unbiased version of :func:`ccdcov_sqr`; may be negative. Fewer than 4 points are refused.

    Arguments, result and errors are those of :func:`ccdcov_sqr`.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> u_ccdcov_sqr((a ^ b).float(), [a, b])
    tensor(-0.2761)
    """
    one, group = _with_attributes(x, attributes, exponent)
    check_enough(len(one))
    means = pair_means(one, group, as_weights(None, one))
    return u_statistic(means).to(result_dtype(x, *attributes))


def ccdcor_sqr(
    x: Tensor, attributes: Sequence[Tensor], *, exponent: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Squared distance correlation (V-statistic) between ``x`` and all attributes as one vector, in [0, 1].

    0 where ``x`` or the vector is constant. Arguments, result and errors are those of :func:`ccdcov_sqr`.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> ccdcor_sqr((a ^ b).float(), [a]), ccdcor_sqr((a ^ b).float(), [a ^ b])
    (tensor(0.), tensor(1.))
    """
    one, group = _with_attributes(x, attributes, exponent)
    w = as_weights(weights, one)
    both = pair_means(one, group, w)
    own = [_own(v, w, unbiased=False) for v in (one, group)]
    return correlation(v_statistic(both, w), *own).to(result_dtype(x, *attributes))


def u_ccdcor_sqr(x: Tensor, attributes: Sequence[Tensor], *, exponent: float = 1.0) -> Tensor:
    """Bias-corrected version of :func:`ccdcor_sqr`; may be negative. Fewer than 4 points are refused.

    >>> x = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> u_ccdcor_sqr(x, [3 * x])
    tensor(1.)
    """
    one, group = _with_attributes(x, attributes, exponent)
    check_enough(len(one))
    w = as_weights(None, one)
    own = [_own(v, w, unbiased=True) for v in (one, group)]
    return correlation(u_statistic(pair_means(one, group, w)), *own).to(result_dtype(x, *attributes))


def group_js_divergence(values: Tensor, groups: Tensor, *, bins: int = 50, weights: Tensor | None = None) -> Tensor:
    r"""Generalized Jensen-Shannon divergence of the values' histograms in all groups, in nats.

    :math:`\sum_g \pi_g \, \mathrm{KL}(P(\cdot | g) \,\|\, P)` with the groups' shares :math:`\pi`: the mutual
    information of group and bin. Between 0 and the entropy of the shares. Biased upwards by about
    :math:`(\mathrm{bins} - 1) / (2 n_g)` per group; without gradient.

    Args:
        values: Shape ``(n,)``.
        groups: Shape ``(n,)`` or ``(n, k)``, integers or booleans; rows that differ are different groups.
        bins: Bins of equal width between the least and the largest value.
        weights: Shape ``(n,)``, non-negative.

    Returns:
        0-d; 0 for constant values.

    Raises:
        TypeError: ``groups`` holds floats.
        ValueError: Shapes that do not agree, values that are not finite, fewer than 1 bin.

    Reference: J. Lin, "Divergence measures based on the Shannon entropy", 1991.

    >>> group_js_divergence(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), bins=2)  # log 2
    tensor(0.6931)
    """
    check_range("bins", bins, 1)
    if groups.is_floating_point():
        raise TypeError(f"groups: expected integers or booleans, got {groups.dtype}")
    variable = as_variable("values", values.detach())
    if values.ndim != 1 or len(groups) != len(values):
        raise ValueError(
            f"values, groups: expected shapes (n,) and (n,) or (n, k), got {tuple(values.shape)}, {tuple(groups.shape)}"
        )
    w = as_weights(weights, variable)
    assert variable.points is not None
    x = variable.points.squeeze(1).contiguous()
    low, high = x.min(), x.max()
    edges = low + (high - low) * torch.arange(1, bins, dtype=x.dtype, device=x.device) / bins
    place = torch.bucketize(x, edges, right=True)
    group = torch.unique(groups, dim=0, return_inverse=True)[1]
    table = w.new_zeros(int(group.max()) + 1, bins).index_put_((group, place), w, accumulate=True)
    product = table.sum(0) * table.sum(1, keepdim=True)
    found = torch.where(table > 0, table * (table / product).log(), 0.0).sum()
    return found.clamp(min=0).to(result_dtype(values))


def _jdcov(
    tensors: Sequence[Tensor],
    c: float,
    part: str,
    exponent: float,
    weights: Tensor | None,
    *,
    unbiased: bool,
    scaled: bool = False,
) -> Tensor:
    check_range("c", c, 0.0, math.inf, low_open=True, high_open=True)
    check_choice("part", part, PARTS)
    if not tensors:
        raise ValueError("variables: expected at least one, got none")
    variables = [as_variable(f"variables[{m}]", x, exponent) for m, x in enumerate(tensors)]
    n = check_lengths(**{f"variables[{m}]": v for m, v in enumerate(variables)})
    if unbiased:
        check_enough(n)
    constants = [0.0 if part == "first" else c] + [c] * (len(variables) - 1)
    w = as_weights(weights, variables[0])
    if scaled:
        variables = [_scaled(v, w, unbiased=unbiased) for v in variables]
    return joint_mean(variables, constants, w, unbiased=unbiased).to(result_dtype(*tensors))


def _own(variable: Variable, w: Tensor, *, unbiased: bool) -> Tensor:
    """Squared distance covariance of a variable with itself."""
    means = variable.means(w)
    pairs = PairMeans(variable.own_product(w), means, means)
    return u_statistic(pairs) if unbiased else v_statistic(pairs, w)


def _scaled(variable: Variable, w: Tensor, *, unbiased: bool) -> Variable:
    """The variable with distance variance 1; as it is where that is 0."""
    root = safe_sqrt(_own(variable, w, unbiased=unbiased))
    root = torch.where(root > 0, root, 1.0)
    if variable.points is not None:
        return replace(variable, points=variable.points / root ** (1 / variable.exponent))
    return replace(
        variable, between=variable.across(torch.eye(len(variable.masses(w)), dtype=w.dtype, device=w.device)) / root
    )


def _with_attributes(x: Tensor, attributes: Sequence[Tensor], exponent: float) -> tuple[Variable, Variable]:
    if not attributes:
        raise ValueError("attributes: expected at least one, got none")
    one = as_variable("x", x, exponent)
    parts = [as_variable(f"attributes[{k}]", s, exponent) for k, s in enumerate(attributes)]
    check_lengths(x=one, **{f"attributes[{k}]": v for k, v in enumerate(parts)})
    return one, _concatenate(parts, exponent)


def _concatenate(parts: Sequence[Variable], exponent: float) -> Variable:
    """All attributes as one variable: cells where all are categories, else points."""
    if len(parts) == 1:
        return parts[0]
    cells = [p.cell for p in parts if p.cell is not None]
    if len(cells) == len(parts):
        kinds, cell = torch.unique(torch.stack(cells, 1), dim=0, return_inverse=True)
        if len(kinds) <= MAX_CELLS:
            between = torch.cdist(kinds.double(), kinds.double(), p=0).pow(exponent / 2)  # attributes that differ
            return Variable(cell=cell, between=between, exponent=exponent)
    columns = [_coordinates(p) for p in parts]
    return Variable(points=torch.cat(columns, 1), exponent=exponent)


def _coordinates(variable: Variable) -> Tensor:
    """Points whose Euclidean distances are the variable's."""
    if variable.points is not None:
        return variable.points
    assert variable.cell is not None
    return torch.nn.functional.one_hot(variable.cell).double() / math.sqrt(2)

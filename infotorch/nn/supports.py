r"""Supports of categorical values: bins, maps that compress a range, and the projection of any masses onto a grid.

References:
    - M. Bellemare, W. Dabney and R. Munos, "A distributional perspective on reinforcement learning", 2017,
      arXiv:1707.06887 (the projection).
    - T. Pohlen et al., "Observe and look further", 2018, arXiv:1805.11593 (the signed hyperbolic map).
    - D. Hafner et al., "Mastering diverse domains through world models", 2023, arXiv:2301.04104 (symlog).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range

__all__ = [
    "TRANSFORMS",
    "Transform",
    "bin_edges",
    "categorical_projection",
    "neighbors",
    "signed_hyperbolic",
    "signed_parabolic",
    "symexp",
    "symlog",
]


def symlog(x: Tensor) -> Tensor:
    r"""Signed logarithm :math:`\mathrm{sign}(x) \log(1 + |x|)`.

    Reference: D. Hafner et al., 2023, arXiv:2301.04104.

    >>> symlog(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.6931,  0.0000,  0.6931])
    """
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    r"""Inverse of :func:`symlog`, :math:`\mathrm{sign}(x) (e^{|x|} - 1)`.

    >>> symexp(symlog(torch.tensor([-3.0, 0.0, 100.0])))
    tensor([ -3.0000,   0.0000, 100.0000])
    """
    return x.sign() * x.abs().expm1()


def signed_hyperbolic(x: Tensor, *, eps: float = 1e-3) -> Tensor:
    r"""Signed square root :math:`\mathrm{sign}(x) (\sqrt{|x| + 1} - 1) + \epsilon x`.

    Args:
        x: Any shape.
        eps: Slope that is left for large values; positive, so that the inverse is Lipschitz.

    Raises:
        ValueError: ``eps`` is not positive.

    Reference: T. Pohlen et al., 2018, arXiv:1805.11593.

    >>> signed_hyperbolic(torch.tensor([-3.0, 0.0, 8.0]))
    tensor([-1.0030,  0.0000,  2.0080])
    """
    check_range("eps", eps, 0.0, low_open=True)
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + eps * x


def signed_parabolic(x: Tensor, *, eps: float = 1e-3) -> Tensor:
    r"""Inverse of :func:`signed_hyperbolic`.

    .. math:: \mathrm{sign}(x) \left(\left(\frac{\sqrt{1 + 4 \epsilon (|x| + 1 + \epsilon)} - 1}{2 \epsilon}\right)^2
              - 1\right)

    The quotient is evaluated as :math:`2 (|x| + 1 + \epsilon) / (\sqrt{\cdot} + 1)`, which does not cancel in float32.

    Raises:
        ValueError: ``eps`` is not positive.

    >>> signed_parabolic(signed_hyperbolic(torch.tensor([-3.0, 0.0, 8.0])))
    tensor([-3.0000,  0.0000,  8.0000])
    """
    check_range("eps", eps, 0.0, low_open=True)
    size = x.abs() + 1 + eps
    root = 2 * size / ((1 + 4 * eps * size).sqrt() + 1)
    return x.sign() * (root.square() - 1)


@dataclass(frozen=True)
class Transform:
    """A monotone map of values and its inverse; the histogram lives in the map's image.

    Attributes:
        forward: Increasing map of tensors.
        inverse: Its inverse.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


TRANSFORMS = {
    "identity": Transform(_same, _same),
    "symlog": Transform(symlog, symexp),
    "signed_hyperbolic": Transform(signed_hyperbolic, signed_parabolic),
}


def bin_edges(v_min: float, v_max: float, bins: int, *, range_is: str = "edges", pad: float = 0.0) -> tuple[float, ...]:
    r"""Edges :math:`e_0 < \ldots < e_m` of m equal bins that cover a range.

    Args:
        v_min: Lower end of the range.
        v_max: Upper end.
        bins: Their number m, at least 2.
        range_is: ``"edges"``: the ends are the outermost edges; ``"centers"``: they are the centers of the outermost
            bins.
        pad: Bin widths (of the resulting bins) by which the range is widened on either side.

    Raises:
        TypeError: ``bins`` is not an int.
        ValueError: An empty or infinite range, fewer than two bins, more padding than bins.

    >>> bin_edges(0.0, 1.0, 2)
    (0.0, 0.5, 1.0)
    >>> bin_edges(0.0, 1.0, 2, range_is="centers")
    (-0.5, 0.5, 1.5)
    >>> bin_edges(0.0, 2.0, 4, pad=1.0)
    (-1.0, 0.0, 1.0, 2.0, 3.0)
    """
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"bins: expected an int, got {type(bins).__name__}")
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    if not (math.isfinite(v_min) and math.isfinite(v_max) and v_min < v_max):
        raise ValueError(f"v_min, v_max: expected finite numbers with v_min < v_max, got {v_min} and {v_max}")
    check_range("pad", pad, 0.0, math.inf, high_open=True)
    outside = 2 * pad + (check_choice("range_is", range_is, ("edges", "centers")) == "centers")
    if outside >= bins:
        raise ValueError(f"bins: expected more than {outside:g}, the bins that lie outside the range, got {bins}")
    width = (v_max - v_min) / (bins - outside)
    low, high = v_min - outside / 2 * width, v_max + outside / 2 * width
    return (*(low + (high - low) * i / bins for i in range(bins)), high)


def neighbors(values: Tensor, centers: Tensor, step: float | None = None) -> tuple[Tensor, Tensor]:
    r"""Between which grid points values lie: the lower one's index l, and the share s of the way to the next.

    A value on a grid point has its index and share 0, or the one before and share 1.

    Args:
        values: Any shape; they are clamped to the grid.
        centers: The grid, ascending, shape ``(m,)``, of the same type.
        step: The gap, where all gaps are the same; then nothing is searched for.

    Returns:
        Indices in ``[0, m - 2]`` and shares in [0, 1], of the shape of ``values``.

    >>> neighbors(torch.tensor([0.25, 3.0]), torch.tensor([0.0, 1.0, 3.0]))
    (tensor([0, 1]), tensor([0.2500, 1.0000]))
    """
    last = len(centers) - 2
    if step is None:
        lower = torch.bucketize(values, centers, right=True).sub(1).clamp(0, last)
    else:
        lower = ((values - centers[0]) / step).long().clamp(0, last)  # in this order: NaN has no index
    flat = lower.reshape(-1)
    left, gap = (x.index_select(0, flat).view_as(lower) for x in (centers, centers.diff()))
    # The division by the step may end on the wrong side of a grid point by its rounding: the clamp mends it.
    return lower, ((values - left) / gap).clamp(0, 1)


def categorical_projection(probs: Tensor, atoms: Tensor, centers: Tensor, *, step: float | None = None) -> Tensor:
    r"""Move masses at arbitrary places onto a grid, each split linearly between its two neighbors.

    .. math:: p_i = \sum_j q_j \, \max\!\left(0, 1 - \frac{|a_j - c_i|}{\Delta}\right)

    with the atoms clipped to the grid and :math:`\Delta` the gap of the grid on the atom's side. It keeps the mean of
    what lies inside the grid, and the total mass. One pass over the atoms, no ``(n, m)`` matrix. Gradients flow to
    ``probs`` only.

    Args:
        probs: Masses q, shape ``(..., n)``.
        atoms: Their places a, broadcastable to ``probs``.
        centers: The grid c, ascending, shape ``(m,)``; the gaps may differ.
        step: The gap, where all gaps are the same: several times as quick, since no atom's place is searched for.

    Returns:
        Shape ``(..., m)``.

    Raises:
        ValueError: Shapes that do not fit, fewer than two grid points, a ``step`` that is not positive.

    Reference: M. Bellemare, W. Dabney and R. Munos, 2017, arXiv:1707.06887.

    Deviation from the usual code: an atom that lies on a grid point leaves all its mass there.

    >>> categorical_projection(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 9.0]), torch.tensor([0.0, 1.0, 2.0]))
    tensor([0.3750, 0.1250, 0.5000])
    """
    if centers.ndim != 1 or len(centers) < 2:
        raise ValueError(f"centers: expected shape (m,) with at least 2 points, got {tuple(centers.shape)}")
    if step is not None:
        check_range("step", step, 0.0, math.inf, low_open=True, high_open=True)
    if not probs.ndim:
        raise ValueError("probs: expected shape (..., n), got ()")
    try:
        atoms = atoms.detach().to(centers.dtype).expand_as(probs)
    except RuntimeError as error:
        raise ValueError(
            f"atoms: expected a shape broadcastable to {tuple(probs.shape)}, got {tuple(atoms.shape)}"
        ) from error
    lower, share = neighbors(atoms.clamp(centers[0], centers[-1]), centers, step)
    moved = probs * share.to(probs.dtype)
    empty = probs.new_zeros(*probs.shape[:-1], len(centers))
    return empty.scatter_add(-1, lower, probs - moved).scatter_add(-1, lower + 1, moved)

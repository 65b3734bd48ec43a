r"""Mutual information of columns that repeat some of their values: zero-inflated amounts, rounded or censored numbers.

A value that many points share is an atom, and atoms are categories; the rest of the column is continuous. By the chain
rule, with A the atom of X (or "none") and B that of Y,

.. math:: I(X; Y) = I(A; B) + I(X; B \mid A) + I(A; Y \mid B) + I(X; Y \mid A, B),

and given an atom nothing is left of its column, so that three well-behaved estimates are enough: of a contingency
table, of numbers and labels where there is no atom, and of numbers where there are none in either column.

Nearest neighbors alone do worse: :func:`infotorch.core.differential.mixture_mi` needs the points at an atom to be many
in both columns at once, and finds 0.8 nats between 5,000 independent normals that were rounded to 0.05.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from infotorch.core._checks import check_range, check_tensor
from infotorch.core._samples import check_neighbors, check_paired, discrete_columns
from infotorch.core.chance import adjusted_mutual_information
from infotorch.core.differential import jitter, ksg_mi, ross_mi


def atoms(x: Tensor, *, share: float = 0.05, least: int = 5) -> Tensor:
    """Which of its often repeated values a point has: numbers from 1, and 0 for none.

    Args:
        x: Shape ``(n,)``; every value of integers and booleans, which are categories, is an atom.
        share: Of the points that share an atom, at least.
        least: Number of points that share an atom, at least.

    Returns:
        int64, shape ``(n,)``.

    Raises:
        TypeError: Not a tensor.
        ValueError: Another shape, ``share`` outside [0, 1].

    >>> atoms(torch.tensor([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.7]))
    tensor([1, 1, 0, 1, 1, 1, 0])
    """
    x = _line("x", x)
    check_range("share", share, 0.0, 1.0)
    _, values, counts = torch.unique(x, return_inverse=True, return_counts=True)
    kept = torch.ones_like(counts, dtype=torch.bool)
    if not discrete_columns(x):
        kept = (counts >= share * len(x)) & (counts >= least)
    return torch.where(kept, kept.cumsum(0), 0)[values]


def atomic_mi(
    x: Tensor,
    y: Tensor,
    *,
    k: int = 3,
    share: float = 0.05,
    noise: float = 1e-10,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mutual information by splitting off the values that repeat: any mix of categories, numbers and atoms.

    :math:`I(A; B)` adjusted for chance, plus :math:`\frac{n_a}{n} I(X; B)` by Ross over the :math:`n_a` points without
    an atom of x, likewise for y, plus :math:`\frac{n_{ab}}{n} I(X; Y)` by Kraskov over the points without any. Two
    categories leave the first term, a category and a number without atoms are Ross's case, two such numbers
    Kraskov's. Ties that are no atoms are broken by noise.

    Args:
        x: Numbers (floats) or categories (integers, booleans), ``(n,)``. Scale the numbers beforehand.
        y: Likewise.
        k: Neighbor.
        share: See :func:`atoms`.
        noise: See ``scale`` of :func:`infotorch.core.differential.jitter`.
        generator: Source of the noise; default: torch's.

    Returns:
        0-d float64, nats, not clipped.

    Raises:
        TypeError: Not a tensor.
        ValueError: ``k >= n``, other shapes, different lengths, values that are not finite, ``share`` out of range.

    Reference: the terms' authors, A. Kraskov et al., 2004; B. Ross, 2014; N. Vinh et al., 2010.

    >>> x = torch.tensor([0.0, 1.0]).repeat(50)
    >>> atomic_mi(x, x)
    tensor(0.6931, dtype=torch.float64)
    """
    a, b = atoms(x, share=share), atoms(y, share=share)
    check_neighbors(k, check_paired(x=a, y=b))
    return adjusted_mutual_information(a, b) + beyond_atoms(x, y, a, b, k=k, noise=noise, generator=generator)


def beyond_atoms(
    x: Tensor,
    y: Tensor,
    x_atoms: Tensor,
    y_atoms: Tensor,
    *,
    k: int = 3,
    noise: float = 1e-10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The part of :func:`atomic_mi` that is not between the atoms, for atoms that are given; 0 if all points have one.

    A term over too few points for ``k`` neighbors is left out.

    Raises:
        ValueError: Other shapes, different lengths, values that are not finite.
    """
    x, y = _line("x", x), _line("y", y)
    n = check_paired(x=x, y=y, x_atoms=x_atoms, y_atoms=y_atoms)
    numbers = [jitter(z, scale=noise, generator=generator).squeeze(1) for z in (x, y)]
    loose = [x_atoms == 0, y_atoms == 0]
    found = torch.zeros((), dtype=torch.float64, device=x.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="k: .* points are few")  # such a term weighs little
        for values, free, other in ((numbers[0], loose[0], y_atoms), (numbers[1], loose[1], x_atoms)):
            size = int(free.sum())
            if size > k + 1:
                found = found + size / n * _told_apart(values[free], other[free], k)
        free = loose[0] & loose[1]
        size = int(free.sum())
        if size > k + 1:
            found = found + size / n * ksg_mi(numbers[0][free], numbers[1][free], k=k)
    return found


def _told_apart(values: Tensor, labels: Tensor, k: int) -> Tensor:
    """Ross's estimate; 0 where there is one label only, or none has two points."""
    sizes = torch.unique(labels, return_counts=True)[1]
    return ross_mi(values, labels, k=k) if len(sizes) > 1 and int(sizes.max()) > 1 else values.new_zeros(())


def _line(name: str, x: Tensor) -> Tensor:
    x = check_tensor(name, x)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name}: expected shape (n,), not empty, got {tuple(x.shape)}")
    return x

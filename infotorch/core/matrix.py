r"""Entropy of a matrix: matrix-based Rényi entropies of Gram matrices, von Neumann entropy of covariances.

A positive semi-definite matrix scaled to trace 1 has eigenvalues that sum to one, and their Rényi entropy is an
entropy of the data behind the matrix that needs no density. It is not an estimate of Shannon entropy: it depends
on the kernel and its width, and lies between 0 (all points alike) and :math:`\log n` (all points apart).

Reference:
    L. G. Sanchez Giraldo, M. Rao, J. C. Principe, "Measures of entropy from data using infinitely divisible
    kernels", 2014, arXiv:1211.2459.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core._checks import check_range, check_tensor
from infotorch.core._kernels import bandwidth, check_finite, check_points, median_distance, squared_distances

__all__ = [
    "gaussian_gram",
    "matrix_entropy",
    "matrix_joint_entropy",
    "matrix_mutual_information",
    "median_distance",
    "squared_distances",
    "von_neumann_entropy",
]


def gaussian_gram(x: Tensor, sigma: float | Tensor | str = "median") -> Tensor:
    r"""Gram matrix of the Gaussian kernel, :math:`K_{ij} = \exp(-\|x_i - x_j\|^2 / (2 \sigma^2))`.

    Differentiable with respect to ``x`` and a tensor ``sigma``. The diagonal is exactly 1.

    Args:
        x: Points, shape ``(..., n, d)``; half precision is computed in float32.
        sigma: Width: a number, a tensor of shape ``(...)``, or ``"median"``: the median distance between points.

    Returns:
        Shape ``(..., n, n)``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``x`` has another shape or values that are not finite, or ``sigma`` is not positive.

    >>> gaussian_gram(torch.tensor([[0.0], [1.0]]), sigma=1.0)
    tensor([[1.0000, 0.6065],
            [0.6065, 1.0000]])
    """
    x = check_finite("x", check_points("x", x))
    # Scaled before the product: the squares of a float32 table of large numbers would overflow sooner.
    return squared_distances(x / bandwidth(x, sigma)).mul_(-0.5).exp_()


def matrix_entropy(gram: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Matrix-based Rényi entropy :math:`S_\alpha(A) = \log(\sum_i \lambda_i^\alpha) / (1 - \alpha)`, in nats.

    :math:`\lambda` are the eigenvalues of :math:`A = K / \mathrm{tr} K`. ``alpha = 1`` is the von Neumann entropy,
    infinity minus the log of the largest eigenvalue, 0 the log of the numerical rank. ``alpha = 2`` takes no
    eigenvalues, :math:`S_2 = -\log \|A\|_F^2`: O(n²) instead of O(n³). Differentiable; coinciding eigenvalues do
    no harm to the gradient, since the entropy is symmetric in them.

    Below ``alpha = 1`` eigenvalues that are mere rounding (duplicated points) count for much: use float64.

    Args:
        gram: Symmetric and positive semi-definite, shape ``(..., n, n)``; its lower triangle is read.
        alpha: Order, at least 0.

    Returns:
        Shape ``(...)``.

    Raises:
        TypeError: ``gram`` is not a floating tensor.
        ValueError: ``gram`` is not square, not finite or has no positive trace; ``alpha`` is negative.

    Reference: L. G. Sanchez Giraldo et al., 2014, arXiv:1211.2459.

    >>> matrix_entropy(torch.eye(4)), matrix_entropy(torch.ones(4, 4))  # log 4: all apart; 0: all alike
    (tensor(1.3863), tensor(0.))
    """
    check_range("alpha", alpha, 0.0)
    if alpha == 2:
        return _collision_entropy(_square("gram", gram))
    gram = check_square("gram", gram)
    _check_trace(_trace(gram))
    eigenvalues = torch.linalg.eigvalsh(gram)
    if alpha == 0:
        noise = gram.shape[-1] * torch.finfo(gram.dtype).eps * eigenvalues[..., -1:]
        eigenvalues = torch.where(eigenvalues > noise, eigenvalues, 0.0)
    return categorical.renyi_entropy(probs=shares(eigenvalues), alpha=alpha)


def _collision_entropy(gram: Tensor) -> Tensor:
    """Order 2, rows summed in float64: a float32 sum over all n² entries errs by 1e-5."""
    trace, total = _trace(gram), _total_square(gram)
    if not bool(((trace > 0) & (total > 0) & total.isfinite()).all()):
        check_finite("gram", gram)
        _check_trace(trace)
        # The squares of very large or very small entries: scaled first they are neither.
        total = _total_square(gram / trace[..., None, None])
        trace = torch.ones_like(trace)
    return (2 * trace.log() - total.log()).to(gram.dtype)


def _total_square(gram: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gram, dim=-1).double().square().sum(-1)


def _trace(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)


def _check_trace(trace: Tensor) -> None:
    if not bool((trace > 0).all()):
        raise ValueError(f"gram: expected a positive trace, got {float(trace.detach().min()):g}")


def matrix_joint_entropy(*grams: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Joint entropy :math:`S_\alpha(K_1 \circ K_2 \circ \ldots / \mathrm{tr})` of variables seen on the same points.

    The entrywise product of Gaussian Gram matrices is the Gram matrix of the concatenated, scaled variables.

    Args:
        grams: One Gram matrix per variable, each of shape ``(..., n, n)``.
        alpha: Order, as in :func:`matrix_entropy`.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        TypeError: A matrix is not a floating tensor.
        ValueError: No matrix, matrices of unequal size, not square or not finite, a negative ``alpha``.

    Reference: L. G. Sanchez Giraldo et al., 2014, arXiv:1211.2459.

    >>> matrix_joint_entropy(torch.eye(4), torch.ones(4, 4))
    tensor(1.3863)
    """
    if not grams:
        raise ValueError("grams: expected at least one Gram matrix, got none")
    sizes = [_square("grams", gram).shape[-1] for gram in grams]
    if len(set(sizes)) > 1:
        raise ValueError(f"grams: expected matrices over the same points, got sizes {sizes}")
    return matrix_entropy(reduce(torch.mul, grams), alpha)


def matrix_mutual_information(gram_x: Tensor, gram_y: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Matrix-based mutual information :math:`I_\alpha = S_\alpha(X) + S_\alpha(Y) - S_\alpha(X, Y)`, in nats.

    Unlike Shannon's it may fall below 0 by a little where the kernels see next to nothing.

    Args:
        gram_x: Shape ``(..., n, n)``.
        gram_y: Shape ``(..., n, n)``, over the same points.
        alpha: Order, as in :func:`matrix_entropy`.

    Returns:
        Shape ``(...)``.

    Raises:
        TypeError: A matrix is not a floating tensor.
        ValueError: Matrices of unequal size, not square or not finite, a negative ``alpha``.

    Reference: L. G. Sanchez Giraldo et al., 2014, arXiv:1211.2459.

    >>> matrix_mutual_information(torch.eye(4), torch.eye(4))  # a variable tells all about itself
    tensor(1.3863)
    """
    joint = matrix_joint_entropy(gram_x, gram_y, alpha=alpha)
    return matrix_entropy(gram_x, alpha) + matrix_entropy(gram_y, alpha) - joint


def von_neumann_entropy(matrix: Tensor) -> Tensor:
    r"""Von Neumann entropy :math:`-\mathrm{tr}(\rho \log \rho)`, :math:`\rho = M / \mathrm{tr} M`, in nats.

    Args:
        matrix: A covariance, Gram or density matrix of any scale, shape ``(..., n, n)``.

    Returns:
        Shape ``(...)``; its ``exp`` is the effective rank.

    Raises:
        TypeError: ``matrix`` is not a floating tensor.
        ValueError: ``matrix`` is not square, not finite or has no positive trace.

    >>> von_neumann_entropy(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
    tensor(0.6931)
    """
    return matrix_entropy(check_square("matrix", matrix), alpha=1.0)


def shares(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix over their sum; what is negative is rounding and becomes 0.

    >>> shares(torch.tensor([3.0, 1.0, -1e-9]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    positive = eigenvalues.clamp(min=0)
    return positive / positive.sum(-1, keepdim=True)


def check_square(name: str, matrix: object) -> Tensor:
    """``matrix`` in at least float32, if it is a finite floating tensor of shape ``(..., n, n)``."""
    return check_finite(name, _square(name, matrix))


def _square(name: str, matrix: object) -> Tensor:
    matrix = check_tensor(name, matrix)
    if not matrix.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {matrix.dtype} (write {name}.float())")
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"{name}: expected square matrices of shape (..., n, n), got {tuple(matrix.shape)}")
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()

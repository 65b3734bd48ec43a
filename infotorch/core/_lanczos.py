r"""Entropy of a large symmetric matrix's spectrum from products with the matrix: deflated stochastic Lanczos.

With :math:`a_i = |\lambda_i|^t / Z` the entropy is :math:`\log Z - F / Z`, where :math:`Z = \sum |\lambda_i|^t`
and :math:`F = t \sum |\lambda_i|^t \log |\lambda_i|` are traces of functions :math:`f` of the matrix :math:`A`.
For any orthonormal :math:`Q` and :math:`P = 1 - Q Q^\top`,

.. math:: \mathrm{tr} f(A) = \sum_j q_j^\top f(A) q_j + \mathrm{tr}\, P f(A) P.

:math:`Q` is a randomized subspace of the largest eigenvalues. The first sum takes a short Lanczos run from every
column, which is nearly an eigenvector. The second is estimated with random probes; there the traces of
:math:`P`, :math:`P A P` and :math:`P A^2 P` are known exactly and replace what the probes say about
:math:`1, \lambda, \lambda^2` (control variates), so that only the distance of :math:`f` from a parabola is left to
chance. For a matrix without negative eigenvalues, ``Z`` is exact at ``t = 1`` and ``t = 2``.

References: S. Ubaru, J. Chen, Y. Saad, 2017 (stochastic Lanczos quadrature); N. Halko, P.-G. Martinsson,
J. Tropp, 2011, arXiv:0909.4061 (range finder); R. Meyer et al., "Hutch++", 2021, arXiv:2010.09649.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_POWER_STEPS = 1  # products after the first that turn the random subspace towards the largest eigenvalues
_COLUMN_DEPTH = 3  # Lanczos steps from a column of the subspace, the first of which is needed anyway
_NEGLIGIBLE = 1e-10  # quadrature weights below are rounding of the projection

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EntropyEstimate:
    """An estimated entropy and its error.

    Attributes:
        value: 0-d.
        error: 0-d, in the same unit: two standard errors over the probes, plus what the last Lanczos steps
            changed. A guide, not a guarantee.
    """

    value: Tensor
    error: Tensor


@torch.no_grad()
def spectral_entropy_estimate(
    apply: Apply,
    start: Tensor,
    *,
    trace: float,
    square_norm: float,
    t: float,
    probes: int,
    depth: int,
    generator: torch.Generator,
) -> EntropyEstimate:
    """Entropy, in nats, of the shares ``|eigenvalue|^t`` of a symmetric matrix.

    Args:
        apply: Product of the matrix with a block of columns.
        start: Random block, shape ``(n, rank)``, from which the leading subspace grows; ``rank < n``.
        trace: Of the matrix, exact.
        square_norm: Squared Frobenius norm, exact.
        t: Power.
        probes: Number of random probes, at least 2.
        depth: Lanczos steps of each.
        generator: Source of the probes.
    """
    basis, product = _leading_subspace(apply, start)
    n, rank = basis.shape
    rest = n - rank
    columns = _lanczos(apply, basis, min(_COLUMN_DEPTH, n), product)
    in_trace, in_square = _power_sums(columns)
    known = torch.stack([torch.ones_like(in_trace), (trace - in_trace) / rest, (square_norm - in_square) / rest])
    rounding = torch.finfo(basis.dtype).eps / rest * torch.tensor([0.0, abs(trace), square_norm]).to(known)

    signs = torch.randint(2, (n, probes), generator=generator, device=basis.device).to(basis.dtype) * 2 - 1
    probe = _outside(signs, basis)
    sampled = _lanczos(apply, probe / torch.linalg.vector_norm(probe, dim=0), min(depth, rest))
    low, error = _entropy(columns, sampled, known, rounding, rest, t)
    high, _ = _entropy(columns, _with_node_at_zero(sampled), known, rounding, rest, t)
    return EntropyEstimate((low + high) / 2, 2 * error + (low - high).abs() / 2)


def _leading_subspace(apply: Apply, start: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal Ritz vectors, shape of ``start``, and their product with the matrix."""
    basis = torch.linalg.qr(apply(start))[0]
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(apply(basis))[0]
    product = apply(basis)
    small = (basis.mT @ product).double()
    turn = torch.linalg.eigh((small + small.mT) / 2)[1].to(basis.dtype)
    return basis @ turn, product @ turn


def _lanczos(apply: Apply, vector: Tensor, depth: int, product: Tensor | None = None) -> Tensor:
    """Tridiagonal matrices of the runs from every column of ``vector``, shape ``(columns, depth, depth)``.

    ``product`` is that of the matrix with ``vector``, where it is known already.
    """
    seen = vector.new_zeros(depth, *vector.shape)
    result = torch.zeros(vector.shape[1], depth, depth, dtype=torch.float64, device=vector.device)
    largest = result.new_zeros(vector.shape[1])
    for step in range(depth):
        seen[step] = vector
        vector = product if step == 0 and product is not None else apply(vector)
        diagonal = (seen[step] * vector).sum(0, dtype=torch.float64)
        result[:, step, step] = diagonal
        if step + 1 == depth:
            break
        for _ in range(2):  # twice: once leaves what cancellation brought back
            for past in seen[: step + 1]:
                vector = vector - past * (past * vector).sum(0)
        length = torch.linalg.vector_norm(vector, dim=0)
        # A run that has seen its whole Krylov space goes on with zeros, to which its quadrature gives no weight.
        largest = torch.maximum(largest, diagonal.abs())
        alive = length.double() > 10 * torch.finfo(vector.dtype).eps * largest
        result[:, step, step + 1] = result[:, step + 1, step] = torch.where(alive, length.double(), 0.0)
        vector = torch.where(alive, vector / torch.where(alive, length, 1.0), 0.0)
    return result


def _with_node_at_zero(t_matrix: Tensor) -> Tensor:
    """Gauss-Radau instead of Gauss quadrature: the last diagonal entry changed so that 0 is an eigenvalue.

    For ``x log x`` on non-negative eigenvalues the two rules err to opposite sides.
    """
    diagonal = t_matrix.diagonal(dim1=1, dim2=2)
    squares = t_matrix.diagonal(1, dim1=1, dim2=2).square()
    tiny = torch.finfo(torch.float64).tiny
    pivot = diagonal[:, 0]
    for step in range(1, t_matrix.shape[-1] - 1):
        pivot = diagonal[:, step] - squares[:, step - 1] / torch.where(pivot.abs() > tiny, pivot, tiny)
    result = t_matrix.clone()
    result[:, -1, -1] = torch.where(pivot.abs() > tiny, squares[:, -1] / pivot, 0.0)
    return result


def _outside(block: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        block = block - basis @ (basis.mT @ block)
    return block


def _power_sums(t_matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``sum q^T A q`` and ``sum q^T A^2 q``: what the first row of the tridiagonal matrices holds exactly."""
    return t_matrix[:, 0, 0].sum(), t_matrix[:, 0, :].square().sum()


def _quadrature(t_matrix: Tensor) -> tuple[Tensor, Tensor]:
    nodes, vectors = torch.linalg.eigh(t_matrix)
    weights = vectors[:, 0, :].square()
    return nodes, torch.where(weights > _NEGLIGIBLE, weights, 0.0)


def _functions(eigenvalues: Tensor, t: float) -> Tensor:
    """``|x|^t`` and ``t |x|^t log |x|``, stacked in front; 0 at 0."""
    size = eigenvalues.abs()
    log = t * torch.where(size > 0, size, 1.0).log()
    power = torch.where(size > 0, log.exp(), 0.0)
    return torch.stack([power, power * log])


def _entropy(
    columns: Tensor, sampled: Tensor, known: Tensor, rounding: Tensor, rest: int, t: float
) -> tuple[Tensor, Tensor]:
    """Entropy and its standard error over the probes."""
    nodes, weights = _quadrature(columns)
    exact = (weights * _functions(nodes, t)).sum((1, 2))
    nodes, weights = _quadrature(sampled)
    values = _functions(nodes, t)  # (2, probes, depth)
    scale = (weights * nodes.square()).sum(1).mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    powers = torch.stack([torch.ones_like(nodes), nodes / scale, (nodes / scale).square()], -1)
    root = weights.sqrt().flatten()
    fit = torch.linalg.lstsq(
        powers.flatten(0, 1) * root.unsqueeze(-1), (values.flatten(1) * root).mT, driver=None
    ).solution  # (3, 2)
    residual = values - (powers @ fit).movedim(-1, 0)
    # A complement of little but rounding: differences of large traces know less of it than the probes do.
    sizes = torch.stack([torch.ones_like(scale), scale, scale.square()])
    found = (weights.unsqueeze(-1) * powers).sum(1).mean(0)
    known = torch.where(rounding < 1e-3 * sizes, known / sizes, found)
    per_probe = (known @ fit).unsqueeze(-1) + (weights * residual).sum(-1)  # (2, probes)
    z, f = exact + rest * per_probe.mean(-1)
    # First-order effect of each probe on log Z - F / Z.
    effect = rest * ((1 + f / z) * per_probe[0] - per_probe[1]) / z
    return z.log() - f / z, effect.std() / len(effect) ** 0.5

r"""Diffusion spectral entropy: how many regions of its manifold a set of points occupies, as one number.

A Gaussian kernel between the points is normalized to a diffusion operator, whose eigenvalues say how many regions
a random walk tells apart after ``t`` steps. The entropy of the powered eigenvalues lies between 0 (all points
alike) and :math:`\log n` (all apart), and its ``exp`` tends to the number of connected clusters for large ``t``.
It is not Shannon entropy, and it depends on the kernel's width ``sigma`` more than on anything else.

Reference:
    D. Liao, C. Liu et al., "Assessing Neural Network Representations During Training Using Noise-Resilient
    Diffusion Spectral Entropy", 2023, arXiv:2312.04823.

Deviations from the authors' code:
    - Nats; ``base=2`` gives its bits.
    - No 2.2e-16 is added to the shares: zero shares contribute 0.
    - ``operator="official"`` is the operator of that code. Its comment takes it for the anisotropic one; it has
      the eigenvalues of the plain random walk :math:`D^{-1} G`. ``operator="anisotropic"`` is the other.
    - Additions: bandwidth and scale taken from the data, a nearest-neighbor kernel, gradients, batches, and an
      estimate with an error for many points.
"""

from __future__ import annotations

import math
import random
import warnings
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core._checks import check_choice, check_range
from infotorch.core._kernels import bandwidth, check_finite, check_points, squared_distances
from infotorch.core._lanczos import EntropyEstimate, spectral_entropy_estimate
from infotorch.core._tiled_kernel import DenseOperator, TiledOperator
from infotorch.core.matrix import gaussian_gram

__all__ = [
    "EntropyEstimate",
    "OperatorOptions",
    "adjacency_spectral_entropy",
    "diffusion_entropy_estimate",
    "diffusion_matrix_entropy",
    "diffusion_operator",
    "diffusion_spectral_entropy",
    "diffusion_spectrum",
    "spectral_entropy",
]

OPERATORS = ("official", "anisotropic")
KERNELS = ("gaussian", "knn")
METHODS = ("exact", "lanczos")
MAX_N = 10_000


class OperatorOptions(TypedDict, total=False):
    """Options of :func:`diffusion_operator`, taken by every function built on it."""

    sigma: float | Tensor | str
    operator: str
    kernel: str
    k: int
    normalize: str | None


def diffusion_operator(
    x: Tensor,
    *,
    sigma: float | Tensor | str = 10.0,
    operator: str = "official",
    kernel: str = "gaussian",
    k: int = 15,
    normalize: str | None = None,
) -> Tensor:
    r"""Symmetric diffusion operator of a set of points.

    With the kernel :math:`G_{ij} = \exp(-\|x_i - x_j\|^2 / (2 \sigma^2))` and :math:`r = G 1` the official operator
    is :math:`K = r^{-1/2} G\, r^{-1/2}`, similar to the random walk :math:`r^{-1} G`. The anisotropic one goes on
    with :math:`q = K 1` to :math:`q^{-1/2} K q^{-1/2}`, similar to :math:`q^{-1} K`, which corrects for the density
    of the points.

    Args:
        x: Points, shape ``(..., n, d)``; half precision is computed in float32. Differentiable.
        sigma: Kernel width, a number or ``"median"``, the median distance between points.
        operator: ``"official"`` or ``"anisotropic"``.
        kernel: ``"gaussian"``, or ``"knn"``: :math:`\exp(-\|x_i - x_j\|^2 / (\sigma_i \sigma_j))` where one of both is
            among the other's ``k`` nearest neighbors, :math:`\sigma_i` the distance to the k-th; 1 on the diagonal,
            0 elsewhere. ``sigma`` then has no effect.
        k: Neighbors of the ``"knn"`` kernel; all the others, where there are fewer.
        normalize: None, or ``"unit_rms"``: center the points and scale them to entries of mean square 1 first, so
            that a fixed ``sigma`` means the same at any scale.

    Returns:
        Shape ``(..., n, n)``; largest eigenvalue 1.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: Another shape, values that are not finite, ``sigma`` not positive, ``k`` below 1, an unknown name.

    Reference: D. Liao, C. Liu et al., 2023, arXiv:2312.04823; R. Coifman, S. Lafon, "Diffusion maps", 2006.

    >>> diffusion_operator(torch.tensor([[0.0], [1.0]]), sigma=1.0)
    tensor([[0.6225, 0.3775],
            [0.3775, 0.6225]])
    """
    x = _prepare(x, operator, kernel, k, normalize)
    gram = gaussian_gram(x, sigma) if kernel == "gaussian" else _knn_gram(x, k)
    scale = gram.sum(-1).rsqrt()
    if operator == "anisotropic":
        scale = scale * (scale * (gram @ scale.unsqueeze(-1)).squeeze(-1)).rsqrt()
    if gram.requires_grad:
        return scale.unsqueeze(-1) * gram * scale.unsqueeze(-2)
    return gram.mul_(scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))


def _prepare(x: Tensor, operator: str, kernel: str, k: int, normalize: str | None) -> Tensor:
    check_choice("operator", operator, OPERATORS)
    check_choice("kernel", kernel, KERNELS)
    check_range("k", k, 1)
    return rescale(check_finite("x", check_points("x", x)), normalize)


def rescale(x: Tensor, normalize: str | None) -> Tensor:
    """``x``, centered and scaled to entries of mean square 1 where ``normalize`` is ``"unit_rms"``."""
    if normalize is None:
        return x
    check_choice("normalize", normalize, ("unit_rms",))
    x = x - x.mean(-2, keepdim=True)
    square = x.square().mean((-2, -1), keepdim=True)
    return x * torch.where(square > 0, torch.where(square > 0, square, 1.0).rsqrt(), 0.0)


def _knn_gram(x: Tensor, k: int) -> Tensor:
    squares = squared_distances(x)
    n = squares.shape[-1]
    if n == 1:
        return torch.ones_like(squares)
    eye = torch.eye(n, dtype=torch.bool, device=x.device)
    nearest = squares.masked_fill(eye, math.inf).topk(min(k, n - 1), largest=False, sorted=True)
    near = torch.zeros_like(squares, dtype=torch.bool).scatter_(-1, nearest.indices, True)
    near = near | near.mT | eye
    width = nearest.values[..., -1]
    product = (width.unsqueeze(-1) * width.unsqueeze(-2)).clamp(min=torch.finfo(x.dtype).tiny)
    # Where k duplicates make a width 0, only they themselves (distance 0) are near.
    ratio = torch.where(squares > 0, squares / product.sqrt(), 0.0)
    return torch.where(near, (-ratio).exp(), 0.0)


def diffusion_spectrum(x: Tensor, **options: Unpack[OperatorOptions]) -> Tensor:
    """Eigenvalues of the diffusion operator, largest (1) first.

    Args:
        x: Points, shape ``(..., n, d)``.
        **options: As in :func:`diffusion_operator`.

    Returns:
        Shape ``(..., n)``; differentiable.

    Raises:
        TypeError: As :func:`diffusion_operator`.
        ValueError: As :func:`diffusion_operator`.

    >>> diffusion_spectrum(torch.tensor([[0.0], [1.0]]), sigma=1.0)
    tensor([1.0000, 0.2449])
    """
    return torch.linalg.eigvalsh(diffusion_operator(x, **options)).flip(-1)


def spectral_entropy(eigenvalues: Tensor, t: float = 1.0, *, base: float = math.e) -> Tensor:
    r"""Entropy :math:`-\sum_i a_i \log a_i` of powered eigenvalues, :math:`a_i = |\lambda_i|^t / \sum_j |\lambda_j|^t`.

    In the log domain: no power underflows.

    Args:
        eigenvalues: Shape ``(..., n)``, not all 0; differentiable.
        t: Diffusion time, positive.
        base: Of the logarithm; default: nats.

    Returns:
        Shape ``(...)``.

    Raises:
        ValueError: ``t`` or ``base`` is not positive, or ``base`` is 1; eigenvalues that are not finite, or all 0.

    >>> spectral_entropy(torch.tensor([1.0, 1.0, 0.0]), base=2)
    tensor(1.)
    """
    check_range("t", t, 0.0, low_open=True, high_open=True)
    size = check_finite("eigenvalues", eigenvalues).double().abs()
    alive = size > 0
    if not bool(alive.any(-1).all()):
        raise ValueError("eigenvalues: expected one that is not 0, got none")
    logits = torch.where(alive, t * torch.where(alive, size, 1.0).log(), -math.inf)
    return (categorical.entropy(logits) / _log_base(base)).to(eigenvalues.dtype)


def diffusion_spectral_entropy(
    x: Tensor,
    *,
    t: float = 1.0,
    base: float = math.e,
    max_n: int | None = MAX_N,
    method: str = "exact",
    seed: int = 0,
    **options: Unpack[OperatorOptions],
) -> Tensor:
    r"""Diffusion spectral entropy (DSE) of a set of points.

    :math:`-\sum_i a_i \log a_i` with :math:`a_i = |\lambda_i|^t / \sum_j |\lambda_j|^t` over the eigenvalues of the
    diffusion operator. Scale matters: ``sigma`` must suit the distances between points. The authors set ``t`` so that
    about 1 % of the powered eigenvalues exceed 0.01.

    Args:
        x: Points, shape ``(..., n, d)``.
        t: Diffusion time.
        base: Of the logarithm; the authors' code: 2.
        max_n: Above this many points, the exact method takes so many of them at random; None: never.
        method: ``"exact"`` (O(n³), differentiable) or ``"lanczos"``: :func:`diffusion_entropy_estimate` with its
            defaults, on all points.
        seed: Of the choice of points (the same as the authors' code makes), or of the estimate.
        **options: As in :func:`diffusion_operator`: ``sigma``, ``operator``, ``kernel``, ``k``, ``normalize``.

    Returns:
        Shape ``(...)``, in ``x``'s precision.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: As :func:`diffusion_operator`; ``t`` not positive, ``max_n`` below 1, an unknown method.

    Warns:
        UserWarning: The entropy is above 98 % or below 2 % of ``log n``: ``sigma`` is too small or too large to see
            anything.

    Reference: D. Liao, C. Liu et al., 2023, arXiv:2312.04823; see the deviations at the top of this module.

    >>> x = torch.cat([torch.zeros(3, 2), torch.full((3, 2), 9.0)])  # two tight clusters
    >>> diffusion_spectral_entropy(x, sigma=1.0, base=2)
    tensor(1.0000)
    """
    check_choice("method", method, METHODS)
    if method == "lanczos":
        estimate = diffusion_entropy_estimate(x, t=t, base=base, seed=seed, **options)
        entropy, n = estimate.value.to(check_points("x", x).dtype), x.shape[-2]
    else:
        entropy, n = exact_entropy(x, t, base, max_n, seed, options)
    warn_if_saturated("diffusion_spectral_entropy", entropy, math.log(n), base)
    return entropy


def exact_entropy(
    x: Tensor, t: float, base: float, max_n: int | None, seed: int, options: OperatorOptions
) -> tuple[Tensor, int]:
    check_points("x", x)
    if max_n is not None and x.shape[-2] > check_range("max_n", max_n, 1):
        x = x[..., random.Random(seed).sample(range(x.shape[-2]), max_n), :]
    return spectral_entropy(diffusion_spectrum(x, **options), t, base=base), x.shape[-2]


def warn_if_saturated(name: str, entropy: Tensor, most: float, base: float) -> None:
    """Warn where an entropy is next to 0 or to ``most`` nats: the kernel's width then decides, not the data."""
    if most < math.log(3):
        return
    share = entropy.detach() * (_log_base(base) / most)
    for bad, cause, change in (
        (share > 0.98, "every point for itself", "larger"),
        (share < 0.02, "all points as one", "smaller"),
    ):
        if bool(bad.any()):
            warnings.warn(
                f"{name}: saturated (the kernel sees {cause} of {math.exp(most):.0f}); a {change} sigma, "
                "sigma='median' or normalize='unit_rms' may help",
                stacklevel=3,
            )


def diffusion_entropy_estimate(
    x: Tensor,
    *,
    t: float = 1.0,
    base: float = math.e,
    rank: int = 128,
    probes: int = 16,
    depth: int = 32,
    tile: int | None = None,
    seed: int = 0,
    **options: Unpack[OperatorOptions],
) -> EntropyEstimate:
    r"""Diffusion spectral entropy of many points, estimated with an error, in O(n² (d + rank)).

    Deflated stochastic Lanczos quadrature: the leading eigenvalues by a randomized subspace, the rest by random
    probes, corrected by the operator's exact trace and Frobenius norm. No gradient.

    Args:
        x: Points, shape ``(n, d)``.
        t: Diffusion time.
        base: Of the logarithm.
        rank: Dimension of the leading subspace; at most ``n // 4`` is used.
        probes: Random probes.
        depth: Lanczos steps of each.
        tile: None: hold the operator in memory (n² numbers). A number: recompute it at every product in square tiles of
            so many rows, O(n) memory; about ``depth + 7`` times the kernel's work. Gaussian kernel only.
        seed: Of subspace and probes.
        **options: As in :func:`diffusion_operator`.

    Returns:
        ``value`` and ``error``, 0-d, float64. Fewer than 64 points are computed exactly, with error 0.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: As :func:`diffusion_operator`; batches, fewer than 2 probes or 4 steps, tiles of the kNN kernel.

    Reference: D. Liao, C. Liu et al., 2023, arXiv:2312.04823, for the entropy. The authors' own approximation, by
    Chebyshev polynomials, is not offered: they advise against it.

    >>> x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    >>> estimate = diffusion_entropy_estimate(x, sigma=2.0)
    >>> bool((estimate.value - diffusion_spectral_entropy(x, sigma=2.0)).abs() < 1e-3)
    True
    """
    check_range("t", t, 0.0, low_open=True, high_open=True)
    check_range("rank", rank, 1)
    check_range("probes", probes, 2)
    check_range("depth", depth, 4)
    x = check_points("x", x).detach()
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, d), got {tuple(x.shape)}")
    n = x.shape[0]
    if n < 64:
        exact = exact_entropy(x, t, base, None, seed, options)[0].double()
        return EntropyEstimate(exact, torch.zeros_like(exact))
    if tile is None:
        matrix = DenseOperator(diffusion_operator(x, **options))
    else:
        check_range("tile", tile, 1)
        matrix = _tiled(x, tile, **options)
    generator = torch.Generator(x.device).manual_seed(seed)
    start = torch.randn(n, min(rank, n // 4), generator=generator, dtype=x.dtype, device=x.device)
    estimate = spectral_entropy_estimate(
        matrix.apply,
        start,
        trace=matrix.trace(),
        square_norm=matrix.square_norm(),
        t=t,
        probes=probes,
        depth=depth,
        generator=generator,
    )
    return EntropyEstimate(estimate.value / _log_base(base), estimate.error / _log_base(base))


def _tiled(
    x: Tensor,
    tile: int,
    *,
    sigma: float | Tensor | str = 10.0,
    operator: str = "official",
    kernel: str = "gaussian",
    k: int = 15,
    normalize: str | None = None,
) -> TiledOperator:
    if kernel == "knn":
        raise ValueError("tile: expected None with kernel='knn', which is held in memory")
    x = _prepare(x, operator, kernel, k, normalize)
    return TiledOperator(x / bandwidth(x, sigma), tile, anisotropic=operator == "anisotropic")


def diffusion_matrix_entropy(x: Tensor, *, base: float = math.e, sigma: float | Tensor | str = 10.0) -> Tensor:
    r"""Entropy over the :math:`n^2` entries of the anisotropic transition matrix, :math:`P = \mathrm{diag}(K1)^{-1} K`.

    The authors' alternative to eigenvalues: :math:`-\sum_{ij} p_{ij} \log p_{ij}`, :math:`p = P / n`; O(n²). It lies
    between :math:`\log n` and :math:`2 \log n`.

    Args:
        x: Points, shape ``(..., n, d)``.
        base: Of the logarithm.
        sigma: Kernel width, as in :func:`diffusion_operator`.

    Returns:
        Shape ``(...)``.

    Raises:
        TypeError: As :func:`diffusion_operator`.
        ValueError: As :func:`diffusion_operator`.

    Reference: D. Liao, C. Liu et al., 2023, arXiv:2312.04823.

    >>> diffusion_matrix_entropy(torch.zeros(4, 2), base=2)  # log2 of 16 equal entries
    tensor(4.)
    """
    transition = diffusion_operator(x, sigma=sigma)
    transition = transition / transition.sum(-1, keepdim=True)
    rows = categorical.entropy(probs=transition).mean(-1)
    return (rows + math.log(transition.shape[-1])) / _log_base(base)


def adjacency_spectral_entropy(
    x: Tensor, *, kind: str = "gaussian", base: float = math.e, sigma: float | Tensor | str = 10.0, k: int = 10
) -> Tensor:
    r"""Spectral entropy (``t = 1``) of a graph's adjacency matrix instead of a diffusion operator.

    Args:
        x: Points, shape ``(..., n, d)``.
        kind: ``"gaussian"``: the kernel :math:`G` itself; ``"anisotropic"``: the official diffusion operator, under the
            name it has in the authors' code; ``"knn"``: 1 where a point is among another's ``k`` nearest, itself
            included, not symmetrized (complex eigenvalues count by modulus; without a full set of eigenvectors they
            are good to 1e-7 only).
        base: Of the logarithm.
        sigma: Kernel width.
        k: Entries of a row of the ``"knn"`` matrix; more where distances tie.

    Returns:
        Shape ``(...)``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: Unknown ``kind``, ``k`` outside ``[1, n]``, values that are not finite.

    Reference: D. Liao, C. Liu et al., 2023, arXiv:2312.04823.

    >>> adjacency_spectral_entropy(torch.tensor([[0.0], [1.0], [5.0]]), kind="knn", k=1, base=3)  # identity
    tensor(1.)
    """
    check_choice("kind", kind, ("gaussian", "anisotropic", "knn"))
    x = check_finite("x", check_points("x", x))
    if kind == "anisotropic":
        return spectral_entropy(diffusion_spectrum(x, sigma=sigma), base=base)
    if kind == "gaussian":
        return spectral_entropy(torch.linalg.eigvalsh(gaussian_gram(x, sigma)), base=base)
    check_range("k", k, 1, x.shape[-2])
    # Plain differences: near ties decide, and a matrix product would decide them by rounding.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances <= distances.kthvalue(k, dim=-1, keepdim=True).values
    return spectral_entropy(torch.linalg.eigvals(near.to(x.dtype)).abs(), base=base)


def _log_base(base: float) -> float:
    if not base > 0 or base == 1:
        raise ValueError(f"base: expected a positive number other than 1, got {base}")
    return math.log(base)

r"""Geometry of representations from the spectrum of their covariance: RankMe, alpha-ReQ and their neighbors.

Each measure here takes a *source*: features of shape ``(n, ...)`` (trailing dimensions are flattened to ``d``), the
:class:`Moments` accumulated over many batches or processes, or a spectrum of shape ``(k,)`` that
:func:`eigenspectrum` gave before, so that one eigendecomposition serves all. Everything is computed and returned
in float64, because a product of features with themselves squares their condition number. Features and spectra
carry gradients, moments do not.

=========================== ============================================================================
name                        value, with :math:`e_i` the eigenvalues' shares, :math:`s_i` singular values
=========================== ============================================================================
:func:`effective_rank`      :math:`\exp S_\alpha(e)`; ``alpha=1``: Roy & Vetterli
:func:`rankme`              :math:`\exp S_1(e + \epsilon)`, or of :math:`s / \sum s` as Garrido et al. have it
:func:`alpha_req`           decay :math:`e_r \propto r^{-\alpha}`
:func:`stable_rank`         :math:`\|F\|_F^2 / \|F\|_2^2`; with ``center=True``: :func:`nesum`
:func:`participation_ratio` :math:`1 / \sum e_i^2`
:func:`lidar`               effective rank of what tells objects apart against what tells views apart
=========================== ============================================================================

Reference:
    M. Z. Li et al., "Tracing the Representation Geometry of Language Models from Pretraining to Post-training",
    2025, arXiv:2509.23024; and those named in each function.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core._kernels import check_finite
from infotorch.core.matrix import shares
from infotorch.core.moments import Moments, as_rows
from infotorch.core.power_law import PowerLaw, fit_power_law

__all__ = [
    "Moments",
    "PowerLaw",
    "Source",
    "alpha_req",
    "effective_rank",
    "eigenspectrum",
    "fit_power_law",
    "last_token_features",
    "lidar",
    "lidar_spectrum",
    "nesum",
    "participation_ratio",
    "rankme",
    "stable_rank",
]

Source = Tensor | Moments

MAX_EIGENVALUES = 2048
_CONSTANT = 64 * torch.finfo(torch.float64).eps  # spread / mean below this: all rows are the same


def eigenspectrum(
    source: Source,
    *,
    center: bool = True,
    standardize: bool = False,
    max_eigenvalues: int | None = MAX_EIGENVALUES,
) -> Tensor:
    r"""Eigenvalues of the features' covariance over their sum, largest first.

    :math:`e_i = s_i^2 / \sum_j s_j^2` with the singular values :math:`s` of the centered features, from an
    eigendecomposition of the smaller of the ``d x d`` and ``n x n`` products. With ``n <= d`` the last is 0.

    Args:
        source: Features ``(n, ...)``, :class:`Moments`, or a spectrum ``(k,)``, which is only normalized.
        center: Take the mean off. Without: second moments about zero.
        standardize: Divide each column by its standard deviation first, lest a few huge ones decide all.
        max_eigenvalues: Return at most so many; the sum runs over all. None: no limit.

    Returns:
        Shape ``(min(n, d, max_eigenvalues),)``, float64. Features that are all the same give ``(1, 0, ...)``.

    Raises:
        TypeError: ``source`` is neither a floating tensor nor moments.
        ValueError: Fewer than two rows, values that are not finite, a spectrum with negative entries.

    >>> eigenspectrum(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    if isinstance(source, Tensor) and source.ndim == 1:
        return _given_spectrum(source)
    if isinstance(source, Moments):
        eigenvalues, constant = _from_moments(source, center, standardize)
    else:
        rows = as_rows("source", source)
        n, d = rows.shape
        if n < 2:
            raise ValueError(f"source: expected at least 2 rows, got {n}")
        if n > d and not (torch.is_grad_enabled() and rows.requires_grad):
            eigenvalues, constant = _from_moments(Moments.of(rows), center, standardize)
        else:
            eigenvalues, constant = _from_rows(check_finite("source", rows).double(), center, standardize)
    first = torch.zeros_like(eigenvalues)
    first[0] = 1
    spectrum = torch.where(constant, first, shares(torch.where(constant, first, eigenvalues)))
    return spectrum if max_eigenvalues is None else spectrum[:max_eigenvalues]


def _given_spectrum(spectrum: Tensor) -> Tensor:
    if not spectrum.is_floating_point() or spectrum.numel() == 0:
        raise TypeError(f"source: expected a non-empty floating-point spectrum, got {tuple(spectrum.shape)}")
    check_finite("source", spectrum)
    if bool((spectrum < 0).any()) or not bool((spectrum > 0).any()):
        raise ValueError("source: expected a spectrum (k,) of non-negative values that are not all 0")
    return shares(spectrum.double().sort(descending=True).values)


def _from_moments(moments: Moments, center: bool, standardize: bool) -> tuple[Tensor, Tensor]:
    n = int(moments.count)
    if n < 2:
        raise ValueError(f"source: expected moments of at least 2 rows, got {n}")
    check_finite("source", moments.scatter)
    matrix = moments.scatter if center else torch.addr(moments.scatter, n * moments.mean, moments.mean)
    constant = _is_constant(matrix.trace(), n, moments.mean)
    if standardize:
        scale = _inverse_scale(moments.scatter.diagonal(), n, moments.mean)
        matrix = scale.unsqueeze(1) * matrix * scale
    return torch.linalg.eigvalsh(matrix).flip(-1)[: min(n, len(matrix))], constant


def _from_rows(rows: Tensor, center: bool, standardize: bool) -> tuple[Tensor, Tensor]:
    n, d = rows.shape
    mean = rows.mean(0)
    centered = rows - mean
    matrix = centered if center else rows
    constant = _is_constant(matrix.detach().square().sum(), n, mean.detach())
    if standardize:
        matrix = matrix * _inverse_scale(centered.square().sum(0), n, mean)
    product = matrix @ matrix.mT if n < d else matrix.mT @ matrix
    return torch.linalg.eigvalsh(product).flip(-1), constant


def _is_constant(total: Tensor, n: int, mean: Tensor) -> Tensor:
    return total <= _CONSTANT**2 * n * mean.square().sum()


def _inverse_scale(squares: Tensor, n: int, mean: Tensor) -> Tensor:
    """One over the root of each column's sum of squares; 0 for a constant column."""
    alive = squares > _CONSTANT**2 * n * mean.square()
    return torch.where(alive, torch.where(alive, squares, 1.0).rsqrt(), 0.0)


def last_token_features(hidden: Tensor, mask: Tensor) -> Tensor:
    """Hidden state of each sequence's last token, wherever padding stands: what language models are measured by.

    Args:
        hidden: Shape ``(B, T, d)``, of the last layer after its final norm.
        mask: Shape ``(B, T)``, True (or 1) on tokens, False on padding.

    Returns:
        Shape ``(B, d)``.

    Raises:
        TypeError: An argument is not a tensor.
        ValueError: Shapes that do not match, a sequence without tokens.

    Deviation: the authors' code takes the sum of the mask for the position, which is right for padding on the right.

    >>> last_token_features(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[False, True, True]]))
    tensor([[3.]])
    """
    check_tensor("hidden", hidden)
    mask = check_tensor("mask", mask).bool()
    if hidden.ndim != 3 or mask.shape != hidden.shape[:2] or hidden.numel() == 0:
        raise ValueError(
            f"hidden, mask: expected shapes (B, T, d) and (B, T), got {tuple(hidden.shape)} and {tuple(mask.shape)}"
        )
    if not bool(mask.any(1).all()):
        raise ValueError(f"mask: expected a token in every sequence, got none in {int((~mask.any(1)).sum())} of them")
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, -1).amax(1).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def effective_rank(spectrum: Tensor, alpha: float = 1.0, *, eps: float = 0.0) -> Tensor:
    r"""Rényi effective rank :math:`\exp S_\alpha(p)`, :math:`p_i = \lambda_i / \sum_j \lambda_j + \epsilon`.

    ``alpha = 1`` is Roy & Vetterli's, 2 the participation ratio, infinity the stable rank. For any non-negative
    spectrum: eigenvalues, singular values (differentiate through ``torch.linalg.svdvals``), attention weights.

    Args:
        spectrum: Shape ``(..., k)``; negative entries are taken for rounding.
        alpha: Order, at least 0.
        eps: Added to every share.

    Returns:
        Shape ``(...)``, between 1 and ``k`` for ``eps = 0``.

    Raises:
        ValueError: ``alpha`` or ``eps`` is negative; entries that are not finite, or none that is positive.

    Reference: O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007.

    >>> effective_rank(torch.tensor([3.0, 3.0, 0.0]))
    tensor(2.)
    """
    check_range("eps", eps, 0.0)
    check_finite("spectrum", check_tensor("spectrum", spectrum))
    if not bool((spectrum > 0).any(-1).all()):
        raise ValueError("spectrum: expected a positive entry, got none")
    return categorical.renyi_entropy(probs=shares(spectrum) + eps, alpha=alpha).exp()


def rankme(
    source: Source,
    *,
    spectrum: str = "eigenvalues",
    center: bool = True,
    standardize: bool = False,
    eps: float = 1e-7,
) -> Tensor:
    r"""RankMe: the exponential of the spectrum's Shannon entropy, :math:`\exp(-\sum_i p_i \log p_i)`.

    The name stands for two numbers that differ a lot. The default is the one of work on language models: shares
    of covariance *eigenvalues* of *centered* features. RankMe as first published takes *singular values* (not
    squared) of features that are *not centered*: ``rankme(x, spectrum="singular", center=False)``.

    Args:
        source: Features ``(n, ...)``, :class:`Moments` or a spectrum of eigenvalues.
        spectrum: ``"eigenvalues"`` or ``"singular"``. Singular values below the rounding of their squares count
            as 0.
        center: Take the mean off (of no effect on a given spectrum; so ``standardize``).
        standardize: Divide columns by their standard deviation.
        eps: Added to every share, as both papers' code does; it lets shares sum to slightly more than 1. ``0``
            is the exact effective rank.

    Returns:
        0-d, float64; at most ``min(n - 1, d)`` for ``eps = 0`` with centering.

    Raises:
        TypeError: ``source`` is neither a floating tensor nor moments.
        ValueError: Unknown ``spectrum``, fewer than two rows, values that are not finite.

    Warns:
        UserWarning: Fewer than ``2 d`` rows: the rank is then bounded by the sample, not by the features.

    Reference: Q. Garrido et al., "RankMe", 2023, arXiv:2210.02885; M. Z. Li et al., 2025, arXiv:2509.23024.

    >>> rankme(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), eps=0.0)
    tensor(2., dtype=torch.float64)
    """
    check_choice("spectrum", spectrum, ("eigenvalues", "singular"))
    _warn_of_few("rankme", source)
    limit = MAX_EIGENVALUES if spectrum == "eigenvalues" else None
    values = eigenspectrum(source, center=center, standardize=standardize, max_eigenvalues=limit)
    if spectrum == "singular":
        # The eigenvalues' rounding would grow to its square root.
        kept = values > len(values) * torch.finfo(values.dtype).eps * values[0]
        values = torch.where(kept, torch.where(kept, values, 1.0).sqrt(), 0.0)
    return effective_rank(values, eps=eps)


def alpha_req(
    source: Source,
    *,
    ranks: tuple[int, int] = (12, 100),
    weights: str = "inverse_rank",
    center: bool = True,
    standardize: bool = False,
) -> PowerLaw:
    r"""alpha-ReQ: the exponent of the eigenspectrum's decay, :math:`e_r \propto r^{-\alpha}`.

    Near 1: balanced; below: flat, with many dimensions in use; above: compressed.

    Args:
        source: Features ``(n, ...)``, :class:`Moments` or a spectrum of eigenvalues.
        ranks: First and last rank of the fit, counted from 1, both included. ``(12, 100)`` is that of the work on
            language models, ``(11, 100)`` the default of the reptrix library.
        weights: As in :func:`~infotorch.core.power_law.fit_power_law`.
        center: Take the mean off.
        standardize: Divide columns by their standard deviation.

    Returns:
        A :class:`~infotorch.core.power_law.PowerLaw`; see :func:`~infotorch.core.power_law.fit_power_law`.

    Raises:
        TypeError: ``source`` is neither a floating tensor nor moments.
        ValueError: Unknown ``weights``, an empty range of ranks, fewer than two rows, values that are not finite.

    Warns:
        UserWarning: Fewer than ``2 d`` rows (a small sample steepens the tail), or too few eigenvalues to fit.

    Reference: K. K. Agrawal et al., "alpha-ReQ", NeurIPS 2022; M. Z. Li et al., 2025, arXiv:2509.23024.

    >>> spectrum = torch.arange(1.0, 201.0, dtype=torch.float64) ** -1.5
    >>> alpha_req(spectrum).alpha
    tensor(1.5000, dtype=torch.float64)
    """
    _warn_of_few("alpha_req", source)
    spectrum = eigenspectrum(source, center=center, standardize=standardize)
    return fit_power_law(spectrum, ranks=ranks, weights=weights)


def stable_rank(source: Source, *, center: bool = False) -> Tensor:
    r"""Stable rank :math:`\|F\|_F^2 / \|F\|_2^2 = \sum_i e_i / e_1`, about zero by default.

    Args:
        source: Features ``(n, ...)``, :class:`Moments` or a spectrum of eigenvalues.
        center: Take the mean off first.

    Returns:
        0-d, float64.

    Raises:
        TypeError: ``source`` is neither a floating tensor nor moments.
        ValueError: Fewer than two rows, values that are not finite.

    >>> stable_rank(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor(1.2500, dtype=torch.float64)
    """
    return eigenspectrum(source, center=center)[0].reciprocal()


def nesum(source: Source) -> Tensor:
    r"""Normalized eigenvalue sum :math:`\sum_i e_i / e_1` of the covariance: the centered stable rank.

    Args and errors as in :func:`stable_rank`.

    Reference: B. He, M. Ozay, "Exploring the Gap between Collapsed & Whitened Features", ICML 2022.

    >>> nesum(torch.tensor([[1.0, 9.0], [-1.0, 9.0], [1.0, 7.0], [-1.0, 7.0]]))
    tensor(2., dtype=torch.float64)
    """
    return stable_rank(source, center=True)


def participation_ratio(source: Source, *, center: bool = True) -> Tensor:
    r"""Participation ratio :math:`(\sum_i e_i)^2 / \sum_i e_i^2`: the Rényi-2 effective rank.

    Args and errors as in :func:`stable_rank`, but centered by default.

    >>> participation_ratio(torch.tensor([1.0, 1.0, 0.0]))
    tensor(2., dtype=torch.float64)
    """
    return eigenspectrum(source, center=center, max_eigenvalues=None).square().sum().reciprocal()


def lidar_spectrum(views: Tensor, *, delta: float = 1e-4) -> Tensor:
    r"""Eigenvalues of :math:`S_w^{-1/2} S_b S_w^{-1/2}`, largest first: between objects, in units of within.

    Args:
        views: Features of ``q`` views of each of ``n`` objects, shape ``(n, q, d)``.
        delta: Added to the diagonal of :math:`S_w`, the pooled covariance (``n (q - 1)`` degrees of freedom) of
            views about their object's mean. :math:`S_b` is the covariance (``n - 1``) of those means.

    Returns:
        Shape ``(d,)``, float64; differentiable.

    Raises:
        TypeError: ``views`` is not a floating tensor.
        ValueError: Another shape, fewer than two objects or views, a ``delta`` that is not positive, values that
            are not finite.

    >>> lidar_spectrum(torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]), delta=1e-9)  # 8 between, 2 within
    tensor([4.0000], dtype=torch.float64)
    """
    check_tensor("views", views)
    check_range("delta", delta, 0.0, low_open=True)
    if not views.is_floating_point():
        raise TypeError(f"views: expected a floating-point tensor, got {views.dtype}")
    if views.ndim != 3 or views.shape[0] < 2 or views.shape[1] < 2:
        raise ValueError(f"views: expected shape (n, q, d) with n, q >= 2, got {tuple(views.shape)}")
    views = check_finite("views", views).double()
    n, q, d = views.shape
    means = views.mean(1)
    apart = means - means.mean(0)
    within = (views - means.unsqueeze(1)).reshape(-1, d)
    noise = within.mT @ within / (n * (q - 1)) + delta * torch.eye(d, dtype=views.dtype, device=views.device)
    # With S_w = L L^T the matrix L^-1 S_b L^-T has the same eigenvalues, without a matrix root.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(noise), apart.mT, upper=False)
    return torch.linalg.eigvalsh(whitened @ whitened.mT / (n - 1)).flip(-1)


def lidar(views: Tensor, *, delta: float = 1e-4, eps: float = 1e-8) -> Tensor:
    r"""LiDAR: effective rank of the linear-discriminant spectrum of several views of the same objects.

    :math:`\exp(-\sum_i p_i \log p_i)`, :math:`p_i = \lambda_i / \sum_j \lambda_j + \epsilon`, with the eigenvalues
    of :func:`lidar_spectrum`. Unlike RankMe it does not count directions in which views of one object differ.

    Args:
        views: Shape ``(n, q, d)``.
        delta: Ridge of the within covariance.
        eps: Added to every share.

    Returns:
        0-d, float64; 1 where all objects are the same.

    Raises:
        TypeError: ``views`` is not a floating tensor.
        ValueError: As :func:`lidar_spectrum`; a negative ``eps``.

    Reference: V. Thilak et al., "LiDAR", 2024, arXiv:2312.04000. The reptrix library's function of this name takes
    the principal components of the matrix instead of its eigenvalues, which squares them.

    >>> lidar(torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]), eps=0.0)
    tensor(1., dtype=torch.float64)
    """
    spectrum = lidar_spectrum(views, delta=delta)
    first = torch.zeros_like(spectrum)
    first[0] = 1
    return effective_rank(torch.where((spectrum > 0).any(), spectrum, first), eps=eps)


def _warn_of_few(name: str, source: Source) -> None:
    if not isinstance(source, Moments) and (source.ndim < 2 or source.numel() == 0):
        return  # a spectrum, or what will be refused
    n, d = source.shape if isinstance(source, Moments) else (source.shape[0], source[0].numel())
    if n < 2 * d:
        warnings.warn(
            f"{name}: {n} rows of {d} features; below 2 rows per feature the sample's size shapes the spectrum",
            stacklevel=3,
        )

r"""Normal and Student-t pairs, and the covariances that benchmarks use.

Reference: P. Czyż et al., "Beyond normal: On the evaluation of mutual information estimators", 2023,
arXiv:2306.11078.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.gaussian import gaussian_mi
from infotorch.distributions.joint import Entropies, Joint


@dataclass(frozen=True, eq=False)
class Normal(Joint):
    """A normal vector split in two.

    Attributes:
        covariance: Shape ``(d, d)``, positive definite.
        dim_x: The first ``dim_x`` coordinates are X.

    Raises:
        ValueError: Not a positive definite matrix, ``dim_x`` out of range.

    >>> round(Normal(torch.tensor([[1.0, 0.75], [0.75, 1.0]]), 1).mutual_information(), 6)
    0.413339
    """

    covariance: Tensor
    dim_x: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "covariance", self.covariance.detach().double())
        gaussian_mi(self.covariance, self.dim_x)  # raises where the arguments are no good
        object.__setattr__(self, "dim_y", len(self.covariance) - self.dim_x)

    def mutual_information(self) -> float:
        """Half the log-ratio of determinants."""
        return float(gaussian_mi(self.covariance, self.dim_x))

    def entropies(self) -> Entropies:
        r"""Differential: :math:`\frac12 \log \det (2 \pi e\, \Sigma)` of each block and of the whole."""
        i = self.dim_x
        blocks = self.covariance[:i, :i], self.covariance[i:, i:], self.covariance
        return Entropies(*(float(len(s) * (1 + math.log(2 * math.pi)) + torch.logdet(s)) / 2 for s in blocks))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Standard normal vectors times the Cholesky factor."""
        factor = torch.linalg.cholesky(self.covariance.to(generator.device))
        white = torch.randn(n, len(factor), dtype=torch.float64, device=generator.device, generator=generator)
        z = white @ factor.T
        return z[:, : self.dim_x], z[:, self.dim_x :]


@dataclass(frozen=True, eq=False)
class Student(Joint):
    """A multivariate Student-t vector split in two: a normal one divided by a common random scale.

    X and Y share the scale and so share information even where the dispersion is the identity.

    Attributes:
        dispersion: Shape ``(d, d)``, positive definite (``df / (df - 2)`` of it is the covariance).
        dim_x: The first ``dim_x`` coordinates are X.
        df: Degrees of freedom, positive.

    Raises:
        ValueError: Not a positive definite matrix, ``dim_x`` out of range, ``df`` not positive.

    >>> round(Student(torch.eye(2), 1, df=1.0).mutual_information(), 6)
    0.224171
    """

    dispersion: Tensor
    dim_x: int
    df: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "dispersion", self.dispersion.detach().double())
        student_mi(self.dispersion, self.dim_x, self.df)
        object.__setattr__(self, "dim_y", len(self.dispersion) - self.dim_x)

    def mutual_information(self) -> float:
        """That of the normal vector, and what the shared scale adds."""
        return float(student_mi(self.dispersion, self.dim_x, self.df))

    def entropies(self) -> Entropies:
        r"""Differential: :math:`\frac12 \log \det S + c(k)`, with :math:`c` as in :func:`student_mi`."""
        if math.isinf(self.df):
            return Normal(self.dispersion, self.dim_x).entropies()
        i = self.dim_x
        blocks = self.dispersion[:i, :i], self.dispersion[i:, i:], self.dispersion
        constants = _student_constants(torch.tensor([float(len(s)) for s in blocks], dtype=torch.float64), self.df)
        scale = math.log(self.df * math.pi) / 2
        return Entropies(
            *(float(torch.logdet(s) / 2 + c + len(s) * scale) for s, c in zip(blocks, constants, strict=True))
        )

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normal vectors over the root of a chi-squared variable per row."""
        x, y = Normal(self.dispersion, self.dim_x).draw(n, generator)
        # torch.distributions.Gamma draws by the same function, and takes no generator.
        half = torch.full((n, 1), self.df / 2, dtype=torch.float64, device=generator.device)
        scale = (2 / self.df * torch._standard_gamma(half, generator=generator)).sqrt()
        return x / scale, y / scale


def student_mi(dispersion: Tensor, dim_x: int, df: float) -> Tensor:
    r"""Mutual information of two blocks of a multivariate Student-t vector.

    :math:`I_\mathrm{normal} + c(d_x) + c(d_y) - c(d_x + d_y)`, where
    :math:`c(k) = \frac{\nu + k}{2} [\psi(\frac{\nu+k}{2}) - \psi(\frac\nu2)]
    - \log\Gamma(\frac{\nu+k}{2}) + \log\Gamma(\frac\nu2) + \frac k2 \log \nu\pi` is the entropy of the
    k-dimensional standard vector.

    Args:
        dispersion: Shape ``(..., d, d)``.
        dim_x: The first ``dim_x`` coordinates are X.
        df: Degrees of freedom :math:`\nu`; infinity is the normal case.

    Raises:
        ValueError: Not positive definite, ``dim_x`` out of range, ``df`` not positive.

    Reference: R. Arellano-Valle, J. Contreras-Reyes and M. Genton, "Shannon entropy and mutual information for
    multivariate skew-elliptical distributions", 2013.

    >>> student_mi(torch.eye(4), 2, df=2.0)
    tensor(0.1931, dtype=torch.float64)
    """
    check_range("df", df, 0.0, low_open=True)
    normal = gaussian_mi(dispersion, dim_x)
    if math.isinf(df):
        return normal
    d = dispersion.shape[-1]
    c = _student_constants(torch.tensor([dim_x, d - dim_x, d], dtype=torch.float64, device=normal.device), df)
    return normal + c[0] + c[1] - c[2]  # the terms in log(df pi) cancel


def _student_constants(k: Tensor, df: float) -> Tensor:
    """``c(k)`` of :func:`student_mi` without its term in ``log(df pi)``."""
    half, base = (df + k) / 2, torch.full_like(k, df / 2)
    return half * (torch.digamma(half) - torch.digamma(base)) - torch.lgamma(half) + torch.lgamma(base)


def bivariate_normal(correlation: float) -> Normal:
    """Two normal variables with the given correlation.

    Raises:
        ValueError: ``correlation`` outside (-1, 1).

    >>> round(bivariate_normal(0.9).mutual_information(), 4)
    0.8304
    """
    check_range("correlation", correlation, -1.0, 1.0, low_open=True, high_open=True)
    return Normal(dense_covariance(2, correlation), 1)


def dense_covariance(dim: int, correlation: float) -> Tensor:
    """Unit variances, all correlations equal.

    >>> dense_covariance(2, 0.5)
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    return torch.full((dim, dim), correlation, dtype=torch.float64).fill_diagonal_(1.0)


def latent_covariance(
    dim_x: int,
    dim_y: int,
    *,
    pairs: int,
    common: float = 0.0,
    strength: float = 1.0,
    within: float = 0.0,
    noise: float | None = None,
) -> Tensor:
    r"""Correlations of variables driven by latent ones.

    Every variable has a noise of its own (variance 1). One source drives all variables, one drives each block, one
    drives each of the first ``pairs`` pairs :math:`(X_i, Y_i)`; the variables beyond get an independent source each.

    Args:
        dim_x: Columns of X.
        dim_y: Columns of Y.
        pairs: How many coordinates of X and Y are tied pairwise.
        common: Amplitude of the source that drives everything.
        strength: Amplitude of a pair's source.
        within: Amplitude of a block's source.
        noise: Amplitude of the untied variables' own sources; default: ``strength``.

    Returns:
        Correlation matrix ``(dim_x + dim_y, dim_x + dim_y)``.

    Raises:
        ValueError: ``pairs`` outside 0 .. ``min(dim_x, dim_y)``.

    >>> latent_covariance(1, 1, pairs=1, strength=2.0)  # 4 / (4 + 1)
    tensor([[1.0000, 0.8000],
            [0.8000, 1.0000]], dtype=torch.float64)
    """
    check_range("pairs", pairs, 0, min(dim_x, dim_y))
    noise = strength if noise is None else noise
    d = dim_x + dim_y
    s = torch.full((d, d), common**2, dtype=torch.float64)
    s[:dim_x, :dim_x] += within**2
    s[dim_x:, dim_x:] += within**2
    own = torch.full((d,), 1 + noise**2, dtype=torch.float64)
    tied = torch.arange(pairs)
    own[tied] = own[dim_x + tied] = 1 + strength**2
    s += own.diag()
    s[tied, dim_x + tied] += strength**2
    s[dim_x + tied, tied] += strength**2
    scale = s.diagonal().rsqrt()
    return s * scale * scale.unsqueeze(1)


def paired_covariance(dim_x: int, dim_y: int, *, pairs: int = 2, strength: float = 2.0) -> Tensor:
    """Correlation ``strength^2 / (1 + strength^2)`` within each of the first pairs, none elsewhere.

    Raises:
        ValueError: ``pairs`` outside 0 .. ``min(dim_x, dim_y)``.

    >>> round(Normal(paired_covariance(3, 3), 3).mutual_information(), 6)  # two pairs at 0.8
    1.021651
    """
    return latent_covariance(dim_x, dim_y, pairs=pairs, strength=strength)

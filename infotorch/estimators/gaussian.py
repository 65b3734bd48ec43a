"""Mutual information of normal variables, as they are or behind monotone maps of every column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_choice
from infotorch.core.gaussian import canonical_correlations, estimate_gaussian_mi, normal_scores, orthonormal_columns
from infotorch.estimators._inference import ResampledPair
from infotorch.estimators._samples import Sample
from infotorch.estimators._spread import bootstrap_error
from infotorch.estimators._variables import as_numbers
from infotorch.estimators.base import Estimate

_BATCH = 1 << 22  # numbers of permuted samples that are held at once


@dataclass(kw_only=True, repr=False, eq=False)
class GaussianMI(ResampledPair):
    r"""Mutual information as if ``(x, y)`` were jointly normal.

    :func:`infotorch.core.gaussian.estimate_gaussian_mi`: what the linear correlations tell. It misses all other
    dependence, and for data that are not normal it may fall on either side of the truth.

    Args:
        corrected: Take off the finite-sample bias, which is known for normal data.
        errors: ``"bootstrap"``, or ``"analytic"``: the variance :math:`(\sum_i \rho_i^2 + d_x d_y / 2n) / n` for normal
            data with canonical correlations :math:`\rho_i` (the sum less its bias).
        clip: Report 0 for negative values.
        confidence: Of the interval; None to save its time.
        resamples: Bootstrap samples.
        permutations: For the p-value.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        mutual_information_: Estimate in nats; infinite where the sides share an exact linear combination.
        std_error_: Standard error, or None.
        interval_: Confidence interval, or None.
        p_value_: Permutation p-value of no linear dependence, or None.
        null_: Estimates under permutations, or None.
        canonical_correlations_: ``(min(dx, dy),)``, descending.

    Raises (in ``fit``):
        ValueError: Different numbers of points, values that are not finite, no more points than columns, options out
            of range.

    >>> from infotorch.distributions import bivariate_normal
    >>> gaussian = GaussianMI().fit(*bivariate_normal(0.75).sample(1000))
    >>> f"{gaussian.mutual_information_:.2f} +- {gaussian.std_error_:.2f}, truth 0.41"
    '0.43 +- 0.02, truth 0.41'
    """

    corrected: bool = True
    errors: str = "bootstrap"
    clip: bool = False
    resamples: int = 200

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        return as_numbers(name, sample)

    def _view(self, x: Tensor) -> Tensor:
        """What is taken as normal."""
        return x

    def _value(self, x: Tensor, y: Tensor) -> float:
        return float(estimate_gaussian_mi(self._view(x), self._view(y), corrected=self.corrected))

    def _null(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        # The columns' own bases stay as they are: a permutation costs one product.
        qx, qy = (orthonormal_columns(v - v.mean(0)) for v in (self._view(x), self._view(y)))
        found = []
        for part in orders:
            for order in part.split(max(1, _BATCH // y.numel())):
                cross = qx.T @ qy[order]
                rest = torch.eye(cross.shape[1], dtype=cross.dtype, device=cross.device) - cross @ cross.mT
                found.append(-torch.linalg.slogdet(rest).logabsdet / 2)
        null = torch.cat(found).cpu()
        # The correction is the same for all of them.
        shift = self._value(x, y) - float(null[0])
        return null + shift if math.isfinite(shift) else null

    def _standard_error(self, x: Tensor, y: Tensor, correlations: Tensor) -> float | None:
        if self.confidence is None:
            return None
        if self.errors == "bootstrap":
            return self._resampling_error(self._value, x, y, error_of=bootstrap_error)
        n, cells = len(x), x.shape[1] * y.shape[1]
        signal = max(0.0, float(correlations.square().sum()) - cells / n)
        return math.sqrt((signal + cells / (2 * n)) / n)

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        check_choice("errors", self.errors, ("bootstrap", "analytic"))
        if not (x.shape[1] and y.shape[1]):
            return self._nothing(canonical_correlations=x.new_zeros(0))
        correlations = canonical_correlations(self._view(x), self._view(y))
        error = self._standard_error(x, y, correlations)
        return self._infer(x, y, self._value(x, y), error, canonical_correlations=correlations)


@dataclass(kw_only=True, repr=False, eq=False)
class CopulaMI(GaussianMI):
    """Mutual information through a Gaussian copula: :class:`GaussianMI` of the normal scores of every column.

    Blind to monotone maps of single columns and to their tails. A lower bound, up to sampling error, where the columns
    are continuous; the truth where a normal vector was sent through monotone maps.

    Arguments and attributes are those of :class:`GaussianMI`.

    Reference: R. Ince et al., "A statistical framework for neuroimaging data analysis based on mutual information
    estimated via a Gaussian copula", 2017.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.75).sample(1000)
    >>> f"{CopulaMI().estimate(x.exp(), y**3):.2f}, truth 0.41"
    '0.43, truth 0.41'
    """

    def _view(self, x: Tensor) -> Tensor:
        return normal_scores(x)

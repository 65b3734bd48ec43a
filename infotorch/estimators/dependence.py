"""Is there any dependence at all? Distance correlation and HSIC, with error bars and permutation tests.

Neither is a mutual information, nor an estimate of one; both are 0 exactly under independence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from infotorch.core._kernels import median_distance
from infotorch.core.dependence import (
    distance_correlation,
    hsic,
    independence_test,
    u_distance_correlation_sqr,
    u_hsic,
)
from infotorch.core.dependence.kernel import Sigma
from infotorch.core.dependence.permutation import PermutationTest
from infotorch.estimators._inference import ResampledPair
from infotorch.estimators._samples import Sample
from infotorch.estimators._variables import as_codes, as_numbers
from infotorch.estimators.base import Estimate


class _Dependence(ResampledPair):
    """Numbers or categories on either side."""

    standardize: bool

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        if sample.nominal:
            return as_codes(name, sample)
        return as_numbers(name, sample, standardize=self.standardize, mixed=True, tails=False)

    def _test(self, x: Tensor, y: Tensor, **options: Any) -> PermutationTest | None:
        if not self.permutations:
            return None
        generator = self._stream("permutations")
        return independence_test(x, y, permutations=self.permutations, generator=generator, **options)


@dataclass(kw_only=True, repr=False, eq=False)
class DistanceCorrelation(_Dependence):
    """Distance correlation: from 0 (independence) to 1 (a rigid map), for numbers, vectors and categories.

    Strings and objects are categories at distance 1 of each other; integers are numbers. Columns are scaled, so that
    none of several outweighs the others.

    Args:
        unbiased: Report the square's unbiased estimate, which may be negative, in place of the usual root.
        exponent: Power of the distances, in (0, 2).
        standardize: Scale the columns to standard deviation 1.
        confidence: Of the interval; None to save its time.
        resamples: Half-samples behind the interval.
        permutations: For the p-value, which is that of the distance covariance.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        distance_correlation_: The estimate; its square, unbiased, where asked for.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Permutation p-value of independence, or None.

    Raises (in ``fit``):
        ValueError: Different numbers of points, fewer than 4, values that are not finite, options out of range.

    Reference: G. Székely, M. Rizzo and N. Bakirov, "Measuring and testing dependence by correlation of distances",
    2007, arXiv:0803.4101.

    >>> import torch
    >>> x = torch.linspace(-1, 1, 200)
    >>> found = DistanceCorrelation(permutations=99).fit(x, x**2)
    >>> round(found.distance_correlation_, 2), found.p_value_
    (0.49, 0.01)
    """

    quantity = "distance_correlation"

    unbiased: bool = False
    exponent: float = 1.0
    standardize: bool = True

    def _value(self, x: Tensor, y: Tensor) -> float:
        measure = u_distance_correlation_sqr if self.unbiased else distance_correlation
        return float(measure(x, y, exponent=self.exponent))

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        if 0 in x.shape or 0 in y.shape:
            return self._nothing()
        test = self._test(x, y, measure="distance_covariance", exponent=self.exponent)
        error = self._resampling_error(self._value, x, y, least=4)
        return self._result(self._value(x, y), error, test, freedom=self.resamples - 1)


@dataclass(kw_only=True, repr=False, eq=False)
class HSIC(_Dependence):
    """Hilbert-Schmidt independence criterion with Gaussian kernels, for numbers, vectors and categories.

    Strings and objects are categories; integers are numbers.

    Args:
        unbiased: The unbiased estimate, which may be negative.
        sigma: Width of the kernels (after scaling), or one for each side; ``"median"``: the median distance.
        standardize: Scale the columns to standard deviation 1.
        confidence: Of the interval; None to save its time.
        resamples: Half-samples behind the interval.
        permutations: For the p-value.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        hsic_: The estimate.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Permutation p-value of independence, or None.

    Raises (in ``fit``):
        ValueError: Different numbers of points, fewer than 4, values that are not finite, options out of range.

    Reference: A. Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", 2005.

    >>> import torch
    >>> x = torch.linspace(-1, 1, 100)
    >>> HSIC(permutations=99, confidence=None).fit(x, x**2).p_value_
    0.01
    """

    quantity = "hsic"

    unbiased: bool = True
    sigma: Sigma | tuple[Sigma, Sigma] = "median"
    standardize: bool = True

    def _widths(self, x: Tensor, y: Tensor) -> tuple[Sigma, Sigma]:
        """Those of all points, for half of them not to be measured by others."""
        widths = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        found = []
        for width, z in zip(widths, (x, y), strict=True):
            wanted = width == "median" and z.is_floating_point()
            found.append(float(median_distance(z)) if wanted else 1.0 if width == "median" else width)
        return found[0], found[1]

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        if 0 in x.shape or 0 in y.shape:
            return self._nothing()
        sigma, measure = self._widths(x, y), u_hsic if self.unbiased else hsic

        def value(a: Tensor, b: Tensor) -> float:
            return float(measure(a, b, sigma=sigma))

        test = self._test(x, y, measure="hsic", sigma=sigma)
        error = self._resampling_error(value, x, y, least=4)
        return self._result(value(x, y), error, test, freedom=self.resamples - 1)

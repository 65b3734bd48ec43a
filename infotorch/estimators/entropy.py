"""Differential entropy of continuous variables, with error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infotorch.core.differential import kl_entropy
from infotorch.core.gaussian import gaussian_entropy, normal_scores
from infotorch.estimators._inference import Inference
from infotorch.estimators._samples import Sample
from infotorch.estimators._variables import as_numbers
from infotorch.estimators.base import Estimate, SampleEstimator, recorded, warn

_BIAS, _ERRORS, _POINTS = 0.1, 3.0, 2000


@dataclass(kw_only=True, repr=False, eq=False)
class KLEntropy(Inference, SampleEstimator):
    r"""Kozachenko-Leonenko differential entropy.

    :func:`infotorch.core.differential.kl_entropy` of the scaled columns, plus the logarithms of their scales.
    Differential entropy depends on units and may be negative. That of a constant column, of a repeated column and of
    points that coincide is minus infinity: constant columns and copies are left out with a warning (the value is the
    entropy of the others), and coinciding points are an error unless ``noise`` parts them.

    Args:
        k: Neighbor.
        metric: ``"max"`` or ``"euclidean"``.
        standardize: Scale the columns to standard deviation 1 for the search.
        noise: Scale of seeded noise that parts ties, relative to the size of a column. The value then depends on it.
        confidence: Of the interval; None to save its time.
        resamples: Half-samples behind the interval.
        check_bias: Run the estimator on normal data of this size and these correlations.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        entropy_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        local_: ``(n,)``: every point's part.
        reference_bias_: Estimate minus truth on normal data of this size, or None.

    Raises (in ``fit``):
        ValueError: Values that are not finite, ``k >= n``, no column that varies, more than ``k`` coinciding points.

    Reference: L. Kozachenko and N. Leonenko, "Sample estimate of the entropy of a random vector", 1987.

    >>> x = 2 * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    >>> f"{KLEntropy().estimate(x):.2f}, truth {math.log(2):.2f}"
    '0.69, truth 0.69'
    """

    k: int = field(default=3, kw_only=False)
    metric: str = "max"
    standardize: bool = True
    noise: float = 0.0
    check_bias: bool = True

    def _prepare(self, sample: Sample) -> Tensor:
        return as_numbers("x", sample, noise=self.noise, random_state=self.random_state)

    def _terms(self, x: Tensor) -> Tensor:
        return kl_entropy(x, self.k, metric=self.metric, degenerate="minus_inf", pointwise=True)

    def _fit(self, x: Tensor) -> Estimate:
        self._check_inference()
        if not x.shape[1]:
            raise ValueError("x: expected a column that varies, got constants, whose entropy is minus infinity")
        scale = x.std(0) if self.standardize else torch.ones_like(x[0])
        x = x / scale
        with recorded() as caught:
            terms = self._terms(x) + scale.log().sum()
        value = float(terms.mean())
        if math.isinf(value):
            (why,) = (str(w.message) for w in caught if "minus infinity" in str(w.message))
            raise ValueError(f"{why} (drop what is redundant, raise k, add noise, or use DiscreteEntropy)")
        for w in caught:
            warn(str(w.message))
        error = self._resampling_error(lambda z: float(self._terms(z).mean()), x, least=self.k + 1)
        bias = self._reference_bias(x) if self.check_bias else None
        return self._result(value, error, None, freedom=self.resamples - 1, local=terms, reference_bias=bias)

    def _reference_bias(self, x: Tensor) -> float:
        """On normal data of unit columns with the correlations of the data."""
        n, d = x.shape
        scores = normal_scores(x)
        s = torch.corrcoef((scores / scores.std(0)).T).reshape(d, d).cpu()
        s = s + 1e-6 * torch.eye(d, dtype=s.dtype) if n > 2 * d else (s + torch.eye(d, dtype=s.dtype)) / 2
        root, repeats, generator = torch.linalg.cholesky(s), min(8, math.ceil(_POINTS / n)), self._stream("reference")
        with recorded():
            draws = (torch.randn(n, d, dtype=s.dtype, generator=generator) @ root.T for _ in range(repeats))
            mean = sum(float(self._terms(z.to(x.device)).mean()) for z in draws) / repeats
        bias = mean - float(gaussian_entropy(s))
        if abs(bias) > max(_BIAS, _ERRORS * math.sqrt(d / (n * repeats))):
            warn(
                f"x: {n} points in {d} dimensions leave neighbors too far apart: on normal data with correlations like "
                f"these the estimator is off by {bias:+.2f} nats, which the interval does not show"
            )
        return bias

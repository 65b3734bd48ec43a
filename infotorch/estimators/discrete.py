"""Mutual information and entropy of discrete variables, with error bars.

Errors come from half-samples of the counts, as for the other estimators (``errors="half_samples"``, right in sparse
tables, too), from the bootstrap (``"bootstrap"``, too small there), or from the delta method (``"analytic"``): the
variance of the log-ratios over n, and the second-order term that remains under independence. They are the spread of the
estimate. The bias that few points a cell leave is not in them; compare estimators for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_choice
from infotorch.core.chance import adjusted_mutual_information
from infotorch.core.dependence._counts import information_statistics
from infotorch.core.dependence.permutation import PermutationTest
from infotorch.core.discrete import ESTIMATORS, entropy_from_counts
from infotorch.estimators._inference import Inference
from infotorch.estimators._samples import Sample
from infotorch.estimators._variables import as_codes
from infotorch.estimators.base import Estimate, PairEstimator, SampleEstimator, warn

_ERRORS = ("half_samples", "bootstrap", "analytic")
_ALONE = 0.3  # share of points that are alone in their cell, from which the estimate hangs on its bias correction


class _Counted(Inference):
    """Estimators that see counts only."""

    errors: str

    def _spread(
        self, counts: Tensor, value_of: Callable[[Tensor], Tensor], analytic: Callable[[], float]
    ) -> float | None:
        """Standard error of ``value_of``, which takes counts ``[b, K]``."""
        if self.confidence is None:
            return None
        if self.errors == "analytic":
            return analytic()
        source = np.random.default_rng(self._stream("resamples").initial_seed())
        n, seen = int(counts.sum()), counts.cpu().numpy()
        if self.errors == "bootstrap":
            scale, drawn = 1.0, source.multinomial(n, seen / n, size=self.resamples)
        elif n < 4:
            warn(f"x: {n} points are too few for a confidence interval")
            return None
        else:
            scale = (n // 2) / (n - n // 2)
            drawn = source.multivariate_hypergeometric(seen, n // 2, size=self.resamples, method="marginals")
        return float(value_of(torch.from_numpy(drawn).to(counts.device)).std()) * math.sqrt(scale)


@dataclass(kw_only=True, repr=False, eq=False)
class DiscreteMI(_Counted, PairEstimator):
    r"""Mutual information :math:`H(X) + H(Y) - H(X, Y)` of discrete variables.

    Several columns make one joint category. Floats are taken by their distinct values, with a warning.

    Args:
        estimator: Of the three entropies: ``"plugin"``, ``"miller_madow"``, ``"grassberger"``, ``"chao_shen"``,
            ``"shrinkage"``, ``"nsb"``; or ``"adjusted"``: plug-in, adjusted for chance, the choice for sparse tables
            (:func:`infotorch.core.chance.adjusted_mutual_information`).
        errors: ``"half_samples"``, ``"bootstrap"`` or ``"analytic"``.
        clip: Report 0 for negative values.
        confidence: Of the interval, or None.
        resamples: Half-samples or bootstrap samples.
        permutations: For the p-value.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        mutual_information_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Permutation p-value of independence, or None.
        null_: Estimates under permutations, or None.
        n_cells_: Observed categories of x, of y, and of both together.

    Raises (in ``fit``):
        TypeError: Types that are no categories or numbers.
        ValueError: Different numbers of points, missing values, options out of range.

    >>> x = np.array(list("aabbaabb"))
    >>> DiscreteMI(estimator="plugin").estimate(x, x)
    0.6931471805599453
    """

    estimator: str = field(default="grassberger", kw_only=False)
    errors: str = "half_samples"
    clip: bool = False
    resamples: int = 200
    permutations: int = 0

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        return as_codes(name, sample)

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        check_choice("estimator", self.estimator, (*ESTIMATORS, "adjusted"))
        check_choice("errors", self.errors, _ERRORS)
        table = _Table(x, y)
        n_cells = len(table.x), len(table.y), len(table.joint)
        constant = [name for name, counts in (("x", table.x), ("y", table.y)) if len(counts) == 1]
        if constant:
            warn(f"{', '.join(constant)}: one category only, which carries no information")
            return self._nothing(n_cells=n_cells)
        alone = int((table.joint == 1).sum())
        if alone > _ALONE * len(x):
            warn(
                f"x, y: {alone} of {len(x)} points are alone in their cell of the table ({len(table.x)} x "
                f"{len(table.y)} categories); the value depends on the estimator"
            )
        adjusted = self.estimator == "adjusted"
        entropy = ESTIMATORS["plugin" if adjusted else self.estimator]
        value = float(adjusted_mutual_information(x, y)) if adjusted else table.value(entropy)
        # That of the plug-in serves the adjusted estimate, too.
        error = self._spread(table.joint, lambda counts: table.values(counts, entropy), table.analytic_error)
        test = None
        if self.permutations:
            test = PermutationTest.of(
                information_statistics(x, y, self.permutations, self._stream("permutations"), entropy).cpu()
            )
        return self._result(value, error, test, n_cells=n_cells)


@dataclass(kw_only=True, repr=False, eq=False)
class DiscreteEntropy(_Counted, SampleEstimator):
    """Shannon entropy of a discrete variable; several columns make one joint category.

    Args:
        estimator: ``"plugin"``, ``"miller_madow"``, ``"grassberger"``, ``"chao_shen"``, ``"shrinkage"`` or ``"nsb"``.
        alphabet_size: Number of categories that could occur, for ``"shrinkage"`` and ``"nsb"``; default: those that
            did.
        errors: ``"half_samples"``, ``"bootstrap"``, or ``"analytic"``: the deviation of the log-probabilities over the
            root of n.
        confidence: Of the interval, or None.
        resamples: Half-samples or bootstrap samples.
        random_state: Seed.

    Attributes:
        entropy_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        n_cells_: Observed categories.

    Raises (in ``fit``):
        ValueError: Missing values, options out of range.

    >>> DiscreteEntropy(estimator="plugin").fit(["a", "b", "a", "b"]).entropy_
    0.6931471805599453
    """

    estimator: str = field(default="grassberger", kw_only=False)
    alphabet_size: int | None = None
    errors: str = "half_samples"
    resamples: int = 200

    def _prepare(self, sample: Sample) -> Tensor:
        return as_codes("x", sample)

    def _fit(self, x: Tensor) -> Estimate:
        self._check_inference()
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("errors", self.errors, _ERRORS)
        if self.alphabet_size is not None and self.estimator not in ("shrinkage", "nsb"):
            raise ValueError(f"alphabet_size: expected None for {self.estimator}, got {self.alphabet_size}")
        options = {} if self.alphabet_size is None else {"alphabet_size": self.alphabet_size}
        counts = torch.bincount(x)
        once = int((counts == 1).sum())
        if once > _ALONE * len(x):
            warn(f"x: {once} of {len(x)} points are alone in their category; the value depends on the estimator")

        def entropy(n: Tensor) -> Tensor:
            return entropy_from_counts(n, self.estimator, **options)

        n = counts.double()
        error = self._spread(counts, entropy, lambda: _deviation(n, n.log(), len(x)))
        return self._result(float(entropy(counts)), error, None, n_cells=len(counts))


class _Table:
    """Counts of the observed cells, and of the categories of either side."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = torch.bincount(x), torch.bincount(y)
        cells, self.joint = torch.unique(x * len(self.y) + y, return_counts=True)
        self.row, self.column = cells // len(self.y), cells % len(self.y)

    def value(self, entropy: Callable[[Tensor], Tensor]) -> float:
        return float(self.values(self.joint.unsqueeze(0), entropy))

    def values(self, joint: Tensor, entropy: Callable[[Tensor], Tensor]) -> Tensor:
        """Mutual information for other counts ``[b, cells]`` of the same cells."""
        sides = []
        for which, size in ((self.row, len(self.x)), (self.column, len(self.y))):
            sides.append(joint.new_zeros(len(joint), size).index_add_(1, which, joint))
        return entropy(sides[0]) + entropy(sides[1]) - entropy(joint)

    def analytic_error(self) -> float:
        """Delta method, and the deviation of a chi-squared variable over 2 n, which is left under independence."""
        joint = self.joint.double()
        n = float(joint.sum())
        ratio = joint.log() + math.log(n) - self.x[self.row].double().log() - self.y[self.column].double().log()
        second = (len(self.x) - 1) * (len(self.y) - 1) / (2 * n * n)
        return math.hypot(_deviation(joint, ratio, int(n)), math.sqrt(second))


def _deviation(counts: Tensor, values: Tensor, n: int) -> float:
    """Standard error of the mean of values that occur so often."""
    p = counts / n
    return math.sqrt(max(0.0, float(p @ values.square() - (p @ values) ** 2)) / n)

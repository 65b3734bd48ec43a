r"""Mutual information by nearest neighbors, with error bars.

Intervals come from half-samples (see :mod:`infotorch.estimators._spread` for why not the bootstrap) and cover the
spread of the estimator, not its bias. For the bias, the estimators of continuous variables are run on normal data
with as many points, columns and the same correlations as yours (``reference_bias_``), and warn where it is large.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.differential import ksg_mi, mixture_mi, ross_mi
from infotorch.core.mixed import atomic_mi
from infotorch.estimators import _permuted
from infotorch.estimators._inference import ResampledPair
from infotorch.estimators._reference import normal_reference
from infotorch.estimators._samples import Sample
from infotorch.estimators._variables import Standardize, as_codes, as_numbers, warn_of_shared_columns
from infotorch.estimators.base import Estimate, recorded, warn


@dataclass(kw_only=True, repr=False, eq=False)
class _Neighbors(ResampledPair):
    """Estimates that are the mean of one term a point."""

    k: int = field(default=3, kw_only=False)
    metric: str = "max"
    standardize: Standardize = True
    clip: bool = False

    @abstractmethod
    def _terms(self, x: Tensor, y: Tensor) -> Tensor:
        """Every point's part, ``(n,)``."""

    def _value(self, x: Tensor, y: Tensor) -> float:
        return float(self._terms(x, y).mean())


@dataclass(kw_only=True, repr=False, eq=False)
class _Numbers(_Neighbors):
    """Numbers on both sides."""

    check_bias: bool = True

    @abstractmethod
    def _permuted_values(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        """The estimates under permutations of few points; NaN where points coincide."""

    def _null(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        if not _permuted.dense(x, y):
            return _permuted.one_by_one(self._value, x, y, orders)
        parts = list(orders)
        values = self._permuted_values(x, y, iter(parts))
        if bool(values.isnan().any()):  # coinciding points: every order the long way
            return _permuted.one_by_one(self._value, x, y, iter(parts))
        return values

    def _continuous(self, x: Tensor, y: Tensor) -> bool:
        """Whether normal data are like these, so that they tell the bias."""
        del x, y
        return True

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        if not (x.shape[1] and y.shape[1]):
            return self._nothing(local=x.new_zeros(len(x)), reference_bias=None)
        continuous = self._continuous(x, y)
        if continuous:
            warn_of_shared_columns(x, y)
        terms = self._terms(x, y)
        bias = self._reference_bias(x, y) if continuous and self.check_bias else None
        error = self._resampling_error(self._value, x, y, least=self.k + 1)
        return self._infer(x, y, float(terms.mean()), error, local=terms, reference_bias=bias)

    def _reference_bias(self, x: Tensor, y: Tensor) -> float:
        with recorded():
            found = normal_reference(x, y, None, lambda a, b, _: self._value(a, b), self._stream("reference"))
        if found.alarming:
            warn(found.text("x, y", f"{x.shape[1]} + {y.shape[1]}", len(x)))
        return found.bias


@dataclass(kw_only=True, repr=False, eq=False)
class KSG(_Numbers):
    r"""Kraskov-Stögbauer-Grassberger mutual information of continuous variables.

    Scales the columns, then :func:`infotorch.core.differential.ksg_mi`. Constant columns and copies of other columns
    are left out, with a warning. Where more than ``k`` points coincide the estimator is undefined, and Gao's mixture
    form is used, with a warning; :class:`AtomicMI` or ``noise`` do better with rounded numbers.

    Args:
        k: Neighbors; more of them trade variance for bias.
        variant: 1 or 2.
        metric: Distance inside a variable, ``"max"`` or ``"euclidean"``.
        standardize: True: every column to mean 0 and standard deviation 1; ``"normal_scores"``: to normal scores of
            its ranks, which heavy tails need; False: as it is. The truth does not depend on it, the estimate does.
        noise: Scale of seeded noise that breaks ties, for example 1e-10.
        clip: Report 0 for negative values (which mean "near 0"); the interval is clipped with it.
        confidence: Of the interval; None to save its time.
        resamples: Half-samples behind the interval.
        permutations: For the p-value; 0 for none.
        check_bias: Run the estimator on normal data like the user's (as long as one more estimate).
        random_state: Seed; None for a new one at every fit.

    Attributes:
        mutual_information_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Permutation p-value of independence, or None.
        null_: Estimates under permutations, or None.
        local_: ``(n,)``: every point's part; their mean is the estimate before clipping.
        reference_bias_: Estimate minus truth on normal data of this size, or None.
        warnings_: Texts.

    Raises (in ``fit``):
        TypeError: Types that are no numbers.
        ValueError: Different numbers of points, values that are not finite, ``k >= n``, options out of range.

    Reference: A. Kraskov, H. Stögbauer and P. Grassberger, "Estimating mutual information", 2004,
    arXiv:cond-mat/0305641.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.75).sample(1000)
    >>> ksg = KSG(permutations=99).fit(x.numpy(), y.numpy())
    >>> f"{ksg.mutual_information_:.2f} in {ksg.interval_[0]:.2f} .. {ksg.interval_[1]:.2f}, p = {ksg.p_value_}"
    '0.42 in 0.35 .. 0.50, p = 0.01'
    """

    variant: int = 1
    noise: float = 0.0

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        return as_numbers(name, sample, standardize=self.standardize, noise=self.noise, random_state=self.random_state)

    def _terms(self, x: Tensor, y: Tensor) -> Tensor:
        return ksg_mi(x, y, k=self.k, variant=self.variant, metric=self.metric, pointwise=True)

    def _permuted_values(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        return _permuted.ksg_values(x, y, orders, k=self.k, variant=self.variant, metric=self.metric)


@dataclass(kw_only=True, repr=False, eq=False)
class MixedKSG(_Numbers):
    r"""Gao's mutual information: each side continuous, discrete, or a mixture of the two.

    :func:`infotorch.core.differential.mixture_mi` on scaled columns. Integers are read as numbers; strings and other
    objects as categories, all of them at least 1 apart (a standard deviation of the other columns) and not scaled. For
    numbers that were rounded it is too high, by tenths of a nat and more: see :class:`AtomicMI`.

    Args:
        k: Neighbors.
        form: ``"code"``, or ``"paper"``, which stays low at small ``k``.
        metric: As in :class:`KSG`; so are the others.
        standardize: True, ``"normal_scores"`` or False.
        clip: Report 0 for negative values.
        confidence: Of the interval, or None.
        resamples: Half-samples behind the interval.
        permutations: For the p-value.
        check_bias: As in :class:`KSG`; done only where no points coincide.
        random_state: Seed.

    Reference: W. Gao, S. Kannan, S. Oh and P. Viswanath, "Estimating mutual information for discrete-continuous
    mixtures", 2017, arXiv:1709.06212.

    >>> from infotorch.distributions import DiscreteUniformMixture
    >>> x, y = DiscreteUniformMixture(5).sample(2000)
    >>> mixed = MixedKSG().fit(x, y)
    >>> f"{mixed.mutual_information_:.2f} +- {mixed.std_error_:.2f}, truth 1.05"
    '1.04 +- 0.01, truth 1.05'
    """

    form: str = "code"

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        return as_numbers(name, sample, standardize=self.standardize, mixed=True)

    def _terms(self, x: Tensor, y: Tensor) -> Tensor:
        return mixture_mi(x, y, k=self.k, form=self.form, metric=self.metric, pointwise=True)

    def _permuted_values(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        return _permuted.mixture_values(x, y, orders, k=self.k, form=self.form, metric=self.metric)

    def _continuous(self, x: Tensor, y: Tensor) -> bool:
        return all(len(column.unique()) == len(column) for z in (x, y) for column in z.T)


@dataclass(kw_only=True, repr=False, eq=False)
class RossMI(_Neighbors):
    r"""Ross's mutual information of continuous ``x`` and categories ``y``.

    :func:`infotorch.core.differential.ross_mi` on scaled columns; numbers may have ties. Categories that occur once are
    left out, with a warning.

    Args:
        k: Neighbors within a category.
        metric: ``"max"`` or ``"euclidean"``.
        standardize: As in :class:`KSG`; so are the others.
        noise: Scale of seeded noise that breaks ties.
        clip: Report 0 for negative values.
        confidence: Of the interval, or None.
        resamples: Half-samples behind the interval.
        permutations: For the p-value.
        random_state: Seed.

    Attributes:
        mutual_information_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Permutation p-value of independence, or None.
        null_: Estimates under permutations, or None.
        local_: ``(n,)``: every point's part; NaN for categories that occur once.

    Raises (in ``fit``):
        ValueError: As :class:`KSG`; no category that occurs twice.

    Reference: B. Ross, "Mutual information between discrete and continuous data sets", 2014.

    >>> x = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    >>> ross = RossMI().fit(x, x > 0.5)
    >>> f"{ross.mutual_information_:.2f}, truth {torch.log(torch.tensor(2.0)):.2f}"
    '0.69, truth 0.69'
    """

    noise: float = 0.0

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        if name == "y":
            return as_codes(name, sample)
        return as_numbers(name, sample, standardize=self.standardize, noise=self.noise, random_state=self.random_state)

    def _terms(self, x: Tensor, y: Tensor) -> Tensor:
        return ross_mi(x, y, k=self.k, metric=self.metric, pointwise=True)

    def _value(self, x: Tensor, y: Tensor) -> float:
        return float(self._terms(x, y).nanmean())  # categories that occur once have none

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        counts = torch.bincount(y)
        if not x.shape[1] or len(counts) == 1:
            if len(counts) == 1:
                warn("y: one category only, which carries no information")
            return self._nothing(local=x.new_zeros(len(x)))
        terms = self._terms(x, y)
        single, small = int((counts == 1).sum()), int(((counts > 1) & (counts <= self.k)).sum())
        if single:
            warn(f"y: {single} of {len(counts)} categories occur once and are left out")
        if small:
            warn(
                f"y: {small} of {len(counts)} categories have no more than k={self.k} points; fewer neighbors are used"
            )
        error = self._resampling_error(self._value, x, y, least=2 * self.k + 2)
        return self._infer(x, y, float(terms.nanmean()), error, local=terms)


@dataclass(kw_only=True, repr=False, eq=False)
class AtomicMI(ResampledPair):
    r"""Mutual information of two columns that repeat some values: zero-inflated, censored or rounded numbers.

    :func:`infotorch.core.mixed.atomic_mi`: values that many points share are split off as categories, and nearest
    neighbors see what is left, with noise that parts the other ties. Strings, and integers of two values (booleans),
    are categories; other integers are numbers. Without repeated values it is :class:`KSG`, and :class:`RossMI` for a
    number and a category.

    Args:
        k: Neighbors.
        share: Of the points that share a value, from which it is a category.
        standardize: As in :class:`KSG`; so are the others.
        noise: Scale of the noise.
        clip: Report 0 for negative values.
        confidence: Of the interval, or None.
        resamples: Half-samples behind the interval.
        permutations: For the p-value.
        random_state: Seed.

    Attributes:
        mutual_information_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Permutation p-value of independence, or None.
        null_: Estimates under permutations, or None.

    Raises (in ``fit``):
        ValueError: As :class:`KSG`; a variable of several columns, ``share`` outside [0, 1].

    Reference: the terms' authors, A. Kraskov et al., 2004; B. Ross, 2014; N. Vinh et al., 2010.

    >>> rounded = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)).mul(20).round().div(20)
    >>> found = [kind(confidence=None).estimate(*rounded) for kind in (AtomicMI, MixedKSG)]
    >>> f"{found[0]:.2f}, where neighbors alone see {found[1]:.2f}; truth 0"
    '0.03, where neighbors alone see 0.27; truth 0'
    """

    k: int = field(default=3, kw_only=False)
    share: float = 0.05
    standardize: Standardize = True
    noise: float = 1e-10
    clip: bool = False

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        if sample.n_features > 1:
            raise ValueError(f"{name}: expected one column, got {sample.n_features}")
        if sample.nominal or (sample.discrete and len(sample.values.unique()) == 2):
            return as_codes(name, sample)
        x = as_numbers(name, sample, standardize=self.standardize, mixed=True)
        return x[:, 0] if x.shape[1] else torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _value(self, x: Tensor, y: Tensor) -> float:
        options = {"k": self.k, "share": self.share, "noise": self.noise, "generator": self._stream("noise")}
        return float(atomic_mi(x, y, **options))

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        check_range("noise", self.noise, 0.0)
        if bool((x == x[0]).all()) or bool((y == y[0]).all()):
            return self._nothing()
        error = self._resampling_error(self._value, x, y, least=2 * self.k + 2)
        return self._infer(x, y, self._value(x, y), error)

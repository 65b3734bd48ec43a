"""Transfer entropy between two series, in both directions, with error bars and surrogate tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from infotorch.core.dependence import PermutationTest
from infotorch.core.differential import ksg_cmi
from infotorch.core.discrete import discrete_conditional_mutual_information
from infotorch.core.transfer import lagged, transfer_entropy_test
from infotorch.estimators._inference import Inference
from infotorch.estimators._spread import STRETCHES, stretch_error
from infotorch.estimators._variables import as_codes, as_numbers
from infotorch.estimators.base import Estimate, paired_samples, recorded


@dataclass(kw_only=True, repr=False, eq=False)
class TransferEntropy(Inference):
    r"""Transfer entropy from x to y, :math:`I(y_t; x_\mathrm{past} \mid y_\mathrm{past})`, and from y to x.

    Series of floats go through :func:`infotorch.core.differential.ksg_cmi` on scaled columns, series of categories
    (integers, booleans, strings) through counts. Steps of a series depend on each other, so that intervals come from
    half of 20 stretches of it, and surrogates from circular shifts of the source.

    Args:
        source_history: Length of the source's past.
        dest_history: Length of the destination's past.
        lag: Steps from the source's latest past value to the present.
        k: Neighbors (continuous series).
        estimator: Entropy estimator (discrete series).
        standardize: Scale continuous series to standard deviation 1.
        noise: Scale of seeded noise that breaks ties.
        clip: Report 0 for negative values.
        confidence: Of the intervals; None to save their time.
        resamples: Half-samples behind them.
        permutations: Circular shifts for the p-values.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        transfer_entropy_: From x to y, nats.
        std_error_: Its standard error, or None.
        interval_: Its confidence interval, or None.
        p_value_: Of no transfer from x to y, or None.
        null_: Estimates under shifts, or None.
        reverse_transfer_entropy_: From y to x, nats; ``reverse_std_error_``, ``reverse_interval_``,
            ``reverse_p_value_`` and ``reverse_null_`` belong to it.

    Raises (in ``fit``):
        TypeError: One series is discrete and the other is not.
        ValueError: Series of different lengths, or too short; values that are not finite; options out of range.

    Reference: T. Schreiber, "Measuring information transfer", 2000, arXiv:nlin/0001042.

    >>> import torch
    >>> x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    >>> y = 0.8 * x.roll(1) + 0.6 * torch.randn(500, generator=torch.Generator().manual_seed(1))
    >>> found = TransferEntropy(permutations=99).fit(x, y)
    >>> f"{found.transfer_entropy_:.2f} (p = {found.p_value_}), back {found.reverse_transfer_entropy_:.2f}"
    '0.53 (p = 0.01), back 0.04'
    """

    quantity = "transfer_entropy"

    source_history: int = 1
    dest_history: int = 1
    lag: int = 1
    k: int = 3
    estimator: str = "grassberger"
    standardize: bool = True
    noise: float = 0.0
    clip: bool = False
    permutations: int = 0

    def fit(self, x: Any, y: Any) -> TransferEntropy:
        """Estimate from two series ``(n,)`` or ``(n, d)``, in the order of time."""
        samples = paired_samples(x=x, y=y)
        kinds = {sample.discrete for sample in samples.values()}
        if len(kinds) > 1:
            raise TypeError("x, y: expected both discrete or both continuous series, got one of each")
        with recorded() as caught:
            if kinds.pop():
                series = [as_codes(name, sample) for name, sample in samples.items()]
            else:
                options = {"standardize": self.standardize, "noise": self.noise, "random_state": self.random_state}
                series = [as_numbers(name, sample, **options) for name, sample in samples.items()]
            found = self._fit(*series)
        return self._store(samples, found, caught)

    def estimate(self, x: Any, y: Any) -> float:
        """Fit and return the number from x to y."""
        return self.fit(x, y).transfer_entropy_

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_inference()
        forth = self._one_way(x, y, "permutations")
        with recorded():  # of the same series
            back = self._one_way(y, x, "permutations back")
        extra = {"p_value": back.extra["p_value"], "null": back.extra["null"], "transfer_entropy": back.value}
        extra |= {"std_error": back.std_error, "interval": back.interval}
        reverse = {f"reverse_{name}": value for name, value in extra.items()}
        return Estimate(forth.value, forth.std_error, forth.interval, dict(forth.extra) | reverse)

    def _one_way(self, source: Tensor, dest: Tensor, stream: str) -> Estimate:
        if 0 in source.shape or 0 in dest.shape:
            return self._nothing()
        histories = {"source_history": self.source_history, "dest_history": self.dest_history, "lag": self.lag}
        parts = lagged(source, dest, **histories)
        value = self._value(*parts)
        error = self._resampling_error(self._value, *parts, least=self.k + 1, error_of=stretch_error)
        test = None
        if self.permutations:
            options: dict[str, Any] = {"k": self.k} if dest.is_floating_point() else {"estimator": self.estimator}
            options |= {"surrogates": self.permutations, "generator": self._stream(stream)}
            with recorded():
                found = transfer_entropy_test(source, dest, **histories, **options)
            test = PermutationTest(found.value, found.p_value, found.surrogates)
        return self._result(value, error, test, freedom=STRETCHES - 1)

    def _value(self, present: Tensor, source: Tensor, own: Tensor) -> float:
        if present.is_floating_point():
            return float(ksg_cmi(present, source, own, k=self.k))
        return float(discrete_conditional_mutual_information(present, source, own, estimator=self.estimator))

"""Value, error bar and p-value: the steps that all estimators but the neural ones share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.dependence.permutation import PermutationTest, permutation_orders
from infotorch.estimators._permuted import one_by_one
from infotorch.estimators._spread import check_confidence, half_sample_error, interval_of
from infotorch.estimators.base import Estimate, Estimator, PairEstimator, generator_of

Value = Callable[[Tensor, Tensor], float]


class Inference(Estimator):
    """Estimators with an interval and a permutation test.

    Attributes:
        p_value_: Of the permutation test of independence, ``(1 + #{as large}) / (1 + permutations)``; None without.
        null_: Estimates under the permutations; None without.
    """

    confidence: float | None
    resamples: int
    permutations: int
    random_state: int | None

    p_value_: float | None
    null_: Any

    def _check_inference(self) -> None:
        check_confidence(self.confidence, self.resamples)
        check_range("permutations", self.permutations, 0)
        generator_of(self.random_state)

    def _stream(self, purpose: str) -> torch.Generator:
        return generator_of(self.random_state, purpose)

    def _result(
        self,
        value: float,
        error: float | None,
        test: PermutationTest | None,
        *,
        freedom: float = torch.inf,
        bounds: tuple[float, float] = (-torch.inf, torch.inf),
        **extra: Any,
    ) -> Estimate:
        """Put together what ``fit`` stores; the value and its interval are clipped to ``bounds``."""
        interval = None
        if error is not None and self.confidence is not None:
            low, high = interval_of(value, error, self.confidence, freedom)
            interval = _clip(low, bounds), _clip(high, bounds)
        found = {"p_value": None, "null": None} if test is None else {"p_value": test.p_value, "null": test.null}
        return Estimate(_clip(value, bounds), error, interval, found | extra)

    def _nothing(self, **extra: Any) -> Estimate:
        """A variable without a column that varies: 0, and no doubt about it."""
        test = PermutationTest.of(torch.zeros(self.permutations + 1).double()) if self.permutations else None
        return self._result(0.0, None if self.confidence is None else 0.0, test, **extra)


class ResampledPair(Inference, PairEstimator):
    """Two variables, an estimate that any subset of the points allows: half-samples and permutations of y."""

    clip: bool

    def _value(self, x: Tensor, y: Tensor) -> float:
        """The estimate, without checks that were done before."""
        raise NotImplementedError

    def _null(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        """The estimate under every order of y, the first of which is the data's own."""
        return one_by_one(self._value, x, y, orders)

    def _of_rows(self, x: Tensor, y: Tensor, value: Value | None = None) -> Callable[[Tensor], float]:
        """The estimate from the points of the given numbers."""
        estimate = value or self._value

        def value_of(rows: Tensor) -> float:
            rows = rows.to(x.device)
            return estimate(x[rows], y[rows])

        return value_of

    def _half_sample_error(self, x: Tensor, y: Tensor, least: int, value: Value | None = None) -> float | None:
        if self.confidence is None:
            return None
        value_of, draws = self._of_rows(x, y, value), self._stream("resamples")
        return half_sample_error(value_of, len(x), resamples=self.resamples, generator=draws, least=least)

    def _infer(self, x: Tensor, y: Tensor, value: float, error: float | None, **extra: Any) -> Estimate:
        test = None
        if self.permutations:
            orders = permutation_orders(len(x), self.permutations, self._stream("permutations"), x.device)
            test = PermutationTest.of(self._null(x, y, orders))
        bounds = (0.0, torch.inf) if self.clip else (-torch.inf, torch.inf)
        return self._result(value, error, test, freedom=self.resamples - 1, bounds=bounds, **extra)


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])

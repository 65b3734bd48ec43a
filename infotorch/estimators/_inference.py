"""Value, error bar and p-value: the steps that all estimators but the neural ones share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.dependence.permutation import PermutationTest, permutation_orders
from infotorch.estimators._permuted import one_by_one
from infotorch.estimators._spread import check_confidence, half_sample_error, interval_of
from infotorch.estimators.base import Estimate, Estimator, PairEstimator, generator_of

ErrorOf = Callable[..., float | None]


class _Tested(Estimator):
    """What a fit learns, and what not every estimator lets its user choose: no fields of the dataclasses below.

    Attributes:
        p_value_: Of the permutation test of independence, ``(1 + #{as large}) / (1 + permutations)``; None without.
        null_: Estimates under the permutations; None without.
    """

    clip: bool = False
    permutations: int = 0

    p_value_: float | None
    null_: Any
    local_: Any
    reference_bias_: float | None


@dataclass(kw_only=True, repr=False, eq=False)
class Inference(_Tested):
    """Estimators with an interval and a permutation test."""

    confidence: float | None = 0.95
    resamples: int = 50
    random_state: int | None = 0

    def _check_inference(self) -> None:
        check_confidence(self.confidence, self.resamples)
        check_range("permutations", self.permutations, 0)
        generator_of(self.random_state)

    def _stream(self, purpose: str) -> torch.Generator:
        return generator_of(self.random_state, purpose)

    def _resampling_error(
        self, value: Callable[..., float], *variables: Tensor, error_of: ErrorOf = half_sample_error, **options: Any
    ) -> float | None:
        """Standard error of ``value`` of the variables, from the same rows of each; None where none is wanted."""
        if self.confidence is None:
            return None

        def value_of(rows: Tensor) -> float:
            rows = rows.to(variables[0].device)
            return value(*(x[rows] for x in variables))

        draws = self._stream("resamples")
        return error_of(value_of, len(variables[0]), resamples=self.resamples, generator=draws, **options)

    def _result(
        self,
        value: float,
        error: float | None,
        test: PermutationTest | None,
        *,
        freedom: float = torch.inf,
        **extra: Any,
    ) -> Estimate:
        """Put together what ``fit`` stores; with ``clip`` the value and its interval are at least 0."""
        interval, least = None, 0.0 if self.clip else -torch.inf
        if error is not None and self.confidence is not None:
            low, high = interval_of(value, error, self.confidence, freedom)
            interval = max(low, least), max(high, least)
        found = {"p_value": None, "null": None} if test is None else {"p_value": test.p_value, "null": test.null}
        return Estimate(max(value, least), error, interval, found | extra)

    def _nothing(self, **extra: Any) -> Estimate:
        """A variable without a column that varies: 0, and no doubt about it."""
        test = PermutationTest.of(torch.zeros(self.permutations + 1).double()) if self.permutations else None
        return self._result(0.0, None if self.confidence is None else 0.0, test, **extra)


@dataclass(kw_only=True, repr=False, eq=False)
class ResampledPair(Inference, PairEstimator):
    """Two variables, an estimate that any subset of the points allows: half-samples and permutations of y."""

    permutations: int = 0

    def _value(self, x: Tensor, y: Tensor) -> float:
        """The estimate, without checks that were done before."""
        raise NotImplementedError

    def _null(self, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> Tensor:
        """The estimate under every order of y, the first of which is the data's own."""
        return one_by_one(self._value, x, y, orders)

    def _infer(self, x: Tensor, y: Tensor, value: float, error: float | None, **extra: Any) -> Estimate:
        test = None
        if self.permutations:
            orders = permutation_orders(len(x), self.permutations, self._stream("permutations"), x.device)
            test = PermutationTest.of(self._null(x, y, orders))
        return self._result(value, error, test, freedom=self.resamples - 1, **extra)

"""Conditional mutual information, with an error bar and a test that keeps the condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infotorch.core.dependence.permutation import PermutationTest
from infotorch.core.differential import jitter, ksg_cmi, ksg_mi
from infotorch.core.neighbors import knn
from infotorch.estimators._inference import Inference
from infotorch.estimators._reference import normal_reference
from infotorch.estimators._variables import Standardize, as_numbers, warn_of_shared_columns
from infotorch.estimators.base import Estimate, paired_samples, recorded, warn


@dataclass(kw_only=True, repr=False, eq=False)
class ConditionalMI(Inference):
    r"""Frenzel-Pompe mutual information of continuous ``x`` and ``y`` given ``z``.

    :func:`infotorch.core.differential.ksg_cmi` on scaled columns. The p-value is of conditional independence:
    shuffling y over all points would also break its tie with z, so every point takes the y of one that is near in z
    (each y is used once where that is possible).

    Args:
        k: Neighbors.
        metric: Distance inside a variable, ``"max"`` or ``"euclidean"``.
        standardize: True, ``"normal_scores"`` or False.
        noise: Scale of seeded noise that breaks ties.
        clip: Report 0 for negative values.
        confidence: Of the interval; None to save its time.
        resamples: Half-samples behind the interval.
        permutations: For the p-value.
        shuffle_neighbors: How near in z the y of another point must be.
        check_bias: Run the estimator on normal data of this size and these correlations.
        random_state: Seed; None for a new one at every fit.

    Attributes:
        mutual_information_: Estimate in nats.
        std_error_: Standard error, or None.
        interval_: Confidence interval of the estimator's mean, or None.
        p_value_: Of conditional independence, or None.
        null_: Estimates under permutations, or None.
        local_: ``(n,)``: every point's part.
        reference_bias_: Estimate minus truth on normal data of this size, or None.

    Raises (in ``fit``):
        ValueError: Different numbers of points, values that are not finite, ``k >= n``, points that coincide with ``k``
            others.

    References:
        - S. Frenzel and B. Pompe, "Partial mutual information for coupling analysis of multivariate time series", 2007.
        - J. Runge, "Conditional independence testing based on a nearest-neighbor estimator of conditional mutual
          information", 2018, arXiv:1709.01447 (the permutations).

    >>> x, y, z = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    >>> cmi = ConditionalMI(permutations=99).fit(x + z, y + z, z)  # z explains all that they share
    >>> abs(cmi.mutual_information_) < 0.1, cmi.p_value_ > 0.05
    (True, True)
    """

    k: int = field(default=3, kw_only=False)
    metric: str = "max"
    standardize: Standardize = True
    noise: float = 0.0
    clip: bool = False
    permutations: int = 0
    shuffle_neighbors: int = 5
    check_bias: bool = True

    def fit(self, x: Any, y: Any, z: Any) -> ConditionalMI:
        """Estimate from samples ``(n, d)`` or ``(n,)`` each."""
        samples = paired_samples(x=x, y=y, z=z)
        with recorded() as caught:
            options = {"standardize": self.standardize, "noise": self.noise, "random_state": self.random_state}
            found = self._fit(*(as_numbers(name, sample, **options) for name, sample in samples.items()))
        return self._store(samples, found, caught)

    def estimate(self, x: Any, y: Any, z: Any) -> float:
        """Fit and return the number."""
        return self.fit(x, y, z).mutual_information_

    def _terms(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        if not z.shape[1]:  # a condition that never changes
            return ksg_mi(x, y, k=self.k, metric=self.metric, pointwise=True)
        return ksg_cmi(x, y, z, k=self.k, metric=self.metric, pointwise=True)

    def _value(self, x: Tensor, y: Tensor, z: Tensor) -> float:
        return float(self._terms(x, y, z).mean())

    def _fit(self, x: Tensor, y: Tensor, z: Tensor) -> Estimate:
        self._check_inference()
        if not (x.shape[1] and y.shape[1]):
            return self._nothing(local=x.new_zeros(len(x)), reference_bias=None)
        warn_of_shared_columns(x, y)
        terms = self._terms(x, y, z)
        error = self._resampling_error(self._value, x, y, z, least=self.k + 1)
        test = None
        if self.permutations:
            orders = near_orders(z, self.permutations, self.shuffle_neighbors, self._stream("permutations"))
            with recorded():
                null = [self._value(x, y[order], z) for order in orders]
            test = PermutationTest.of(torch.tensor([float(terms.mean()), *null], dtype=torch.float64))
        bias = self._reference_bias(x, y, z) if self.check_bias else None
        value, freedom = float(terms.mean()), self.resamples - 1
        return self._result(value, error, test, freedom=freedom, local=terms, reference_bias=bias)

    def _reference_bias(self, x: Tensor, y: Tensor, z: Tensor) -> float:
        with recorded():
            found = normal_reference(
                x,
                y,
                z if z.shape[1] else None,
                lambda a, b, c: self._value(a, b, a[:, :0] if c is None else c),
                self._stream("reference"),
            )
        if found.alarming:
            warn(found.text("x, y, z", f"{x.shape[1]} + {y.shape[1]} + {z.shape[1]}", len(x)))
        return found.bias


def near_orders(z: Tensor, count: int, neighbors: int, generator: torch.Generator) -> Tensor:
    """Orders ``[count, n]`` in which every point gets another's place, near in z; each place once where possible.

    Points are visited in random order and take the first of their neighbors (in random order, themselves among them)
    that nobody has taken, or else the last.

    >>> z = torch.tensor([0.0, 0.1, 5.0, 5.1]).unsqueeze(1)
    >>> near_orders(z, 3, 1, torch.Generator().manual_seed(0)).sort(1).values.tolist()
    [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """
    n, device = len(z), z.device
    if not z.shape[1]:
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(count)]).to(z.device)
    neighbors = min(neighbors, n - 1)
    # Where many points share a z, which of them are near is chance.
    z = jitter(z.cpu(), generator=generator)
    near = torch.cat((torch.arange(n).unsqueeze(1), knn(z, neighbors)[1]), 1)
    rows, found = torch.arange(count), torch.empty(count, n, dtype=torch.int64)
    taken = torch.zeros(count, n, dtype=torch.bool)
    visits = torch.rand(count, n, generator=generator).argsort(1)
    for step in range(n):
        point = visits[:, step]
        choices = near[point]
        choices = choices.gather(1, torch.rand(choices.shape, generator=generator).argsort(1))
        free = ~taken.gather(1, choices)
        first = torch.where(free.any(1), free.int().argmax(1), choices.shape[1] - 1)
        chosen = choices[rows, first]
        taken[rows, chosen] = True
        found[rows, point] = chosen
    return found.to(device)

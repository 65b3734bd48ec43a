"""Pairs of a discrete and a continuous variable.

Reference: W. Gao, S. Kannan, S. Oh and P. Viswanath, "Estimating mutual information for discrete-continuous mixtures",
2017, arXiv:1709.06212.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.distributions.joint import Entropies, Joint

_POISSON_EXPONENTIAL = 0.3012  # I(X; Poisson(X)) for X ~ Exp(1), to the digits that are published


@dataclass(frozen=True)
class DiscreteUniformMixture(Joint):
    """X uniform on {0, .., levels - 1}, Y uniform on (X, X + 2).

    Attributes:
        levels: Number of values of X.

    Raises:
        ValueError: ``levels`` below 1.

    >>> round(DiscreteUniformMixture(5).mutual_information(), 4)
    1.0549
    """

    levels: int = 5
    dim_x = 1
    dim_y = 1

    def __post_init__(self) -> None:
        check_range("levels", self.levels, 1)

    def mutual_information(self) -> float:
        """``log m - (m - 1) / m log 2``."""
        return math.log(self.levels) - (self.levels - 1) / self.levels * math.log(2)

    def entropies(self) -> Entropies:
        """Shannon's of X, differential of Y; the joint one is ``H(X) + h(Y | X)``."""
        information = self.mutual_information()
        return Entropies.of(math.log(self.levels), math.log(2) + information, information)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A level and a uniform offset."""
        level, offset = torch.rand(2, n, 1, dtype=torch.float64, device=generator.device, generator=generator)
        x = (level * self.levels).floor()
        return x, x + 2 * offset


@dataclass(frozen=True)
class ZeroInflatedPoisson(Joint):
    """X exponential with mean 1; Y is 0 with probability ``zero``, else Poisson with mean X.

    Attributes:
        zero: Probability of the extra zeros, in [0, 1).

    Raises:
        ValueError: ``zero`` outside [0, 1).

    >>> round(ZeroInflatedPoisson(0.15).mutual_information(), 4)
    0.256
    """

    zero: float = 0.15
    dim_x = 1
    dim_y = 1

    def __post_init__(self) -> None:
        check_range("zero", self.zero, 0.0, 1.0, high_open=True)

    def mutual_information(self) -> float:
        """``(1 - zero)`` times the Poisson value: exact were the extra zeros marked, else an upper bound."""
        return (1 - self.zero) * _POISSON_EXPONENTIAL

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An exponential mean, a count, and a coin."""
        options = {"dtype": torch.float64, "device": generator.device, "generator": generator}
        x = -torch.log1p(-torch.rand(n, 1, **options))
        kept = torch.rand(n, 1, **options) >= self.zero
        return x, torch.poisson(x, generator=generator) * kept

"""What every joint distribution offers: samples and the true mutual information."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Joint(ABC):
    """A pair of random vectors whose mutual information is known.

    Attributes:
        dim_x: Columns of X.
        dim_y: Columns of Y.
    """

    dim_x: int
    dim_y: int

    @abstractmethod
    def mutual_information(self) -> float:
        """The true value in nats."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` pairs in float64, on the generator's device."""

    def sample(
        self, n: int, generator: torch.Generator | int = 0, *, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """``n`` independent pairs.

        Args:
            n: How many.
            generator: A generator, on whose device the samples are drawn, or a seed.
            dtype: Of the samples.

        Returns:
            X ``(n, dim_x)`` and Y ``(n, dim_y)``.

        Raises:
            ValueError: ``n`` is not positive.
        """
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        source = generator if isinstance(generator, torch.Generator) else torch.Generator().manual_seed(generator)
        x, y = self.draw(n, source)
        return x.to(dtype), y.to(dtype)

    def transform(self, x: Map | None = None, y: Map | None = None) -> Transformed:
        """The same pair seen through invertible maps, which leave the mutual information as it is."""
        return Transformed(self, x, y)


@dataclass(frozen=True)
class Transformed(Joint):
    """A joint distribution with each side sent through an invertible map ``(n, d) -> (n, d')``.

    Attributes:
        base: The distribution below.
        map_x: For X; None leaves it.
        map_y: For Y.
    """

    base: Joint
    map_x: Map | None = None
    map_y: Map | None = None

    def __post_init__(self) -> None:
        x, y = self.sample(1)
        object.__setattr__(self, "dim_x", x.shape[1])
        object.__setattr__(self, "dim_y", y.shape[1])

    def mutual_information(self) -> float:
        """That of the base."""
        return self.base.mutual_information()

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The base's samples, mapped."""
        x, y = self.base.draw(n, generator)
        return (self.map_x(x) if self.map_x else x), (self.map_y(y) if self.map_y else y)

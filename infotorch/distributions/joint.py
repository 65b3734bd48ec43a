"""What every joint distribution offers: samples, the true mutual information and, where known, entropies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entropies:
    """Entropies of a pair in nats: Shannon's of what is discrete, differential of what is continuous.

    Attributes:
        x: Of X.
        y: Of Y.
        joint: Of both, ``x + y`` less the mutual information.
    """

    x: float
    y: float
    joint: float

    @classmethod
    def of(cls, x: float, y: float, information: float) -> Entropies:
        """From both marginals and the mutual information."""
        return cls(x, y, x + y - information)


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

    def entropies(self) -> Entropies:
        """The true entropies, where they have a closed form.

        Raises:
            NotImplementedError: They have none.
        """
        raise NotImplementedError(f"{type(self).__name__}: its entropies have no closed form here")

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

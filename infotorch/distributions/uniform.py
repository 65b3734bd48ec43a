"""A uniform variable and its noisy copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.distributions.joint import Entropies, Joint


def additive_uniform_mi(width: float | Tensor) -> Tensor:
    r"""Mutual information of :math:`X \sim U(0, 1)` and :math:`X + U(-\epsilon, \epsilon)`.

    :math:`\epsilon - \log 2\epsilon` up to one half, :math:`1 / 4\epsilon` beyond.

    Args:
        width: :math:`\epsilon`, positive, any shape.

    Raises:
        ValueError: A width that is not positive.

    >>> additive_uniform_mi(torch.tensor([0.1, 0.75]))
    tensor([1.7094, 0.3333], dtype=torch.float64)
    """
    eps = torch.as_tensor(width, dtype=torch.float64)
    if not bool((eps > 0).all()):
        raise ValueError(f"width: expected positive numbers, got {float(eps.min())}")
    return torch.where(eps <= 0.5, eps - (2 * eps).log(), 1 / (4 * eps))


@dataclass(frozen=True)
class AdditiveUniform(Joint):
    """Independent coordinates: X uniform on the unit interval, Y = X + uniform noise on (-width, width).

    Attributes:
        widths: One per coordinate, positive.

    Raises:
        ValueError: No width, or one that is not positive.

    >>> round(AdditiveUniform([0.1]).mutual_information(), 6)
    1.709438
    """

    widths: Sequence[float]

    def __post_init__(self) -> None:
        check_range("len(widths)", len(self.widths), 1)
        additive_uniform_mi(torch.tensor(self.widths))
        object.__setattr__(self, "dim_x", len(self.widths))
        object.__setattr__(self, "dim_y", len(self.widths))

    def mutual_information(self) -> float:
        """Sum over the coordinates."""
        return float(additive_uniform_mi(torch.tensor(self.widths, dtype=torch.float64)).sum())

    def entropies(self) -> Entropies:
        """Differential: 0 of X, ``log(2 width)`` a coordinate of Y given X."""
        noise = float((2 * torch.tensor(self.widths, dtype=torch.float64)).log().sum())
        information = self.mutual_information()
        return Entropies.of(0.0, noise + information, information)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two uniform draws a coordinate."""
        options = {"dtype": torch.float64, "device": generator.device}
        x, noise = torch.rand(2, n, len(self.widths), generator=generator, **options)
        return x, x + (2 * noise - 1) * torch.tensor(self.widths, **options)

"""What is trained: a critic, a log-baseline where the bound has one, and the scales of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PairModel(nn.Module):
    """A critic that takes pairs as they are measured.

    ``model(x, y)`` are the scores of all pairs of raw x and y.

    Attributes:
        critic: Scores of all standardized pairs.
        baseline: Log-baseline of standardized x ``(B, dim_x) -> (B, 1)``, or None.
    """

    mean_x: Tensor
    mean_y: Tensor
    scale_x: Tensor
    scale_y: Tensor

    def __init__(self, critic: nn.Module, baseline: nn.Module | None, x: Tensor, y: Tensor, standardize: bool) -> None:
        super().__init__()
        self.critic = critic
        self.baseline = None if baseline is None else baseline.to(next(critic.parameters()).dtype)
        for name, sample in (("x", x), ("y", y)):
            mean, scale = sample.mean(0), sample.std(0, correction=0)
            scale = torch.where(scale > 0, scale, 1.0)  # a constant column is 0 once its mean is gone
            if not standardize:
                mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
            self.register_buffer(f"mean_{name}", mean)
            self.register_buffer(f"scale_{name}", scale)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores ``(B, C)`` of raw x ``(B, dim_x)`` with raw y ``(C, dim_y)``."""
        return self.critic(*self.standardized(x, y))

    def standardized(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides in units of the training pairs: centered in float64, handed on in the critic's precision."""
        dtype = next(self.critic.parameters()).dtype
        x, y = (x - self.mean_x) / self.scale_x, (y - self.mean_y) / self.scale_y
        return x.to(dtype), y.to(dtype)

    def all_pairs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores ``(B, B)`` of standardized pairs, and the log-baselines ``(B,)``."""
        scores, size = self.critic(x, y), len(x)
        if not isinstance(scores, Tensor) or scores.shape != (size, size):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"critic: expected scores (B, B) = ({size}, {size}) of B pairs, got {got}")
        return scores, self.baselines(x)

    def some_pairs(self, x: Tensor, y: Tensor, shifts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores of the joint pairs ``(B,)`` and of shifted ones ``(B, K)``, and the log-baselines."""
        scores = self.critic.shifted(x, y, (0, *shifts))  # pyright: ignore[reportCallIssue]
        return scores[:, 0], scores[:, 1:], self.baselines(x)

    def baselines(self, x: Tensor) -> Tensor | None:
        """Log-baselines ``(B,)`` of standardized x."""
        return None if self.baseline is None else self.baseline(x).squeeze(-1)

"""Temperatures that depend on the distribution: a rule for `HFSampler`, or a logits processor for other engines.

A rule takes the logits ``[N, V]`` of a decoding step to temperatures ``[N]``. `HFSampler.generate` accepts one as its
``temperature``; `TemperatureProcessor` gives it the interface of transformers' logits processors. Entropy-dependent
rules: `infotorch.losses.adaptive_temperature` (HAPO).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["TemperatureProcessor"]


@dataclass(frozen=True)
class TemperatureProcessor:
    """Divides logits by a rule's temperatures, as a transformers ``LogitsProcessor``.

    Put it first in the list, before top-p and the like, and leave the engine's own temperature at 1.

    Args:
        rule: Logits ``[N, V]`` in float32 to positive temperatures ``[N]``.

    Example:
        >>> import torch
        >>> process = TemperatureProcessor(lambda logits: torch.full((len(logits),), 2.0))
        >>> process(torch.tensor([[3]]), torch.tensor([[1.0, 0.0, -1.0]]))
        tensor([[ 0.5000,  0.0000, -0.5000]])
    """

    rule: Callable[[Tensor], Tensor]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[N, V]`` divided row by row; ``input_ids`` is not looked at."""
        return (scores / self.rule(scores.float()).unsqueeze(-1)).to(scores.dtype)

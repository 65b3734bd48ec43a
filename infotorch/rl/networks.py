"""Networks of the soft actor-critic: in every player two of the same shape, computed together.

Small networks spend their time between operations, not in them: one batched product for both halves that time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from infotorch.rl.soft_actor_critic import Squashed, squash

__all__ = ["SquashedGaussian", "TwinCritic", "TwinMLP"]


class TwinMLP(nn.Module):
    r"""Two perceptrons with ReLU between their layers, which see the same input.

    .. math:: h^{(j)}_{l+1} = \max(0, h^{(j)}_l W^{(j)}_l + b^{(j)}_l), \quad j = 1, 2

    Weights are Xavier uniform, with the gain of ReLU in all layers but the last; biases begin at 0.

    Args:
        sizes: Inputs, hidden layers, outputs.
        generator: Of the initial weights.

    Raises:
        ValueError: Fewer than two sizes, a size that is no positive int.

    >>> TwinMLP((3, 8, 1))(torch.zeros(5, 3)).shape
    torch.Size([2, 5, 1])
    """

    def __init__(self, sizes: Sequence[int], generator: Generator | None = None) -> None:
        super().__init__()
        if len(sizes) < 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
            raise ValueError(f"sizes: expected at least two positive ints, got {tuple(sizes)}")
        self.sizes = tuple(sizes)
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            gain = math.sqrt(2.0) if i < len(sizes) - 2 else 1.0
            bound = gain * math.sqrt(6.0 / (inputs + outputs))
            weight = torch.empty(2, inputs, outputs).uniform_(-bound, bound, generator=generator)
            self.register_parameter(f"weight{i}", nn.Parameter(weight))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(2, 1, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(2, B, outputs)`` of inputs ``(B, inputs)``."""
        h = x.expand(2, *x.shape)
        # Straight from where a module keeps them: looking up names would take as long as a product of small matrices.
        layers: Any = self._parameters.values()
        weight, bias, *rest = layers
        h = torch.baddbmm(bias, h, weight)
        for weight, bias in zip(rest[::2], rest[1::2], strict=True):
            h = torch.baddbmm(bias, h.relu_(), weight)
        return h

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"{self.sizes}"


class SquashedGaussian(nn.Module):
    """Policy with separate networks for mean and log standard deviation.

    Args:
        observation: Length of observations.
        action: Length of actions, each in (-1, 1).
        hidden: Widths of the hidden layers.
        generator: Of the initial weights (Xavier uniform).

    Raises:
        ValueError: A size that is no positive int.

    >>> policy = SquashedGaussian(3, 1, (8,))
    >>> policy(torch.zeros(5, 3), torch.Generator().manual_seed(0)).log_prob.shape
    torch.Size([5])
    """

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: tuple[int, ...] = (256, 256, 256),
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.moments = TwinMLP((observation, *hidden, action), generator)

    def forward(self, observation: Tensor, generator: Generator | None = None) -> Squashed:
        """Draw actions ``(B, action)`` for observations ``(B, observation)``, differentiably."""
        mu, log_std = self.moments(observation).unbind()
        device = mu.device if generator is None else generator.device
        noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=device)
        return squash(mu, log_std, noise.to(mu.device))

    @torch.no_grad()
    def act(self, observation: Tensor, generator: Generator | None = None) -> Tensor:
        """A drawn action, or without a generator the policy's mode."""
        return self.moments(observation)[0].tanh() if generator is None else self(observation, generator).action


class TwinCritic(nn.Module):
    """Two networks that value an observation and an action.

    Args:
        observation, action: Lengths.
        hidden: Widths of the hidden layers.
        generator: Of the initial weights (Xavier uniform).

    Raises:
        ValueError: A size that is no positive int.

    >>> q1, q2 = TwinCritic(3, 1, (8,))(torch.zeros(5, 3), torch.zeros(5, 1))
    >>> q1.shape
    torch.Size([5])
    """

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: tuple[int, ...] = (256, 256, 256),
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.values = TwinMLP((observation + action, *hidden, 1), generator)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both values, ``(B,)``."""
        q1, q2 = self.values(torch.cat((observation, action), -1)).squeeze(-1).unbind()
        return q1, q2

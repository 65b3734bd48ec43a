"""One player: networks, temperature, replay, and its gradient updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from infotorch.core._checks import check_range
from infotorch.rl.soft_actor_critic import (
    SquashedGaussian,
    TwinCritic,
    actor_loss,
    critic_target,
    polyak_,
    temperature_loss,
)

__all__ = ["Player", "Replay", "ReplayRows"]


class ReplayRows(NamedTuple):
    """Rows of a replay buffer: ``(B, d)`` observations and actions, ``(B,)`` rewards and flags."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    absorbing: Tensor
    following: Tensor


class Replay:
    """The last transitions of a player, in memory that grows with them.

    Args:
        observation, action: Lengths.
        capacity: Most transitions kept; the oldest go first.

    Raises:
        ValueError: A size that is not positive, transitions of wrong lengths.

    >>> replay = Replay(2, 1, capacity=10)
    >>> replay.add([0.0, 1.0], [0.5], -1.0, False, [1.0, 1.0])
    >>> replay.sample(3, torch.Generator().manual_seed(0)).reward
    tensor([-1., -1., -1.])
    """

    def __init__(self, observation: int, action: int, capacity: int = 1_000_000) -> None:
        for name, value in {"observation": observation, "action": action, "capacity": capacity}.items():
            check_range(name, value, 1)
        self.splits = (observation, action, 1, 1, observation)
        self.capacity, self.size, self.at = capacity, 0, 0
        self._rows = np.empty((min(capacity, 1024), sum(self.splits)), dtype=np.float32)

    def __len__(self) -> int:
        return self.size

    def add(self, observation: Any, action: Any, reward: float, absorbing: bool, following: Any) -> None:
        """Keep a transition."""
        row = np.concatenate((observation, action, (reward, absorbing), following))
        if row.shape != (self._rows.shape[1],):
            raise ValueError(f"transition: expected {self._rows.shape[1]} numbers, got {len(row)}")
        if self.at == len(self._rows) < self.capacity:
            more = min(2 * self.at, self.capacity) - self.at
            self._rows = np.concatenate((self._rows, np.empty((more, row.size), np.float32)))
        self._rows[self.at] = row
        self.at = (self.at + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, count: int, generator: Generator | None = None, device: torch.device | None = None) -> ReplayRows:
        """Transitions drawn with replacement.

        Raises:
            ValueError: Nothing has been kept yet.
        """
        if not self.size:
            raise ValueError("replay: expected at least one transition, got none")
        index = torch.randint(self.size, (count,), generator=generator)
        rows = torch.from_numpy(self._rows[index.numpy()]).to(device or "cpu")
        observation, action, reward, absorbing, following = rows.split(self.splits, 1)
        return ReplayRows(observation, action, reward.squeeze(1), absorbing.squeeze(1), following)

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""
        return {"rows": torch.from_numpy(self._rows[: self.size].copy()), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._rows, self.at = state["rows"].numpy().copy(), state["at"]
        self.size = len(self._rows)
        if not self.size:
            self._rows = np.empty((min(self.capacity, 1024), sum(self.splits)), dtype=np.float32)


class Player(nn.Module):
    """A soft actor-critic that takes the other player for part of the environment.

    Args:
        observation, action: Lengths.
        conditioned: The last entry of an observation is the player's temperature. Otherwise it learns one.
        temperature: The learned temperature at the beginning.
        hidden: Widths of the hidden layers.
        generator: Of the initial weights.

    Raises:
        ValueError: A size that is no positive int, a temperature that is not positive.

    >>> Player(3, 1, hidden=(8,)).temperature(torch.zeros(2, 3))
    tensor(0.0050)
    >>> Player(3, 1, hidden=(8,), conditioned=True).temperature(torch.tensor([[1.0, 1.0, 0.02]]))
    tensor([0.0200])
    """

    def __init__(
        self,
        observation: int,
        action: int,
        *,
        conditioned: bool = False,
        temperature: float = 0.005,
        hidden: tuple[int, ...] = (256, 256, 256),
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_range("temperature", temperature, 0.0, math.inf, low_open=True, high_open=True)
        self.actor = SquashedGaussian(observation, action, hidden, generator)
        self.critic = TwinCritic(observation, action, hidden, generator)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = None if conditioned else nn.Parameter(torch.tensor(math.log(temperature)))
        self.target_entropy = -float(action)

    def temperature(self, observation: Tensor) -> Tensor:
        """Temperatures of the given observations, ``(B,)`` or ``()``."""
        return observation[:, -1] if self.log_temperature is None else self.log_temperature.detach().exp()

    def optimizers(self, lr_actor: float = 1e-4, lr_critic: float = 3e-4) -> list[torch.optim.Optimizer]:
        """Adam for policy, critics and, where it is learned, the temperature (at the critics' rate)."""
        groups = [(self.actor.parameters(), lr_actor), (self.critic.parameters(), lr_critic)]
        if self.log_temperature is not None:
            groups.append((iter([self.log_temperature]), lr_critic))
        return [torch.optim.Adam(parameters, lr=lr, fused=True) for parameters, lr in groups]

    def update(
        self,
        batch: ReplayRows,
        optimizers: Sequence[Any],
        *,
        gamma: float = 0.99,
        tau: float = 0.005,
        generator: Generator | None = None,
        policy: bool = True,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> dict[str, Tensor]:
        """One gradient step of the critics and, with ``policy``, of policy and temperature.

        Args:
            batch: Transitions.
            optimizers: As `optimizers` gives them.
            gamma: Discount.
            tau: Share of the critics that moves into the target critics.
            generator: Of the actions drawn.
            policy: Whether the policy is updated too.
            backward: How gradients are taken.

        Returns:
            Losses, and the entropy of the policy in nats, detached.
        """
        metrics = {}
        with torch.no_grad():
            ahead = self.actor(batch.following, generator)
            q1, q2 = self.target(batch.following, ahead.action)
            target = critic_target(
                batch.reward,
                batch.absorbing,
                q1,
                q2,
                ahead.log_prob,
                self.temperature(batch.following),
                gamma,
            )
        if policy:
            own = self.actor(batch.observation, generator)
            self.critic.requires_grad_(False)
            q1, q2 = self.critic(batch.observation, own.action)
            loss = actor_loss(own.log_prob, q1, q2, self.temperature(batch.observation))
            self.critic.requires_grad_(True)
            metrics |= {"actor": loss.detach(), "entropy": -own.log_prob.detach().mean()}
            _descend(optimizers[0], loss, backward)
            if self.log_temperature is not None:
                loss = temperature_loss(self.log_temperature, own.log_prob, self.target_entropy)
                _descend(optimizers[2], loss, backward)
        q1, q2 = self.critic(batch.observation, batch.action)
        loss = (q1 - target).square().mean() + (q2 - target).square().mean()
        metrics["critic"] = loss.detach()
        _descend(optimizers[1], loss, backward)
        polyak_(self.target, self.critic, tau)
        return metrics


def _descend(optimizer: Any, loss: Tensor, backward: Callable[[Tensor], Any]) -> None:
    optimizer.zero_grad(set_to_none=True)
    backward(loss)
    optimizer.step()

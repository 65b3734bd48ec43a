"""One player: networks, temperature, and its gradient updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from infotorch.core._checks import check_range
from infotorch.rl.networks import SquashedGaussian, TwinCritic
from infotorch.rl.replay import Transitions
from infotorch.rl.soft_actor_critic import (
    actor_loss,
    critic_target,
    polyak_,
    temperature_loss,
)

__all__ = ["Player"]


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

    def optimizer(self, lr_actor: float = 1e-4, lr_critic: float = 3e-4) -> torch.optim.Adam:
        """Adam for policy, critics and, where it is learned, the temperature (at the critics' rate)."""
        groups = [(self.actor, lr_actor), (self.critic, lr_critic)]
        parameters: list[dict[str, Any]] = [{"params": list(net.parameters()), "lr": lr} for net, lr in groups]
        if self.log_temperature is not None:
            parameters.append({"params": [self.log_temperature], "lr": lr_critic})
        return torch.optim.Adam(parameters, fused=True)

    def update(
        self,
        batch: Transitions,
        optimizer: Any,
        *,
        tau: float = 0.005,
        generator: Generator | None = None,
        policy: bool = True,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> dict[str, Tensor]:
        """One gradient step of the critics and, with ``policy``, of policy and temperature.

        Args:
            batch: Transitions, with continuous actions.
            optimizer: As `optimizer` gives it.
            tau: Share of the critics that moves into the target critics.
            generator: Of the actions drawn.
            policy: Whether the policy is updated too.
            backward: How gradients are taken.

        Returns:
            Losses, and the entropy of the policy in nats, detached.
        """
        with torch.no_grad():
            ahead = self.actor(batch.next_obs, generator)
            q1, q2 = self.target(batch.next_obs, ahead.action)
            target = critic_target(
                batch.reward,
                batch.discount == 0,
                q1,
                q2,
                ahead.log_prob,
                self.temperature(batch.next_obs),
                batch.discount,
            )
        # No parameter is in two of the losses, so that one step takes them all.
        q1, q2 = self.critic(batch.obs, batch.action)
        losses = {"critic": (q1 - target).square().mean() + (q2 - target).square().mean()}
        metrics = {}
        if policy:
            own = self.actor(batch.obs, generator)
            self.critic.requires_grad_(False)
            q1, q2 = self.critic(batch.obs, own.action)
            self.critic.requires_grad_(True)
            losses["actor"] = actor_loss(own.log_prob, q1, q2, self.temperature(batch.obs))
            metrics["entropy"] = -own.log_prob.detach().mean()
            if self.log_temperature is not None:
                losses["temperature"] = temperature_loss(self.log_temperature, own.log_prob, self.target_entropy)
        optimizer.zero_grad(set_to_none=True)
        backward(torch.stack(tuple(losses.values())).sum())
        optimizer.step()
        polyak_(self.target, self.critic, tau)
        return metrics | {name: losses[name].detach() for name in ("critic", "actor") if name in losses}

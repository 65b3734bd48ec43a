"""Playing an episode with one player or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator

from infotorch.rl.adversary import AdversaryWrapper, Turn
from infotorch.rl.networks import SquashedGaussian
from infotorch.rl.replay import Transitions

__all__ = ["Act", "Outcome", "act_with", "play_against"]

Act = Callable[[np.ndarray], np.ndarray]


class Outcome(NamedTuple):
    """What the protagonist earned: summed, and discounted; and the number of steps."""

    total: float
    discounted: float
    steps: int


def act_with(policy: SquashedGaussian, generator: Generator | None = None) -> Act:
    """A policy as a function of arrays; drawn actions with a generator, else the mode."""
    weight = next(policy.parameters())

    def act(observation: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(observation).to(weight).unsqueeze(0)
        return policy.act(seen, generator)[0].float().cpu().numpy()

    return act


def transition(
    seen: np.ndarray, action: np.ndarray, reward: float, turn: Turn, following: np.ndarray, gamma: float
) -> Transitions:
    """One row for a player's replay: its own action and reward, what it saw before and after."""
    rows = (np.asarray(x, dtype=np.float32)[None] for x in (seen, action, reward, following))
    obs, acted, earned, next_obs = map(torch.from_numpy, rows)
    return Transitions(obs, acted, earned, next_obs, torch.tensor([0.0 if turn.absorbing else gamma]))


def play_against(
    env: AdversaryWrapper,
    protagonist: Act,
    adversary: Act | None = None,
    *,
    seed: int | None = None,
    temperature: float | None = None,
    force: float = 1.0,
    gamma: float = 0.99,
    after_step: Callable[..., Any] | None = None,
) -> Outcome:
    """Play until the environment ends the episode.

    Args:
        env: The environment.
        protagonist: From observation to action in [-1, 1].
        adversary: From observation to force in [-1, 1]; None for no force.
        seed: Of the environment's start.
        temperature: Appended to the observations of both; None for nothing.
        force: Bound of the adversary's actions, at most 1.
        gamma: Discount.
        after_step: Called with observation, action, force, `Turn` and next observation, the last two as the
            players see them.

    >>> import gymnasium
    >>> env = AdversaryWrapper(gymnasium.make("Pendulum-v1", max_episode_steps=5), ["pole"], "x")
    >>> play_against(env, lambda observation: np.zeros(1), seed=0).steps
    5
    """
    extra = np.array([] if temperature is None else [temperature], dtype=np.float32)
    seen = np.concatenate((env.reset(seed), extra))
    total, discounted, weight, steps = 0.0, 0.0, 1.0, 0
    while True:
        action = protagonist(seen)
        push = None if adversary is None else adversary(seen).clip(-force, force)
        turn = env.step(action, push)
        following = np.concatenate((turn.observation, extra))
        if after_step is not None:
            after_step(seen, action, push, turn, following)
        total, discounted, weight, steps = (
            total + turn.reward,
            discounted + weight * turn.reward,
            weight * gamma,
            steps + 1,
        )
        if turn.over:
            return Outcome(total, discounted, steps)
        seen = following

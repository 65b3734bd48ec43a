"""How robust a trained policy is: over physical parameters, and against an adversary trained for it alone.

Reference: A. Reddi et al., 2024, arXiv:2311.01642.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from infotorch.core._checks import check_range
from infotorch.rl.adversary import AdversaryWrapper, Turn
from infotorch.rl.episodes import Act, act_with, play_against, transition
from infotorch.rl.player import Player
from infotorch.rl.replay import ReplayBuffer

__all__ = ["Grid", "fresh_adversary", "robustness_grid"]


class Grid(NamedTuple):
    """Returns over two physical parameters.

    Attributes:
        names: Of the parameters.
        values: Of each, those tried.
        returns: Mean undiscounted returns, one row per value of the first.
        score: Mean over the grid.
    """

    names: tuple[str, str]
    values: tuple[list[float], list[float]]
    returns: Tensor
    score: float


def robustness_grid(
    env: AdversaryWrapper,
    protagonist: Act,
    parameters: Mapping[str, Sequence[float]],
    *,
    episodes: int = 1,
    temperature: float | None = None,
    seed: int = 0,
) -> Grid:
    """Returns without an adversary over a grid of two physical parameters.

    Args:
        env: The environment; its parameters are put back in the end.
        protagonist: From observation to action.
        parameters: Two names of :func:`infotorch.rl.set_parameter`, each with the values to try.
        episodes: Per point; all points get the same starts.
        temperature: Appended to observations: 0 for a policy that was trained to see one.
        seed: Of the starts.

    Raises:
        ValueError: Not two parameters, no values, unknown names, values that are not positive.

    >>> import gymnasium, numpy
    >>> env = AdversaryWrapper(gymnasium.make("Pendulum-v1", max_episode_steps=5), ["pole"], "x")
    >>> masses = {"mass": [0.5, 1.0, 2.0], "length": [1.0, 1.5]}
    >>> robustness_grid(env, lambda observation: numpy.zeros(1), masses).returns.shape
    torch.Size([3, 2])
    """
    if len(parameters) != 2 or not all(len(values) for values in parameters.values()):
        raise ValueError(f"parameters: expected two names, each with values, got {dict(parameters)}")
    check_range("episodes", episodes, 1)
    (row_name, rows), (column_name, columns) = parameters.items()
    before: dict[str, float] = {}
    returns = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    try:
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                for name, value in ((row_name, row), (column_name, column)):
                    before.setdefault(name, env.set_parameter(name, value))
                played = [
                    play_against(env, protagonist, seed=seed + k, temperature=temperature) for k in range(episodes)
                ]
                returns[i, j] = mean(episode.total for episode in played)
    finally:
        for name, value in before.items():
            env.set_parameter(name, value)
    return Grid((row_name, column_name), (list(rows), list(columns)), returns, float(returns.mean()))


def fresh_adversary(
    env: AdversaryWrapper,
    protagonist: Act,
    *,
    steps: int,
    temperature: float = 0.005,
    temperature_seen: float | None = None,
    initial: int = 1000,
    batch: int = 256,
    steps_per_update: int = 1,
    lr_actor: float = 3e-4,
    lr_critic: float = 3e-4,
    gamma: float = 0.99,
    hidden: tuple[int, ...] = (256, 256, 256),
    seed: int = 0,
) -> Act:
    """The worst case: an adversary that a soft actor-critic trains against a policy that no longer learns.

    Args:
        env: The environment.
        protagonist: From observation to action; fixed.
        steps: Steps in the environment.
        temperature: The adversary's at the beginning; it is learned.
        temperature_seen: Appended to observations: 0 for a protagonist that was trained to see one.
        initial: Steps before the first gradient step.
        batch: Transitions of a gradient step.
        steps_per_update: Steps in the environment per gradient step.
        lr_actor: Learning rate of the policy.
        lr_critic: Learning rate of critics and temperature.
        gamma: Discount.
        hidden: Widths of the hidden layers.
        seed: Of weights, starts and actions.

    Returns:
        The mode of its actions, as a function of observations.

    Raises:
        ValueError: An option out of range.

    >>> import gymnasium, numpy
    >>> env = AdversaryWrapper(gymnasium.make("Pendulum-v1", max_episode_steps=5), ["pole"], "xz")
    >>> worst = fresh_adversary(env, lambda observation: numpy.zeros(1), steps=10, hidden=(8,))
    >>> worst(env.reset(seed=0)).shape
    (2,)
    """
    for name, value in {
        "steps": steps,
        "initial": initial,
        "batch": batch,
        "steps_per_update": steps_per_update,
    }.items():
        check_range(name, value, 1, math.inf, high_open=True)
    generator = Generator().manual_seed(seed)
    seen = env.observation_size + (temperature_seen is not None)
    player = Player(seen, env.adversary_size, temperature=temperature, hidden=hidden, generator=generator)
    replay, optimizer = ReplayBuffer(steps, seed=seed), player.optimizer(lr_actor, lr_critic)
    done = 0

    def learn(seen: Any, action: Any, push: Any, turn: Turn, following: Any) -> None:
        nonlocal done
        done += 1
        replay.add(transition(seen, push, -turn.reward, turn, following, gamma))
        if initial <= done <= steps and done % steps_per_update == 0:
            player.update(replay.sample(batch)[0], optimizer, generator=generator)

    drawn, episode = act_with(player.actor, generator), 0
    while done < steps:
        play_against(
            env,
            protagonist,
            drawn,
            seed=seed * 1_009 + episode,
            temperature=temperature_seen,
            gamma=gamma,
            after_step=learn,
        )
        episode += 1
    return act_with(player.actor)

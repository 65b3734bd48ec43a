"""Vector environments of gymnasium: transitions of n steps, resets and truncation done right, and exact resumption.

Gymnasium resets finished environments in three ways, and each has its trap. With ``SAME_STEP`` the observation returned
at the end is already that of the next episode (the last one is in ``infos``); with ``NEXT_STEP``, gymnasium's default,
one further step ignores its action and must not be stored; with ``DISABLED`` the caller resets. All three give the same
transitions here. An episode that is cut off by a time limit (truncated) goes on bootstrapping from its last
observation; one that terminated does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_no_nan
from infotorch.rl.replay import Transitions

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Collector", "Episode", "check_spaces", "make_envs", "play"]


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        step: Environment steps taken so far, over all environments.
        reward: Undiscounted sum.
        length: Steps.
        env: Which environment.
    """

    step: int
    reward: float
    length: int
    env: int


def make_envs(
    env_id: str, count: int = 1, *, wrap: Callable[[Any], Any] | None = None, **options: Any
) -> gymnasium.vector.SyncVectorEnv:
    """Vector environment whose episodes are reset with seeds of their own, so that training can be resumed exactly.

    Args:
        env_id: Gymnasium's name; those that begin with ``MinAtar/`` are registered first.
        count: Environments.
        wrap: Applied to each, a wrapper for instance. What it draws must come from the environment's ``np_random``.
        **options: Of ``gymnasium.make``.

    Raises:
        ValueError: ``count`` is not positive.
        ModuleNotFoundError: Gymnasium, or MinAtar for its games, is not installed.
    """
    import gymnasium as gym

    if count < 1:
        raise ValueError(f"count: expected a positive int, got {count}")
    small = env_id.startswith("MinAtar/")
    if small and env_id not in gym.registry:
        from minatar.gym import register_envs

        register_envs()

    class FreshGame(gym.Wrapper):
        """MinAtar repeats the last action now and then; an episode must not begin with that of the one before."""

        def reset(self, **given: Any) -> Any:
            self.unwrapped.game.last_action = 0  # pyright: ignore[reportAttributeAccessIssue]
            return self.env.reset(**given)

    def make() -> Any:
        env = gym.make(env_id, **options)
        env = FreshGame(env) if small else env
        return env if wrap is None else wrap(env)

    return gym.vector.SyncVectorEnv([make] * count, autoreset_mode=gym.vector.AutoresetMode.DISABLED)


def check_spaces(envs: Any) -> tuple[tuple[int, ...], int]:
    """Shape of an observation and number of actions.

    Raises:
        TypeError: Not a vector environment of gymnasium.
        ValueError: Observations that are no array, actions that are not discrete from 0 on.
    """
    from gymnasium import spaces
    from gymnasium.vector import VectorEnv

    if not isinstance(envs, VectorEnv):
        raise TypeError(f"envs: expected a gymnasium.vector.VectorEnv (see make_envs), got {type(envs).__name__}")
    obs, action = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs, spaces.Box):
        raise ValueError(f"envs: expected observations in a Box, got {obs}")
    if not isinstance(action, spaces.Discrete) or action.start != 0:
        raise ValueError(f"envs: expected actions in Discrete(n) that start at 0, got {action}")
    return tuple(obs.shape), int(action.n)


class Collector:
    r"""Steps a vector environment and hands out transitions of up to n steps.

    .. math:: R = \sum_{k < n} \gamma^k r_{t+k}, \qquad \gamma' = \gamma^n [s' \text{ is not terminal}]

    At the end of an episode the steps that are left are handed out over fewer steps.

    With environments that do not reset themselves (:func:`make_envs`) every episode has a seed of its own, drawn from
    ``(seed, environment, episode)``. ``state_dict`` holds these seeds and the actions of the running episodes, and
    ``load_state_dict`` plays them again: training resumes in the middle of an episode exactly, in every environment
    whose randomness comes from its seed. Environments that reset themselves cannot be seeded in the middle; they resume
    with fresh episodes, and a warning says so.

    Args:
        envs: Vector environment.
        gamma: Discount.
        n_step: Steps n of a transition.
        seed: Of the episodes.

    Attributes:
        obs: Current observations ``(N, ...)``.
        steps: Environment steps taken.
        episodes: Finished episodes.

    Raises:
        TypeError: Not a vector environment.
        ValueError: Spaces that do not fit, ``gamma`` outside [0, 1], ``n_step`` below 1, a negative seed.
    """

    def __init__(self, envs: Any, *, gamma: float = 0.99, n_step: int = 1, seed: int = 0) -> None:
        from gymnasium.vector import AutoresetMode

        check_spaces(envs)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma: expected a number in [0, 1], got {gamma}")
        if n_step < 1:
            raise ValueError(f"n_step: expected a positive int, got {n_step}")
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative int, got {seed}")
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._mode = AutoresetMode(mode).name
        self.envs, self.gamma, self.n_step, self.seed = envs, gamma, n_step, seed
        self.steps, self.episodes = 0, list[Episode]()
        self._numbers = [0] * envs.num_envs
        self._reset()

    def _reset(self) -> None:
        # Environments that are one batch of states, and not a list of environments, take a single seed.
        many, seeds = hasattr(self.envs.unwrapped, "env_fns"), self._seeds()
        self._start(*self.envs.reset(seed=seeds if many or self._mode == "DISABLED" else seeds[0]))

    def _start(self, obs: Any, _: Any = None) -> None:
        count = self.envs.num_envs
        self.obs = _tensor(obs)
        self._waiting: list[list[tuple[Tensor, int, float]]] = [[] for _ in range(count)]
        self._actions: list[list[int]] = [[] for _ in range(count)]
        self._rewards, self._lengths = [0.0] * count, [0] * count
        self._skip = np.zeros(count, dtype=bool)  # NEXT_STEP: the coming step is a reset

    def _seeds(self) -> list[int]:
        """One for each environment's current episode."""
        keys = [(self.seed, env, number) for env, number in enumerate(self._numbers)]
        return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]

    def step(self, actions: Tensor) -> Transitions | None:
        """Take one step in every environment; the transitions that are complete now, or None.

        Raises:
            ValueError: A shape other than ``(N,)``, a reward that is not finite, an observation with NaN.
        """
        if actions.shape != (self.envs.num_envs,):
            raise ValueError(f"actions: expected shape ({self.envs.num_envs},), got {tuple(actions.shape)}")
        before = self.obs
        found, rewards, terminated, truncated, infos = self.envs.step(actions.numpy())
        if not np.isfinite(rewards).all():
            raise ValueError(f"envs: expected finite rewards, got {rewards}")
        self.obs = after = check_no_nan("envs", _tensor(found))
        done = terminated | truncated
        if done.any() and self._mode == "SAME_STEP":
            after = after.clone()
            for env in np.flatnonzero(done):
                after[env] = _tensor(infos["final_obs"][env])
        out: list[tuple[Tensor, int, float, Tensor, float]] = []
        skipped, self._skip = self._skip, done & (self._mode == "NEXT_STEP")
        for env in np.flatnonzero(~skipped):
            self.steps += 1
            queue = self._waiting[env]
            queue.append((before[env], int(actions[env]), float(rewards[env])))
            if self._mode == "DISABLED":  # what a resumption plays again
                self._actions[env].append(int(actions[env]))
            self._rewards[env] += float(rewards[env])
            self._lengths[env] += 1
            while queue and (done[env] or len(queue) == self.n_step):
                total = sum(self.gamma**k * reward for k, (_, _, reward) in enumerate(queue))
                discount = 0.0 if terminated[env] else self.gamma ** len(queue)
                out.append((*queue.pop(0)[:2], total, after[env], discount))
            if done[env]:
                self.episodes.append(Episode(self.steps, self._rewards[env], self._lengths[env], int(env)))
                self._rewards[env], self._lengths[env], self._actions[env] = 0.0, 0, []
                self._numbers[env] += 1
        if done.any() and self._mode == "DISABLED":
            self.obs = _tensor(self.envs.reset(seed=self._seeds(), options={"reset_mask": done})[0])
        if not out:
            return None
        obs, action, reward, following, discount = zip(*out, strict=True)
        floats = [torch.tensor(x, dtype=torch.float32) for x in (reward, discount)]
        return Transitions(torch.stack(obs), torch.tensor(action), floats[0], torch.stack(following), floats[1])

    # -- resumption ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs; tensors and plain numbers only."""
        return {
            "obs": self.obs.clone(),
            "steps": self.steps,
            "episodes": [tuple(episode) for episode in self.episodes],
            "numbers": list(self._numbers),
            "actions": [torch.tensor(taken, dtype=torch.int64) for taken in self._actions],
            "rewards": list(self._rewards),
            "waiting": [[tuple(row) for row in queue] for queue in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the running episodes again, or begin fresh ones where that is impossible (with a warning).

        Raises:
            ValueError: Another number of environments.
        """
        if len(state["numbers"]) != self.envs.num_envs:
            raise ValueError(f"state: expected {self.envs.num_envs} environments, got {len(state['numbers'])}")
        self.steps, self.episodes = state["steps"], [Episode(*row) for row in state["episodes"]]
        self._numbers = list(state["numbers"])
        why = "they reset themselves"
        if self._mode == "DISABLED":
            taken = [row.tolist() for row in state["actions"]]
            again = self._replay(taken)
            if again is not None and torch.equal(again, state["obs"]):
                self._start(again.numpy())
                self._actions, self._rewards = taken, list(state["rewards"])
                self._lengths = [len(row) for row in taken]
                self._waiting = [[(obs, int(a), float(r)) for obs, a, r in queue] for queue in state["waiting"]]
                return
            why = "the same seed and actions led elsewhere"
        warnings.warn(f"envs: the running episodes cannot be resumed, {why}; fresh ones begin", stacklevel=2)
        self._numbers = [number + 1 for number in self._numbers]
        self._reset()

    def _replay(self, taken: list[list[int]]) -> Tensor | None:
        """Observations after the given actions; None where an episode ends before them.

        All environments step together, so the shorter episodes begin later: until then theirs take action 0.
        """
        longest, seeds = max(map(len, taken)), self._seeds()
        starts = np.array([longest - len(row) for row in taken])
        found, _ = self.envs.reset(seed=seeds)
        done = np.zeros(len(taken), dtype=bool)
        for t in range(longest + 1):
            begin = (starts == t) & (t > 0) | (done & (t < starts))
            if (done & ~begin).any():
                return None
            if begin.any():
                found, _ = self.envs.reset(seed=seeds, options={"reset_mask": begin})
            if t < longest:
                now = [row[t - start] if t >= start else 0 for row, start in zip(taken, starts, strict=True)]
                found, _, terminated, truncated, _ = self.envs.step(np.array(now))
                done = terminated | truncated
        return _tensor(found)


def play(policy: Callable[[Tensor], Tensor], envs: Any, episodes: int, *, seed: int = 0) -> list[Episode]:
    """Episodes under a policy: the first ones of every environment, so that short ones do not count more.

    Args:
        policy: Actions ``(N,)`` for observations ``(N, ...)``.
        envs: Vector environment.
        episodes: Their number, rounded up to a multiple of the environments.
        seed: Of the episodes.

    Raises:
        ValueError: No episode is asked for, and what :class:`Collector` refuses.
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected a positive int, got {episodes}")
    collector, each = Collector(envs, seed=seed), -(-episodes // envs.num_envs)
    while min(collector._numbers) < each:
        collector.step(policy(collector.obs).cpu())
    count = [0] * envs.num_envs
    kept = []
    for episode in collector.episodes:
        count[episode.env] += 1
        if count[episode.env] <= each:
            kept.append(episode)
    return kept


def _tensor(x: Any) -> Tensor:
    # Vector environments may hand out the same array again and again.
    return torch.from_numpy(np.array(x, copy=True))

r"""DQN whose action values are classified: HL-Gauss, two-hot and C51 beside the squared and Huber's error.

Only the head changes the loss: all else (replay, double Q-learning, n steps, target network) is the same, so that heads
can be compared.

References:
    - V. Mnih et al., "Human-level control through deep reinforcement learning", 2015.
    - J. Farebrother et al., "Stop regressing", 2024, arXiv:2403.03950.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed as dist
from infotorch.core._checks import check_range
from infotorch.rl.collect import Collector, Episode, check_spaces, make_envs
from infotorch.rl.learner import QLearner
from infotorch.rl.replay import ReplayBuffer

__all__ = ["CategoricalDQN", "linear_epsilon"]


def linear_epsilon(step: int, start: float, end: float, steps: int) -> float:
    """Share of random actions: from ``start`` to ``end`` within ``steps``, then constant.

    >>> linear_epsilon(50, 1.0, 0.0, 100), linear_epsilon(500, 1.0, 0.0, 100)
    (0.5, 0.0)
    """
    return end if step >= steps else start + (end - start) * step / steps


class CategoricalDQN(QLearner):
    """DQN with any value head, as a Lightning module that collects its own data.

    A training step takes ``steps_per_update`` steps in every environment and makes one update. Train with
    ``Trainer(max_steps=..., max_epochs=-1)``. Under data parallelism every process has environments and replay of its
    own; gradients are averaged, and a checkpoint holds the first process's data (the others fill their replay again).

    A checkpoint holds replay, random states and the running episodes: resumed training is that which was not
    interrupted, bit for bit, with environments from :func:`~infotorch.rl.make_envs`
    (others begin fresh episodes, see :class:`~infotorch.rl.Collector`).

    Args:
        envs: Gymnasium's name of an environment, or a vector environment in any reset mode.
        head: ``"hl_gauss"``, ``"two_hot"``, ``"c51"``, ``"mse"``, ``"huber"``, or a head.
        num_envs: Environments, where a name is given.
        gamma: Discount.
        n_step: Steps of a transition.
        capacity: Transitions in the replay.
        learning_starts: Transitions before the first update.
        steps_per_update: Steps in every environment before each update.
        epsilon: Share of random actions at the start and after ``epsilon_steps`` environment steps.
        epsilon_steps: See ``epsilon``.
        alpha: Exponent of the priorities; 0 draws uniformly. The error is that of the values, for every head.
        beta: Exponent of the weights that make up for priorities.
        seed: Of weights, environments, actions and draws.
        **options: Of :class:`~infotorch.rl.learner.QLearner`: ``v_min``, ``v_max``, ``bins``, ``head_options``,
            ``hidden``, ``body``, ``double``, ``lr``, ``batch_size``, ``target_sync``, ``log_every``.

    Attributes:
        collector: Environments and finished episodes.
        replay: The buffer.

    Raises:
        TypeError: ``envs`` is no vector environment.
        ValueError: Spaces that do not fit, options out of range.

    Reference: J. Farebrother et al., 2024, arXiv:2403.03950.

    Deviations: priorities from the error of the values for all heads, where Rainbow takes C51's loss.

    >>> from lightning import Trainer
    >>> dqn = CategoricalDQN("CartPole-v1", v_min=0.0, v_max=100.0, hidden=(16,), learning_starts=64, batch_size=32)
    >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    >>> trainer = Trainer(max_steps=20, max_epochs=-1, accelerator="cpu", enable_model_summary=False, **quiet)
    >>> trainer.fit(dqn)
    >>> dqn.updates, len(dqn.replay)
    (20, 84)
    """

    def __init__(
        self,
        envs: Any,
        head: Any = "hl_gauss",
        *,
        num_envs: int = 1,
        gamma: float = 0.99,
        n_step: int = 1,
        capacity: int = 50_000,
        learning_starts: int = 1_000,
        steps_per_update: int = 1,
        epsilon: tuple[float, float] = (1.0, 0.05),
        epsilon_steps: int = 5_000,
        alpha: float = 0.0,
        beta: float = 0.4,
        seed: int = 0,
        **options: Any,
    ) -> None:
        envs = make_envs(envs, num_envs) if isinstance(envs, str) else envs
        shape, actions = check_spaces(envs)
        super().__init__(shape, actions, head, seed=seed, **options)
        if seed < 0:
            raise ValueError(f"seed: expected a non-negative int, got {seed}")
        if not 1 <= learning_starts <= capacity:
            raise ValueError(f"learning_starts: expected 1 to capacity={capacity}, got {learning_starts}")
        if steps_per_update < 1 or epsilon_steps < 1:
            raise ValueError(
                f"steps_per_update, epsilon_steps: expected positive ints, got {steps_per_update}, {epsilon_steps}"
            )
        for value in epsilon:
            check_range("epsilon", value, 0.0, 1.0)
        self.learning_starts, self.steps_per_update = learning_starts, steps_per_update
        self.epsilon, self.epsilon_steps = epsilon, epsilon_steps
        self._stepping = {"gamma": gamma, "n_step": n_step}
        self._drawing = {"alpha": alpha, "beta": beta}
        self._begin(envs, capacity)

    def _begin(self, envs: Any, capacity: int) -> None:
        own = self.seed * 1_009 + dist.rank()
        self.collector = Collector(envs, **self._stepping, seed=own)
        self.replay = ReplayBuffer(capacity, **self._drawing, seed=own)
        self.generator = torch.Generator().manual_seed(own)

    def setup(self, stage: str) -> None:
        """Begin again in all processes but the first: the module was built before they knew of each other."""
        if dist.rank() and not self.updates:
            self._begin(self.collector.envs, self.replay.capacity)

    @property
    def episodes(self) -> list[Episode]:
        """Finished training episodes."""
        return self.collector.episodes

    def collect(self) -> None:
        """One step in every environment, with random actions now and then."""
        count = self.collector.envs.num_envs
        share = linear_epsilon(self.collector.steps, *self.epsilon, self.epsilon_steps)
        random = torch.randint(self.network.actions, (count,), generator=self.generator)
        explore = torch.rand(count, generator=self.generator) < share
        actions = random if bool(explore.all()) else torch.where(explore, random, self.act(self.collector.obs))
        if (rows := self.collector.step(actions)) is not None:
            self.replay.add(rows)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Collect, draw, and the loss of what was drawn."""
        while len(self.replay) < self.learning_starts:
            self.collect()
        for _ in range(self.steps_per_update):
            self.collect()
        rows, index, weight = self.replay.sample(self.batch_size)
        rows = rows.to(self.device)
        found = self.temporal(rows)
        self.replay.update(index, found.error)
        recent = [episode.reward for episode in self.episodes[-20:]]
        self.log_update(found, rows, episode_return=sum(recent) / max(len(recent), 1))
        return (weight.to(found.loss) * found.loss).mean()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add replay, episodes and random states of this process."""
        checkpoint["dqn"] = {
            "updates": self.updates,
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "generator": self.generator.get_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with them; a file has those of the first process only, and the others collect anew."""
        state = checkpoint["dqn"]
        self.updates = state["updates"]
        if dist.rank():
            return
        self.replay.load_state_dict(state["replay"])
        self.collector.load_state_dict(state["collector"])
        self.generator.set_state(state["generator"])

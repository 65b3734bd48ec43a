r"""Learning values from a fixed set of transitions, with the conservative penalty.

.. math:: L = L_{TD} + \alpha \, \Big( \log \sum_a e^{Q(s,a)} - Q(s, a_D) \Big)

with the head's own :math:`L_{TD}` and the expected values Q. Reference: A. Kumar et al., "Conservative Q-learning for
offline reinforcement learning", 2020, arXiv:2006.04779; J. Farebrother et al., 2024, arXiv:2403.03950.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed as dist
from infotorch.core._checks import check_no_nan, check_range
from infotorch.rl.learner import QLearner
from infotorch.rl.replay import Transitions
from infotorch.rl.td import cql_penalty

__all__ = ["OfflineDQN"]


class OfflineDQN(QLearner):
    """Q-learning with any value head on a fixed set of transitions (CQL for discrete actions).

    Train with ``Trainer(max_steps=..., max_epochs=-1)``. Batches are drawn with replacement; a checkpoint holds the
    state of the draws, not the data.

    Args:
        data: Transitions, with the discount in them.
        actions: Number of actions.
        head: As in :class:`~infotorch.rl.CategoricalDQN`.
        cql: Weight of the penalty; 0 is plain Q-learning.
        seed: Of weights and draws.
        **options: Of :class:`~infotorch.rl.learner.QLearner`.

    Raises:
        ValueError: Rows that do not fit together, actions out of range, NaN, a negative weight.

    Reference: A. Kumar et al., 2020, arXiv:2006.04779.

    >>> rows = torch.randn(50, 3)
    >>> data = Transitions(rows, torch.arange(50) % 2, torch.ones(50), rows, torch.full((50,), 0.9))
    >>> OfflineDQN(data, 2, "two_hot", v_min=0.0, v_max=10.0).act(rows).shape
    torch.Size([50])
    """

    def __init__(
        self,
        data: Transitions,
        actions: int,
        head: Any = "hl_gauss",
        *,
        cql: float = 0.1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        data.check(actions)
        check_no_nan("obs", data.obs)
        check_no_nan("next_obs", data.next_obs)
        super().__init__(data.obs.shape[1:], actions, head, seed=seed, **options)
        self.data, self.cql = data, check_range("cql", cql, 0.0, float("inf"), high_open=True)
        self.generator = torch.Generator().manual_seed(seed)

    def setup(self, stage: str) -> None:
        """Other draws in every process."""
        if dist.rank() and not self.updates:
            self.generator.manual_seed(self.seed * 1_009 + dist.rank())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draw rows; the head's loss and the penalty."""
        index = torch.randint(len(self.data.obs), (self.batch_size,), generator=self.generator)
        rows = Transitions(*(x[index] for x in self.data)).to(self.device)
        found = self.temporal(rows)
        penalty = cql_penalty(found.values, rows.action).mean()
        self.log_update(found, rows, penalty=penalty)
        return found.loss.mean() + self.cql * penalty

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the draws."""
        checkpoint["offline"] = {"updates": self.updates, "generator": self.generator.get_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with it."""
        self.updates = checkpoint["offline"]["updates"]
        if dist.rank():  # a file has the first process's draws
            self.generator.manual_seed((self.seed * 1_009 + dist.rank()) * 1_009 + self.updates)
        else:
            self.generator.set_state(checkpoint["offline"]["generator"])

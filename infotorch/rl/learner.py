"""What online and offline learners share: two networks, the head, target updates, and logs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from infotorch.core._checks import check_range
from infotorch.rl.collect import Episode, play
from infotorch.rl.heads import HEADS, QNetwork, ValueHead, value_head
from infotorch.rl.replay import Transitions
from infotorch.rl.td import Temporal, temporal_difference

__all__ = ["QLearner"]


class _Updates(IterableDataset[int]):
    """One item for every update, without end; ``Trainer(max_steps=...)`` ends it."""

    def __iter__(self) -> Any:
        while True:
            yield 0


class QLearner(LightningModule):
    """Base of :class:`~infotorch.rl.CategoricalDQN` and :class:`~infotorch.rl.OfflineDQN`.

    Args:
        shape: Of an observation.
        actions: Number of actions.
        head: A name for :func:`~infotorch.rl.value_head`, or a head.
        v_min: Smallest value of a histogram.
        v_max: Largest.
        bins: Of a histogram.
        head_options: Further options of the head (``{"pad_sigma": 3}``).
        hidden: Widths of the network, see :class:`~infotorch.rl.QNetwork`.
        body: Module that computes the features instead.
        double: Double Q-learning.
        lr: Learning rate of Adam.
        batch_size: Transitions of an update.
        target_sync: Updates after which the target network is copied.
        log_every: Updates between logs.
        seed: Of weights and draws.

    Attributes:
        network: The network that learns.
        target: Its older copy.
        updates: Updates so far.

    Raises:
        TypeError: ``head`` is neither a name nor a head.
        ValueError: An option out of range, a head that is not known.
    """

    def __init__(
        self,
        shape: Sequence[int],
        actions: int,
        head: str | ValueHead = "hl_gauss",
        *,
        v_min: float = -10.0,
        v_max: float = 10.0,
        bins: int = 51,
        head_options: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (128, 128),
        body: nn.Module | None = None,
        double: bool = True,
        lr: float = 5e-4,
        batch_size: int = 128,
        target_sync: int = 500,
        log_every: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"batch_size": batch_size, "target_sync": target_sync, "log_every": log_every}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name}: expected a positive int, got {value}")
        check_range("lr", lr, 0.0, low_open=True)
        if isinstance(head, str):
            head = value_head(head, v_min, v_max, bins, **(head_options or {}))
        elif not isinstance(head, ValueHead):
            raise TypeError(f"head: expected a head or one of {', '.join(HEADS)}, got {type(head).__name__}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = QNetwork(shape, actions, head, hidden=hidden, body=body)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.double_q, self.lr, self.batch_size, self.seed = double, lr, batch_size, seed
        self.target_sync, self.log_every = target_sync, log_every
        self.updates = 0

    def forward(self, obs: Tensor) -> Tensor:
        """Action values ``(B, actions)``."""
        return self.network.values(obs.to(self.device))

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Best actions ``(B,)``, on the CPU."""
        return self(obs).argmax(-1).cpu()

    def evaluate(self, envs: Any, episodes: int = 10, *, seed: int = 10_000) -> list[Episode]:
        """Episodes with the best actions, in environments of their own."""
        return play(self.act, envs, episodes, seed=seed)

    def temporal(self, batch: Transitions) -> Temporal:
        """Temporal differences of a batch, after the target network was updated where that is due."""
        if self.updates % self.target_sync == 0:
            self.target.load_state_dict(self.network.state_dict())
        self.updates += 1
        return temporal_difference(self.network, self.target, batch, double=self.double_q)

    @torch.no_grad()
    def log_update(self, found: Temporal, batch: Transitions, **more: Any) -> None:
        """Log loss, values and the fit of the targets to the support, now and then."""
        if self.updates % self.log_every:
            return
        report = found.range_report(self.network.head, batch)
        values = {f"range/{name}": value for name, value in report._asdict().items()}
        values |= {"loss": found.loss.mean(), "value": found.values.mean(), "error": found.error.abs().mean(), **more}
        self.log_dict(values, batch_size=len(batch.obs))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self.lr)

    def train_dataloader(self) -> DataLoader[int]:
        """One item for every update, without end: stop with ``Trainer(max_steps=...)``."""
        return DataLoader(_Updates(), batch_size=None)

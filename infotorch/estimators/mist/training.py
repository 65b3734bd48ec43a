"""Training of `MIST` networks with Lightning, on samples drawn afresh for every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from infotorch.core._checks import check_range
from infotorch.distributions.meta import MetaDistribution, Task
from infotorch.estimators.mist.inputs import view_pair
from infotorch.estimators.mist.network import MISTConfig, MISTNetwork, PairBatch, pinball_loss

VALIDATION_STREAM = 1 << 30  # batches of validation are numbered from here, far from any training step


@dataclass(frozen=True)
class LabeledBatch:
    """Samples, the truth about them, and the quantile levels they are asked for.

    Attributes:
        samples: As the network takes them.
        information: Shape ``(B,)``, nats.
        levels: Shape ``(B, q)``.
        families: Names.
    """

    samples: PairBatch
    information: Tensor
    levels: Tensor
    families: tuple[str, ...]

    def to(self, device: torch.device) -> LabeledBatch:
        """On another device."""
        s = self.samples
        padding = None if s.padding is None else s.padding.to(device)
        samples = PairBatch(s.x.to(device), s.y.to(device), s.columns.to(device), padding)
        return LabeledBatch(samples, self.information.to(device), self.levels.to(device), self.families)


@dataclass(frozen=True)
class MetaBatches(Dataset[LabeledBatch]):
    """Batch number i of a stream, whenever it is asked for: what makes training resume exactly.

    Attributes:
        tasks: Where the tasks come from.
        view: What the network sees of them.
        points: Fewest and most points; the samples of a batch have equally many, log-uniformly drawn.
        batch_size: Samples per batch.
        length: Batches.
        levels: Random quantile levels per sample.
        seed: Of the stream.

    >>> batches = MetaBatches(MetaDistribution(columns=(1, 2)), "rank", points=(10, 20), batch_size=3, length=5)
    >>> first, again = batches[0], batches[0]
    >>> bool((first.samples.x == again.samples.x).all()), first.information.shape
    (True, torch.Size([3]))
    """

    tasks: MetaDistribution
    view: str
    points: tuple[int, int]
    batch_size: int
    length: int
    levels: int = 8
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[LabeledBatch]:
        return (self[i] for i in range(self.length))

    def __getitem__(self, i: int) -> LabeledBatch:
        # torch's generator on the CPU looks at 32 bits of a seed only.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + i) % 2**32)
        low, high = (math.log(n) for n in self.points)
        n = round(math.exp(low + (high - low) * float(torch.rand((), generator=generator))))
        return self.label([self.tasks.draw(n, generator) for _ in range(self.batch_size)], generator)

    def label(self, tasks: list[Task], generator: torch.Generator) -> LabeledBatch:
        """A batch of these tasks."""
        views = [(x.float(), y.float()) for x, y in (view_pair(t.x, t.y, self.view) for t in tasks)]
        levels = torch.rand(len(tasks), self.levels, generator=generator)
        information = torch.tensor([t.information for t in tasks])
        return LabeledBatch(PairBatch.of(views), information, levels, tuple(t.family for t in tasks))


class MetaData(LightningDataModule):
    """Training and validation batches; every epoch goes on where the last one ended.

    Args:
        train: The stream; its length is that of all training.
        epoch_steps: Batches of an epoch, after which there is validation and may be a checkpoint.
        validation: How many validation batches.

    Raises:
        ValueError: A length that is not positive.

    The trainer needs ``reload_dataloaders_every_n_epochs=1``.
    """

    def __init__(self, train: MetaBatches, *, epoch_steps: int = 100, validation: int = 8) -> None:
        super().__init__()
        check_range("epoch_steps", epoch_steps, 1)
        check_range("validation", validation, 1)
        self.train, self.epoch_steps, self.validation = train, epoch_steps, validation

    @property
    def epochs(self) -> int:
        """Epochs of all training."""
        return math.ceil(len(self.train) / self.epoch_steps)

    def train_dataloader(self) -> DataLoader[LabeledBatch]:
        """The batches of the coming epoch."""
        start = (self.trainer.current_epoch if self.trainer else 0) * self.epoch_steps
        rows = range(start, min(start + self.epoch_steps, len(self.train)))
        return DataLoader(Subset(self.train, rows), batch_size=None)

    def val_dataloader(self) -> DataLoader[LabeledBatch]:
        """The same batches every time, none of which training sees."""
        rows = range(VALIDATION_STREAM, VALIDATION_STREAM + self.validation)
        return DataLoader(Subset(replace(self.train, length=rows.stop), rows), batch_size=None)


class MISTModule(LightningModule):
    """Trains a `MISTNetwork`: squared error for the mean and pinball loss for quantiles, both in nats.

    AdamW, without decay of biases and normalization; a linear warm-up, then a half cosine to zero.

    Args:
        config: Sizes of the network.
        learning_rate: At the top.
        weight_decay: Of matrices.
        warmup: Steps of the warm-up.
        steps: Steps of all training.
        seed: Of the initial weights; None takes them from the global generator.

    >>> module = MISTModule(MISTConfig(max_columns=2, width=8, heads=2, feedforward=8, head_width=8), steps=10)
    >>> batches = MetaBatches(MetaDistribution(columns=(1, 2)), "rank", points=(10, 20), batch_size=3, length=5)
    >>> bool(module.loss(batches[0])["loss"] > 0)
    True
    """

    def __init__(
        self,
        config: MISTConfig,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: int = 100,
        steps: int = 1000,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        check_range("learning_rate", learning_rate, 0.0, low_open=True)
        check_range("steps", steps, 1)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.network = MISTNetwork(config)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup, self.steps = warmup, steps

    def loss(self, batch: LabeledBatch) -> dict[str, Tensor]:
        """``loss``, and of its terms ``mse`` and ``pinball`` those the network has heads for."""
        mean, quantiles = self.network(batch.samples, batch.levels)
        terms = {}
        if mean is not None:
            terms["mse"] = torch.nn.functional.mse_loss(mean, batch.information)
        if quantiles is not None:
            terms["pinball"] = pinball_loss(quantiles, batch.information.unsqueeze(1), batch.levels)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def training_step(self, batch: LabeledBatch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        return self._logged(batch, "train")

    def validation_step(self, batch: LabeledBatch, batch_idx: int) -> Tensor:
        """Loss of a held-out batch."""
        return self._logged(batch, "val")

    def _logged(self, batch: LabeledBatch, stage: str) -> Tensor:
        found = self.loss(batch)
        named = {f"{stage}_{name}": value for name, value in found.items()}
        self.log_dict(named, prog_bar=True, batch_size=len(batch.information), sync_dist=stage == "val")
        return found["loss"]

    def transfer_batch_to_device(self, batch: LabeledBatch, device: torch.device, dataloader_idx: int) -> LabeledBatch:
        """The batch where the network is."""
        return batch.to(device)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule."""
        groups = [
            {"params": [p for p in self.network.parameters() if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in self.network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)

        def share(step: int) -> float:
            rest = min(1.0, max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup)))
            return min(1.0, (step + 1) / max(1, self.warmup)) * (1 + math.cos(math.pi * rest)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

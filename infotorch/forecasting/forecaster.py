"""Lightning modules: one that trains the causal entropy model, one for any forecaster, and EntroPE's with its cache."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from infotorch.core import distributed as dist
from infotorch.data import WindowBatch, Windows
from infotorch.forecasting.entrope import EntroPE
from infotorch.forecasting.entropy_model import EntropyModel, next_token_loss
from infotorch.forecasting.patching import patch_lengths
from infotorch.forecasting.revin import instance_statistics
from infotorch.forecasting.tokenizer import Quantizer, mean_scale

__all__ = ["EntroPEForecaster", "EntropyPretraining", "Forecaster"]


class _Module(LightningModule):
    """Random states travel with the checkpoint, so that dropout goes on where it stopped."""

    _random_states: dict[str, Tensor] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep every process's random states."""
        checkpoint["random_states"] = dist.random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the random states until training starts."""
        self._random_states = checkpoint["random_states"]

    def on_train_start(self) -> None:
        """Continue the random numbers of a checkpoint."""
        if self._random_states is not None:
            dist.set_random_states(self._random_states, self.device)
            self._random_states = None

    def _steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("trainer: expected max_steps or max_epochs, which the learning rate's schedule needs")
        return max(int(steps), 1)


class EntropyPretraining(_Module):
    """Trains an `EntropyModel` on windows, normalized and tokenized the way `EntroPE` does it.

    Args:
        model: Entropy model.
        quantizer: Fit it first, see :meth:`fit_quantizer`.
        lr: Learning rate of AdamW, which falls to a twentieth along a cosine.
        weight_decay: Of matrices only.

    The trainer's ``gradient_clip_val`` is the place for clipping (the authors: 1).

    >>> from infotorch.data import Windows
    >>> module = EntropyPretraining(EntropyModel(length=8), Quantizer())
    >>> module.fit_quantizer(Windows(torch.randn(50, 2), 8, 2)).quantizer.centers[0].item() < 0
    True
    """

    def __init__(
        self, model: EntropyModel, quantizer: Quantizer, *, lr: float = 1e-3, weight_decay: float = 0.05
    ) -> None:
        super().__init__()
        self.model, self.quantizer, self.lr, self.weight_decay = model, quantizer, lr, weight_decay

    def fit_quantizer(self, windows: Windows, count: int = 2000) -> EntropyPretraining:
        """Set the quantizer's range from at most ``count`` training windows, evenly spread."""
        step = max(len(windows) // count, 1)
        x = windows.__getitems__(range(0, len(windows), step)).x
        mean, std = instance_statistics(x)
        self.quantizer.fit(((x - mean) / std).transpose(1, 2).flatten(0, 1))
        return self

    def loss(self, batch: WindowBatch) -> Tensor:
        """Cross-entropy of each next token, in the window's own units; the last one is the first of the horizon."""
        mean, std = instance_statistics(batch.x)
        longer = torch.cat((batch.x, batch.y[:, :1]), 1)
        rows = ((longer - mean) / std).transpose(1, 2).flatten(0, 1)
        tokens = self.quantizer(rows, mean_scale(rows[:, :-1]))
        return next_token_loss(self.model(tokens[:, :-1]), tokens[:, 1:])

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """One loss."""
        loss = self.loss(batch)
        self.log("train/cross_entropy", loss, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Log ``val/cross_entropy``."""
        self.log("val/cross_entropy", self.loss(batch), batch_size=len(batch.x), sync_dist=True)

    def test_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Log ``test/cross_entropy``."""
        self.log("test/cross_entropy", self.loss(batch), batch_size=len(batch.x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW, decay on matrices only, cosine schedule per step."""
        matrices, others = [], []
        for parameter in self.model.parameters():
            (matrices if parameter.ndim > 1 else others).append(parameter)
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._steps(), self.lr / 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Forecaster(_Module):
    """Trains any module ``(B, L, C) -> (B, H, C)`` with mean squared error, Adam and one cycle of the learning rate.

    Args:
        model: Forecaster.
        lr: Largest learning rate.

    >>> from infotorch.forecasting import DLinear
    >>> Forecaster(DLinear(24, 4)).predict_step((torch.zeros(1), torch.zeros(1, 24, 2), torch.zeros(1)), 0).shape
    torch.Size([1, 4, 2])
    """

    def __init__(self, model: nn.Module, *, lr: float = 1e-2) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def forecast(self, batch: WindowBatch) -> Tensor:
        """Forecast of a training batch."""
        return self.model(batch.x)

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """One loss."""
        loss = F.mse_loss(self.forecast(batch), batch.y)
        self.log("train/mse", loss, batch_size=len(batch.x))
        return loss

    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Log ``val/mse`` and ``val/mae``."""
        self._log_errors("val", batch)

    def test_step(self, batch: WindowBatch, batch_idx: int) -> None:
        """Log ``test/mse`` and ``test/mae``, means over all windows whatever the batch size."""
        self._log_errors("test", batch)

    def predict_step(self, batch: WindowBatch | tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Forecast of a batch, in standardized units."""
        return self.model(batch[1])

    def _log_errors(self, part: str, batch: WindowBatch) -> None:
        y = self.model(batch.x)
        errors = {f"{part}/mse": F.mse_loss(y, batch.y), f"{part}/mae": F.l1_loss(y, batch.y)}
        self.log_dict(errors, batch_size=len(batch.x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Adam with a one-cycle schedule per step."""
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self._steps(), pct_start=0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EntroPEForecaster(Forecaster):
    """`Forecaster` of an `EntroPE`, which cuts every training window into patches once.

    The entropy model is frozen, so a window's boundaries never change. They are kept by the window's number, one byte
    per step and channel, in this object and not in its checkpoints. Every process keeps those that it meets.

    Args:
        model: Forecaster.
        lr: Largest learning rate.
        cache: Keep the boundaries of training windows. Not for windows that are augmented.

    Raises:
        TypeError: ``model`` is no `EntroPE`.

    >>> from infotorch.forecasting import FixedSegmenter
    >>> net = EntroPEForecaster(EntroPE(FixedSegmenter(8), Quantizer(), lookback=24, horizon=4))
    >>> batch = WindowBatch(torch.tensor([7]), torch.randn(1, 24, 1), torch.randn(1, 4, 1))
    >>> net.starts(batch).nonzero()[:, 1]
    tensor([ 0,  8, 16])
    """

    model: EntroPE

    def __init__(self, model: EntroPE, *, lr: float = 1e-2, cache: bool = True) -> None:
        if not isinstance(model, EntroPE):
            raise TypeError(f"model: expected an EntroPE, got {type(model).__name__}")
        super().__init__(model, lr=lr)
        self.cache = cache
        self._kept = torch.zeros(0, model.revin.channels, model.lookback + 1, dtype=torch.bool)

    def on_fit_start(self) -> None:
        """Forget boundaries of other data."""
        self._kept = self._kept[:0]

    def starts(self, batch: WindowBatch) -> Tensor:
        """Starts of the patches ``(B C, L + 1)`` of training windows."""
        if not self.cache:
            return self.model.segment(batch.x)
        number = batch.number.cpu()
        missing = int(number.max()) + 1 - len(self._kept)
        if missing > 0:
            more = self._kept.new_zeros(max(missing, len(self._kept)), *self._kept.shape[1:])
            self._kept = torch.cat((self._kept, more))
        new = ~self._kept[number, 0, 0]  # every window that was cut has a start at 0
        if bool(new.any()):
            found = self.model.segment(batch.x[new.to(batch.x.device)])
            self._kept[number[new]] = found.unflatten(0, (-1, self._kept.shape[1])).cpu()
        return self._kept[number].flatten(0, 1).to(batch.x.device)

    def forecast(self, batch: WindowBatch) -> Tensor:
        """Forecast of a training batch, with boundaries from the cache."""
        return self.model(batch.x, patch_lengths(self.starts(batch)))

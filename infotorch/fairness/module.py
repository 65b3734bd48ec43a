"""Training with a penalty: the losses, a Lightning module that adds the two, and batches that resume exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from infotorch.core._checks import check_choice, check_range


class FairBatch(NamedTuple):
    """Rows to train on.

    Attributes:
        x: Inputs of the network.
        y: Targets ``(n,)``.
        attributes: Protected attributes ``(n,)`` each, for the penalty only.
        weights: Of the rows in the loss, ``(n,)``, with mean 1 over the data; None for equal ones.
    """

    x: Tensor
    y: Tensor
    attributes: Sequence[Tensor]
    weights: Tensor | None = None


class Likelihood(NamedTuple):
    """A loss of the network's raw score, and the prediction that users and penalties see.

    Attributes:
        loss: ``(score, y) -> (n,)``.
        prediction: Score to mean, rate or probability.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    prediction: Callable[[Tensor], Tensor]


def poisson_deviance(score: Tensor, y: Tensor) -> Tensor:
    r"""Unit deviance of counts or rates, :math:`2 (y \log(y / \mu) - y + \mu)` with :math:`\mu = e^{\mathrm{score}}`.

    For a claim frequency let ``y`` be claims over exposure, and weigh the rows by exposure.

    Args:
        score: Shape ``(n,)``.
        y: Shape ``(n,)``, non-negative.

    Returns:
        Shape ``(n,)``, 0 where ``y`` is met.

    >>> poisson_deviance(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor([0., 2.])
    """
    return 2 * (torch.xlogy(y, y) - y * score - y + score.exp())


LIKELIHOODS = {
    "squared": Likelihood(lambda score, y: (score - y).square(), lambda score: score),
    "poisson": Likelihood(poisson_deviance, torch.exp),
    "logistic": Likelihood(
        lambda score, y: F.binary_cross_entropy_with_logits(score, y.to(score.dtype), reduction="none"), torch.sigmoid
    ),
    "softmax": Likelihood(
        lambda score, y: F.cross_entropy(score, y.long(), reduction="none"), lambda score: score.softmax(-1)
    ),
}


class FairModule(LightningModule):
    """Minimizes ``mean(weights * loss) + strength * penalty(prediction, attributes)`` with Adam.

    Args:
        network: ``x`` to scores, ``(n,)`` or ``(n, 1)``; for ``"softmax"`` ``(n, classes)``.
        penalty: Called with prediction and attributes, such as a `DependencePenalty`.
        likelihood: ``"squared"``; ``"poisson"``, whose score is a log-rate; ``"logistic"``; or ``"softmax"``.
        strength: Factor of the penalty; 0 trains without it.
        learning_rate: Of Adam.

    Attributes:
        history: Mean loss and penalty of every epoch; kept in checkpoints.

    Raises:
        ValueError: An unknown likelihood, a negative strength, a learning rate that is not positive.

    Batches are `FairBatch`. Under data parallelism a penalty with ``across_ranks=True`` is that of all processes.

    >>> from infotorch.fairness import CCdCovPenalty
    >>> module = FairModule(nn.Linear(2, 1), CCdCovPenalty(scale="std"), strength=2.0)
    >>> batch = FairBatch(torch.randn(8, 2), torch.randn(8), [torch.arange(8) % 2])
    >>> loss, penalty = module.parts(batch)
    >>> torch.equal(module.training_step(batch, 0), loss + 2.0 * penalty)
    True
    """

    def __init__(
        self,
        network: nn.Module,
        penalty: nn.Module,
        *,
        likelihood: str = "squared",
        strength: float = 1.0,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.network, self.penalty = network, penalty
        self.likelihood = LIKELIHOODS[check_choice("likelihood", likelihood, LIKELIHOODS)]
        self.strength = check_range("strength", strength, 0.0, math.inf, high_open=True)
        self.learning_rate = check_range("learning_rate", learning_rate, 0.0, low_open=True)
        self.history: list[dict[str, float]] = []
        self._seen: list[Tensor] = []

    def score(self, x: Tensor) -> Tensor:
        """The network's output; a single column becomes ``(n,)``."""
        found = self.network(x)
        return found.squeeze(1) if found.ndim == 2 and found.shape[1] == 1 else found

    def forward(self, x: Tensor) -> Tensor:
        """Predictions: means, rates or probabilities."""
        return self.likelihood.prediction(self.score(x))

    def parts(self, batch: FairBatch) -> tuple[Tensor, Tensor]:
        """Loss and penalty of a batch."""
        score = self.score(batch.x)
        each = self.likelihood.loss(score, batch.y)
        loss = each.mean() if batch.weights is None else (batch.weights * each).mean()
        if not self.strength:
            return loss, torch.zeros_like(loss)
        return loss, self.penalty(self.likelihood.prediction(score), batch.attributes)

    def training_step(self, batch: FairBatch, batch_idx: int) -> Tensor:
        """What is minimized."""
        loss, penalty = self.parts(batch)
        self._seen.append(torch.stack((loss.detach(), penalty.detach())))
        if self._trainer is not None:
            self.log_dict({"loss": loss, "penalty": penalty}, prog_bar=True, batch_size=len(batch.x))
        return loss + self.strength * penalty

    def validation_step(self, batch: FairBatch, batch_idx: int) -> None:
        """Log both on held-out rows."""
        loss, penalty = self.parts(batch)
        self.log_dict({"val_loss": loss, "val_penalty": penalty}, batch_size=len(batch.x), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's means."""
        loss, penalty = torch.stack(self._seen).mean(0).tolist()
        self._seen.clear()
        self.history.append({"strength": self.strength, "loss": loss, "penalty": penalty})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history."""
        checkpoint["fairness_history"] = list(self.history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        self.history = [dict(row) for row in checkpoint["fairness_history"]]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def batch_loader(
    x: Tensor,
    y: Tensor,
    attributes: Sequence[Tensor],
    weights: Tensor | None = None,
    *,
    batch_size: int = 512,
    seed: int = 0,
) -> DataLoader[FairBatch]:
    """Shuffled batches of nearly equal size; the order of an epoch depends on its number and the seed only.

    Statistics of dependence want large batches, 256 rows or more; no batch is much smaller than the others.

    Args:
        x: Shape ``(n, ...)``.
        y: Shape ``(n,)``.
        attributes: Each of ``n`` rows.
        weights: Shape ``(n,)``.
        batch_size: Rows at most.
        seed: Of the orders.

    Raises:
        ValueError: Different lengths, a batch size below 4.

    >>> loader = batch_loader(torch.randn(10, 2), torch.randn(10), [torch.arange(10) % 2], batch_size=4)
    >>> [len(batch.x) for batch in loader]
    [4, 3, 3]
    """
    check_range("batch_size", batch_size, 4)
    lengths = [len(t) for t in (x, y, *attributes, *([] if weights is None else [weights]))]
    if len(set(lengths)) > 1:
        raise ValueError(f"x, y, attributes, weights: expected equal numbers of rows, got {lengths}")
    rows = _Rows(FairBatch(x, y, list(attributes), weights))
    # A generator of its own, for the loader not to draw from torch's.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(rows, batch_size=None, sampler=_Orders(len(x), batch_size, seed), generator=generator)


class _Rows(Dataset[FairBatch]):
    def __init__(self, data: FairBatch) -> None:
        self.data = data

    def __getitem__(self, index: Tensor) -> FairBatch:
        x, y, attributes, weights = self.data
        return FairBatch(
            x[index], y[index], [s[index] for s in attributes], None if weights is None else weights[index]
        )


class _Orders(Sampler[Tensor]):
    """Rows of every batch; Lightning sets the epoch."""

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.count, self.seed, self.epoch = n, math.ceil(n / size), seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        # A generator, which reads the epoch at the first batch: on resuming, Lightning sets it after it asks for one.
        yield from torch.randperm(self.n, generator=generator).tensor_split(self.count)

"""Training with a penalty on dependence: a Lightning module that joins model, loss and penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from infotorch.core._checks import check_choice, check_range
from infotorch.fairness.penalties import FairnessPenalty


class FairBatch(NamedTuple):
    """Rows of a data set.

    Attributes:
        x: Inputs.
        y: Targets.
        exposure: Time at risk, by which a rate is multiplied, or 1.
        attributes: Protected attributes, for the penalty alone.
    """

    x: Tensor
    y: Tensor
    exposure: Tensor
    attributes: Sequence[Tensor]


def squared_error(output: Tensor, batch: FairBatch) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(output.squeeze(1), batch.y)


def poisson_deviance(output: Tensor, batch: FairBatch) -> Tensor:
    r"""Mean of :math:`2 [y \log(y / \mu) - y + \mu]` for counts with :math:`\mu = \mathrm{exposure} \cdot e^f`.

    >>> batch = FairBatch(torch.zeros(1, 1), torch.tensor([2.0]), torch.tensor([2.0]), [])
    >>> poisson_deviance(torch.zeros(1, 1), batch)
    tensor(0.)
    """
    y, mean = batch.y, batch.exposure * output.squeeze(1).exp()
    return 2 * (torch.special.xlogy(y, y) - y * (output.squeeze(1) + batch.exposure.log()) - y + mean).mean()


def cross_entropy(output: Tensor, batch: FairBatch) -> Tensor:
    """Of one logit (two classes) or of a logit per class."""
    if output.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(output.squeeze(1), batch.y.to(output.dtype))
    return F.cross_entropy(output, batch.y.long())


class Link(NamedTuple):
    """A loss of the model's output, and the prediction that is penalized and reported.

    Attributes:
        loss: Of the output ``(n, K)`` and the batch.
        prediction: Of the output: mean, rate or probabilities.
    """

    loss: Callable[[Tensor, FairBatch], Tensor]
    prediction: Callable[[Tensor], Tensor]


def _probability(output: Tensor) -> Tensor:
    return output.sigmoid().squeeze(1) if output.shape[1] == 1 else output.softmax(1)


LINKS = {
    "squared": Link(squared_error, lambda output: output.squeeze(1)),
    "poisson": Link(poisson_deviance, lambda output: output.squeeze(1).exp()),
    "cross_entropy": Link(cross_entropy, _probability),
}


class FairModule(LightningModule):
    """Minimizes ``loss + strength * penalty(prediction, attributes)`` with Adam.

    Args:
        model: Inputs to outputs ``(n, K)``.
        penalty: Of prediction and attributes.
        link: ``"squared"``, ``"poisson"`` (the model gives the logarithm of a rate) or ``"cross_entropy"`` (logits).
        strength: Factor of the penalty; it may be set between fits.
        learning_rate: Of Adam.

    Raises:
        ValueError: An unknown link, a negative strength.

    Batches are `FairBatch`.

    >>> from infotorch.fairness import CCdCovPenalty
    >>> module = FairModule(nn.Linear(2, 1), CCdCovPenalty(), link="squared", strength=1.0)
    >>> batch = FairBatch(torch.randn(8, 2), torch.randn(8), torch.ones(8), [torch.arange(8) % 2])
    >>> module.training_step(batch, 0).requires_grad
    True
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: FairnessPenalty,
        *,
        link: str = "squared",
        strength: float = 1.0,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.model, self.penalty = model, penalty
        self.link = LINKS[check_choice("link", link, LINKS)]
        self.strength = check_range("strength", strength, 0.0)
        self.learning_rate = check_range("learning_rate", learning_rate, 0.0, low_open=True)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions: means, rates or probabilities."""
        return self.link.prediction(self.model(x))

    def training_step(self, batch: FairBatch, batch_idx: int) -> Tensor:
        """Loss and penalty of a batch."""
        return self._terms(batch, "train")

    def validation_step(self, batch: FairBatch, batch_idx: int) -> Tensor:
        """The same on held-out rows."""
        return self._terms(batch, "val")

    def _terms(self, batch: FairBatch, stage: str) -> Tensor:
        output = self.model(batch.x)
        loss = self.link.loss(output, batch)
        penalty = self.penalty(self.link.prediction(output), batch.attributes) if self.strength else loss.new_zeros(())
        total = loss + self.strength * penalty
        if self._trainer is not None:
            found = {f"{stage}_loss": loss, f"{stage}_penalty": penalty, f"{stage}_objective": total}
            self.log_dict(found, prog_bar=True, batch_size=len(batch.x), sync_dist=stage == "val")
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

"""An auxiliary network that guesses class ratios from an image, for targets of which no sizes are known.

It learns from the source's masks, before these are gone; on the target its guesses stand for the prior. They suffer
from the change of appearance too, so compare them with what anatomy allows.

Reference: M. Bateson et al., "Source-relaxed domain adaptation for image segmentation", 2020, arXiv:2005.03697.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from lightning import LightningModule
from torch import Tensor, nn

from infotorch.adaptation.priors import ratios_from_masks
from infotorch.core._checks import check_range
from infotorch.core.categorical import kl_divergence, log_softmax


class RatioNetwork(nn.Module):
    """Logarithms of class ratios from an image: convolutions that halve it, the mean over pixels, a linear layer.

    Args:
        in_channels: Of the images.
        classes: K.
        channels: Of the convolutions.
        dims: 2 for images, 3 for volumes.

    >>> RatioNetwork(1, 3)(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, in_channels: int, classes: int, *, channels: Sequence[int] = (16, 32, 64), dims: int = 2
    ) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        layers: list[nn.Module] = []
        for a, b in pairwise((in_channels, *channels)):
            layers += [conv(a, b, 3, stride=2, padding=1, bias=False), norm(b), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Log-ratios ``(B, K)`` of images ``(B, C, *S)``."""
        return log_softmax(self.head(self.layers(x).flatten(2).mean(2)))

    @torch.no_grad()
    def ratios(self, x: Tensor, *, least: float = 0.0) -> Tensor:
        """Ratios to use as a prior, ``(B, K)``; those of the foreground below ``least`` are 0 and go to class 0.

        ``least`` makes tags of guesses: without it a class that is absent keeps a small share of every image.

        Raises:
            ValueError: ``least`` out of [0, 1].
        """
        check_range("least", least, 0.0, 1.0)
        training = self.training
        try:
            ratios = self.eval()(x).exp()
        finally:
            self.train(training)
        foreground = torch.where(ratios[:, 1:] < least, 0.0, ratios[:, 1:])
        return torch.cat([1 - foreground.sum(1, keepdim=True), foreground], 1)


class RatioModule(LightningModule):
    """Trains a network on the class ratios of labeled images, by their divergence from its guesses.

    Batches are pairs of images and label maps.

    Args:
        network: From images to log-ratios ``(B, K)``.
        classes: K.
        lr: Adam's step size.
        ignore_index: Label of pixels that do not count.

    >>> RatioModule(RatioNetwork(1, 2), classes=2).lr
    0.001
    """

    def __init__(self, network: nn.Module, classes: int, *, lr: float = 1e-3, ignore_index: int | None = None) -> None:
        super().__init__()
        self.network, self.classes, self.ignore_index = network, int(check_range("classes", classes, 2)), ignore_index
        self.lr = check_range("lr", lr, 0.0, low_open=True)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Divergence of the true ratios from the guessed ones."""
        images, masks = batch
        true = ratios_from_masks(masks, self.classes, ignore_index=self.ignore_index)
        loss = kl_divergence(p_probs=true, q_logits=self.network(images)).mean()
        self.log("ratio_loss", loss, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self.lr)

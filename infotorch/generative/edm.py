r"""Training of a denoiser in the EDM form: preconditioning, loss, a small U-Net and a Lightning module.

The denoiser is :math:`D(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, \tfrac14 \log\sigma)` with coefficients that keep
inputs and targets of the network F at unit variance.

Reference: T. Karras et al., "Elucidating the design space of diffusion-based generative models", 2022,
arXiv:2206.00364.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from infotorch.core._checks import check_range

__all__ = ["EDMDenoiser", "EDMModule", "SmallUNet", "edm_loss"]


class EDMDenoiser(nn.Module):
    r"""A network as a denoiser, with the preconditioning of Karras et al.

    :math:`c_{skip} = \sigma_d^2/(\sigma^2+\sigma_d^2)`, :math:`c_{out} = \sigma\sigma_d/\sqrt{\sigma^2+\sigma_d^2}`,
    :math:`c_{in} = 1/\sqrt{\sigma^2+\sigma_d^2}`.

    Args:
        network: ``(x, c) -> output`` of the shape of x, with c of shape ``(B,)``.
        sigma_data: Standard deviation of the data.

    Raises:
        ValueError: ``sigma_data`` is not positive.

    Reference: T. Karras et al., 2022, arXiv:2206.00364.

    >>> class Nothing(nn.Module):
    ...     def forward(self, x, c):
    ...         return 0 * x
    >>> EDMDenoiser(Nothing())(torch.ones(1, 2), torch.tensor(0.5))
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = check_range("sigma_data", sigma_data, 0.0, low_open=True, high_open=True)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Clean data expected at ``x``, shape ``(B, ...)``, with noise ``sigma``, 0-d or ``(B,)``."""
        sigma = sigma.to(x).expand(len(x)).view(-1, *[1] * (x.ndim - 1))
        total = sigma.square() + self.sigma_data**2
        output = self.network(x * total.rsqrt(), sigma.flatten().log() / 4)
        return (self.sigma_data**2 / total) * x + (sigma * self.sigma_data * total.rsqrt()) * output


def edm_loss(
    denoiser: EDMDenoiser,
    x: Tensor,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Denoising loss :math:`E\, \frac{\sigma^2+\sigma_d^2}{\sigma^2\sigma_d^2} (D(x+\sigma\epsilon, \sigma)-x)^2`.

    Args:
        denoiser: With its ``sigma_data``.
        x: Clean data, shape ``(B, ...)``.
        mean: Of :math:`\log\sigma`, which is drawn from a normal distribution.
        std: Its standard deviation.
        generator: Source of randomness.

    Returns:
        0-d, the mean over all numbers of the batch; differentiable.

    Raises:
        ValueError: ``x`` has fewer than two axes, ``std`` is negative.

    Reference: T. Karras et al., 2022, arXiv:2206.00364.

    >>> denoiser = EDMDenoiser(SmallUNet(1, 8))
    >>> edm_loss(denoiser, torch.zeros(4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([])
    """
    if x.ndim < 2:
        raise ValueError(f"x: expected shape (B, ...) with at least two axes, got {tuple(x.shape)}")
    check_range("std", std, 0.0, high_open=True)
    draw = {"generator": generator, "device": x.device, "dtype": x.dtype}
    sigma = (mean + std * torch.randn(len(x), **draw)).exp()
    column = sigma.view(-1, *[1] * (x.ndim - 1))
    weight = (column.square() + denoiser.sigma_data**2) / (column * denoiser.sigma_data).square()
    return (weight * (denoiser(x + column * torch.randn(x.shape, **draw), sigma) - x).square()).mean()


class _Block(nn.Module):
    """Two convolutions with a residual connection; the noise level scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.norm = nn.GroupNorm(4, outputs)
        self.noise = nn.Linear(embedding, 2 * outputs)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        scale, shift = self.noise(noise).unsqueeze(-1).unsqueeze(-1).chunk(2, dim=1)
        return self.skip(x) + self.second(self.norm(self.first(x)) * (1 + scale) + shift)


class SmallUNet(nn.Module):
    """A U-Net of two resolutions for small images.

    Args:
        channels: Of the images, whose sides must be even.
        width: Channels inside, a multiple of 4.

    Raises:
        ValueError: ``width`` is no positive multiple of 4.

    >>> SmallUNet(3, 8)(torch.zeros(2, 3, 6, 6), torch.zeros(2)).shape
    torch.Size([2, 3, 6, 6])
    """

    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width: expected a positive multiple of 4, got {width}")
        size = 4 * width
        self.register_buffer("frequencies", torch.logspace(-1, 1.5, width))
        self.embed = nn.Sequential(nn.Linear(2 * width, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.high = _Block(width, width, size)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.low = nn.ModuleList([_Block(2 * width, 2 * width, size) for _ in range(2)])
        self.up = nn.Upsample(scale_factor=2)
        self.merge = _Block(3 * width, width, size)
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))
        last = self.leave[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Output of the shape of ``x``, ``(B, channels, H, W)``; ``c`` is a number per sample, ``(B,)``."""
        angles = c.unsqueeze(1) * self.get_buffer("frequencies")
        noise = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        high = self.high(self.enter(x), noise)
        low = self.down(high)
        for block in self.low:
            low = block(low, noise)
        return self.leave(self.merge(torch.cat([self.up(low), high], 1), noise))


class EDMModule(LightningModule):
    """Trains a denoiser; its moving average, `ema`, is what samples are drawn with.

    Args:
        network: As of `EDMDenoiser`.
        sigma_data: Standard deviation of the data.
        lr: Learning rate of Adam.
        ema_decay: Of the moving average of the weights.
        seed: Of the noise, drawn anew for every step from the seed and the step's number: a run that was interrupted
            goes on as if it had not been.

    Batches are clean data ``(B, ...)``, or a sequence that begins with them.

    Raises:
        ValueError: An option out of range.

    Reference: T. Karras et al., 2022, arXiv:2206.00364.

    >>> EDMModule(SmallUNet(1, 8)).denoiser.sigma_data
    0.5
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        sigma_data: float = 0.5,
        lr: float = 1e-3,
        ema_decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.lr = check_range("lr", lr, 0.0, low_open=True, high_open=True)
        check_range("ema_decay", ema_decay, 0.0, 1.0, high_open=True)
        self.seed = seed
        self.denoiser = EDMDenoiser(network, sigma_data)
        self.average = AveragedModel(self.denoiser, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))

    @property
    def ema(self) -> nn.Module:
        """The denoiser with averaged weights."""
        return self.average.module

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        draw = self.seed * 1_000_003 + self.global_step * self.trainer.world_size + self.global_rank
        generator = torch.Generator(x.device).manual_seed(draw)
        loss = edm_loss(self.denoiser, x, generator=generator)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average."""
        self.average.update_parameters(self.denoiser)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.denoiser.parameters(), lr=self.lr)

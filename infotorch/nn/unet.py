"""A small U-Net for images and volumes, on an encoder of its own or on any that returns a list of feature maps.

Reference: O. Ronneberger, P. Fischer, T. Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015,
arXiv:1505.04597.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation by number of pixel dimensions


def conv_block(inputs: int, outputs: int, dims: int = 2) -> nn.Sequential:
    """Twice a convolution over three pixels, batch normalization and ReLU; the size stays.

    >>> conv_block(1, 4)(torch.zeros(2, 1, 5, 7)).shape
    torch.Size([2, 4, 5, 7])
    """
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [conv(first, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _Encoder(nn.Module):
    """A block at full resolution, and one after each halving."""

    def __init__(self, in_channels: int, channels: Sequence[int], dims: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_block(a, b, dims) for a, b in pairwise((in_channels, *channels)))
        self.pool = getattr(nn, f"MaxPool{dims}d")(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for block in self.blocks:
            x = block(self.pool(x) if features else x)
            features.append(x)
        return features


class UNet(nn.Module):
    """U-Net: features at several resolutions, brought back to the input's, one logit per class and pixel.

    Args:
        in_channels: Of the images.
        classes: Logits per pixel; 1 for a sigmoid.
        channels: Of the feature maps, finest first; at least two.
        dims: 2 for images, 3 for volumes, 1 for signals.
        encoder: Network that returns a list of feature maps with these channels, finest first, instead of our own.
            Where the finest is smaller than the input, logits are interpolated.

    Sizes need not be powers of two: features are brought to the size of those they are joined with. Each side must
    survive the halvings, that is be at least ``2 ** (len(channels) - 1)``.

    Raises:
        ValueError: A number out of range; in ``forward``, images of the wrong shape or too small.

    >>> UNet(1, 3, channels=(4, 8))(torch.zeros(2, 1, 10, 7)).shape
    torch.Size([2, 3, 10, 7])
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        channels: Sequence[int] = (16, 32, 64),
        dims: int = 2,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, value in {
            "in_channels": in_channels,
            "classes": classes,
            "channels": min(channels, default=0),
        }.items():
            if value < 1:
                raise ValueError(f"{name}: expected positive numbers, got {value}")
        if len(channels) < 2:
            raise ValueError(f"channels: expected at least two resolutions, got {tuple(channels)}")
        if dims not in _SMOOTH:
            raise ValueError(f"dims: expected 1, 2 or 3, got {dims}")
        self.in_channels, self.dims = in_channels, dims
        self.least = 2 ** (len(channels) - 1)
        self.encoder = _Encoder(in_channels, channels, dims) if encoder is None else encoder
        self.decoder = nn.ModuleList(
            conv_block(coarse + fine, fine, dims) for fine, coarse in reversed(list(pairwise(channels)))
        )
        self.head = getattr(nn, f"Conv{dims}d")(channels[0], classes, 1)

    @classmethod
    def from_timm(cls, name: str, in_channels: int, classes: int, *, pretrained: bool = False, **options: Any) -> UNet:
        """On any encoder of timm that gives features at several resolutions.

        Args:
            name: Such as ``"resnet18"``.
            in_channels: Of the images.
            classes: Logits per pixel.
            pretrained: Load timm's weights.
            **options: Handed to ``timm.create_model``, such as ``out_indices``.

        >>> UNet.from_timm("resnet18", 1, 2)(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
        """
        import timm

        encoder: Any = timm.create_model(
            name, features_only=True, in_chans=in_channels, pretrained=pretrained, **options
        )
        return cls(in_channels, classes, channels=encoder.feature_info.channels(), encoder=encoder)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes, *S)`` of images ``(B, in_channels, *S)``."""
        fits = x.ndim == self.dims + 2 and x.shape[1] == self.in_channels
        if not fits or min(x.shape[2:]) < self.least:
            sides = f"{self.dims} sides of at least {self.least}"
            raise ValueError(f"x: expected shape (B, {self.in_channels}, *S) with {sides}, got {tuple(x.shape)}")
        *fine, y = self.encoder(x)
        for block, skip in zip(self.decoder, reversed(fine), strict=True):
            y = block(torch.cat([F.interpolate(y, size=skip.shape[2:]), skip], 1))
        logits = self.head(y)
        if logits.shape[2:] == x.shape[2:]:
            return logits
        return F.interpolate(logits, size=x.shape[2:], mode=_SMOOTH[self.dims], align_corners=False)

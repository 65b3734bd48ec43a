"""Scenes to segment, rendered or made of real pixels, and changes of their look."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from _data import Images
from torch import Generator, Tensor

from infotorch.adaptation import ratios_from_masks

__all__ = ["CLASSES", "PRESENT", "SHIFTS", "SIDE", "Scenes", "pasted", "rendered"]

SIDE, CLASSES, PRESENT = 48, 3, 0.75  # pixels, with the background, and how often an object is there


@dataclass(frozen=True)
class Scenes:
    """Images ``(n, C, 48, 48)`` in [0, 1] or near, and labels: 0 background, 1 and 2 objects."""

    x: Tensor
    y: Tensor

    @property
    def tags(self) -> Tensor:
        """Which classes are in which image: the only thing about the target that an adaptation may be told."""
        return ratios_from_masks(self.y, CLASSES) > 0


def rendered(n: int, generator: Generator) -> Scenes:
    """A wavy background, two dark discs that are nothing, perhaps an ellipse (1), perhaps a bar (2), equally bright."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    wave = (rows * draw(0.05, 0.25) + draw(0, 6.3)).sin() * (columns * draw(0.05, 0.25) + draw(0, 6.3)).sin()
    x, y = 0.3 + 0.1 * wave, torch.zeros(n, SIDE, SIDE, dtype=torch.long)
    for _ in range(2):
        x = torch.where((rows - draw(4, 44)).square() + (columns - draw(4, 44)).square() < draw(2, 4).square(), 0.1, x)
    for label, (long, short) in {1: ((6, 9), (5, 8)), 2: ((7, 10), (2, 3))}.items():
        angle, down, right = draw(0, math.pi), rows - draw(10, 38), columns - draw(10, 38)
        u = (down * angle.cos() + right * angle.sin()) / draw(*long)
        v = (right * angle.cos() - down * angle.sin()) / draw(*short)
        inside = (u.square() + v.square() < 1) if label == 1 else (u.abs() < 1) & (v.abs() < 1)
        inside &= draw(0, 1) < PRESENT
        x, y = torch.where(inside, 0.65, x), torch.where(inside, label, y)
    noise = 0.05 * torch.randn(n, SIDE, SIDE, generator=generator)
    return Scenes((x + noise).unsqueeze(1), y)


def pasted(n: int, digits: Images, photographs: Images, part: str, generator: Generator) -> Scenes:
    """Darkened photographs with perhaps a bright zero (1) and perhaps a bright four (2) of MNIST pasted on."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    pool = getattr(photographs, part)
    x = pool[torch.randint(len(pool), (n,), generator=generator)]
    x = 0.6 * F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    y, kinds = torch.zeros(n, SIDE, SIDE, dtype=torch.long), getattr(digits, f"{part}_labels")
    for label, digit in {1: 0, 2: 4}.items():
        which = (kinds == digit).nonzero().squeeze(1)
        chosen = getattr(digits, part)[which[torch.randint(len(which), (n,), generator=generator)]]
        chosen = F.interpolate(chosen, size=(24, 24), mode="bilinear", align_corners=False)
        corner = (draw(n, 2) * (SIDE - 24 + 1)).long().tolist()
        color = 0.75 + 0.25 * draw(n, 3, 1, 1)
        for i in (draw(n) < PRESENT).nonzero().squeeze(1).tolist():
            at = (..., slice(corner[i][0], corner[i][0] + 24), slice(corner[i][1], corner[i][1] + 24))
            x[i][at] = x[i][at].lerp(color[i].expand(3, 24, 24), chosen[i])
            y[i][at] = torch.where(chosen[i, 0] > 0.5, label, y[i][at])
    return Scenes(x + 0.02 * torch.randn(x.shape, generator=generator), y)


def scanner(x: Tensor, g: Generator) -> Tensor:
    """Another contrast, dimmer, brighter from left to right, noisier."""
    ramp = torch.linspace(0, 0.15, SIDE)
    return x.clamp(0, 1).pow(1.6) * 0.8 + 0.05 + ramp + 0.04 * torch.randn(x.shape, generator=g)


def blur(x: Tensor, g: Generator) -> Tensor:
    return F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)


def texture(x: Tensor, g: Generator) -> Tensor:
    """Stripes of two pixels, at a phase of the image's own."""
    phase = 6.3 * torch.rand(len(x), 1, 1, 1, generator=g)
    return x + 0.12 * (torch.arange(SIDE) * math.pi / 2 + phase).sin()


SHIFTS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "scanner": scanner,
    "noise": lambda x, g: x + 0.2 * torch.randn(x.shape, generator=g),
    "blur": blur,
    "texture": texture,
    "contrast inversion": lambda x, g: 1 - x,
}

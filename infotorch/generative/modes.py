"""How many modes of the data a generator covers, and how evenly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_range, check_tensor
from infotorch.core._samples import as_samples
from infotorch.core.discrete import plugin_entropy

__all__ = ["ModeCoverage", "coverage_of_labels", "mode_coverage"]


@dataclass(frozen=True)
class ModeCoverage:
    r"""What a sample says of the modes.

    Attributes:
        covered: Modes that hold enough samples.
        share: Part of the samples that lie in a mode.
        reverse_kl: :math:`\mathrm{KL}(\hat p \| u)` from the histogram of modes to the uniform one, in nats: 0 for
            even coverage, the logarithm of the number of modes where all samples fall into one. The plug-in estimate is
            too large where samples are few for the modes.
    """

    covered: int
    share: float
    reverse_kl: float


def mode_coverage(samples: Tensor, centers: Tensor, *, radius: float, least: int = 20) -> ModeCoverage:
    """Coverage of modes with known centers; each sample belongs to the nearest.

    Args:
        samples: ``(n, d)``.
        centers: ``(K, d)``, equally likely.
        radius: Samples farther from their center than this lie in no mode; the divergence counts them all the same.
        least: Samples that a covered mode holds within the radius.

    Raises:
        ValueError: Shapes that differ, values that are not finite, ``radius`` or ``least`` not positive.

    >>> centers = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    >>> mode_coverage(torch.tensor([[0.1, 0.0], [0.0, 2.0]]), centers, radius=1.0, least=1)
    ModeCoverage(covered=1, share=0.5, reverse_kl=0.693...)
    """
    samples, centers = as_samples("samples", samples), as_samples("centers", centers)
    if samples.shape[1] != centers.shape[1]:
        raise ValueError(f"centers: expected shape (K, {samples.shape[1]}), got {tuple(centers.shape)}")
    check_range("radius", radius, 0.0, math.inf, low_open=True, high_open=True)
    check_range("least", least, 1)
    distances, labels = torch.cdist(samples, centers).min(1)
    near = distances <= radius
    held = torch.bincount(labels[near], minlength=len(centers))
    return ModeCoverage(int((held >= least).sum()), float(near.double().mean()), _reverse_kl(labels, len(centers)))


def coverage_of_labels(labels: Tensor, modes: int, *, least: int = 1) -> ModeCoverage:
    """Coverage by the labels that a classifier gave to samples, as for stacked digits.

    Args:
        labels: Integers in ``0 .. modes - 1``, ``(n,)``.
        modes: Number of modes, equally likely.
        least: Samples that a covered mode holds.

    Raises:
        TypeError: Labels that are no integers.
        ValueError: Labels out of range or of another shape, ``least`` below 1.

    >>> coverage_of_labels(torch.tensor([0, 1, 1, 3]), 4)
    ModeCoverage(covered=3, share=1.0, reverse_kl=0.346...)
    """
    if check_tensor("labels", labels).is_floating_point() or labels.is_complex():
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if labels.ndim != 1 or len(labels) == 0 or not bool(((labels >= 0) & (labels < modes)).all()):
        raise ValueError(f"labels: expected shape (n,), not empty, values in [0, {modes}), got {tuple(labels.shape)}")
    check_range("least", least, 1)
    held = torch.bincount(labels, minlength=modes)
    return ModeCoverage(int((held >= least).sum()), 1.0, _reverse_kl(labels, modes))


def _reverse_kl(labels: Tensor, modes: int) -> float:
    return max(0.0, math.log(modes) - float(plugin_entropy(torch.bincount(labels, minlength=modes))))

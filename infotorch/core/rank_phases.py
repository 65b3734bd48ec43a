"""Phases of a representation's rank over training: collapse, expansion, compression.

Reference:
    M. Z. Li et al., "Tracing the Representation Geometry of Language Models from Pretraining to Post-training",
    2025, arXiv:2509.23024, which names the phases and gives no rule for finding them. The rule here is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core._kernels import check_finite

__all__ = ["RankPhases", "rank_phases"]


@dataclass(frozen=True)
class RankPhases:
    """Where the phases end, as positions in the series.

    Attributes:
        minimum: End of the collapse (warm-up), None where the rank never fell.
        maximum: End of the expansion (entropy-seeking), None where there was none.
        compressing: Whether the rank fell again after the maximum.
        smoothed: Logarithms of the ranks after smoothing, float64.
    """

    minimum: int | None
    maximum: int | None
    compressing: bool
    smoothed: Tensor


def rank_phases(ranks: Tensor | Sequence[float], *, window: int = 5, threshold: float = 0.05) -> RankPhases:
    """Find the first minimum of a series of ranks and the maximum after it.

    The series should be spaced evenly in the logarithm of the training step. Its logarithm is smoothed by a running
    median (shorter at the ends); a move counts once it exceeds ``threshold``, and a turning point lies where the
    series stood before the first move back that counts.

    Args:
        ranks: Positive, shape ``(k,)``: RankMe or an effective rank at each checkpoint.
        window: Odd width of the median.
        threshold: Least move, in log rank: 0.05 is about 5 %.

    Raises:
        ValueError: Another shape, ranks that are not positive and finite, an even ``window``, ``threshold < 0``.

    >>> phases = rank_phases([10.0, 8.0, 7.0, 7.0, 8.0, 9.0, 9.5], window=1)
    >>> phases.minimum, phases.maximum, phases.compressing
    (2, 6, False)
    """
    series = check_finite("ranks", torch.as_tensor(ranks).detach().double().cpu())
    if series.ndim != 1 or series.numel() == 0 or not bool((series > 0).all()):
        raise ValueError(f"ranks: expected positive numbers of shape (k,), got {tuple(series.shape)}")
    check_range("window", window, 1)
    check_range("threshold", threshold, 0.0)
    if window % 2 == 0:
        raise ValueError(f"window: expected an odd number, got {window}")
    half, logs = window // 2, series.log()
    smoothed = torch.stack([logs[max(0, i - half) : i + half + 1].quantile(0.5) for i in range(len(logs))])
    bottom, _ = _turn(smoothed, threshold)
    if not float(smoothed[: bottom + 1].max() - smoothed[bottom]) > threshold:
        return RankPhases(None, None, False, smoothed)
    top, turned = _turn(-smoothed[bottom:], threshold)
    top += bottom
    if not float(smoothed[top] - smoothed[bottom]) > threshold:
        return RankPhases(bottom, None, False, smoothed)
    return RankPhases(bottom, top, turned, smoothed)


def _turn(series: Tensor, threshold: float) -> tuple[int, bool]:
    """Position of the lowest value before the first rise from a fall that counts, and whether there was one."""
    low = high = float(series[0])
    place = 0
    for i, value in enumerate(series.tolist()):
        if value < low:
            low, place = value, i
        if high - low > threshold and value - low > threshold:
            return place, True
        if not high - low > threshold and value > high:  # not yet falling
            low = high = value
            place = i
    return place, False

"""How good a segmentation is: Dice overlap and Hausdorff distance per class, of images or of volumes in slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from infotorch.adaptation.priors import label_counts
from infotorch.core._checks import check_bool_mask, check_choice, check_range, check_tensor

ABSENT = ("skip", "score")


def dice_counts(predicted: Tensor, target: Tensor, classes: int, *, ignore_index: int | None = None) -> Tensor:
    """Pixels of every class in both, in the prediction and in the target, int64 ``(B, K, 3)``.

    Dice is twice the first over the sum of the others; counts of slices add up to those of their volume.

    Args:
        predicted: Labels ``(B, *S)`` or logits ``(B, K, *S)``, whose largest counts.
        target: Labels ``(B, *S)``.
        classes: K.
        ignore_index: Label in the target of pixels that do not count.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Shapes that do not fit, a label that is no class.

    >>> dice_counts(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]), 2)
    tensor([[[1, 1, 2],
             [1, 2, 1]]])
    """
    predicted, target = _labels(predicted, target, classes)
    nowhere = -1 if ignore_index is None else ignore_index
    if ignore_index is not None:
        predicted = torch.where(target == ignore_index, ignore_index, predicted)
    both = torch.where(predicted == target, target, nowhere)
    counts = [
        label_counts(both, classes, ignore_index=nowhere, name="target"),
        label_counts(predicted, classes, ignore_index=ignore_index, name="predicted"),
        label_counts(target, classes, ignore_index=ignore_index, name="target"),
    ]
    return torch.stack(counts, 2)


def hausdorff_distance(
    predicted: Tensor, target: Tensor, *, percentile: float = 95.0, spacing: Sequence[float] | None = None
) -> float:
    r"""Distance between the surfaces of two objects.

    :math:`\max(Q_{a \in A} \min_{b \in B} |a - b|, Q_{b \in B} \min_{a \in A} |a - b|)` over surface pixels, with Q
    the percentile; 100 is the Hausdorff distance, 95 its usual robust form.

    Args:
        predicted: Boolean, shape ``(*S)``, not empty.
        target: Boolean, of that shape, not empty.
        percentile: In (0, 100].
        spacing: Size of a pixel along every dimension; 1 by default.

    Raises:
        TypeError: A mask that is not boolean.
        ValueError: Shapes that do not fit, an empty object, a percentile out of range.

    Reference: D. Huttenlocher et al., "Comparing images using the Hausdorff distance", 1993.

    >>> line = torch.arange(8)
    >>> hausdorff_distance(line < 3, line < 5, percentile=100)
    2.0
    """
    from scipy import ndimage

    check_range("percentile", percentile, 0.0, 100.0, low_open=True)
    a, b = (check_bool_mask(name, mask) for name, mask in {"predicted": predicted, "target": target}.items())
    check_bool_mask("predicted", a, b.shape)
    if spacing is not None and len(spacing) != a.ndim:
        raise ValueError(f"spacing: expected {a.ndim} numbers, got {len(spacing)}")
    surfaces = []
    for name, mask in {"predicted": a, "target": b}.items():
        if not bool(mask.any()):
            raise ValueError(f"{name}: expected an object, got an empty mask")
        inside = mask.cpu().numpy()
        surfaces.append(inside & ~ndimage.binary_erosion(inside))
    distances = []
    for one, other in (surfaces, surfaces[::-1]):
        away: Any = ndimage.distance_transform_edt(~other, sampling=spacing)
        distances.append(float(torch.from_numpy(away[one]).quantile(percentile / 100)))
    return max(distances)


class DiceScore(Metric):
    r"""Dice :math:`2 |A \cap B| / (|A| + |B|)` per class, a mean over images, or over volumes given in slices.

    Args:
        classes: K.
        absent: An image without the class in the target is left out (``"skip"``), or counts (``"score"``) 1 where it is
            not predicted either and 0 where it is.
        ignore_index: Label in the target of pixels that do not count.
        **options: Of torchmetrics.

    Slices of one volume have the same ``subject`` in :meth:`update`, over all batches and processes; their pixels are
    counted together.

    >>> metric = DiceScore(2)
    >>> metric(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]))
    tensor([0.6667, 0.6667])
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: list[Tensor]
    subjects: list[Tensor]

    def __init__(self, classes: int, *, absent: str = "skip", ignore_index: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.classes = int(check_range("classes", classes, 2))
        self.absent = check_choice("absent", absent, ABSENT)
        self.ignore_index = ignore_index
        self.add_state("counts", [], dist_reduce_fx="cat")
        self.add_state("subjects", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, target: Tensor, subject: Tensor | None = None) -> None:
        """Add images: labels or logits, target labels, and for slices the number (at least 0) of the volume of each."""
        counts = dice_counts(predicted, target, self.classes, ignore_index=self.ignore_index)
        if subject is None:
            subject = torch.full((len(counts),), -1, device=counts.device)
        elif tuple(subject.shape) != (len(counts),) or bool((subject < 0).any()):
            raise ValueError(f"subject: expected {len(counts)} numbers of at least 0, got {subject.tolist()}")
        self.counts.append(counts)
        self.subjects.append(subject.to(counts.device))

    def compute(self) -> Tensor:
        """Shape ``(K,)``; NaN for a class that no image tells anything about."""
        counts = _joined(self.counts)
        if counts is None:
            return torch.full((self.classes,), torch.nan, device=self.device)
        subjects = _joined(self.subjects)
        assert subjects is not None
        alone = subjects < 0
        # Images on their own get numbers beyond those of the volumes.
        subjects = torch.where(alone, subjects.max() + alone.cumsum(0), subjects)
        number = torch.unique(subjects, return_inverse=True)[1]
        whole = counts.new_zeros(int(number.max()) + 1, *counts.shape[1:]).index_add_(0, number, counts)
        both, one, other = whole.double().unbind(2)
        told = (other > 0) if self.absent == "skip" else torch.ones_like(other, dtype=torch.bool)
        dice = torch.where(one + other > 0, 2 * both / (one + other).clamp(min=1), 1.0)
        return (torch.where(told, dice, 0.0).sum(0) / told.sum(0)).float()


class HausdorffDistance(Metric):
    """Mean :func:`hausdorff_distance` per class over the images (or whole volumes) in which the class is.

    A class that is in the target and not in the prediction counts with the image's diagonal. For the distances of
    volumes, give volumes; slices have distances of their own. Computed on the CPU.

    Args:
        classes: K.
        percentile: 100 for the Hausdorff distance.
        spacing: Size of a pixel along every dimension; 1 by default.
        **options: Of torchmetrics.

    >>> metric = HausdorffDistance(2, percentile=100)
    >>> line = torch.arange(8).unsqueeze(0)
    >>> metric((line > 3).long(), (line > 5).long())
    tensor([2., 2.])
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    total: Tensor
    number: Tensor

    def __init__(
        self, classes: int, *, percentile: float = 95.0, spacing: Sequence[float] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.classes = int(check_range("classes", classes, 2))
        self.percentile = check_range("percentile", percentile, 0.0, 100.0, low_open=True)
        self.spacing = None if spacing is None else tuple(spacing)
        self.add_state("total", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("number", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add images: labels or logits, and target labels."""
        predicted, target = _labels(predicted, target, self.classes)
        sides = target.shape[1:]
        spacing = self.spacing or (1.0,) * len(sides)
        diagonal = math.hypot(*(size * step for size, step in zip(sides, spacing, strict=True)))
        for found, true in zip(predicted, target, strict=True):
            for k in range(self.classes):
                one, other = found == k, true == k
                if not bool(other.any()):
                    continue
                self.number[k] += 1
                self.total[k] += (
                    hausdorff_distance(one, other, percentile=self.percentile, spacing=self.spacing)
                    if bool(one.any())
                    else diagonal
                )

    def compute(self) -> Tensor:
        """Shape ``(K,)``; NaN for a class that is in no image."""
        return (self.total / self.number).float()


def _labels(predicted: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Both as labels of one shape."""
    predicted, target = check_tensor("predicted", predicted), check_tensor("target", target)
    if predicted.is_floating_point():
        if predicted.ndim != target.ndim + 1 or predicted.shape[1] != classes:
            raise ValueError(
                f"predicted: expected logits of shape (B, {classes}, *pixels) for a target of shape "
                f"{tuple(target.shape)}, got {tuple(predicted.shape)}"
            )
        predicted = predicted.argmax(1)
    if predicted.shape != target.shape:
        raise ValueError(f"predicted: expected shape {tuple(target.shape)} as target has, got {tuple(predicted.shape)}")
    return predicted, target


def _joined(state: Any) -> Tensor | None:
    """A list state as one tensor; torchmetrics has joined it already where processes were synchronized."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else None

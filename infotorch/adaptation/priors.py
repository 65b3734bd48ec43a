"""Class ratios known without masks of the target: from sizes, from tags, from an auxiliary network's guess.

The released recipe knows one average size per organ and one bit per image, whether the organ is in it. Here sizes
become ratios, tags make them the image's own, and ratios of labeled source masks give class weights or an upper bound.

Reference: M. Bateson et al., "Source-free domain adaptation for image segmentation", 2022, arXiv:2108.03152.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_range, check_tensor

_TOLERANCE = 1e-3  # of the sum of ratios; beyond it they are normalized, and said to be


def as_class_ratios(ratios: Tensor, classes: int | None = None, *, name: str = "prior") -> Tensor:
    """Ratios that have been checked, and normalized (with a warning) where they do not sum to one within 1e-3.

    Args:
        ratios: Shape ``(K,)`` or ``(B, K)``, non-negative.
        classes: K, if it is known.
        name: What to call them in errors.

    Returns:
        The same shape. While torch compiles, values are neither checked nor changed.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Another shape, values that are negative or not finite, a row of zeros.

    >>> as_class_ratios(torch.tensor([0.9, 0.1]))
    tensor([0.9000, 0.1000])
    """
    ratios = check_tensor(name, ratios)
    if not ratios.is_floating_point():
        raise TypeError(f"{name}: expected floating-point ratios, got {ratios.dtype} (sizes: ratios_from_sizes)")
    if ratios.ndim not in (1, 2) or ratios.shape[-1] != (classes or ratios.shape[-1]):
        k = "K" if classes is None else classes
        raise ValueError(f"{name}: expected shape ({k},) or (B, {k}), got {tuple(ratios.shape)}")
    if torch.compiler.is_compiling() or ratios.numel() == 0:
        return ratios
    if not bool(ratios.isfinite().all()):
        raise ValueError(f"{name}: expected finite ratios, got {ratios[~ratios.isfinite()][0]}")
    if bool((ratios < 0).any()):
        raise ValueError(f"{name}: expected ratios of at least 0, got {ratios.min()}")
    total = ratios.sum(-1, keepdim=True)
    if bool((total <= 0).any()):
        raise ValueError(f"{name}: expected ratios that sum to one, got a row of zeros")
    if bool(((total - 1).abs() > _TOLERANCE).any()):
        # A constant text, so that Python shows it once and not for every batch.
        warnings.warn(f"{name}: the ratios do not sum to one over the classes and were normalized", stacklevel=3)
        return ratios / total
    return ratios


def ratios_from_sizes(sizes: Tensor, pixels: float) -> Tensor:
    r"""Class ratios from the sizes of the foreground classes; the background, class 0, takes the rest.

    :math:`\pi_k = s_k / N` and :math:`\pi_0 = 1 - \sum_k s_k / N`.

    Args:
        sizes: In pixels (voxels), shape ``(K - 1,)`` or ``(B, K - 1)``, classes 1 to K - 1.
        pixels: Size N of the image, in the same unit.

    Returns:
        Shape ``(K,)`` or ``(B, K)``, at least float32.

    Raises:
        ValueError: Negative or non-finite sizes, classes that together are larger than the image.

    >>> ratios_from_sizes(torch.tensor([300.0, 100.0]), pixels=1000)
    tensor([0.6000, 0.3000, 0.1000])
    """
    check_range("pixels", pixels, 0.0, low_open=True)
    sizes = check_tensor("sizes", sizes)
    sizes = sizes if sizes.dtype in (torch.float32, torch.float64) else sizes.float()
    if sizes.ndim not in (1, 2):
        raise ValueError(f"sizes: expected shape (K - 1,) or (B, K - 1), got {tuple(sizes.shape)}")
    if not bool((sizes >= 0).all() & sizes.isfinite().all()):
        raise ValueError("sizes: expected finite sizes of at least 0")
    background = 1 - (sizes / pixels).sum(-1, keepdim=True)
    if bool((background < 0).any()):
        raise ValueError(f"sizes: expected at most pixels={pixels:g} in all, got {sizes.sum(-1).max():g}")
    return torch.cat([background, sizes / pixels], -1)


def tagged_ratios(ratios: Tensor, present: Tensor) -> Tensor:
    """An image's own ratios from average ones and tags: an absent class gets 0, the background (class 0) its mass.

    Args:
        ratios: Of images in which every class is, shape ``(K,)`` or ``(B, K)``.
        present: Boolean tags, shape ``(B, K)``; the background's own is not looked at.

    Returns:
        Shape ``(B, K)``.

    Raises:
        TypeError: ``present`` is not boolean.
        ValueError: Shapes that do not fit.

    Reference: M. Bateson et al., 2022, arXiv:2108.03152.

    >>> tagged_ratios(torch.tensor([0.7, 0.2, 0.1]), torch.tensor([[True, True, False]]))
    tensor([[0.8000, 0.2000, 0.0000]])
    """
    present = check_bool_mask("present", present)
    fits = present.ndim == 2 and ratios.shape[-1] == present.shape[1]
    if not fits or tuple(ratios.shape) not in (tuple(present.shape), tuple(present.shape[1:])):
        raise ValueError(
            f"ratios, present: expected shapes (K,) or (B, K) and (B, K), got {tuple(ratios.shape)}, "
            f"{tuple(present.shape)}"
        )
    foreground = ratios[..., 1:] * present[:, 1:]
    freed = (ratios[..., 1:] - foreground).sum(1, keepdim=True)
    return torch.cat([ratios[..., :1] + freed, foreground], 1)


def ratios_from_masks(masks: Tensor, classes: int, *, ignore_index: int | None = None) -> Tensor:
    """True class ratios of label maps: of the source, to learn from; of the target, as an upper bound.

    Args:
        masks: Integer labels, shape ``(B, *S)``.
        classes: K.
        ignore_index: Label of pixels that do not count.

    Returns:
        Float32 ``(B, K)``; a row of zeros where no pixel counts.

    Raises:
        TypeError: The labels are not integers.
        ValueError: A label that is no class.

    >>> ratios_from_masks(torch.tensor([[[0, 0], [1, 2]]]), 3)
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    counts = label_counts(masks, classes, ignore_index=ignore_index)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def label_counts(masks: Tensor, classes: int, *, ignore_index: int | None = None, name: str = "masks") -> Tensor:
    """Pixels of each class in every label map, int64 ``(B, K)``; arguments as for :func:`ratios_from_masks`."""
    masks = check_tensor(name, masks)
    if masks.is_floating_point() or masks.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer labels, got {masks.dtype}")
    if masks.ndim < 2:
        raise ValueError(f"{name}: expected shape (B, *pixels), got {tuple(masks.shape)}")
    flat = masks.flatten(1).long()
    counted = torch.ones_like(flat) if ignore_index is None else (flat != ignore_index).long()
    flat = torch.where(counted > 0, flat, 0)
    if flat.numel() and not bool(((flat >= 0) & (flat < classes)).all()):
        raise ValueError(f"{name}: expected labels 0 to {classes - 1}, got {int(flat.min())} to {int(flat.max())}")
    return flat.new_zeros(len(flat), classes).scatter_add_(1, flat, counted)


def inverse_ratio_weights(ratios: Tensor) -> Tensor:
    r"""Class weights for the entropy, inversely to the average ratios: :math:`\nu_k \propto 1 / \bar\tau_k`, sum 1.

    Args:
        ratios: Average ratios, shape ``(K,)``, all positive.

    Returns:
        Shape ``(K,)``.

    Raises:
        ValueError: Another shape, or a ratio that is not positive: a class that never occurs has no weight.

    Reference: M. Bateson et al., 2022, arXiv:2108.03152. Their released weights are rounded to two digits.

    >>> inverse_ratio_weights(torch.tensor([0.9, 0.1]))
    tensor([0.1000, 0.9000])
    """
    ratios = as_class_ratios(ratios, name="ratios")
    if ratios.ndim != 1 or not bool((ratios > 0).all()):
        raise ValueError(f"ratios: expected positive ratios of shape (K,), got {ratios.tolist()}")
    return ratios.reciprocal() / ratios.reciprocal().sum()

"""Choices between entries, made of ones and zeros of a floating type.

A CPU works on several floating entries at a time, but compares, converts and chooses by booleans one at a time, and a
loss on a few thousand tokens is nothing but such passes. What is said here is what ``where``, ``>`` and ``maximum``
say, values and gradients, in a fraction of their time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import is_traced

# ReLU's gradient: the first where the second is above a threshold, else 0. A product would keep NaN and infinity.
_SELECT = torch.ops.aten.threshold_backward.default


def ones_inside(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as ones and zeros of a floating type; one that is no longer boolean, as it is in that type.

    >>> ones_inside(torch.tensor([True, False]), torch.float32)
    tensor([1., 0.])
    """
    # Read as bytes, which are converted several at a time, unlike booleans.
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    return mask if mask.dtype == dtype else mask.to(dtype)


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` where the mask holds, 0 elsewhere; the gradient outside the mask is exactly 0.

    The mask is boolean, or the ones and zeros that :func:`ones_inside` made of one.

    >>> zero_outside(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    if x.is_floating_point() and (x.device.type == "cpu" or mask.is_floating_point()):
        return _SELECT(x, ones_inside(mask, x.dtype), 0)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def indicator(compare: Callable[..., Tensor], a: Tensor, b: Tensor | float) -> Tensor:
    """1 where ``torch.gt``, ``torch.ne``, ... holds between ``a`` and ``b``, else 0, in the type of ``a``; no gradient.

    >>> indicator(torch.gt, torch.tensor([1.0, 3.0]), 2.0)
    tensor([0., 1.])
    """
    a, b = a.detach(), b.detach() if isinstance(b, Tensor) else b
    if a.device.type == "cpu" and not is_traced():
        return compare(a, b, out=a.new_empty(0))
    return compare(a, b).to(a.dtype)


class _Extreme(torch.autograd.Function):
    """The larger or smaller of two, whose gradient goes to the first where they are equal."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, largest: bool) -> Tensor:
        ctx.save_for_backward(indicator(torch.ge if largest else torch.le, a, b))
        return torch.maximum(a, b) if largest else torch.minimum(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (first,) = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad[:2]
        return zero_outside(grad, first) if of_a else None, zero_outside(grad, 1 - first) if of_b else None, None


def larger(a: Tensor, b: Tensor) -> Tensor:
    """``torch.maximum``, but where the two are equal the gradient goes to the first alone, not to both by halves.

    >>> larger(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    tensor([2., 3.])
    """
    return torch.where(a >= b, a, b) if is_traced() else _Extreme.apply(a, b, True)


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """``torch.minimum``, likewise.

    >>> smaller(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    tensor([1., 2.])
    """
    return torch.where(a <= b, a, b) if is_traced() else _Extreme.apply(a, b, False)

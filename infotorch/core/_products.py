"""Matrix products of half-precision operands with sums kept in float32.

On CUDA the operands stay half, so that tensor cores run and nothing is copied. Elsewhere no such product
exists, and operands are widened first.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def operand_dtype(dtype: torch.dtype, wide: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that operands of type ``dtype`` should have for products summed in type ``wide``."""
    return dtype if dtype == wide or _has_mixed(device.type) else wide


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b``, written to ``out``."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total`` in place."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif _has_mixed_sum(total.device.type):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(a, b, out_dtype=total.dtype))


@functools.cache
def _has_mixed(device_type: str) -> bool:
    return device_type == "cuda" and _runs(lambda a: torch.mm(a, a, out_dtype=torch.float32))


@functools.cache
def _has_mixed_sum(device_type: str) -> bool:
    # The first releases that know the argument want a half-precision summand.
    total = torch.zeros(16, 16, device=device_type)
    return _runs(lambda a: torch.addmm(total, a, a, out_dtype=torch.float32, out=total))


def _runs(product) -> bool:  # noqa: ANN001
    try:
        product(torch.zeros(16, 16, dtype=torch.bfloat16, device="cuda"))
    except (RuntimeError, TypeError):
        return False
    return True

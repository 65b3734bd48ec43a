"""Work of the size of a matrix of pairs, done a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Floats that a chunk's widest intermediate may hold: on a CPU what stays in its cache, on a GPU what keeps it busy.
_CPU_FLOATS, _GPU_FLOATS = 1 << 18, 1 << 26


def rows_per_chunk(chunk: int | None, floats_per_row: int, device: torch.device) -> int:
    """The rows that the caller asked for, or as many as the device takes well."""
    if chunk is not None:
        return chunk
    budget = _CPU_FLOATS if device.type == "cpu" else _GPU_FLOATS
    return max(1, budget // max(1, floats_per_row))


def by_rows(function: Callable[..., Tensor], rows: tuple[Tensor, ...], *shared: Tensor, size: int) -> Tensor:
    """``function(*rows, *shared)`` with ``rows`` cut into chunks of ``size``, concatenated.

    Where a gradient is wanted, a chunk keeps its inputs alone and is computed once more in the backward pass.

    >>> by_rows(lambda a, b: a + b, (torch.zeros(3, 1),), torch.ones(1, 2), size=2).shape
    torch.Size([3, 2])
    """
    if len(rows[0]) <= size:
        return function(*rows, *shared)
    parts = zip(*(r.split(size) for r in rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part, *shared) for part in parts])
    return torch.cat(
        [
            checkpoint(
                function, *part, *shared, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
            )
            for part in parts
        ]
    )

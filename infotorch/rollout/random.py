"""Counter-based random numbers: a draw is a hash of where it is used, not of what was drawn before.

Sampling a batch with an ordinary generator makes a row's tokens depend on its neighbors in the batch. Here each
uniform number is a function of ``(seed, row key, sample, step)`` alone, so a row keeps its tokens when the
batch is split over processes, re-ordered, or when finished rows are dropped.

The mixing function is the finalizer of SplitMix64 (Steele, Lea, Flood, 2014, "Fast splittable pseudorandom
number generators"; constants by D. Stafford), written with 64-bit integer tensor operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hash_uniform", "mix64"]


def _signed(value: int) -> int:
    """The two's complement reading of an unsigned 64-bit constant (torch has no full uint64 arithmetic)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's ``>>`` on int64 copies the sign bit, which the mask removes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """Bijective 64-bit mixing function (SplitMix64) of an int64 tensor of any shape.

    Example:
        >>> hex(mix64(torch.tensor(0)).item() & (1 << 64) - 1)  # first output of SplitMix64 with seed 0
        '0xe220a8397b1dcdaf'
    """
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def hash_uniform(seed: int, *keys: Tensor | int) -> Tensor:
    """Uniform float64 numbers in the open interval (0, 1), one per broadcast combination of integer keys.

    Args:
        seed: Any integer (taken modulo 2^64).
        *keys: int64 tensors or integers, e.g. prompt id, sample index and step; they broadcast.

    Returns:
        float64 tensor of the broadcast shape; 52 random bits, never 0 or 1.

    Example:
        >>> a = hash_uniform(7, torch.arange(4), 0)
        >>> torch.equal(a[2:], hash_uniform(7, torch.arange(2, 4), 0))  # a value depends on its keys only
        True
    """
    device = next((key.device for key in keys if isinstance(key, Tensor)), None)
    state = mix64(torch.tensor(_signed(seed), device=device))
    for key in keys:
        state = mix64(state ^ (mix64(key) if isinstance(key, Tensor) else mix64(torch.tensor(key, device=device))))
    return (_shift_right(state, 12).double() + 0.5) * 2.0**-52

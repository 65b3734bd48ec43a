"""Samples at the border of the estimators: shape, type, finiteness, enough of them."""

from __future__ import annotations

import warnings

from torch import Tensor

from infotorch.core._checks import all_finite, check_tensor


def as_samples(name: str, x: Tensor, *, keep_gradient: bool = False) -> Tensor:
    """``x`` as float64 ``(n, d)``; ``(n,)`` is one column.

    >>> import torch
    >>> as_samples("x", torch.tensor([1, 2])).shape
    torch.Size([2, 1])
    """
    x = check_tensor(name, x)
    if not keep_gradient:
        x = x.detach()
    if x.ndim == 1:
        x = x.unsqueeze(1)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name}: expected shape (n, d) or (n,), not empty, got {tuple(x.shape)}")
    if x.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {x.dtype}")
    x = x.double()
    if not all_finite(x):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return x


def check_paired(**samples: Tensor) -> int:
    """Number of points that all samples share, else ValueError."""
    lengths = {name: len(x) for name, x in samples.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{', '.join(lengths)}: expected equal numbers of points, got {list(lengths.values())}")
    return next(iter(lengths.values()))


def check_neighbors(k: int, n: int, *, inclusive: bool = False) -> None:
    """``1 <= k < n`` (``<= n`` where inclusive), else ValueError."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if not 1 <= k < n + inclusive:
        raise ValueError(f"k: expected 1 <= k {'<=' if inclusive else '<'} n with n={n} points, got {k}")


def warn_few(k: int, n: int) -> None:
    """Warn where ``n`` points are too few for ``k`` neighbors to be near."""
    if n < 4 * k:
        warnings.warn(
            f"k: {n} points are few for k={k} neighbors (fewer than 4 k); the estimate is biased", stacklevel=3
        )


def discrete_columns(x: Tensor) -> bool:
    """Whether a tensor holds categories, which its type says: integers and booleans."""
    return not (x.is_floating_point() or x.is_complex())

"""Arrays at the border: numpy, tensors and frames in, one checked form inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import all_finite


@dataclass(frozen=True)
class Sample:
    """One variable, checked.

    Attributes:
        values: ``(n, d)``: float64 for numbers, int64 for categories.
        discrete: Whether the columns are categories, which their type says: integers, booleans, strings, objects.
        tensor: Whether it came as a tensor; arrays go back in the kind they came.
        nominal: Whether the categories came as strings or objects, so that their codes have no order.
    """

    values: Tensor
    discrete: bool
    tensor: bool
    nominal: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.values.shape[1]


def as_sample(name: str, x: Any) -> Sample:
    """``x`` as ``(n, d)``; ``(n,)`` is one column. Nothing of ``x`` is changed or kept.

    Raises:
        TypeError: Complex numbers, dates, a frame that mixes numbers and categories.
        ValueError: Other shapes, an empty array, NaN, infinity or missing categories.

    >>> as_sample("x", ["a", "b", "a"]).values.squeeze(1)
    tensor([0, 1, 0])
    """
    tensor, nominal = isinstance(x, Tensor), False
    if tensor:
        values = x.detach()
        discrete = not (x.is_floating_point() or x.is_complex())
    else:
        values, discrete, nominal = _from_array(name, x)
    if values.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
    if values.ndim == 1:
        values = values.unsqueeze(1)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name}: expected shape (n, d) or (n,), not empty, got {tuple(values.shape)}")
    values = values.long() if discrete else values.double()
    if not discrete and not all_finite(values):
        raise ValueError(f"{name}: expected finite values, got {_count(~values.isfinite())} that are NaN or infinity")
    return Sample(values, discrete, tensor, nominal)


def same_kind(value: Tensor, like: Sample) -> Any:
    """A result as a tensor or a numpy array, whichever its sample was."""
    return value if like.tensor else value.detach().cpu().numpy()


def _from_array(name: str, x: Any) -> tuple[Tensor, bool, bool]:
    kinds = {_kind(t) for t in x.dtypes} if hasattr(x, "dtypes") and hasattr(x.dtypes, "__iter__") else set()
    if len(kinds) > 1:
        raise TypeError(f"{name}: expected columns of one type, got {', '.join(sorted(kinds))}; pass them apart")
    array = np.asarray(x)
    if array.dtype.kind in "OUST":
        return _codes(name, array), True, True
    if array.dtype.kind not in "fciub":
        raise TypeError(f"{name}: expected numbers, booleans or strings, got {array.dtype}")
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    # Copied: torch would otherwise share, and warn about, memory that may be read-only.
    return torch.from_numpy(np.array(array, order="C")), array.dtype.kind in "ib", False


def _kind(dtype: Any) -> str:
    return "numbers" if getattr(dtype, "kind", "O") in "fc" else "categories"


def _codes(name: str, array: np.ndarray) -> Tensor:
    """Objects and strings as numbers from 0, column by column."""
    if array.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape (n, d) or (n,), not empty, got {array.shape}")
    columns = array.reshape(len(array), -1).T
    coded = []
    for column in columns:
        values = column.tolist()
        missing = sum(v is None or v != v for v in values)
        if missing:
            raise ValueError(f"{name}: expected no missing values, got {missing}")
        # Objects of several types have no order of their own; that of their names is as good as any.
        order = {v: i for i, v in enumerate(sorted(set(values), key=lambda v: (type(v).__name__, str(v))))}
        coded.append([order[v] for v in values])
    return torch.tensor(coded).T.reshape(array.shape)


def _count(mask: Tensor) -> int:
    return int(mask.sum())

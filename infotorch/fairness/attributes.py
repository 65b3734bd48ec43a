"""Protected attributes: columns of any kind as the tensors that penalties take, and the groups that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range, did_you_mean
from infotorch.estimators.columns import encode_column

KINDS = ("continuous", "categorical")
FEW_LEVELS = 20


@dataclass(frozen=True)
class ProtectedAttributes:
    """Attributes of the same rows, encoded.

    Attributes:
        columns: By name, ``(n,)``: float64 numbers with mean 0 and standard deviation 1, or int64 codes of categories.
        levels: What the codes of every category mean.
        units: Mean and standard deviation of every number before it was standardized.
    """

    columns: dict[str, Tensor]
    levels: dict[str, tuple[str, ...]]
    units: dict[str, tuple[float, float]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the attributes, in their order."""
        return tuple(self.columns)

    @property
    def tensors(self) -> list[Tensor]:
        """What penalties take."""
        return list(self.columns.values())

    def rows(self, index: Tensor) -> ProtectedAttributes:
        """Some of the rows, in units of all."""
        return replace(self, columns={name: column[index] for name, column in self.columns.items()})

    def groups(self, *names: str, parts: int = 4) -> tuple[Tensor, list[str]]:
        """Groups that one or several attributes make; numbers are cut into parts of about equal size.

        Args:
            names: Attributes whose combinations are wanted; none given: all.
            parts: Into which numbers are cut, at least 2.

        Returns:
            Codes ``(n,)`` of the groups that occur, from 0, and their names.

        Raises:
            ValueError: A name that is none, fewer than 2 parts.

        >>> found = encode_attributes({"sex": ["f", "m", "f", "m"], "age": [20.0, 30.0, 40.0, 50.0]})
        >>> found.groups("age", parts=2)[1], found.groups(parts=2)[0].tolist()
        (['age < 40', 'age >= 40'], [0, 2, 1, 3])
        """
        check_range("parts", parts, 2)
        coded, labels = [], []
        for name in names or self.names:
            check_choice("names", name, self.names)
            codes, words = self._single(name, parts)
            coded.append(codes)
            labels.append(words)
        kinds, group = torch.stack(coded, 1).unique(dim=0, return_inverse=True)
        found = [", ".join(words[code] for words, code in zip(labels, kind, strict=True)) for kind in kinds.tolist()]
        return group, found

    def _single(self, name: str, parts: int) -> tuple[Tensor, list[str]]:
        column = self.columns[name]
        if name in self.levels:
            return column, [f"{name}={level}" for level in self.levels[name]]
        # Edges are values that occur, so that ties stay together; the least one would leave nothing below it.
        edges = column.sort().values[(torch.arange(1, parts) * len(column)) // parts].unique()
        edges = edges[edges > column.min()]
        mean, deviation = self.units[name]
        ends = [f"{mean + deviation * edge:.4g}" for edge in edges.tolist()]
        if not ends:
            return torch.zeros_like(column, dtype=torch.long), [f"{name}: any"]
        words = [
            f"{name} < {ends[0]}",
            *(f"{low} <= {name} < {high}" for low, high in pairwise(ends)),
        ]
        return torch.bucketize(column, edges, right=True), [*words, f"{name} >= {ends[-1]}"]


def encode_attributes(attributes: Any, *, kinds: Mapping[str, str] | None = None) -> ProtectedAttributes:
    """Check protected attributes and encode them.

    Floats are numbers; text and booleans are categories, and so are whole numbers with at most 20 distinct values
    (codes, mostly), while whole numbers with more are numbers (ages, mostly); ``kinds`` decides otherwise. An ordered
    category is a number: pass its ranks as floats.

    Args:
        attributes: Columns by name, or a data frame; an array ``(n,)`` or ``(n, d)`` gets the names ``"0"``, ``"1"``
            ... Or attributes that are encoded already, which come back as they are.
        kinds: ``"continuous"`` or ``"categorical"`` by name.

    Raises:
        TypeError: Neither columns nor an array.
        ValueError: No attribute, different lengths, missing or infinite values, an attribute with one level only
            (everything is independent of it: leave it out), an unknown name or kind.

    >>> found = encode_attributes({"race": ["a", "b", "a"], "age": [20.0, 30.0, 40.0]})
    >>> found.tensors[0].tolist(), found.levels["race"], found.units["age"][0]
    ([0, 1, 0], ('a', 'b'), 30.0)
    """
    if isinstance(attributes, ProtectedAttributes):
        return attributes
    table, kinds = _columns(attributes), dict(kinds or {})
    for name, kind in kinds.items():
        if name not in table:
            raise ValueError(f"kinds: no attribute {name!r}{did_you_mean(name, table)}")
        check_choice(f"kinds[{name!r}]", kind, KINDS)
    columns: dict[str, Tensor] = {}
    levels: dict[str, tuple[str, ...]] = {}
    units: dict[str, tuple[float, float]] = {}
    for name, cells in table.items():
        where = f"attributes[{name!r}]"
        kind = kinds.get(name) or ("continuous" if _floating(cells) else None)
        column = encode_column(name, cells, kind=kind)
        if kind is None and column.numeric and column.distinct <= FEW_LEVELS:
            column = encode_column(name, cells, kind="categorical")
        if column.n_missing:
            raise ValueError(
                f"{where}: expected no missing or infinite values, got {column.n_missing} (drop the rows, or make them "
                "a category of their own)"
            )
        if column.distinct < 2:
            raise ValueError(f"{where}: expected at least two levels, got {column.distinct}; leave it out")
        if not column.numeric:
            present, codes = column.values.unique(return_inverse=True)
            columns[name] = codes
            levels[name] = tuple(column.levels[i] if column.levels else str(i) for i in present.tolist())
            continue
        mean, deviation = column.values.mean(), column.values.std(correction=0)
        units[name] = float(mean), float(deviation)
        columns[name] = (column.values - mean) / deviation
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"attributes: expected equal lengths, got {lengths}")
    return ProtectedAttributes(columns, levels, units)


def _columns(attributes: Any) -> dict[str, Any]:
    if isinstance(attributes, Mapping) or hasattr(attributes, "columns"):  # frames of pandas and polars
        found = {str(name): attributes[name] for name in getattr(attributes, "columns", attributes)}
    elif isinstance(attributes, Tensor | np.ndarray):
        if attributes.ndim not in (1, 2):
            raise ValueError(f"attributes: expected shape (n,) or (n, d), got {tuple(attributes.shape)}")
        array = attributes.reshape(len(attributes), -1)
        found = {str(i): array[:, i] for i in range(array.shape[1])}
    else:
        raise TypeError(f"attributes: expected columns by name, a frame or an array, got {type(attributes).__name__}")
    if not found:
        raise ValueError("attributes: expected at least one, got none")
    return found


def _floating(cells: Any) -> bool:
    """Whether the type says that these are numbers."""
    if isinstance(cells, Tensor):
        return cells.is_floating_point()
    if isinstance(cells, list | tuple):
        return any(isinstance(cell, float) for cell in cells)
    return getattr(getattr(cells, "dtype", None), "kind", "") == "f"

"""Protected attributes at the border: columns of any kind to tensors that distances can be taken of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.estimators._samples import as_sample


@dataclass(frozen=True)
class Attributes:
    """Protected attributes of the same people.

    Numbers are standardized, so that their units do not weigh them against each other; categories are codes.

    Attributes:
        columns: By name: float64 ``(n,)`` for numbers, int64 ``(n,)`` for categories.
        levels: Of every categorical attribute: the names of its codes.
    """

    columns: dict[str, Tensor]
    levels: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Attributes:
        """Check and encode.

        Args:
            attributes: By name: floats are numbers; integers, booleans and text are categories. An age in whole years
                is a number: pass it as floats.

        Raises:
            TypeError: No mapping.
            ValueError: No attribute, several columns in one, missing or infinite values, different lengths, an
                attribute with one level, from which nothing can be independent or dependent.

        >>> found = Attributes.of({"sex": ["f", "m", "f"], "age": [20.0, 30.0, 40.0]})
        >>> found.columns["sex"].tolist(), found.levels["sex"]
        ([0, 1, 0], ('f', 'm'))
        """
        if not isinstance(attributes, Mapping):
            raise TypeError(f"attributes: expected columns by name, got {type(attributes).__name__}")
        if not attributes:
            raise ValueError("attributes: expected at least one, got none")
        columns: dict[str, Tensor] = {}
        levels: dict[str, tuple[str, ...]] = {}
        for name, values in attributes.items():
            sample = as_sample(f"attributes[{name!r}]", values)
            if sample.n_features != 1:
                raise ValueError(f"attributes[{name!r}]: expected one column, got {sample.n_features}")
            column = sample.values.squeeze(1)
            kinds, codes = column.unique(return_inverse=True)
            if len(kinds) < 2:
                raise ValueError(f"attributes[{name!r}]: expected at least two levels, got 1")
            if sample.discrete:
                columns[name] = codes
                names = sorted({str(v) for v in values}) if sample.nominal else [str(v) for v in kinds.tolist()]
                levels[name] = tuple(names)
            else:
                columns[name] = (column - column.mean()) / column.std(correction=0)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"attributes: expected equal lengths, got {lengths}")
        return cls(columns, levels)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def tensors(self) -> tuple[Tensor, ...]:
        """All columns in their order."""
        return tuple(self.columns.values())

    def groups(self, *names: str, bins: int = 4) -> tuple[Tensor, tuple[str, ...]]:
        """Cells of one or several attributes; numbers are cut into ``bins`` parts of about equal size.

        Args:
            names: Which attributes; none given: all.
            bins: Parts of a numeric attribute, at least 2.

        Returns:
            Codes ``(n,)`` of the cells that occur, and their names.

        Raises:
            ValueError: An unknown attribute, fewer than 2 bins.

        >>> found = Attributes.of({"a": [0, 0, 1, 1], "b": [True, False, True, False]})
        >>> found.groups("a", "b")[1]
        ('a=0, b=0', 'a=0, b=1', 'a=1, b=0', 'a=1, b=1')
        """
        check_range("bins", bins, 2)
        chosen = names or tuple(self.columns)
        parts, labels = [], []
        for name in chosen:
            if name not in self.columns:
                raise ValueError(f"names: expected some of {', '.join(self.columns)}, got {name!r}")
            column = self.columns[name]
            if name in self.levels:
                parts.append(column)
                labels.append([f"{name}={level}" for level in self.levels[name]])
            else:
                edges = column.quantile(torch.arange(1, bins, dtype=column.dtype) / bins).unique()
                parts.append(torch.bucketize(column, edges, right=True))
                labels.append([f"{name} part {i + 1} of {len(edges) + 1}" for i in range(len(edges) + 1)])
        cells, codes = torch.stack(parts, 1).unique(dim=0, return_inverse=True)
        text = [", ".join(labels[k][level] for k, level in enumerate(cell)) for cell in cells.tolist()]
        return codes, tuple(text)

"""Multivariate series for forecasting: tables, the field's splits, windows, and a Lightning data module.

Windows are standardized by the training part alone, validation and test windows may look back into the part before
theirs, and no window is dropped to fill a batch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from infotorch.core import distributed as dist
from infotorch.core._checks import check_choice, check_tensor

__all__ = ["SeriesDataModule", "Split", "WindowBatch", "Windows", "read_long", "read_wide"]


def read_wide(path: str | Path, columns: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
    """A table with one row per time step and one column per channel, ``(T, C)`` in float64, and the channels' names.

    A first row that holds no number is the header; without one channels are called by their numbers. A first column
    that is no number (the date) is left out. Empty cells are NaN.

    Args:
        path: Comma-separated file.
        columns: Channels to keep, by name.

    Raises:
        ValueError: An empty table, rows of different lengths, a cell that is no number, an unknown column.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError(f"{path}: expected a table, got an empty file")
    headed = not any(map(_is_number, rows[0]))
    names = rows.pop(0) if headed else [str(i) for i in range(len(rows[0]))]
    first = 1 if rows and not _is_number(rows[0][0]) else 0
    for number, row in enumerate(rows, 1 + headed):
        if len(row) != len(names):
            raise ValueError(f"{path}, row {number}: expected {len(names)} cells, got {len(row)}")
    values = torch.tensor([[_number(cell, path) for cell in row[first:]] for row in rows], dtype=torch.float64)
    names = names[first:]
    if columns is None:
        return values, names
    for name in columns:
        check_choice("columns", name, names)
    return values[:, [names.index(name) for name in columns]], list(columns)


def read_long(
    path: str | Path, *, series: str = "unique_id", time: str = "ds", value: str = "y"
) -> tuple[Tensor, list[str]]:
    """A table with one row per series and time step, as :func:`read_wide` returns it; series are sorted by name.

    Times are sorted as numbers if all are, else as texts (ISO dates sort right). A series that lacks a time step that
    another has is NaN there; a step that all lack cannot be noticed.

    Args:
        path: Comma-separated file with a header.
        series: Column that names the series.
        time: Column of the time.
        value: Column of the value.

    Raises:
        ValueError: An unknown column, a cell that is no number, two rows of one series at one time.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for column in (series, time, value):
            check_choice("series, time, value", column, reader.fieldnames or ())
        rows = [(row[series], row[time], _number(row[value], path)) for row in reader]
    names, times = sorted({row[0] for row in rows}), list({row[1] for row in rows})
    times.sort(key=float if all(map(_is_number, times)) else str)
    column, step = {name: i for i, name in enumerate(names)}, {at: i for i, at in enumerate(times)}
    if len({row[:2] for row in rows}) < len(rows):
        raise ValueError(f"{path}: expected one row per series and time, got several")
    values = torch.full((len(times), len(names)), torch.nan, dtype=torch.float64)
    for name, at, number in rows:
        values[step[at], column[name]] = number
    return values, names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: str | Path) -> float:
    if not cell.strip():
        return torch.nan
    if not _is_number(cell):
        raise ValueError(f"{path}: expected a number, got {cell!r}")
    return float(cell)


@dataclass(frozen=True)
class Split:
    """Time steps of training, validation and test, in this order.

    >>> Split.standard("ratio", 1000)
    Split(train=700, validation=100, test=200)
    """

    train: int
    validation: int
    test: int

    @classmethod
    def standard(cls, name: str, length: int) -> Split:
        """The field's splits: ``"ett_hour"`` and ``"ett_minute"`` 12, 4, 4 months of 30 days; ``"ratio"`` 7:1:2.

        Raises:
            ValueError: Unknown name, or a series shorter than the months need.
        """
        check_choice("split", name, ("ett_hour", "ett_minute", "ratio"))
        if name == "ratio":
            train, test = length * 7 // 10, length // 5
            return cls(train, length - train - test, test)
        month = 30 * 24 * (4 if name == "ett_minute" else 1)
        if length < 20 * month:
            raise ValueError(f"values: expected at least {20 * month} steps for the split {name!r}, got {length}")
        return cls(12 * month, 4 * month, 4 * month)


class WindowBatch(NamedTuple):
    """Numbers of the windows, and the windows: ``x (B, L, C)`` and what follows, ``y (B, H, C)``."""

    number: Tensor
    x: Tensor
    y: Tensor


class Windows(Dataset[WindowBatch]):
    """All windows of a series, ``stride`` steps apart.

    Raises:
        ValueError: The series is shorter than one window and its horizon.

    >>> len(Windows(torch.zeros(10, 1), lookback=4, horizon=2)), len(Windows(torch.zeros(10, 1), 4, 2, stride=2))
    (5, 3)
    """

    def __init__(self, values: Tensor, lookback: int, horizon: int, stride: int = 1) -> None:
        if len(values) < lookback + horizon:
            raise ValueError(f"values: expected at least {lookback + horizon} steps, got {len(values)}")
        self.values, self.lookback, self.horizon, self.stride = values, lookback, horizon, stride

    def __len__(self) -> int:
        return (len(self.values) - self.lookback - self.horizon) // self.stride + 1

    def __getitem__(self, index: int) -> WindowBatch:
        index = range(len(self))[index]
        _, x, y = self.__getitems__([index])
        return WindowBatch(torch.tensor(index), x[0], y[0])

    def __getitems__(self, indices: Sequence[int]) -> WindowBatch:
        """Several windows at once, which is what a `DataLoader` asks for."""
        index = torch.as_tensor(indices)
        steps = torch.arange(self.lookback + self.horizon)
        cut = self.values[index.unsqueeze(1) * self.stride + steps]
        return WindowBatch(index, cut[:, : self.lookback], cut[:, self.lookback :])


class EpochSampler(DistributedSampler[Any]):
    """Windows in an order that depends on seed and epoch alone, so that a resumed epoch sees the same ones.

    Processes share the windows of an epoch; the last ones may repeat a few of the first, so that all have as many.
    """

    def __init__(self, windows: Windows, count: int | None, seed: int) -> None:
        super().__init__(windows, dist.world_size(), dist.rank(), seed=seed)
        self.size = len(windows)
        self.count = min(count or self.size, self.size)

    def __len__(self) -> int:
        return -(self.count // -self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)[: self.count]
        order = order[torch.arange(len(self) * self.num_replicas) % self.count]
        yield from order[self.rank :: self.num_replicas].tolist()


class SeriesDataModule(LightningDataModule):
    """Windows of one multivariate series, standardized by its training part.

    Args:
        values: Shape ``(T, C)``.
        split: A `Split`, or the name of a standard one.
        lookback: Steps of a window.
        horizon: Steps to forecast.
        batch_size: Windows per batch; the last batch may be smaller, and is not dropped.
        train_windows: Windows per epoch, drawn anew in each; by default all.
        stride: Steps between validation and test windows; 1 takes all.
        seed: Of the order of training windows.

    Raises:
        TypeError: ``values`` is not a tensor.
        ValueError: Another shape, values that are not finite, a constant training channel, a part too short for one
            window.

    >>> data = SeriesDataModule(torch.randn(1000, 2), "ratio", lookback=96, horizon=24)
    >>> len(data.train), len(data.validation), len(data.test)
    (581, 77, 177)
    """

    def __init__(
        self,
        values: Tensor,
        split: Split | str = "ratio",
        *,
        lookback: int = 96,
        horizon: int = 96,
        batch_size: int = 128,
        train_windows: int | None = None,
        stride: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if check_tensor("values", values).ndim != 2:
            raise ValueError(f"values: expected shape (T, C), got {tuple(values.shape)}")
        sizes = {"lookback": lookback, "horizon": horizon, "batch_size": batch_size, "stride": stride}
        for name, size in (sizes | {"train_windows": 1 if train_windows is None else train_windows}).items():
            if size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size}")
        wrong = ~values.isfinite()
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"values: expected finite values, got {int(wrong.sum())} that are not, the first at step {row} of "
                f"channel {column}; fill gaps (NaN) first"
            )
        self.split = Split.standard(split, len(values)) if isinstance(split, str) else split
        self.batch_size, self.train_windows, self.seed = batch_size, train_windows, seed
        parts = self.split.train, self.split.validation, self.split.test
        if len(values) < sum(parts):
            raise ValueError(f"values: expected at least {sum(parts)} steps for {self.split}, got {len(values)}")
        short = {"train": lookback + horizon, "validation": horizon, "test": horizon}
        for (name, needed), part in zip(short.items(), parts, strict=True):
            if part < needed:
                raise ValueError(
                    f"values: expected at least {needed} steps of {name} for lookback={lookback} and "
                    f"horizon={horizon}, got {part}"
                )
        train = values[: parts[0]].double()
        self.mean, self.std = train.mean(0), train.std(0, correction=0)
        if bool((self.std == 0).any()):
            channel = int((self.std == 0).nonzero()[0])
            raise ValueError(f"values: expected channels that vary in training, got a constant one ({channel})")
        scaled = ((values.double() - self.mean) / self.std).float()
        ends = parts[0], parts[0] + parts[1], sum(parts)
        self.train = Windows(scaled[: ends[0]], lookback, horizon)
        self.validation = Windows(scaled[ends[0] - lookback : ends[1]], lookback, horizon, stride)
        self.test = Windows(scaled[ends[1] - lookback : ends[2]], lookback, horizon, stride)

    def train_dataloader(self) -> DataLoader[WindowBatch]:
        """Training windows in random order."""
        return self._loader(self.train, EpochSampler(self.train, self.train_windows, self.seed))

    def val_dataloader(self) -> DataLoader[WindowBatch]:
        """Validation windows in order."""
        return self._loader(self.validation)

    def test_dataloader(self) -> DataLoader[WindowBatch]:
        """Test windows in order."""
        return self._loader(self.test)

    def _loader(self, windows: Windows, sampler: Sampler[int] | None = None) -> DataLoader[WindowBatch]:
        # Its own generator: by default every pass draws a number from the global one, which belongs to dropout.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(windows, self.batch_size, sampler=sampler, collate_fn=_whole, generator=generator)


def _whole(batch: Any) -> WindowBatch:
    """A batch that `Windows.__getitems__` has put together."""
    return batch

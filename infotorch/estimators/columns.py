"""Columns of a table as tensors: which kind each is, decided from its cells or said by the user.

=========== ======================================================  ==========================================
kind        cells                                                   values
=========== ======================================================  ==========================================
continuous  numbers, some of them with a fraction                   float64
integer     whole numbers: counts, years, grades; ``1.0`` is whole  float64
datetime    dates and times                                         float64, seconds since 1970 or midnight
boolean     true/false, yes/no, y/n, t/f, 0/1                       int64 codes
categorical any other text                                          int64 codes in alphabetical order
=========== ======================================================  ==========================================

The numbers of a date are not split into month, weekday or hour: add such columns yourself if a cycle matters.
Whole numbers with leading zeros (``007``) are codes, hence categories. Infinite numbers count as missing, with a note.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_choice, did_you_mean
from infotorch.estimators import _text

KINDS = ("continuous", "integer", "datetime", "boolean", "categorical")
NUMERIC = ("continuous", "integer", "datetime")
IDENTIFIER = "identifier"
_SHARE = 0.9  # distinct cells per row above which text identifies rows
_FEW = 20  # rows below which nothing is called an identifier
_ID_NAME = re.compile(r"(?:^|[_\W])(?:id|uuid|guid|index|rowid|key)$|[a-z]I[dD]$|^Unnamed: \d+$", re.IGNORECASE)
_LABEL_LEVELS, _LABEL_COUNT = 32, 5.0


@dataclass(frozen=True)
class Text:
    """A column of text by its distinct cells: ``levels[codes]``. Memory is four bytes a cell."""

    levels: Sequence[str]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Column:
    """One column, ready for the estimators.

    Attributes:
        name: Its name.
        kind: One of `KINDS`.
        values: ``(n,)``: float64 numbers (NaN where missing), or int64 codes (-1 where missing).
        levels: What the codes mean; empty for numbers.
        flag: Why it tells nothing or everything: ``"empty"``, ``"constant"``, ``"identifier"``,
            ``"duplicate of NAME"``, or nothing.
        notes: Decisions made while reading.
    """

    name: str
    kind: str
    values: Tensor
    levels: tuple[str, ...] = ()
    flag: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, in order."""
        return self.kind in NUMERIC

    @cached_property
    def missing(self) -> Tensor:
        """``(n,)`` bool."""
        return self.values.isnan() if self.numeric else self.values < 0

    @property
    def n_missing(self) -> int:
        """Number of missing cells."""
        return int(self.missing.sum())

    @cached_property
    def codes(self) -> Tensor:
        """``(n,)`` int64: equal where the cells are; -1 where missing."""
        if not self.numeric:
            return self.values
        codes = torch.full(self.values.shape, -1)
        codes[~self.missing] = torch.unique(self.values[~self.missing], return_inverse=True)[1]
        return codes

    @cached_property
    def counts(self) -> Tensor:
        """How often each distinct value occurs."""
        present = self.codes[self.codes >= 0]
        counts = torch.bincount(present) if len(present) else torch.zeros(0, dtype=torch.int64)
        return counts[counts > 0]

    @property
    def distinct(self) -> int:
        """Number of distinct values."""
        return len(self.counts)

    @property
    def tied(self) -> float:
        """Share of the cells whose value occurs more than once."""
        total = int(self.counts.sum())
        return int(self.counts[self.counts > 1].sum()) / total if total else 0.0

    @property
    def discrete(self) -> bool:
        """Whether estimators may take its values as labels.

        Categories always; numbers where they have at most 32 distinct values that occur 5 times each on average.
        """
        if not self.numeric:
            return True
        return self.distinct <= _LABEL_LEVELS and int(self.counts.sum()) >= _LABEL_COUNT * self.distinct

    def with_missing_level(self) -> Column:
        """Missing cells as a level of their own; the same column if nothing is missing.

        Raises:
            ValueError: A numeric column that is not `discrete`.
        """
        if not self.n_missing:
            return self
        if not self.discrete:
            raise ValueError(f"column {self.name!r}: missing cells can be a level of discrete columns only")
        levels = self.levels
        if self.numeric:
            levels = tuple(f"{v:g}" for v in torch.unique(self.values[~self.missing]).tolist())
        codes = torch.where(self.missing, len(levels), self.codes)
        flag = "" if self.flag == "constant" else self.flag
        return replace(self, kind="categorical", values=codes, levels=(*levels, "(missing)"), flag=flag)


def encode_table(
    table: Mapping[str, Any],
    *,
    types: Mapping[str, str] | None = None,
    decimal: str | None = None,
    dates: str | None = None,
) -> list[Column]:
    """All columns of a table; columns that repeat an earlier one are flagged.

    Args:
        table: Name to cells: see :func:`encode_column`.
        types: Name to kind, or to ``"identifier"``, where the kind is not to be detected.
        decimal: ``"."`` or ``","``. Default: what each column proves, or else what other columns of the table do.
        dates: ``"dmy"`` or ``"mdy"``, for dates whose year comes last. Default: what each column proves.

    Raises:
        ValueError: Columns of different lengths, an unknown name or kind in ``types``, cells that fit two readings.

    >>> a, b = encode_table({"age": ["31", "NA", "7"], "sex": ["f", "m", "f"]})
    >>> a.kind, a.values, b.values
    ('integer', tensor([31., nan,  7.], dtype=torch.float64), tensor([0, 1, 0]))
    """
    types = dict(types or {})
    for name in types:
        if name not in table:
            raise ValueError(f"types: no column {name!r}{did_you_mean(name, table)}")
    texts = {name: _as_text(cells) for name, cells in table.items()}
    lengths = {name: len(cells) for name, cells in texts.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"table: expected columns of equal length, got {lengths}")
    if decimal is None:
        marks = {_text.decimal_mark(t.levels) for t in texts.values() if isinstance(t, Text)} - {None}
        decimal = marks.pop() if len(marks) == 1 else None
    columns, seen = [], {}
    for name, cells in texts.items():
        kind = types.get(name) or _declared(table[name])
        column = encode_column(name, cells, kind=kind, decimal=decimal, dates=dates)
        if not column.flag and name not in types:
            content = column.values.numpy().tobytes() + repr((column.numeric, column.levels)).encode()
            first = seen.setdefault(hashlib.blake2b(content).digest(), name)
            if first != name:
                column = replace(column, flag=f"duplicate of {first}")
        columns.append(column)
    return columns


def encode_column(
    name: str, cells: Any, *, kind: str | None = None, decimal: str | None = None, dates: str | None = None
) -> Column:
    """One column from an array of any type, a sequence of cells, a tensor, a pandas or polars series, or `Text`.

    Args:
        name: For messages.
        cells: Length ``n``. Missing: None, NaN, NaT, empty text, and NA, N/A, NaN, null in any case.
        kind: One of `KINDS`, or ``"identifier"``. Default: detected.
        decimal: ``"."`` or ``","``, where text could be read either way.
        dates: ``"dmy"`` or ``"mdy"``, likewise.

    Raises:
        ValueError: Unknown option, more than one dimension, cells that the kind does not fit or that fit two readings.

    >>> encode_column("grade", torch.tensor([1.0, 2.0, 2.0])).kind
    'integer'
    >>> encode_column("when", ["2024-01-01", "1970-01-02"]).values[1]
    tensor(86400., dtype=torch.float64)
    """
    if kind is not None:
        check_choice(f"types[{name!r}]", kind, (*KINDS, IDENTIFIER))
    for option, value, accepted in (("decimal", decimal, _text.DECIMALS), ("dates", dates, _text.DATES)):
        if value is not None:
            check_choice(option, value, accepted)
    kind = kind or _declared(cells)
    cells = _as_text(cells)
    found = (
        _from_text(name, cells, kind, decimal, dates) if isinstance(cells, Text) else _from_numbers(name, cells, kind)
    )
    return replace(found, flag=_flag(found, cells, kind))


def _declared(cells: Any) -> str | None:
    """What a pandas series of categories says of itself."""
    return "categorical" if str(getattr(cells, "dtype", "")) == "category" else None


def _as_text(cells: Any) -> Text | np.ndarray:
    """Distinct text, or an array of numbers, booleans or datetimes."""
    if isinstance(cells, Text):
        return cells
    if isinstance(cells, Tensor):
        cells = cells.detach().cpu()
        array = (cells.float() if cells.dtype is torch.bfloat16 else cells).numpy()
    elif isinstance(cells, np.ndarray):
        array = cells
    elif hasattr(cells, "to_numpy"):
        array = np.asarray(cells.to_numpy())
    else:  # not by type of the whole: one long text would make every cell as wide
        array = np.fromiter(cells, dtype=object)
    if array.ndim != 1:
        raise ValueError(f"table: expected columns of shape (n,), got {array.shape}")
    if array.dtype.kind in "biufM":
        return array
    if array.dtype.kind == "m":  # durations, as seconds
        return np.where(np.isnat(array), np.nan, array / np.timedelta64(1, "s"))
    if array.dtype.kind == "c":
        raise TypeError("table: expected real numbers, got complex ones")
    if array.dtype.kind == "O":
        present = [cell for cell in array.tolist() if not _none(cell)]
        if present and all(isinstance(cell, bool | np.bool_) for cell in present):
            return Text(*_distinct("" if _none(cell) else str(cell) for cell in array.tolist()))
        if present and all(isinstance(cell, Real) or _is_decimal(cell) for cell in present):
            return np.array([np.nan if _none(cell) else float(cell) for cell in array.tolist()])
    return Text(*_distinct(_cell_text(cell) for cell in array.tolist()))


def _none(cell: Any) -> bool:
    """None, NaN, NaT, and pandas' NA, which is equal to nothing, itself included."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, Real) and not isinstance(cell, bool) and bool(cell != cell)


def _is_decimal(cell: Any) -> bool:
    return type(cell).__name__ == "Decimal"


def _cell_text(cell: Any) -> str:
    if _none(cell):
        return ""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    return cell.isoformat(sep=" ") if isinstance(cell, datetime) else str(cell)


def _distinct(cells: Iterable[str]) -> tuple[list[str], np.ndarray]:
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(cell.strip(), len(known)) for cell in cells), np.int32)
    return list(known), codes


def _from_text(name: str, cells: Text, kind: str | None, decimal: str | None, dates: str | None) -> Column:
    if kind in ("categorical", IDENTIFIER):
        return _categories(name, cells, ())
    if kind in NUMERIC:
        wanted = "datetime" if kind == "datetime" else "number"
        reading = _text.read_as(wanted, name, cells.levels, decimal=decimal, dates=dates)
    else:
        reading = _text.read(name, cells.levels, decimal=decimal, dates=dates)
    notes = [*reading.notes, *_lost(cells, reading)]
    if reading.kind == "number" and kind is None and any(re.fullmatch(r"0\d+", level) for level in cells.levels):
        return _categories(name, cells, ("whole numbers with leading zeros: taken as codes",))
    if reading.kind == "text" or (kind == "boolean" and reading.kind == "datetime"):
        column = _categories(name, cells, tuple(notes))
        return _boolean(column) if kind == "boolean" else column
    values = np.asarray(reading.values, dtype=np.float64)[cells.codes]
    if reading.kind == "boolean":
        codes = torch.from_numpy(np.where(np.isnan(values), -1, values)).long()
        words = {level.casefold() for level in cells.levels if not _text.is_missing(level)}
        return Column(name, "boolean", codes, tuple(sorted(words)), notes=tuple(notes))
    if reading.kind == "datetime":
        return Column(name, "datetime", torch.from_numpy(values), notes=tuple(notes))
    return _numbers(name, values, kind, notes)


def _lost(cells: Text, reading: _text.Reading) -> list[str]:
    """A note on cells that are not marked as missing and yet became NaN."""
    if reading.kind == "text":
        return []
    lost = [
        i
        for i, (level, value) in enumerate(zip(cells.levels, reading.values, strict=True))
        if value != value and not _text.is_missing(level)
    ]
    if not lost:
        return []
    count = int(np.isin(cells.codes, lost).sum())
    return [f"{count} cells read as missing: {', '.join(repr(cells.levels[i]) for i in lost[:3])}"]


def _categories(name: str, cells: Text, notes: tuple[str, ...]) -> Column:
    kept = [i for i, level in enumerate(cells.levels) if not _text.is_missing(level)]
    kept.sort(key=lambda i: cells.levels[i])
    place = np.full(len(cells.levels), -1)
    place[kept] = np.arange(len(kept))
    codes = torch.from_numpy(place[cells.codes]) if len(cells) else torch.zeros(0, dtype=torch.int64)
    return Column(name, "categorical", codes, tuple(cells.levels[i] for i in kept), notes=notes)


def _boolean(column: Column) -> Column:
    if column.distinct > 2:
        raise ValueError(f"types[{column.name!r}]: expected at most 2 values for boolean, got {column.distinct}")
    return replace(column, kind="boolean")


def _from_numbers(name: str, cells: np.ndarray, kind: str | None) -> Column:
    if cells.dtype.kind == "M":
        values = (cells - np.datetime64(0, "s")) / np.timedelta64(1, "s")
        column = Column(name, "datetime", torch.from_numpy(np.where(np.isnat(cells), np.nan, values)))
        return _numbers(name, column.values.numpy(), kind, []) if kind not in (None, "datetime", IDENTIFIER) else column
    if cells.dtype.kind == "b" and kind in (None, "boolean", "categorical", IDENTIFIER):
        codes = torch.from_numpy(cells.astype(np.int64))
        return Column(name, kind if kind == "categorical" else "boolean", codes, ("False", "True"))
    return _numbers(name, cells.astype(np.float64), kind, [])


def _numbers(name: str, values: np.ndarray, kind: str | None, notes: list[str]) -> Column:
    infinite = np.isinf(values)
    if infinite.any():
        values = np.where(infinite, np.nan, values)
        notes.append(f"{int(infinite.sum())} infinite numbers read as missing")
    known = values[~np.isnan(values)]
    whole = bool((known == np.round(known)).all())
    if kind == "integer" and not whole:
        raise ValueError(
            f"types[{name!r}]: expected whole numbers for integer, got {known[known != np.round(known)][0]:g}"
        )
    if whole and len(known) and np.abs(known).max() >= 2.0**53:
        notes.append("whole numbers beyond 2^53 are rounded")
    x = torch.from_numpy(values)
    if kind in NUMERIC:
        return Column(name, kind, x, notes=tuple(notes))
    distinct = np.unique(known)
    if kind in ("boolean", "categorical") or (kind is None and whole and set(distinct) == {0.0, 1.0}):
        levels = tuple(f"{v:.15g}" for v in distinct)
        codes = torch.from_numpy(np.where(np.isnan(values), -1, np.searchsorted(distinct, values))).long()
        column = Column(name, "categorical", codes, levels, notes=tuple(notes))
        return column if kind == "categorical" else _boolean(column)
    return Column(name, "integer" if whole else "continuous", x, notes=tuple(notes))


def _flag(column: Column, cells: Text | np.ndarray, kind: str | None) -> str:
    """Why a column is of no use: nothing in it, one value only, or a name for every row."""
    present = len(column) - column.n_missing
    if present == 0:
        return "empty"
    if column.distinct == 1:
        return "constant"
    if kind is not None:
        return IDENTIFIER if kind == IDENTIFIER else ""
    distinct = column.distinct
    if isinstance(cells, Text) and column.kind == "integer":  # floats may have run large numbers together
        distinct = sum(not _text.is_missing(level) for level in cells.levels)
    if present < _FEW or distinct <= _SHARE * present or column.kind in ("continuous", "datetime"):
        return ""
    if column.kind == "categorical":
        return IDENTIFIER
    known = column.values[~column.missing]
    step = known.diff() * (known[-1] - known[0]).sign()
    # Numbered in the order of the rows, without the long jumps of a quantity by which the rows were sorted.
    counted = float((step > 0).double().mean()) > 0.99 and float(step.mean()) <= 3 * float(step.median())
    dense = float(known.max() - known.min()) < 2 * present  # random numbers of such a range would repeat more often
    named = distinct == present and _ID_NAME.search(column.name)
    return IDENTIFIER if counted or dense or named else ""

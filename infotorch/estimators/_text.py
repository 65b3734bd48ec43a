"""Text to numbers: what the distinct cells of a text column mean, decided for the column as a whole.

A cell is never read two ways at once. Where ``1,234`` could be 1234 or 1.234, or ``03/04/2020`` two dates, and no
other cell of the column settles it, reading fails and says which option does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

# Always missing, whatever the case of the letters.
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "nat", "null", "<na>"})
# Missing where every other cell is a number or a date; a category called "none" elsewhere.
PLACEHOLDERS = frozenset(
    {"none", "?", "-", "--", ".", "..", "missing", "unknown", "-nan", "#value!", "#div/0!", "#ref!", "#num!", "nil"}
)
WORDS = (("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"))
DECIMALS, DATES = (".", ","), ("dmy", "mdy")

_EXPONENT = r"(?:[eE][+-]?\d+)?"
_PLAIN = re.compile(rf"[+-]?(?:\d+\.?\d*|\.\d+){_EXPONENT}")
_GROUPED = {
    # Digits in threes after a first group that does not start with 0; a space or an apostrophe may stand between, too.
    ".": re.compile(r"([+-]?[1-9]\d{0,2}(?:([, '\u2019\u00a0\u202f])\d{3})(?:\2\d{3})*)(?:\.(\d+))?"),
    ",": re.compile(r"([+-]?[1-9]\d{0,2}(?:([. '\u2019\u00a0\u202f])\d{3})(?:\2\d{3})*)(?:,(\d+))?"),
}
_COMMA = re.compile(rf"[+-]?(?:\d+,?\d*|,\d+){_EXPONENT}")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_UNIT = re.compile(r"[$€£¥%]")

_CLOCK = r"(\d{1,2}):(\d{2})(?::(\d{2})(\.\d+)?)?(?: ?([AaPp])\.?[Mm]\.?)?"
_ZONE = r"(?: ?(Z|[+-]\d{2}:?\d{2}))?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})[-/.](\d{{1,2}})[-/.](\d{{1,2}})(?:[T ]+{_CLOCK}{_ZONE})?")
_YEAR_LAST = re.compile(rf"(\d{{1,2}})[-/. ](\d{{1,2}}|[A-Za-z]{{3,9}})\.?,?[-/. ](\d{{4}})(?:[T ]+{_CLOCK}{_ZONE})?")
_MONTH_FIRST = re.compile(rf"([A-Za-z]{{3,9}})\.?[- ](\d{{1,2}}),? (\d{{4}})(?:[T ]+{_CLOCK}{_ZONE})?")
_TIME = re.compile(_CLOCK)
_MONTHS = "January February March April May June July August September October November December".casefold().split()
_EPOCH = datetime(1970, 1, 1)


@dataclass
class Reading:
    """What the distinct cells of a column are.

    Attributes:
        kind: ``"number"``, ``"datetime"``, ``"boolean"`` or ``"text"``.
        values: One number a level (NaN where it is missing) unless it is text.
        notes: What a reader of the report should know.
    """

    kind: str
    values: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_missing(level: str) -> bool:
    """Whether a cell is empty or says so.

    >>> is_missing("NA"), is_missing("none")
    (True, False)
    """
    return level.casefold() in MISSING


def read(name: str, levels: Sequence[str], *, decimal: str | None = None, dates: str | None = None) -> Reading:
    """Decide what a column of text holds; ``levels`` are its distinct stripped cells.

    Raises:
        ValueError: The column fits two readings that differ.
    """
    present = [level for level in levels if not is_missing(level)]
    for words in WORDS:
        if {level.casefold() for level in present} == set(words):
            return Reading("boolean", [_word(level, words) for level in levels])
    notes: list[str] = []
    solid = [level for level in present if level.casefold() not in PLACEHOLDERS]
    if solid:
        for kind, convert in (
            ("number", lambda: _numbers(name, solid, decimal, notes)),
            ("datetime", lambda: _datetimes(name, solid, dates, notes)),
        ):
            found = convert()
            if found is not None:
                known = dict(zip(solid, found, strict=True))
                return Reading(kind, [known.get(level, math.nan) for level in levels], notes)
        notes += _nearly_numbers(present)
    return Reading("text", notes=notes)


def read_as(kind: str, name: str, levels: Sequence[str], *, decimal: str | None, dates: str | None) -> Reading:
    """Read a column as ``"number"`` or ``"datetime"`` because the user says so: what cannot be read is missing.

    Raises:
        ValueError: Nothing can be read, or the column fits two readings that differ.
    """
    present = [level for level in levels if not is_missing(level)]
    fits = is_number if kind == "number" else is_datetime
    good = [level for level in present if fits(level)]
    notes: list[str] = []
    found = (_numbers(name, good, decimal, notes) if kind == "number" else _datetimes(name, good, dates, notes)) or []
    if not found:
        example = f", e.g. {present[0]!r}" if present else ""
        raise ValueError(f"types: {name!r} cannot be read as {kind}s{example}")
    known = dict(zip(good, found, strict=True))
    return Reading(kind, [known.get(level, math.nan) for level in levels], notes)


def is_number(cell: str) -> bool:
    """Whether a cell is a number with either decimal mark."""
    return any(_number(cell, mark) is not None for mark in DECIMALS)


def is_datetime(cell: str) -> bool:
    """Whether a cell is a date or a time, in either order of day and month."""
    return any(_datetime(cell, order) is not None for order in DATES)


def decimal_mark(levels: Sequence[str]) -> str | None:
    """The decimal mark that a column of numbers proves, None where it proves none.

    >>> decimal_mark(["1.5"]), decimal_mark(["1,5"]), decimal_mark(["1,234"])
    ('.', ',', None)
    """
    solid = [level for level in levels if not is_missing(level) and level.casefold() not in PLACEHOLDERS]
    fits = [mark for mark in DECIMALS if solid and _all(solid, lambda cell, mark=mark: _number(cell, mark)) is not None]
    return fits[0] if len(fits) == 1 else None


def _numbers(name: str, levels: Sequence[str], decimal: str | None, notes: list[str]) -> list[float] | None:
    unit = _unit(levels[0]) if levels else ""
    if unit and all(_unit(level) == unit for level in levels):
        levels = [level.replace(unit, "").strip() for level in levels]
    found = {mark: _all(levels, lambda cell, mark=mark: _number(cell, mark)) for mark in DECIMALS}
    fits = {mark: values for mark, values in found.items() if values is not None}
    if not fits:
        return None
    if unit:
        notes.append(f"{unit} taken off its numbers")
    mark = decimal if decimal in fits else next(iter(fits))
    if len(fits) == 2 and decimal is None and "," in "".join(levels):
        for level, point, comma in zip(levels, fits["."], fits[","], strict=True):
            if point != comma:
                raise ValueError(
                    f"column {name!r}: {level!r} may be {point:.10g} or {comma:.10g}; say decimal='.' or decimal=','"
                )
    if any(not _PLAIN.fullmatch(level) and not _INFINITE.fullmatch(level) for level in levels):
        notes.append(f"read with a decimal {'point' if mark == '.' else 'comma'}")
    return fits[mark]


def _all(levels: Sequence[str], convert: Callable[[str], float | None]) -> list[float] | None:
    found = []
    for level in levels:
        value = convert(level)
        if value is None:
            return None
        found.append(value)
    return found


def _number(cell: str, mark: str) -> float | None:
    """One number; infinity is kept here and dropped with a note where columns are made."""
    if mark == "." and _PLAIN.fullmatch(cell):
        return float(cell)
    if mark == "," and _COMMA.fullmatch(cell):
        return float(cell.replace(",", "."))
    if found := _GROUPED[mark].fullmatch(cell):
        return float(re.sub(r"[^\d+-]", "", found[1]) + "." + (found[3] or "0"))
    return float(cell) if _INFINITE.fullmatch(cell) else None


def _unit(cell: str) -> str:
    """The currency or percent sign at one end of a cell, if it is the only one."""
    signs = _UNIT.findall(cell)
    return signs[0] if len(signs) == 1 and (cell[0] in signs or cell[-1] in signs) else ""


def _nearly_numbers(levels: Sequence[str]) -> list[str]:
    """A note where a column of text is mostly numbers."""
    sample = levels[:1000]
    odd = [level for level in sample if not is_number(level)]
    if odd and len(odd) <= 0.2 * len(sample):
        return [
            f"most cells are numbers, but {odd[0]!r} is not: taken as categories (type continuous drops such cells)"
        ]
    return []


def _word(level: str, words: tuple[str, str]) -> float:
    return float(words.index(level.casefold())) if level.casefold() in words else math.nan


def _datetimes(name: str, levels: Sequence[str], dates: str | None, notes: list[str]) -> list[float] | None:
    """Seconds since 1970 (UTC where a zone is given), or since midnight where there is no date."""
    found = {order: _all(levels, lambda cell, order=order: _datetime(cell, order)) for order in DATES}
    fits = {order: values for order, values in found.items() if values is not None}
    if not fits:
        return None
    if len(fits) == 2 and fits["dmy"] != fits["mdy"] and dates is None:
        raise ValueError(
            f"column {name!r}: in {levels[0]!r} and all other dates either number may be the month; "
            "say dates='dmy' or dates='mdy'"
        )
    if sum(bool(_TIME.fullmatch(level)) for level in levels) not in (0, len(levels)):
        return None  # times of day among dates
    zoned = sum(bool(re.search(r"(?:Z|[+-]\d{2}:?\d{2})$", level)) and ":" in level for level in levels)
    if 0 < zoned < len(levels):
        notes.append("times without a zone are read as UTC")
    return fits[dates if dates in fits else next(iter(fits))]


def _datetime(cell: str, order: str) -> float | None:
    if found := _YEAR_FIRST.fullmatch(cell):
        year, month, day, *clock = found.groups()
    elif found := _YEAR_LAST.fullmatch(cell):
        day, month, year, *clock = found.groups()
        if order == "mdy" and month.isdigit():
            day, month = month, day
    elif found := _MONTH_FIRST.fullmatch(cell):
        month, day, year, *clock = found.groups()
    elif found := _TIME.fullmatch(cell):
        return _seconds(*found.groups())
    else:
        return None
    if not month.isdigit():
        month = next((str(i) for i, full in enumerate(_MONTHS, 1) if full.startswith(month.casefold())), "0")
    *clock, zone = clock
    seconds = _seconds(*clock) if clock[0] is not None else 0.0
    try:
        day_start = (datetime(int(year), int(month), int(day)) - _EPOCH).total_seconds()
    except ValueError:
        return None
    return None if seconds is None else day_start + seconds - _offset(zone)


def _seconds(hour: str, minute: str, second: str | None, fraction: str | None, half: str | None) -> float | None:
    h, m, s = int(hour), int(minute), int(second or 0)
    if half is not None:
        if not 1 <= h <= 12:
            return None
        h = h % 12 + 12 * (half in "pP")
    return None if h > 23 or m > 59 or s > 60 else 3600.0 * h + 60 * m + s + float(fraction or 0)


def _offset(zone: str | None) -> float:
    if zone is None or zone == "Z":
        return 0.0
    seconds = 3600.0 * int(zone[1:3]) + 60 * int(zone[-2:])
    return -seconds if zone[0] == "-" else seconds

"""A table from a text file: numpy and the csv module are enough, so pandas is not needed.

Cells stay text here; :mod:`infotorch.estimators.columns` decides what they mean. Each column is held as its distinct
cells and one 32-bit code a row, so that memory follows the variety of a table and not the length of its text.
"""

from __future__ import annotations

import csv
import gzip
import io
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from infotorch.core._checks import check_choice
from infotorch.estimators import _text
from infotorch.estimators.columns import Text

HEADER = ("auto", "yes", "no")
_DELIMITERS = ("\t", ";", "|", ",")  # a comma may be a decimal mark, so it comes last
_SAMPLE = 200  # records from which delimiter and header are guessed
_BINARY = {b"PK\x03\x04": "a zip or Excel file", b"PAR1": "a Parquet file", b"SQLi": "a database", b"%PDF": "a PDF"}


class ReadError(ValueError):
    """A table that cannot be read; the message says where and why."""


@dataclass(frozen=True)
class TextTable:
    """A table as it stands in its file.

    Attributes:
        columns: Name to cells.
        notes: What had to be guessed or changed.
        delimiter: Between cells.
        header: Whether the first record held the names.
    """

    columns: dict[str, Text]
    notes: tuple[str, ...]
    delimiter: str
    header: bool

    @property
    def n_rows(self) -> int:
        """Number of records below the header."""
        return len(next(iter(self.columns.values())))


def read_csv(
    path: str | Path, *, delimiter: str | None = None, header: str = "auto", encoding: str | None = None
) -> TextTable:
    r"""Read a delimited text file, gzipped or not.

    Args:
        path: The file.
        delimiter: One character, or ``"tab"``. Default: the first of tab, semicolon, bar and comma that splits every
            record into the same number of cells, two or more.
        header: ``"yes"``, ``"no"``, or ``"auto"``: the first record holds names if a column below its text is of
            numbers or dates, or if its cells are all different, not empty, and not found again below.
        encoding: Of the text. Default: UTF-8 or what a byte order mark says, or else Latin-1, with a note.

    Raises:
        ReadError: No such file, no text, no rows, one column only, records of different length (with the line),
            quotes that are not closed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "data.csv"
    >>> _ = path.write_text("age,sex\n31,f\n7,m\n")
    >>> table = read_csv(path)
    >>> list(table.columns), table.n_rows
    (['age', 'sex'], 2)
    """
    path = Path(path)
    check_choice("header", header, HEADER)
    head = _head(path)
    notes: list[str] = []
    if encoding is None:
        encoding = _encoding(path, head)
        if encoding == "latin-1":
            notes.append("the file is not UTF-8: read as Latin-1")
    with _translated(path, encoding):
        if delimiter is None:
            delimiter = _delimiter(path, encoding)
        elif delimiter.casefold() in ("tab", "\\t"):
            delimiter = "\t"
        elif len(delimiter) != 1:
            raise ReadError(f"delimiter: expected one character or 'tab', got {delimiter!r}")
        sample = [record for _, record in zip(range(_SAMPLE), _records(path, encoding, delimiter), strict=False)]
        if not sample:
            raise ReadError(f"{path}: the file is empty")
        named = _has_header([record for _, record in sample]) if header == "auto" else header == "yes"
        width = len(sample[0][1])
        if width < 2:
            raise ReadError(
                f"{path}: found one column only; say which delimiter separates the columns, if there are more"
            )
        names = _names(sample[0][1], notes) if named else [f"column_{i}" for i in range(1, width + 1)]
        if not named and header == "auto":
            notes.append("the first line holds data, not names: the columns are called column_1, column_2, ...")
        columns = _columns(path, encoding, delimiter, named, width)
    if not len(columns[0]):
        raise ReadError(f"{path}: there is a header, and no rows below it")
    return TextTable(dict(zip(names, columns, strict=True)), tuple(notes), delimiter, named)


def _head(path: Path) -> bytes:
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if p.name.casefold().startswith(path.stem.casefold()[:4])][:3]
        raise ReadError(f"{path}: no such file" + (f" (in that folder: {', '.join(sorted(near))})" if near else ""))
    if path.is_dir():
        raise ReadError(f"{path}: this is a folder, not a file")
    try:
        with _open(path) as file:
            head = file.read(1 << 16)
    except (OSError, EOFError) as error:
        raise ReadError(f"{path}: {error}") from None
    if not head.strip():
        raise ReadError(f"{path}: the file is empty")
    for magic, what in _BINARY.items():
        if head.startswith(magic):
            raise ReadError(f"{path}: this is {what}; save it as csv")
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ReadError(f"{path}: this is not a text file")
    return head


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def _encoding(path: Path, head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            while text.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return "latin-1"
    except (OSError, EOFError) as error:  # a gzip file that was cut off
        raise ReadError(f"{path}: {error}") from None
    return "utf-8-sig"


@contextmanager
def _translated(path: Path, encoding: str) -> Iterator[None]:
    """Errors of the reader as messages about the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ReadError(f"{path}: not encoded in {encoding}: {error.reason} at byte {error.start}") from None
    except LookupError:
        raise ReadError(f"encoding: unknown encoding {encoding!r}") from None
    except (OSError, EOFError) as error:
        raise ReadError(f"{path}: {error}") from None


def _records(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every record that is not blank."""
    with _open(path) as file, io.TextIOWrapper(file, encoding=encoding, newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            raise ReadError(f"{path}: line {reader.line_num}: {error}") from None


def _delimiter(path: Path, encoding: str) -> str:
    """The delimiter that splits the first records alike; failing that, the one that comes closest."""
    best, closest = "", (0.0, 0)
    for candidate in _DELIMITERS:
        try:
            pairs = zip(range(_SAMPLE), _records(path, encoding, candidate), strict=False)
            widths = Counter(len(record) for _, (_, record) in pairs)
        except ReadError:  # quotes that make no sense with this one
            continue
        if not widths:
            raise ReadError(f"{path}: the file is empty")
        width, times = widths.most_common(1)[0]
        if width > 1 and len(widths) == 1:
            return candidate
        if width > 1 and (times / widths.total(), width) > closest:
            best, closest = candidate, (times / widths.total(), width)
    return best or ","


def _has_header(records: Sequence[Sequence[str]]) -> bool:
    first, *body = ([cell.strip() for cell in record] for record in records)
    if not body:
        return True
    again = False
    for i, name in enumerate(first):
        below = {record[i] for record in body if i < len(record)} - {""}
        below = {cell for cell in below if not _text.is_missing(cell)}
        if below and not _is_value(name) and all(_is_value(cell) for cell in below):
            return True
        again |= name in below
    return not again and "" not in first and len(set(first)) == len(first) and not any(map(_is_value, first))


def _is_value(cell: str) -> bool:
    """Whether a cell is a number or a date."""
    return _text.is_number(cell) or _text.is_datetime(cell)


def _names(record: Sequence[str], notes: list[str]) -> list[str]:
    """Names that are not empty and all different."""
    names: list[str] = []
    taken = {cell.strip() for cell in record}
    changed = []
    for i, cell in enumerate(record, 1):
        base = name = cell.strip() or f"column_{i}"
        times = 0
        while name in names or (times and name in taken):
            times += 1
            name = f"{base}.{times}"
        if name != cell.strip():
            changed.append(name)
        names.append(name)
    if changed:
        notes.append(f"columns without a name of their own are called {', '.join(changed)}")
    return names


def _columns(path: Path, encoding: str, delimiter: str, named: bool, width: int) -> list[Text]:
    known: list[dict[str, int]] = [{} for _ in range(width)]
    codes = [array("i") for _ in range(width)]
    first = 0
    for at, (line, record) in enumerate(_records(path, encoding, delimiter)):
        if at == 0:
            first = line
            if named:
                continue
        if len(record) != width:
            raise ReadError(f"{path}: line {line} has {len(record)} cells, line {first} has {width}")
        for levels, column, cell in zip(known, codes, record, strict=True):
            column.append(levels.setdefault(cell.strip(), len(levels)))
    return [Text(list(levels), np.frombuffer(column, np.intc)) for levels, column in zip(known, codes, strict=True)]

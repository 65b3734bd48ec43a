"""What a report holds, and its plain forms: a dictionary, a table of text, a csv file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infotorch.report.pairs import Pair

SHOWN = 0.05  # adjusted p-value up to which a dependence counts as shown
_BAR = 10
_WITH_INTERVALS = 96


@dataclass(frozen=True)
class ColumnInfo:
    """One column of the table.

    Attributes:
        name: Its name.
        kind: See :mod:`infotorch.estimators.columns`.
        used: Whether it is in any pair.
        flag: Why it was left out, or could have been: ``"constant"``, ``"empty"``, ``"identifier"``,
            ``"duplicate of NAME"``.
        n_missing: Missing cells.
        distinct: Distinct values.
        tied: Share of the cells whose value occurs more than once.
        notes: Decisions made while reading.
    """

    name: str
    kind: str
    used: bool
    flag: str
    n_missing: int
    distinct: int
    tied: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """How dependent the columns of a table are.

    Attributes:
        source: Name of the table.
        n_rows: Its rows (complete ones under ``missing="drop"``).
        columns: All of its columns, in their order.
        pairs: Ranked: shown dependences by strength, then the others by strength, then what could not be measured.
        target: The column that all pairs share, or None.
        settings: What the run was asked for.
        notes: On the table as a whole.
        versions: Of the packages.
        seconds: It took.
    """

    source: str
    n_rows: int
    columns: tuple[ColumnInfo, ...]
    pairs: tuple[Pair, ...]
    target: str | None
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    seconds: float

    @property
    def used(self) -> list[str]:
        """Names of the columns that are in a pair."""
        return [column.name for column in self.columns if column.used]

    @property
    def measured(self) -> list[Pair]:
        """Pairs with an estimate, ranked."""
        return [pair for pair in self.pairs if pair.measured]

    @property
    def shown(self) -> list[Pair]:
        """Pairs whose dependence is more than chance; all that were measured, if no p-values were asked for."""
        return [pair for pair in self.measured if is_shown(pair)]

    def pair(self, x: str, y: str) -> Pair:
        """The pair of two columns, in either order.

        Raises:
            KeyError: No such pair.
        """
        for pair in self.pairs:
            if {pair.x, pair.y} == {x, y}:
                return pair
        raise KeyError(f"no pair of {x!r} and {y!r} in the report")

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        found = asdict(self)
        found["settings"], found["versions"] = dict(self.settings), dict(self.versions)
        return found

    def table(self, top: int | None = 15, width: int = 100) -> str:
        """The first pairs as text of at most ``width`` characters; intervals are shown from 96 on."""
        return text_table(self, top, width)

    def save(self, folder: str | Path, *, order: str = "clustered") -> dict[str, Path]:
        """Write ``report.json``, ``pairs.csv``, ``report.png`` and ``report.html``.

        Args:
            folder: Made if it is missing.
            order: Of the columns in the picture: ``"clustered"`` or ``"given"``.

        Returns:
            The files by kind: ``json``, ``csv``, ``png``, ``html``.

        Raises:
            OSError: The folder cannot be written to.
        """
        from infotorch.report.chart import draw
        from infotorch.report.page import page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {kind: folder / name for kind, name in _FILES.items()}
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        paths["json"].write_text(text + "\n", encoding="utf-8")
        write_pairs(paths["csv"], self.pairs)
        picture = draw(self, order=order)
        paths["png"].write_bytes(picture)
        paths["html"].write_text(page(self, picture), encoding="utf-8")
        return paths

    def __str__(self) -> str:
        return self.table()


_CSV = (
    *("rank", "x", "y", "strength", "strength_low", "strength_high"),
    *("mutual_information_nats", "mutual_information_low", "mutual_information_high", "share_of_x", "share_of_y"),
    *("distance_correlation", "p_value", "p_adjusted", "rows", "rows_used", "estimator", "warnings"),
)
_FILES = {"json": "report.json", "csv": "pairs.csv", "png": "report.png", "html": "report.html"}


def is_shown(pair: Pair) -> bool:
    """Whether a pair's dependence is more than chance, by its adjusted p-value; without one, it is not in doubt."""
    return pair.measured and (pair.p_adjusted is None or pair.p_adjusted <= SHOWN)


def ranked(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Shown dependences by strength, then the others by strength, then what could not be measured."""
    return tuple(
        sorted(
            pairs,
            key=lambda p: (not p.measured, not is_shown(p), -(p.strength or 0.0), -(p.mutual_information or 0.0)),
        )
    )


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """One line a pair, ranked; empty cells for what there is not."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_CSV)
        for rank, p in enumerate(pairs, 1):
            numbers = (
                p.strength,
                *(p.strength_interval or (None, None)),
                p.mutual_information,
                *(p.interval or (None, None)),
                *(p.share_x, p.share_y, p.distance_correlation, p.p_value, p.p_adjusted),
            )
            cells = ("" if v is None else f"{v:.6g}" for v in numbers)
            writer.writerow([rank, p.x, p.y, *cells, p.n, p.n_used, p.estimator, "; ".join(p.warnings)])


def text_table(report: Report, top: int | None, width: int) -> str:
    """The ranked pairs for a terminal."""
    pairs = report.measured[:top]
    if not pairs:
        return "No pair of columns could be measured."
    intervals = width >= _WITH_INTERVALS and any(p.interval for p in pairs)
    names = [label(report, p) for p in pairs]
    wide = max(7, min(max(map(len, names)), width - 50 - 16 * intervals))
    between = f"  {'interval':>14}" if intervals else ""
    head = f"    {'columns':{wide}}  {'strength':{_BAR + 5}}  {'nats':>6}{between}  {'p adj.':>6}  {'rows':>7}"
    lines = [head, "-" * len(head)]
    for rank, (name, p) in enumerate(zip(names, pairs, strict=True), 1):
        assert p.mutual_information is not None
        assert p.strength is not None
        bar = "#" * max(int(p.strength > 0.02), round(_BAR * p.strength))
        if intervals:
            between = f"  {f'{p.interval[0]:.2f} to {p.interval[1]:.2f}' if p.interval else '':>14}"
        mark = " ?" if not is_shown(p) else " !" if p.warnings else ""
        lines.append(
            f"{rank:3} {shorten(name, wide):{wide}}  {p.strength:4.2f} {bar:{_BAR}}  "
            f"{p.mutual_information:6.3f}{between}  {p_text(p.p_adjusted):>6}  {p.n:7d}{mark}"
        )
    if any(line.endswith("!") for line in lines):
        lines.append("! with a warning: see the report")
    if any(line.endswith("?") for line in lines):
        lines.append("? may be chance")
    return "\n".join(lines)


def label(report: Report, pair: Pair) -> str:
    """A pair's name: of the other column alone where there is a target."""
    if report.target is None:
        return f"{pair.x} ~ {pair.y}"
    return pair.y if pair.x == report.target else pair.x


def shorten(text: str, width: int) -> str:
    """Text of at most ``width`` characters.

    >>> shorten("temperature", 6)
    'tempe…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def p_text(p: float | None) -> str:
    """A p-value of three characters or so.

    >>> p_text(0.25), p_text(0.0004), p_text(None)
    ('0.25', '0.0004', '')
    """
    if p is None:
        return ""
    if p >= 0.01:
        return f"{p:.2f}"
    return f"{p:.{1 - math.floor(math.log10(p)) - 1}f}" if p > 1e-5 else "<1e-5"

"""The report as one HTML file: picture inlined, no network, no script but the few lines that sort the table."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from infotorch.report._assets import SCRIPT, STYLE
from infotorch.report.chart import NUMBERS
from infotorch.report.pairs import Pair
from infotorch.report.records import SHOWN, Report, is_shown, label, p_text
from infotorch.report.words import KINDS, method, why

_TOP = 5
_FIRST = 40  # rows of the table that are open at first
_ESTIMATORS = {
    "table": "table of counts",
    "kraskov": "nearest neighbors",
    "ross": "nearest neighbors within categories",
    "mixed": "table of repeated values, nearest neighbors for the rest",
}


def page(report: Report, picture: bytes) -> str:
    """The whole document.

    Args:
        report: What to show.
        picture: PNG of :func:`infotorch.report.chart.draw`.
    """
    title = f"How dependent are the columns of {report.source}?"
    if report.target is not None:
        title = f"What tells about {report.target} in {report.source}?"
    image = base64.b64encode(picture).decode("ascii")
    large = " large" if len(report.used) > NUMBERS and report.target is None else ""
    alt = "Strength of dependence, as in the table below"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='facts'>{_facts(report)}</p>",
        _section("In short", _short(report)),
        _section("Picture", f"<p class='picture{large}'><img alt='{alt}' src='data:image/png;base64,{image}'></p>"),
        _section("All pairs" if report.target is None else "All columns", _pairs(report)),
        _section("The columns as they were read", _columns(report)),
        _section("How to read the numbers", _method(report)),
        f"<footer>{_made(report)}</footer>",
    ]
    body, script = "\n".join(parts), SCRIPT.replace("FIRST", str(_FIRST))
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>"


def _facts(report: Report) -> str:
    facts = [
        f"{report.n_rows:,} rows",
        f"{len(report.columns)} columns, {len(report.used)} compared",
        f"{len(report.pairs):,} pairs",
    ]
    return " · ".join(facts)


def _short(report: Report) -> str:
    measured, shown = report.measured, report.shown
    if not measured:
        return "<p>No pair of columns could be measured; the table says why.</p>"
    tested = [p for p in measured if p.p_adjusted is not None]
    parts = []
    if tested:
        parts.append(
            f"<p>{len(shown):,} of {len(measured):,} pairs are more dependent than chance explains "
            f"(adjusted p-value at most {SHOWN}). The strongest:</p>"
        )
    else:
        parts.append("<p>The strongest pairs (nothing was tested against chance):</p>")
    top = "".join(f"<li>{_bar(p)}<span class='pair'>{_name(report, p)}</span></li>" for p in shown[:_TOP])
    parts.append(f"<ol class='top'>{top}</ol>" if top else "<p>None.</p>")
    certain = [w for p in shown for w in p.warnings if " determines " in w]
    if certain:
        parts.append(f"<p>One column follows from another: {escape(_listed(certain, 6))}.</p>")
    left = [c for c in report.columns if not c.used]
    if left:
        parts.append(f"<p>Left out: {escape(_listed([f'{c.name} ({why(c)})' for c in left], 12))}.</p>")
    parts += [f"<p>{escape(note[:1].upper() + note[1:])}.</p>" for note in report.notes]
    return "\n".join(parts)


def _listed(items: Sequence[str], most: int) -> str:
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def _name(report: Report, pair: Pair) -> str:
    if report.target is not None:
        return escape(label(report, pair))
    return f"{escape(pair.x)} <i>and</i> {escape(pair.y)}"


def _bar(pair: Pair) -> str:
    value = pair.strength or 0.0
    tone = "" if is_shown(pair) else " pale"
    return f"<span class='bar{tone}' style='--v:{value:.3f}'><b>{value:.2f}</b></span>"


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------


def _pairs(report: Report) -> str:
    one = report.target is None
    head = [
        _Head("#", "rank", number=True),
        *([_Head("column", "name"), _Head("and", "name")] if one else [_Head("column", "name")]),
        _Head("strength", "strength", "0 to 1", number=True),
        _Head("information", "nats", "nats", number=True),
        _Head("distance correlation", "wide", number=True),
        _Head("p-value", "p", "adjusted", number=True),
        _Head("rows", "wide", number=True),
        _Head("measured by", "wide"),
    ]
    rows = [
        _row([*_names(report, p, rank), *(_numbers(p) if p.measured else _blanks(p))], pale=not is_shown(p))
        for rank, p in enumerate(report.pairs, 1)
    ]
    hint = "<p class='hint'>Click a heading to sort. Gray: may be chance. The same numbers are in pairs.csv.</p>"
    search = "<p><input type='search' id='find' placeholder='Find a column' aria-label='Find a column'></p>"
    more = f"<p><button id='more' type='button'>Show all {len(rows):,}</button></p>" if len(rows) > _FIRST else ""
    return f"{hint}{search}{_table('pairs', head, rows)}{more}"


def _names(report: Report, pair: Pair, rank: int) -> list[str]:
    names = [pair.x, pair.y] if report.target is None else [label(report, pair)]
    notes = "".join(f"<small>{escape(w)}</small>" for w in pair.warnings)
    texts = [_breakable(name) for name in names]
    texts[-1] += notes
    return [_cell("rank", str(rank), rank), *(_cell("name", text) for text in texts)]


def _breakable(name: str) -> str:
    """A name that may be wrapped at its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _numbers(p: Pair) -> list[str]:
    used = "" if p.n_used == p.n else f"<small>{p.n_used:,} used</small>"
    return [
        _cell("strength", _bar(p) + _between(p.strength_interval, 2), p.strength),
        _cell("nats", f"{p.mutual_information:.3f}{_between(p.interval, 3)}", p.mutual_information),
        _cell("wide", f"{p.distance_correlation:.2f}", p.distance_correlation),
        _cell("p", p_text(p.p_adjusted), p.p_adjusted),
        _cell("wide", f"{p.n:,}{used}", p.n),
        _cell("wide", _ESTIMATORS[p.estimator]),
    ]


def _blanks(p: Pair) -> list[str]:
    return [
        *(_cell(name, "") for name in ("strength", "nats", "wide", "p")),
        _cell("wide", f"{p.n:,}", p.n),
        _cell("wide", ""),
    ]


def _columns(report: Report) -> str:
    head = [
        _Head("column", "name"),
        _Head("kind", "kind"),
        _Head("distinct values", "wide", number=True),
        _Head("missing", "missing", number=True),
        _Head("notes", "notes"),
    ]
    rows = []
    for c in report.columns:
        notes = [*([] if c.used else [f"left out: {why(c)}"]), *c.notes]
        if c.used and c.flag:
            notes.insert(0, f"{why(c)}; used because it was asked for")
        if c.kind == "continuous" and c.tied > 0.05:
            notes.append(f"{c.tied:.0%} of its values occur more than once")
        cells = [
            _cell("name", _breakable(c.name)),
            _cell("kind", KINDS.get(c.kind, c.kind)),
            _cell("wide", f"{c.distinct:,}", c.distinct),
            _cell("missing", f"{c.n_missing:,}" if c.n_missing else "", c.n_missing),
            _cell("notes", escape("; ".join(notes))),
        ]
        rows.append(_row(cells, pale=not c.used))
    hint = "<p class='hint'>A kind that is wrong can be set with --types name=kind.</p>"
    return hint + _table("columns", head, rows)


@dataclass(frozen=True)
class _Head:
    """Title of a column of a table, its style, a word below it, and whether it sorts as a number."""

    title: str
    style: str
    unit: str = ""
    number: bool = False


def _table(name: str, head: Iterable[_Head], rows: Sequence[str]) -> str:
    cells = []
    for h in head:
        unit = f"<small>{h.unit}</small>" if h.unit else ""
        kind = "n" if h.number else "t"
        button = f"<button type='button'>{h.title}</button>"
        cells.append(f"<th class='{h.style}' data-kind='{kind}' scope='col'>{button}{unit}</th>")
    body = "\n".join(rows)
    return (
        f"<div class='scroll'><table id='{name}'><thead><tr>{''.join(cells)}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(cells: Sequence[str], *, pale: bool) -> str:
    return f"<tr{' class=pale' if pale else ''}>{''.join(cells)}</tr>"


def _cell(style: str, text: str, value: float | None = None) -> str:
    """A cell; numbers carry what they are sorted by."""
    key = "" if value is None else f" data-v='{value:.9g}'"
    return f"<td class='{style}{' num' if key else ''}'{key}>{text}</td>"


def _between(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"<small>{low:.{digits}f} to {high:.{digits}f}</small>"


def _method(report: Report) -> str:
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in method(report)) + "</dl>"


def _made(report: Report) -> str:
    used = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return escape(f"Made in {report.seconds:.0f} s, seed {report.settings['seed']}. {used}.")

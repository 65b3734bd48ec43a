"""The picture of a report: a heat map of all pairs, or bars where one column is held against the others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from infotorch.core._checks import check_choice
from infotorch.report.records import Report, is_shown, shorten

ORDERS = ("clustered", "given")
NUMBERS = 16  # columns up to which the cells hold their numbers
_NAME = 24  # characters of a name
_BARS = 40  # columns in the chart of a target
_COLOR, _PALE = "#0072B2", "#A9C9DD"


def draw(report: Report, *, order: str = "clustered") -> bytes:
    """A PNG.

    Args:
        report: What to draw.
        order: Of the columns of a heat map: ``"clustered"``, dependent ones side by side, or ``"given"``.

    Raises:
        ValueError: Unknown order.
    """
    check_choice("order", order, ORDERS)
    # Its own canvas, so that the caller's pyplot, its backend and its style are left alone.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "font.family": "DejaVu Sans", "axes.unicode_minus": True}):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        if report.target is None:
            _heat_map(figure, report, order)
        else:
            _bars(figure, report)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_resolution(figure), metadata={"Software": None})
    return buffer.getvalue()


def _resolution(figure: Any) -> float:
    """150 dots an inch, fewer where the picture would grow beyond 2,400 dots."""
    return min(150.0, 2400 / max(figure.get_size_inches()))


def strengths(report: Report) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Columns, their strengths (NaN where there is none), and whether these are more than chance."""
    names = report.used
    at = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    shown = np.zeros_like(values, dtype=bool)
    for pair in report.measured:
        i, j = at[pair.x], at[pair.y]
        values[i, j] = values[j, i] = pair.strength
        shown[i, j] = shown[j, i] = is_shown(pair)
    return names, values, shown


def clustered(values: np.ndarray) -> list[int]:
    """An order in which dependent columns are neighbors: average linkage of one minus the strength."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(values) < 3:
        return list(range(len(values)))
    distance = 1 - np.nan_to_num(values)
    np.fill_diagonal(distance, 0)
    flat = squareform(distance, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(flat, "average"), flat)).tolist()


def _heat_map(figure: Any, report: Report, order: str) -> None:
    names, values, shown = strengths(report)
    keep = clustered(values) if order == "clustered" else list(range(len(names)))
    names, values, shown = [names[i] for i in keep], values[np.ix_(keep, keep)], shown[np.ix_(keep, keep)]
    n = len(names)
    cell = 0.62 if n <= NUMBERS else 0.32 if n <= 30 else 0.26
    longest = min(_NAME, max(map(len, names)))
    side = max(2.4, cell * n)
    margin = 0.085 * longest + 0.3
    figure.set_size_inches(side + margin + 1.0, side + margin + 0.5)
    axes = figure.add_subplot()
    axes.set_facecolor("#E4E4E4")
    masked = np.ma.masked_invalid(np.where(np.eye(n, dtype=bool), np.nan, values))
    image = axes.imshow(masked, cmap="YlGnBu", vmin=0, vmax=1)
    small = 9 if n <= 30 else 8
    labels = [shorten(name, _NAME) for name in names]
    axes.set_xticks(range(n), labels, rotation=90, fontsize=small)
    axes.set_yticks(range(n), labels, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0 if n <= 30 else 0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    for i in range(n):
        for j in range(n):
            if i == j or np.isnan(values[i, j]):
                continue
            if n <= NUMBERS:
                dark = values[i, j] > 0.55
                color = "white" if dark else "#202020" if shown[i, j] else "#8A8A8A"
                axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=9, color=color)
            elif not shown[i, j]:
                axes.plot(j, i, ".", color="#9A9A9A", markersize=2)
    unsure = "gray number" if n <= NUMBERS else "dot"
    extra = f"; {unsure}: may be chance" if any(not is_shown(p) for p in report.measured) else ""
    axes.set_title(f"Strength of dependence{extra}", fontsize=11, loc="left", pad=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=max(12, n), shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9)


def _bars(figure: Any, report: Report) -> None:
    pairs = report.measured[:_BARS]
    names = [shorten(p.y if p.x == report.target else p.x, _NAME) for p in pairs]
    figure.set_size_inches(7.5, max(2.2, 0.27 * len(pairs) + 1.1))
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    values = [p.strength or 0.0 for p in pairs]
    axes.barh(range(len(pairs)), values, color=[_COLOR if is_shown(p) else _PALE for p in pairs], height=0.66)
    for i, p in enumerate(pairs):
        if p.strength_interval is not None:
            axes.plot(p.strength_interval, (i, i), color="#202020", linewidth=1.2, solid_capstyle="butt")
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("strength of dependence (0: none, 1: one determines the other)")
    more = len(report.measured) - len(pairs)
    title = f"What tells about {shorten(report.target or '', 40)}" + (f" (first {_BARS})" if more else "")
    axes.set_title(title, fontsize=11, loc="left")
    notes = ["line: interval"] if any(p.strength_interval for p in pairs) else []
    notes += ["pale: may be chance"] if not all(is_shown(p) for p in pairs) else []
    if notes:
        axes.text(1, 1.01, "; ".join(notes), transform=axes.transAxes, ha="right", va="bottom", fontsize=9)

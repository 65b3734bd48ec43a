"""Rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HEAD = ("case", "peer", "time", "90 %", "memory", "ours ms", "ours mem", "error", "peer error", "gates")


def render(rows: Sequence[dict[str, Any]]) -> str:
    """One line per row; ratios are peer / ours, so above 1 infotorch is ahead."""
    lines: list[tuple[str, ...]] = [_HEAD]
    previous = None
    for row in rows:
        case = row["case"] if row["case"] != previous else ""
        previous = row["case"]
        spread = row.get("spread")
        lines.append(
            (
                case,
                f"{row['peer']} {row['peer_version']}" + (" [floor]" if row.get("floor") else ""),
                _number(row["time_ratio"], "x"),
                f"{spread[0]:.2f}-{spread[1]:.2f}" if spread else "",
                _number(row["memory_ratio"], "x"),
                _number(row.get("ours_ms")),
                _number(row.get("ours_memory"), "x"),
                _error(row, "ours"),
                _error(row, "peer"),
                _gates(row),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD) - 1)]
    text = [
        "  ".join([cell.ljust(width) for cell, width in zip(line, widths, strict=False)] + [line[-1]]).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"


def _error(row: dict[str, Any], who: str) -> str:
    if row.get(f"{who}_finite") is False:
        return "nan"
    value = row.get(f"{who}_max_abs_error")
    return "" if value is None else f"{value:.1e}"


def _gates(row: dict[str, Any]) -> str:
    words = {True: "pass", False: "FAIL", None: "not measured"}
    parts = [f"{words[gate['passed']]}: {gate['gate']}" for gate in row.get("gates", ())]
    return "; ".join(parts + ([row["note"]] if "note" in row else []))

"""Recorded results as Markdown: experiments in ``docs/results``, measurements in ``benchmarks/results``.

Nothing here knows a method by name; whatever the files hold becomes a table. Run as a script it fills the README's
table of results: ``python docs/_ext/records.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Record = dict[str, Any]


def load(path: Path) -> Record | None:
    """A record, or None where the file does not exist."""
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(record).__name__}")
    return record


# ---------------------------------------------------------------------------------------------------------
# Experiments
# ---------------------------------------------------------------------------------------------------------


def experiment(slug: str, record: Record | None, columns: Sequence[str] = (), *, facts: bool = True) -> str:
    """The whole record: claim, experiment, tables, and how to run it again."""
    if record is None:
        return f"No result is recorded yet for `{slug}`."
    missing = {"claim", "experiment", "command", "results"} - set(record)
    if missing:
        raise ValueError(f"{slug}: the record lacks {', '.join(sorted(missing))}")
    parts = []
    if facts:
        parts += [f"**Claim.** {record['claim']}", f"**Experiment.** {record['experiment']}"]
    parts += [tables(record["results"], columns)]
    if facts:
        parts += _further(record)
        seeds = record.get("seeds", [])
        spread = "mean ± standard deviation over the seeds; " if len(seeds) > 1 else ""
        used = ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items())
        listed = ", ".join(map(str, seeds)) or "not recorded"
        parts += [f"Seeds: {listed}. Numbers: {spread}entropies in nats. {used}."]
        parts += [f"```bash\n{record['command']}\n```"]
    return "\n\n".join(parts)


_KNOWN = ("slug", "claim", "experiment", "command", "seeds", "results", "versions", "curves", "settings", "options")


def _further(record: Record) -> list[str]:
    """Options of the methods, and whatever else was recorded that is no curve."""
    parts = []
    options = {k: v for k, v in record.get("options", {}).items() if isinstance(v, Mapping) and v}
    if options:
        said = (f"`{k}` " + ", ".join(f"{o} = {v}" for o, v in chosen.items()) for k, chosen in options.items())
        parts.append(f"Options other than the defaults: {'; '.join(said)}.")
    for name, value in record.items():
        if name in _KNOWN:
            continue
        if _is_number(value) or _is_list(value) or _is_summary(value) or isinstance(value, str):
            parts.append(f"{_words(name).capitalize()}: {_cell(value)}.")
        elif isinstance(value, Mapping):
            table = tables({_words(name): value} if _row(value) else value)
            parts += [table] if _row(value) else [f"**{_words(name).capitalize()}**", table] if table else []
    return parts


def tables(results: Mapping[str, Any], columns: Sequence[str] = ()) -> str:
    """One table per level of nesting at which rows of numbers are found."""
    rows = {name: row for name, value in results.items() if (row := _row(value)) is not None}
    if columns:
        rows = {name: {c: row[c] for c in columns if c in row} for name, row in rows.items()}
    scalars = {name: _cell(value) for name, value in results.items() if _is_number(value) or isinstance(value, str)}
    parts = [_table(rows)] if rows else []
    if scalars:
        parts.append(grid(["quantity", "value"], [[_code(k), v] for k, v in scalars.items()]))
    for name, value in results.items():
        if name not in rows and isinstance(value, Mapping):
            parts += [f"**{name.replace('_', ' ')}**", tables(value, columns)]
    return "\n\n".join(parts)


def _row(value: Any) -> dict[str, str] | None:
    """The cells of one method: from a mapping of numbers, or from one mapping per seed."""
    if isinstance(value, list) and value and all(isinstance(run, Mapping) for run in value):
        names = list(dict.fromkeys(name for run in value for name in run))
        value = {name: [run[name] for run in value if name in run] for name in names}
    if not isinstance(value, Mapping) or not value or _is_summary(value):
        return None
    if not any(_is_number(v) or _is_list(v) or _is_summary(v) for v in value.values()):
        return None
    return {name: _cell(cell) for name, cell in value.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_number(v) or v is None for v in value)


def _is_summary(value: Any) -> bool:
    return isinstance(value, Mapping) and "mean" in value and _is_number(value["mean"])


def _cell(value: Any) -> str:
    if _is_summary(value):
        spread = next((value[k] for k in ("std", "sd", "stdev", "spread") if _is_number(value.get(k))), None)
        return number(value["mean"]) if spread is None else with_spread(value["mean"], spread)
    if _is_list(value):
        known = [v for v in value if v is not None]
        if not known:
            return "-"
        text = with_spread(mean(known), stdev(known)) if len(known) > 1 else number(known[0])
        return text if len(known) == len(value) else f"{text} ({len(known)} of {len(value)} runs)"
    if _is_number(value):
        return number(value)
    return "-" if value is None else escape(str(value))


def with_spread(value: float, spread: float) -> str:
    """Mean and standard deviation with the same number of decimals.

    >>> with_spread(0.99412, 0.00028), with_spread(39.21, 2.07)
    ('0.994 ± 0.000', '39.2 ± 2.1')
    """
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def number(value: float) -> str:
    """Three significant digits without needless exponents.

    >>> number(0.12345), number(1234.5), number(2.0)
    ('0.123', '1234', '2')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Methods down and quantities across, or the other way round where that is narrower."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if len(names) <= max(7, len(rows)):
        body = [[_code(name), *(row.get(n, "-") for n in names)] for name, row in rows.items()]
        return grid(["", *map(_words, names)], body)
    body = [[_words(n), *(row.get(n, "-") for row in rows.values())] for n in names]
    return grid(["", *map(_code, rows)], body)


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _code(name: str) -> str:
    return f"`{name}`" if name.isidentifier() and name.islower() else escape(name)


def escape(text: str) -> str:
    """Text that stands in a table cell as it is."""
    return text.replace("|", "\\|").replace("\n", " ")


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    align = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, align, *rows))


BLOCK = re.compile(r"(<!-- results of (\S+): .*? -->\n).*?(\n<!-- end of results -->)", re.DOTALL)
COLUMNS = ("reward_end", "pass@1_end", "pass@16_end", "distinct_end", "entropy_start", "entropy_end")


def fill(text: str, root: Path) -> str:
    """Fill the block of a Markdown file that names a record with this record's table."""

    def block(match: re.Match[str]) -> str:
        record = load(root / match[2])
        if record is None:
            body = "No result is recorded yet: run the main job."
        else:
            table = experiment("", record, COLUMNS, facts=False)
            body = f"{table}\n\nSeeds: {', '.join(map(str, record['seeds']))}. Written by `{record['command']}`."
        return match[1] + body + match[3]

    return BLOCK.sub(block, text)


# ---------------------------------------------------------------------------------------------------------
# Benchmarks
# ---------------------------------------------------------------------------------------------------------


def benchmark(record: Record) -> str:
    """Machine, score and rows of one file of measurements: wins and losses alike."""
    rows = record["rows"]
    timed = [row for row in rows if row.get("time_ratio") is not None and not row.get("floor")]
    behind = [row for row in timed if row["time_ratio"] < 1]
    score = f"Faster than the peer in {len(timed) - len(behind)} of {len(timed)} timed rows"
    score += f", slower in {len(behind)} (bold)." if behind else "."
    held = [row for row in rows if row.get("memory_ratio") is not None]
    if held:
        less = sum(row["memory_ratio"] > 1 for row in held)
        score += f" Less memory in {less} of {len(held)} rows where both were measured."
    gates = [gate for row in rows for gate in row.get("gates", ())]
    failed = [f"`{gate['gate']}`" for gate in gates if gate["passed"] is False]
    if gates:
        score += f" Targets missed: {', '.join(failed)}." if failed else f" All {len(gates)} targets met or untested."
    head = ["case", "against", "time", "90 % interval", "memory", "ours, ms", "error, ours", "error, peer", "note"]
    return "\n\n".join([_machine(record["machine"]), score, grid(head, [_benchmark_row(row) for row in rows])])


def _machine(machine: Mapping[str, Any]) -> str:
    text = [str(machine.get("gpu") or machine.get("cpu", "unknown processor"))]
    text += [f"{machine['threads']} thread(s)"] if "threads" in machine and "gpu" not in machine else []
    text += [f"{name} {machine[name]}" for name in ("torch", "triton", "python") if machine.get(name)]
    text += [str(machine["date"])] if "date" in machine else []
    if machine.get("forced"):
        text.append("measured on a busy machine")
    if machine.get("quick"):
        text.append("small sizes (smoke test)")
    return "; ".join(text) + "."


def _benchmark_row(row: Mapping[str, Any]) -> list[str]:
    peer = f"{row['peer']} {row.get('peer_version') or ''}".strip() + (" (lower bound)" if row.get("floor") else "")
    spread = row.get("spread")
    return [
        escape(str(row["case"])),
        escape(peer),
        _ratio(row.get("time_ratio"), mark=not row.get("floor")),
        f"{number(spread[0])} to {number(spread[1])}" if spread else "-",
        _ratio(row.get("memory_ratio")),
        "-" if row.get("ours_ms") is None else number(row["ours_ms"]),
        _error(row, "ours"),
        _error(row, "peer"),
        escape(str(row.get("note", ""))),
    ]


def _ratio(value: float | None, *, mark: bool = True) -> str:
    if value is None:
        return "-"
    text = f"{number(value)}x"
    return f"**{text}**" if mark and value < 1 else text


def _error(row: Mapping[str, Any], who: str) -> str:
    if row.get(f"{who}_finite") is False:
        return "not finite"
    value = row.get(f"{who}_max_abs_error")
    return "-" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    readme = Path(__file__).parents[2] / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), readme.parent), encoding="utf-8")

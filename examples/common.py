"""What the examples share: options, tables, versions, plot style, and the record of results they write."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import platform
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

__all__ = [
    "COLORS",
    "base_parser",
    "command_line",
    "difference",
    "format_spread",
    "interval",
    "kept_run",
    "label_points",
    "plain_trainer",
    "plotting",
    "print_table",
    "quiet_lightning",
    "run_file",
    "spread",
    "spreads",
    "versions",
    "write_ledger",
]

# Okabe and Ito's palette, distinguishable with every common color vision.
COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999")


def base_parser(description: str | None, *, slug: str, seeds: int | None = 1) -> argparse.ArgumentParser:
    """Parser with the options every example has: ``--seed``, ``--seeds`` (unless None), ``--out`` and ``--full``."""
    parser = argparse.ArgumentParser(
        description=(description or "").strip().split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=None, help=f"number of seeds (none given: {seeds})")
    parser.add_argument("--out", type=Path, default=Path("outputs") / slug, help="folder for results")
    parser.add_argument("--full", action="store_true", help="longer runs and more seeds")
    return parser


def command_line() -> str:
    """The command that runs now, relative to the working directory."""
    script = Path(sys.argv[0])
    try:
        script = script.resolve().relative_to(Path.cwd())
    except ValueError:
        script = Path(script.name)
    return shlex.join(["python", script.as_posix(), *sys.argv[1:]])


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, infotorch, torch, numpy and further packages."""
    found = {"python": platform.python_version()}
    for package in ("infotorch", "torch", "numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source tree" if package == "infotorch" else "not installed"
    return found


def write_ledger(
    path: Path,
    *,
    slug: str,
    claim: str,
    experiment: str,
    seeds: Sequence[int],
    results: Mapping[str, Any],
    packages: Sequence[str] = (),
    **further: Any,
) -> Path:
    """Write the record of an experiment as JSON, with the command that runs now and the versions it runs with.

    Args:
        path: File to write; missing folders are made.
        slug: Short name of the method.
        claim: What the paper claims.
        experiment: What was run to test it.
        seeds: Seeds used.
        results: Numbers of the method and of its baselines; with several seeds also their spread.
        packages: Whose versions the numbers depend on, besides Python, infotorch, torch and numpy.
        **further: Anything else worth keeping, such as curves.
    """
    record = {
        "slug": slug,
        "claim": claim,
        "experiment": experiment,
        "command": command_line(),
        "seeds": list(seeds),
        "results": results,
        "versions": versions(*packages),
        **further,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def run_file(folder: Path, name: str, settings: Any) -> Path:
    """Where a run is kept: the file's name changes with ``settings``, whatever the run depends on besides its name."""
    said = json.dumps(settings, sort_keys=True, default=str)
    stem = re.sub(r"\W+", "-", name).strip("-")
    return folder / "runs" / f"{stem}-{hashlib.sha256(said.encode()).hexdigest()[:8]}.json"


def kept_run(path: Path, run: Callable[[], Any]) -> Any:
    """What ``run`` returns, as JSON reads it: from the file if an earlier call wrote it, see `run_file`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(run()), encoding="utf-8")
        part.rename(path)  # a run that was cut off leaves no file that looks finished
    return json.loads(path.read_text(encoding="utf-8"))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the values themselves."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "values": list(values)}


def spreads(rows: Sequence[Mapping[str, float]], keys: Sequence[str] | None = None) -> dict[str, Any]:
    """`spread` of every quantity over the runs, each a row; with ``keys`` of those among them that were measured."""
    return {key: spread([row[key] for row in rows]) for key in keys or rows[0] if key in rows[0]}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of a quantity over the seeds; of a single value the value itself."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean(values) - half, mean(values) + half


def difference(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Mean of the differences between runs with the same seed, and its 95 % interval, see `interval`."""
    found = [a - b for a, b in zip(values, base, strict=True)]
    low, high = interval(found)
    return {"mean difference": mean(found), "95 % from": low, "to": high}


def format_spread(values: Sequence[float], digits: int = 3) -> str:
    """``mean`` of one value, ``mean±standard deviation`` of several."""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text}±{stdev(values):.{digits}f}"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """Print plain-text columns: the first one left-aligned, numbers right-aligned."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        padded = [cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        return "  ".join(padded).rstrip()

    if title:
        print(title)
    print(line(headers))
    print(line(["-" * width for width in widths]))
    for row in cells:
        print(line(row))


def plotting() -> Any:
    """``matplotlib.pyplot`` with a file backend and one plain style."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.7,
            "figure.dpi": 120,
            "savefig.bbox": "tight",
        }
    )
    return plt


def label_points(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside points, each at the nearest free place and tied to its point by a thin line."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    axes.figure.draw_without_rendering()  # the layout must be known
    pixel = axes.figure.dpi / 72
    dots = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_bounds(x - 3 * pixel, y - 3 * pixel, 6 * pixel, 6 * pixel) for x, y in dots]
    places = [(r, math.tau * k / 24) for r in range(7, 160, 6) for k in range(24)]
    for name, xy in sorted(points.items(), key=lambda item: -item[1][1]):
        text = axes.annotate(
            name, xy, (0, 0), fontsize=7, textcoords="offset points", ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        width = text.get_window_extent(renderer).width / pixel
        for r, angle in places:
            text.set_position(((r + width / 2) * math.cos(angle), r * math.sin(angle)))
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break


def quiet_lightning() -> None:
    """Silence Lightning's hardware report, tips and data-loading advice, which do not concern these examples."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def plain_trainer(**options: Any) -> Any:
    """A Lightning trainer of one epoch on one CPU device that logs, saves and prints nothing, unless told to."""
    from lightning import Trainer

    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    plain: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, **dict.fromkeys(quiet, False)}
    return Trainer(**plain | options)

"""Draws architecture.svg: ``python docs/_static/architecture.py``. Run it again after a room is added."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT = "#1f2933", "#52606d"
ROOMS = {
    # name: (x, y, width, height, fill, what it holds)
    "core": (
        0.2,
        0.2,
        9.6,
        1.15,
        "#d9e8f5",
        "token statistics · entropies, divergences · masked reductions · processes",
    ),
    "nn": (0.2, 2.1, 2.2, 1.15, "#e3f1e3", "TinyDecoder"),
    "losses": (2.8, 2.1, 7.0, 1.15, "#fbe9d0", "rewards · advantages · policy losses · regularizers → Recipe"),
    "rollout": (0.2, 4.0, 4.2, 1.15, "#f3e3ef", "samplers: tokens, log-probs, entropies"),
    "rlvr": (4.8, 4.0, 5.0, 1.15, "#f3e3ef", "tasks · Lightning module · warm start · metrics"),
    "examples": (0.2, 5.9, 9.6, 0.85, "#eceff1", "one script per question; the record of its results"),
}
# Arrows upward: from, to, and where across the page.
UPWARD = [
    ("core", "nn", 1.3),
    ("core", "losses", 6.3),
    ("core", "rollout", 2.6),
    ("nn", "rollout", 1.3),
    ("losses", "rlvr", 7.3),
    ("rollout", "examples", 2.3),
    ("rlvr", "examples", 7.3),
]


def box(axes: plt.Axes, name: str) -> None:
    x, y, width, height, fill, text = ROOMS[name]
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=fill,
            edgecolor=SOFT,
            linewidth=1,
        )
    )
    label = name if name == "examples" else f"infotorch.{name}"
    axes.text(x + width / 2, y + height * 0.64, label, ha="center", va="center", size=12, weight="bold", color=INK)
    axes.text(x + width / 2, y + height * 0.28, text, ha="center", va="center", size=9.2, color=INK)


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, linewidth=1.1, color=SOFT, shrinkA=0, shrinkB=1
        )
    )


def main() -> None:
    """Draw and save beside this file."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "infotorch"})
    figure, axes = plt.subplots(figsize=(9.2, 6.4))
    for name in ROOMS:
        box(axes, name)
    for lower, upper, x in UPWARD:
        arrow(axes, (x, ROOMS[lower][1] + ROOMS[lower][3]), (x, ROOMS[upper][1]))
    x, y, width, height, *_ = ROOMS["rollout"]
    arrow(axes, (x + width, y + height / 2), (ROOMS["rlvr"][0], y + height / 2))
    axes.text(0.2, 7.0, "An arrow points from a room to those that may import it.", size=9.2, color=SOFT)
    axes.set(xlim=(0, 10), ylim=(0, 7.3))
    axes.axis("off")
    path = Path(__file__).with_suffix(".svg")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    main()

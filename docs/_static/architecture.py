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
        1.05,
        "#d9e8f5",
        "token statistics · entropies, divergences · information, dependence, transport · processes",
    ),
    "distributions": (0.2, 1.75, 2.9, 1.05, "#e3f1e3", "known information"),
    "nn": (3.4, 1.75, 3.1, 1.05, "#e3f1e3", "activations · heads · sets"),
    "data": (6.8, 1.75, 3.0, 1.05, "#e3f1e3", "series, splits"),
    "estimators": (0.2, 3.3, 3.9, 1.05, "#fbe9d0", "KSG, neural, MIST; intervals"),
    "losses": (4.4, 3.3, 5.4, 1.05, "#fbe9d0", "rewards · advantages · losses → Recipe"),
    "report": (0.2, 4.85, 2.1, 1.05, "#f3e3ef", "tables"),
    "rollout": (2.55, 4.85, 3.0, 1.05, "#f3e3ef", "samplers, entropies"),
    "rlvr": (5.8, 4.85, 4.0, 1.05, "#f3e3ef", "tasks · Lightning module"),
    "adaptation": (0.2, 6.2, 2.3, 1.05, "#f3e3ef", "SFDA"),
    "fairness": (2.7, 6.2, 2.1, 1.05, "#f3e3ef", "dCov penalties"),
    "forecasting": (5.0, 6.2, 2.35, 1.05, "#f3e3ef", "EntroPE"),
    "generative": (7.55, 6.2, 2.25, 1.05, "#f3e3ef", "EVODiff · MEE"),
    "rl": (0.2, 7.55, 3.0, 1.05, "#f3e3ef", "HL-Gauss DQN · QARL"),
    "integrations": (3.4, 7.55, 6.4, 1.05, "#eceff1", "TRL · verl · diffusers · timm"),
    "examples": (0.2, 9.1, 9.6, 0.85, "#eceff1", "one script per question; the record of its results"),
}
# Arrows upward: from, to, and where across the page.
UPWARD = [
    ("core", "distributions", 1.6),
    ("core", "nn", 4.9),
    ("core", "data", 8.3),
    ("distributions", "estimators", 1.6),
    ("nn", "estimators", 3.75),
    ("nn", "losses", 5.4),
    ("estimators", "report", 1.2),
    ("losses", "rlvr", 7.8),
    ("rl", "examples", 1.7),
    ("integrations", "examples", 6.6),
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
    axes.text(x + width / 2, y + height * 0.64, name, ha="center", va="center", size=11, weight="bold", color=INK)
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
    figure, axes = plt.subplots(figsize=(9.2, 8.8))
    for name in ROOMS:
        box(axes, name)
    for lower, upper, x in UPWARD:
        arrow(axes, (x, ROOMS[lower][1] + ROOMS[lower][3]), (x, ROOMS[upper][1]))
    x, y, width, height, *_ = ROOMS["rollout"]
    arrow(axes, (x + width, y + height / 2), (ROOMS["rlvr"][0], y + height / 2))
    axes.text(
        0.2,
        10.15,
        "Rooms import from below; those of one field (violet) not from each other, but for rlvr.",
        size=9.2,
        color=SOFT,
    )
    axes.set(xlim=(0, 10), ylim=(0, 10.5))
    axes.axis("off")
    path = Path(__file__).with_suffix(".svg")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    main()

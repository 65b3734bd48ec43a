"""Arms of an experiment on the tabular ModularSum task: run each over seeds, summarize, tabulate, plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import COLORS, format_spread, plotting, spread
from tqdm import tqdm

from infotorch.losses import Recipe
from infotorch.rlvr import TrainingHistory
from infotorch.rlvr.modular_sum import run_modular_sum

Arm = Callable[[], Recipe]


def run_arms(
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    run: Callable[..., TrainingHistory] = run_modular_sum,
    **options: Any,
) -> dict[str, list[TrainingHistory]]:
    """Run every arm with every seed; ``options`` go to ``run`` (``task`` as a function of the seed)."""
    make_task = options.pop("task", None)
    found: dict[str, list[TrainingHistory]] = {name: [] for name in arms}
    with tqdm(total=len(arms) * len(seeds), unit="run") as bar:
        for seed in seeds:
            for name, arm in arms.items():
                bar.set_description(f"{name}, seed {seed}")
                torch.manual_seed(seed)  # for parts that draw
                task = {} if make_task is None else {"task": make_task(seed)}
                found[name].append(run(arm(), seed=seed, **task, **options))
                bar.update()
    return found


def first_above(history: TrainingHistory, level: float, key: str = "reward") -> int | None:
    """First step whose batch reward reached ``level``; None if none did."""
    steps, rewards = history.column(key)
    return next((step for step, reward in zip(steps, rewards, strict=True) if reward >= level), None)


def summarize(histories: Sequence[TrainingHistory], middle: int = 50) -> dict[str, Any]:
    """Rewards, entropies (nats per token) and distinct correct answers of one arm, over its seeds."""
    rows: dict[str, list[float]] = {}
    for history in histories:
        _, reward = history.column("reward")
        _, entropy = history.column("entropy")
        values = {
            "reward_start": reward[0],
            "reward_end": reward[-1],
            "entropy_start": entropy[0],
            "entropy_middle": entropy[min(middle, len(entropy) - 1)],
            "entropy_end": entropy[-1],
            "distinct_correct": history.rows[-1]["distinct"],
        }
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    return {key: spread(values) for key, values in rows.items()}


def table_row(name: str, summary: Mapping[str, Any], keys: Sequence[str], digits: Mapping[str, int]) -> list[str]:
    """One line of the table: mean and spread of each key, a dash where the arm has no such number."""

    def cell(key: str) -> str:
        return format_spread(summary[key]["values"], digits.get(key, 3)) if key in summary else "-"

    return [name, *map(cell, keys)]


def curves(found: Mapping[str, Sequence[TrainingHistory]], keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Mean curves of every arm, for the record."""
    return {
        name: {key: torch.tensor([h.column(key)[1] for h in histories]).mean(0).tolist() for key in keys}
        for name, histories in found.items()
    }


def plot_curves(
    found: Mapping[str, Sequence[TrainingHistory]], path: Path, titles: Mapping[str, str], title: str
) -> None:
    """One panel per quantity: mean over seeds, band from least to greatest."""
    plt = plotting()
    figure, axes = plt.subplots(1, len(titles), figsize=(5.2 * len(titles), 3.9), squeeze=False)
    for axis, (key, label) in zip(axes[0], titles.items(), strict=True):
        for i, (name, histories) in enumerate(found.items()):
            color, style = COLORS[i % len(COLORS)], ("-", "--")[i // len(COLORS) % 2]
            steps = histories[0].column(key)[0]
            values = torch.tensor([h.column(key)[1] for h in histories])
            axis.plot(steps, values.mean(0), color=color, linestyle=style, label=name)
            axis.fill_between(steps, values.amin(0), values.amax(0), color=color, alpha=0.12, linewidth=0)
        axis.set_xlabel("step")
        axis.set_title(label)
        axis.set_ylim(bottom=0)
    # Many names find no free place among the curves.
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(found) > 6 else {}
    axes[0, -1].legend(fontsize=8, **beside)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)

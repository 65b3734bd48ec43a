"""How often an interval holds the truth, and how often the mean of its estimator: bias told from spread.

An interval from resampling covers where the estimator's mean lies. Where the estimator is biased the truth may lie
outside all the same. Samples of joints with known information; nominal coverage is 95 %.

    python examples/interval_coverage.py            20 samples a cell, about a minute and a half on two CPU cores
    python examples/interval_coverage.py --full     200 samples a cell

Written to --out: interval-coverage.json and interval-coverage.png.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from common import COLORS, base_parser, plotting, print_table, write_ledger
from torch import Tensor
from tqdm import tqdm

from infotorch.distributions import (
    AdditiveUniform,
    DiscreteTable,
    Joint,
    Normal,
    Student,
    bivariate_normal,
    paired_covariance,
    symmetric_channel,
)
from infotorch.estimators import KSG, MIST, CopulaMI, DiscreteMI, GaussianMI, PairEstimator

LEVEL = 0.95
CLAIM = (
    "None of a paper: an interval from sub-sampling, from the bootstrap or from a formula covers the estimator's mean, "
    "not its bias; MIST's is a credible interval under its training tasks."
)
NUMBERS: dict[str, type[PairEstimator]] = {"KSG": KSG, "GaussianMI": GaussianMI, "CopulaMI": CopulaMI, "MIST": MIST}
CONTINUOUS: dict[str, Joint] = {
    "independent, 1+1": bivariate_normal(0.0),
    "normal 0.5, 1+1": bivariate_normal(0.5),
    "normal 0.9, 1+1": bivariate_normal(0.9),
    "2 pairs at 0.8, 4+4": Normal(paired_covariance(4, 4), 4),
    "Student 2, 1+1": Student(torch.eye(2), 1, 2.0),
    "uniform noise, 1+1": AdditiveUniform((0.25,)),
}
TABLES: dict[str, DiscreteTable] = {
    "channel of 4, error 0.3": symmetric_channel(4, 0.3),
    "independent, 4 x 4": DiscreteTable(torch.full((4, 4), 1 / 16)),
}


def runs(kind: Any, joint: Joint, n: int, samples: int, seed: int, bar: Any) -> dict[str, float]:
    """Estimates and intervals of many samples against the truth."""
    truth, rows = joint.mutual_information(), []
    for i in range(samples):
        x, y = joint.sample(n, 10_000 * seed + i)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind(confidence=LEVEL, random_state=i).fit(x, y)
        rows.append((found.value_, *found.interval_))
        bar.update()
    value, low, high = torch.tensor(rows, dtype=torch.float64).unbind(1)

    def inside(target: Tensor | float) -> float:
        return float(((low <= target) & (target <= high)).double().mean())

    return {
        "truth_covered": inside(truth),
        "mean_covered": inside(value.mean()),
        "width": float((high - low).mean()),
        "bias": float(value.mean() - truth),
    }


def plot(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    tasks = list(results)
    names = [*NUMBERS, "DiscreteMI"]
    for axis, key, title in zip(
        axes, ("truth_covered", "mean_covered"), ("the truth", "the estimator's mean"), strict=True
    ):
        for i, name in enumerate(names):
            points = [(results[task][name][key], row) for row, task in enumerate(tasks) if name in results[task]]
            shares, rows = zip(*points, strict=True)
            axis.scatter(shares, [row + 0.12 * (i - 2) for row in rows], color=COLORS[i], s=26, label=name)
        axis.axvline(LEVEL, color="0.6", lw=1)
        axis.set(title=f"95 % intervals that hold {title}", xlabel="share of samples", xlim=(-0.03, 1.03))
    axes[0].set_yticks(range(len(tasks)), tasks)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8, loc="upper left")
    figure.savefig(path)


def main() -> None:
    parser: argparse.ArgumentParser = base_parser(__doc__, slug="interval-coverage", seeds=None)
    parser.add_argument("--samples", type=int, default=None, help="per cell (none given: 20, with --full 200)")
    parser.add_argument("--points", type=int, default=300, help="points of a sample")
    args = parser.parse_args()
    samples = args.samples or (200 if args.full else 20)
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tqdm(total=samples * (len(CONTINUOUS) * len(NUMBERS) + len(TABLES)), desc="intervals") as bar:
        for task, joint in CONTINUOUS.items():
            results[task] = {
                name: runs(kind, joint, args.points, samples, args.seed, bar) for name, kind in NUMBERS.items()
            }
        for task, table in TABLES.items():
            results[task] = {"DiscreteMI": runs(DiscreteMI, table, args.points, samples, args.seed, bar)}
    args.out.mkdir(parents=True, exist_ok=True)
    plot(results, args.out / "interval-coverage.png")
    write_ledger(
        args.out / "interval-coverage.json",
        slug="interval-coverage",
        claim=CLAIM,
        experiment=f"{samples} samples of {args.points} points a cell; nominal coverage {LEVEL:.0%}.",
        seeds=[args.seed],
        results=results,
        packages=("scipy",),
    )
    rows = [
        [f"{task}: {name}", cell["truth_covered"], cell["mean_covered"], cell["width"], cell["bias"]]
        for task, found in results.items()
        for name, cell in found.items()
    ]
    print_table(["estimator", "holds truth", "holds mean", "width", "bias"], rows)


if __name__ == "__main__":
    main()

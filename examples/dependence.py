"""Size and power of tests of independence: distance covariance against correlation and HSIC, on shapes and on a table.

Size: on independent pairs a test at 5 % should reject 5 % of the time. Power: on dependent pairs it should reject
often, also where the correlation is 0. On a real table the pairs are columns, drawn a few rows at a time, and shuffled
for the size; categories have no correlation, so the number that codes them stands in, as it does in much practice. At
the end, what the biased estimator makes of independent pairs in many dimensions.

    python examples/dependence.py                      scikit-learn's diabetes, a minute and a half on one CPU core
    python examples/dependence.py --data-root data     COMPAS

Written to --out: dcov-dependence.json and dcov-dependence.png.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _data import Table, add_data_root, people
from common import (
    COLORS,
    base_parser,
    format_spread,
    plotting,
    print_table,
    spread,
    write_ledger,
)
from torch import Generator, Tensor
from tqdm import tqdm

from infotorch.core.dependence import (
    distance_correlation_sqr,
    independence_test,
    u_distance_correlation_sqr,
)

LEVEL = 0.05
SIZES = (25, 50, 100, 200)
DIMENSIONS = (1, 10, 100, 1000)
PERMUTATIONS = 199
CLAIM = (
    "Distance covariance is 0 in the population exactly under independence, so that its permutation test has the right "
    "size and finds dependence that correlation cannot see (arXiv 0803.4101); its unbiased version does not drift with "
    "the dimension (arXiv 1310.2926)."
)
Pair = Callable[[int, Generator], tuple[Tensor, Tensor]]


def _line(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, generator=g)
    return x, 0.5 * x + torch.randn(n, generator=g)


def _parabola(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(n, generator=g) - 1
    return x, x.square() + 0.3 * torch.randn(n, generator=g)


def _circle(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * torch.rand(n, generator=g)
    noise = 0.3 * torch.randn(2, n, generator=g)
    return angle.cos() + noise[0], angle.sin() + noise[1]


def _sine(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, generator=g)
    return x, torch.sin(4 * math.pi * x) + 0.7 * torch.randn(n, generator=g)


def _variance(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, generator=g)
    return x, x.abs() * torch.randn(n, generator=g)


def _normal(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, n, generator=g)
    return x, y


def _cauchy(n: int, g: Generator) -> tuple[Tensor, Tensor]:
    x, y = torch.tan(math.pi * (torch.rand(2, n, generator=g, dtype=torch.float64) - 0.5))
    return x, y


SHAPES: dict[str, Pair] = {
    "independent normal": _normal,
    "independent Cauchy": _cauchy,
    "line": _line,
    "parabola": _parabola,
    "circle": _circle,
    "two waves": _sine,
    "spread only": _variance,
}


def columns(table: Table) -> dict[str, Pair]:
    """Pairs of columns, some rows at a time, as they are and shuffled."""
    wanted = [("age", "priors_count"), ("sex", "decile_score"), ("race", "decile_score"), ("race", "c_charge_degree")]
    if "race" not in table.columns:
        wanted = [("age", "bp"), ("age", "s3"), ("sex", "s4"), ("bmi", "progression")]
    found: dict[str, Pair] = {}
    for one, other in wanted:
        for shuffled in (True, False):

            def draw(
                n: int, g: Generator, one: str = one, other: str = other, shuffled: bool = shuffled
            ) -> tuple[Tensor, Tensor]:
                rows = torch.randperm(len(table.columns[one]), generator=g)
                x, y = table.columns[one][rows[:n]], table.columns[other][rows[:n]]
                return x, y[torch.randperm(n, generator=g)] if shuffled else y

            found[f"{one}, {other}{' (shuffled)' if shuffled else ''}"] = draw
    return found


def correlation_test(x: Tensor, y: Tensor, g: Generator) -> float:
    """Permutation test of the absolute correlation; categories by the numbers that code them."""
    x, y = (v.double() - v.double().mean() for v in (x, y))
    orders = torch.stack([torch.randperm(len(y), generator=g) for _ in range(PERMUTATIONS)])
    found, null = (x @ y).abs(), (y[orders] @ x).abs()
    return (1 + int((null >= found * (1 - 1e-12)).sum())) / (1 + PERMUTATIONS)


TESTS: dict[str, Callable[[Tensor, Tensor, Generator], float]] = {
    "correlation": correlation_test,
    "distance covariance": lambda x, y, g: independence_test(x, y, permutations=PERMUTATIONS, generator=g).p_value,
    "HSIC": lambda x, y, g: independence_test(x, y, measure="hsic", permutations=PERMUTATIONS, generator=g).p_value,
}


def rejections(pairs: dict[str, Pair], seed: int, repeats: int, bar: Any) -> dict[str, dict[str, list[float]]]:
    """Share of samples on which each test rejects, for every pair at every size."""
    found: dict[str, dict[str, list[float]]] = {}
    for i, (pair, draw) in enumerate(pairs.items()):
        bar.set_description(f"{pair}, seed {seed}")
        found[pair] = {name: [] for name in TESTS}
        for n in SIZES:
            count = dict.fromkeys(TESTS, 0)
            generator = torch.Generator().manual_seed(10_000 * seed + 100 * i + n)
            for _ in range(repeats):
                x, y = draw(n, generator)
                for name, test in TESTS.items():
                    count[name] += test(x, y, generator) <= LEVEL
                bar.update()
            for name in TESTS:
                found[pair][name].append(count[name] / repeats)
    return found


def drift(seed: int, n: int = 50, repeats: int = 10) -> dict[str, dict[str, float]]:
    """Mean squared distance correlation of independent normal samples, biased and unbiased."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for d in DIMENSIONS:
        draws = [torch.randn(2, n, d, generator=generator) for _ in range(repeats)]
        found[f"{d} columns"] = {
            "biased": float(torch.stack([distance_correlation_sqr(x, y) for x, y in draws]).mean()),
            "unbiased": float(torch.stack([u_distance_correlation_sqr(x, y) for x, y in draws]).mean()),
        }
    return found


def whole(table: Table, pairs: dict[str, Pair]) -> dict[str, dict[str, float]]:
    """Squared correlations of the pairs over all rows."""
    found = {}
    for pair in pairs:
        if not pair.endswith("(shuffled)"):
            x, y = (table.columns[name] for name in pair.split(", "))
            linear = torch.corrcoef(torch.stack((x.double(), y.double())))[0, 1].square()
            found[pair] = {
                "distance_correlation_sqr": float(u_distance_correlation_sqr(x, y)),
                "correlation_sqr": float(linear),
            }
    return found


def plot(runs: list[dict[str, dict[str, list[float]]]], drifts: dict[str, Any], path: Path) -> None:
    plt = plotting()
    pairs = list(runs[0])
    rows = -(-(len(pairs) + 1) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(13, 2.5 * rows), sharey=True)
    for axis, pair in zip(axes.flat, pairs, strict=False):
        for color, name in zip(COLORS[1:], TESTS, strict=False):
            curves = torch.tensor([run[pair][name] for run in runs])
            axis.plot(SIZES, curves.mean(0), color=color, marker=".", label=name)
            axis.fill_between(SIZES, curves.amin(0), curves.amax(0), color=color, alpha=0.12, linewidth=0)
        axis.axhline(LEVEL, color="black", linewidth=0.8, linestyle="--")
        axis.set_title(pair, fontsize=10)
        axis.set(xscale="log", ylim=(-0.03, 1.03))
        axis.set_xticks(SIZES, [str(n) for n in SIZES])
        axis.minorticks_off()
    last = axes.flat[len(pairs)]
    for color, kind in zip((COLORS[4], COLORS[2]), ("biased", "unbiased"), strict=True):
        last.plot(DIMENSIONS, [row[kind]["mean"] for row in drifts.values()], color=color, marker=".", label=kind)
    last.set_title("50 independent points: dCor², by columns", fontsize=10)
    last.set(xscale="log")
    last.legend(fontsize=8)
    for axis in axes.flat[len(pairs) + 1 :]:
        axis.axis("off")
    axes[0][0].legend(fontsize=8)
    figure.suptitle("share of samples on which independence is rejected at 5 %, by sample size", x=0.07, ha="left")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="dcov-dependence", seeds=3)
    add_data_root(parser)
    parser.add_argument("--repeats", type=int, default=None, help="samples a seed (none given: 25, or 100 if --full)")
    args = parser.parse_args()
    repeats = args.repeats or (100 if args.full else 25)
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="distance_correlation")  # the drift is what is measured
    table = people(args.data_root)
    real = columns(table)
    pairs = SHAPES | real
    with tqdm(total=len(seeds) * len(pairs) * len(SIZES) * repeats, unit="sample") as bar:
        runs = [rejections(pairs, seed, repeats, bar) for seed in seeds]
    drifting = [drift(seed) for seed in seeds]
    drifts = {
        d: {kind: spread([run[d][kind] for run in drifting]) for kind in ("biased", "unbiased")} for d in drifting[0]
    }
    tables = {
        f"share rejected at 5 %, n = {n}": {
            pair: {name: spread([run[pair][name][i] for run in runs]) for name in TESTS} for pair in pairs
        }
        for i, n in enumerate(SIZES)
    }
    write_ledger(
        args.out / "dcov-dependence.json",
        slug="dcov-dependence",
        claim=CLAIM,
        experiment=(
            f"Permutation tests with {PERMUTATIONS} permutations at 5 %, {repeats} samples a seed and size. "
            "Correlation: its absolute value, categories by the numbers that code them; HSIC: Gaussian kernels of "
            f"median width. Pairs of columns of {table.name}: random rows, shuffled for the size. Drift: 50 points "
            "with independent normal coordinates"
        ),
        seeds=seeds,
        results=tables
        | {"squared distance correlation of independent points": drifts}
        | {f"all rows of {table.name}": whole(table, real)},
        packages=(
            "scipy",
            "scikit-learn",
        ),
    )
    plot(runs, drifts, args.out / "dcov-dependence.png")
    for title in (f"share rejected at 5 %, n = {SIZES[1]}", f"share rejected at 5 %, n = {SIZES[-1]}"):
        rows = [[pair, *(format_spread(row[name]["values"]) for name in TESTS)] for pair, row in tables[title].items()]
        print_table((title, *TESTS), rows)
        print()
    print_table(
        ("dCor^2 of 50 independent points", "biased", "unbiased"),
        [[d, *(format_spread(row[kind]["values"]) for kind in row)] for d, row in drifts.items()],
    )


if __name__ == "__main__":
    main()

"""Transport losses that move one cloud of points onto another: which of them ends with the right spread?

Gradient flow of points under the Sinkhorn divergence, under the entropic cost without the two terms that correct its
bias, and under the sliced Wasserstein distance, watched by the exact distance W2. The entropic cost should shrink the
cloud, the divergence should not. In the plane with Gaussians, and with images in their first principal components.
Beside it, how far each cost is from the closed form between two Gaussians.

    python examples/entropic_ot.py                             three seeds, about a minute on two CPU cores
    python examples/entropic_ot.py --data-root data --full     images from MNIST, more points and steps

Written to --out: entropic-ot.json and entropic-ot.png.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _data import add_data_root, images
from common import (
    COLORS,
    base_parser,
    format_spread,
    plotting,
    print_table,
    spread,
    write_ledger,
)
from torch import Tensor
from tqdm import tqdm

from infotorch.core.matrix import squared_distances
from infotorch.core.transport import exact_transport, sinkhorn, sinkhorn_divergence, sliced_wasserstein

STRENGTHS = (0.05, 0.2)  # of the mean squared distance between points of the target
RATE = 0.2
COMPONENTS = 10
CLAIM = (
    "The entropic cost pulls points together: a flow under it ends with too little spread, the more so the larger the "
    "strength. The Sinkhorn divergence ends at the target's spread (arXiv 1810.08278)."
)
MEAN, COVARIANCE = torch.tensor([2.0, 1.0]), torch.tensor([[1.5, 0.8], [0.8, 0.7]])
Loss = Callable[[Tensor, Tensor], Tensor]


def losses(scale: float, generator: torch.Generator) -> dict[str, Loss]:
    """Losses that are half a squared distance; the gradient at a point is 1/n of its displacement."""
    found: dict[str, Loss] = {}
    for share in STRENGTHS:
        options = {"eps": share * scale, "tol": 1e-4, "max_iter": 2000}

        def divergence(x: Tensor, y: Tensor, options: Any = options) -> Tensor:
            return sinkhorn_divergence(x, y, **options) / 2

        def biased(x: Tensor, y: Tensor, options: Any = options) -> Tensor:
            return sinkhorn(squared_distances(x, y), **options).value / 2

        found[f"Sinkhorn divergence, eps {share:g}"] = divergence
        found[f"entropic cost, eps {share:g}"] = biased

    def sliced(x: Tensor, y: Tensor) -> Tensor:
        # A direction sees 1/d of a displacement.
        return x.shape[1] * sliced_wasserstein(x, y, projections=50, power=True, generator=generator) / 2

    found["sliced Wasserstein"] = sliced
    return found


def spread_of(x: Tensor) -> float:
    """Total variance."""
    return float(x.var(0).sum())


def flow(x: Tensor, y: Tensor, loss: Loss, steps: int, bar: Any) -> list[dict[str, float]]:
    """Move ``x`` down the gradient; the exact distance and the spread on the way."""
    x, rows = x.clone().requires_grad_(), []
    for step in range(steps + 1):
        if step % 10 == 0:
            distance = exact_transport(squared_distances(x.detach(), y)).value.sqrt()
            rows.append(
                {"step": step, "w2": float(distance), "spread": spread_of(x.detach()) / spread_of(y)},
            )
        (grad,) = torch.autograd.grad(loss(x, y), x)
        x = (x.detach() - RATE * len(x) * grad).requires_grad_()
        bar.update()
    return rows


def clouds(n: int, seed: int, pictures: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Start and target of each task."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(COVARIANCE)
    plane = torch.randn(n, 2, generator=generator), MEAN + torch.randn(n, 2, generator=generator) @ factor.T
    centered = (pictures - pictures.mean(0)).double()
    target = (centered @ torch.linalg.eigh(centered.T @ centered)[1][:, -COMPONENTS:]).float()
    start = torch.randn(len(target), COMPONENTS, generator=generator) * (spread_of(target) / COMPONENTS) ** 0.5
    return {"Gaussians in the plane": plane, f"images in {COMPONENTS} components": (start, target)}


def closed_form_errors(n: int, seed: int) -> dict[str, float]:
    """Each cost between samples of two Gaussians, relative to the closed form of W2 squared, minus 1."""
    x, y = clouds(n, 100 + seed, torch.zeros(2, COMPONENTS + 1))["Gaussians in the plane"]
    values, vectors = torch.linalg.eigh(COVARIANCE)
    root_trace = float((vectors * values.sqrt() @ vectors.T).trace())
    truth = float(MEAN.square().sum() + 2 + COVARIANCE.trace() - 2 * root_trace)  # the other covariance is 1
    cost, scale = squared_distances(x, y), 2 * spread_of(y)
    found = {"exact": float(exact_transport(cost).value)}
    for share in STRENGTHS:
        solved = sinkhorn(cost, eps=share * scale, tol=1e-5, max_iter=5000)
        found[f"entropic cost, eps {share:g}"] = float(solved.value)
        found[f"sharp cost, eps {share:g}"] = float(solved.transport_cost)
        found[f"Sinkhorn divergence, eps {share:g}"] = float(sinkhorn_divergence(x, y, eps=share * scale, tol=1e-5))
    return {name: value / truth - 1 for name, value in found.items()}


def plot(runs: dict[str, dict[str, list[list[dict[str, float]]]]], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(2, len(runs), figsize=(11.5, 7), sharex=True)
    for column, (task, found) in enumerate(runs.items()):
        for key, row, title in (("w2", 0, f"{task}: exact W2"), ("spread", 1, "total variance, of the target's")):
            axis = axes[row][column]
            for i, (name, histories) in enumerate(found.items()):
                curves = torch.tensor([[point[key] for point in history] for history in histories])
                steps = [point["step"] for point in histories[0]]
                style = "--" if name.startswith("entropic") else "-"
                axis.plot(steps, curves.mean(0), style, color=COLORS[1 + i // 2 if i < 4 else 5], label=name)
            axis.set_title(title)
            if key == "spread":
                axis.axhline(1, color="black", linewidth=0.8)
                axis.set_xlabel("step")
            else:
                axis.set_yscale("log")
                axis.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
                axis.minorticks_off()
    axes[0][0].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="entropic-ot", seeds=3)
    add_data_root(parser)
    args = parser.parse_args()
    n, steps = (500, 200) if args.full else (200, 80)
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    torch.set_num_threads(1)
    runs: dict[str, dict[str, list[list[dict[str, float]]]]] = {}
    source = ""
    with tqdm(total=len(seeds) * 2 * (2 * len(STRENGTHS) + 1) * (steps + 1), unit="step") as bar:
        for seed in seeds:
            data = images(args.data_root, train=n, test=1, seed=seed).flat()
            source = data.name.split(" (")[0]
            for task, (x, y) in clouds(n, seed, data.train).items():
                generator = torch.Generator().manual_seed(seed)
                for name, loss in losses(2 * spread_of(y), generator).items():
                    bar.set_description(f"{name}, seed {seed}")
                    runs.setdefault(task, {}).setdefault(name, []).append(flow(x, y, loss, steps, bar))
    results: dict[str, Any] = {
        task: {
            name: {
                "w2_start": spread([h[0]["w2"] for h in histories]),
                "w2_end": spread([h[-1]["w2"] for h in histories]),
                "spread_start": spread([h[0]["spread"] for h in histories]),
                "spread_end": spread([h[-1]["spread"] for h in histories]),
            }
            for name, histories in found.items()
        }
        for task, found in runs.items()
    }
    errors = [closed_form_errors(n, seed) for seed in seeds]
    closed = {name: {"relative_error": spread([e[name] for e in errors])} for name in errors[0]}
    write_ledger(
        args.out / "entropic-ot.json",
        slug="entropic-ot",
        claim=CLAIM,
        experiment=(
            f"{n} points on {n}, {steps} steps of {RATE:g} of the displacement; squared distances; eps in units of the "
            "mean squared distance between points of the target; sliced: 50 new directions a step. Gaussians in the "
            f"plane, or noise onto {source} in {COMPONENTS} principal components. Spread: total variance over the "
            "target's. Closed form: samples of the two Gaussians, each cost over the true W2 squared, minus 1"
        ),
        seeds=seeds,
        results=results | {"relative error against the closed form": closed},
        packages=("pot",),
        curves={
            task: {
                name: {
                    key: torch.tensor([[p[key] for p in h] for h in histories]).mean(0).tolist()
                    for key in ("w2", "spread")
                }
                for name, histories in found.items()
            }
            for task, found in runs.items()
        },
    )
    plot(runs, args.out / "entropic-ot.png")
    for task, found in results.items():
        keys = list(next(iter(found.values())))
        rows = [[name, *(format_spread(row[key]["values"]) for key in keys)] for name, row in found.items()]
        print_table((task, *keys), rows)
        print()
    print_table(
        ("against the closed form", "relative error"),
        [[name, format_spread(row["relative_error"]["values"])] for name, row in closed.items()],
    )


if __name__ == "__main__":
    main()

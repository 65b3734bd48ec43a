"""Every neighbor search on the same points: the same entropy from all, at what cost, and what float32 products lose.

The Kozachenko-Leonenko entropy takes the logarithm of distances times the dimension, so a wrong neighbor costs nats. Of
standard normal points the truth is known; on two clusters far apart products of float32 coordinates cancel; images lie
near a surface of fewer dimensions than they have columns, which favors trees.

    python examples/koleo_neighbours.py                      three seeds, about a minute on one CPU core
    python examples/koleo_neighbours.py --data-root data     images from MNIST instead of scikit-learn's digits

Written to --out: koleo-neighbours.json and koleo-neighbours.png.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _data import add_data_root, images
from common import base_parser, format_spread, plotting, print_table, spread, write_ledger
from torch import Tensor
from tqdm import tqdm

from infotorch.core.differential import kl_entropy
from infotorch.core.neighbors import knn

K = 5
DIMENSIONS = (2, 4, 8, 16, 32)
CLUSTERS = (2, 8)
COMPONENTS = 16
CLAIM = (
    "All exact searches give the same entropy within 1e-3 nats; trees are faster in few dimensions and brute force in "
    "many, with a crossing between 8 and 16; on two clusters a thousand standard deviations apart the float32 product "
    "form loses more than half a nat. (A design note of this library, not a paper.)"
)


def product_float32(x: Tensor) -> Tensor:
    """The textbook product form in float32: the neighbors that it finds, at their exact distances."""
    y = x.float()
    squares, parts = y.square().sum(1), []
    for rows in torch.arange(len(y)).split(1024):
        tile = squares - 2 * y[rows] @ y.T
        tile[torch.arange(len(rows)), rows] = math.inf
        near = tile.topk(K, largest=False).indices
        parts.append((x[rows].unsqueeze(1) - x[near]).square().sum(-1).sqrt().sort(1).values)
    return torch.cat(parts)


def scikit_learn(x: Tensor) -> Tensor:
    """Its own choice between trees and brute force."""
    from sklearn.neighbors import NearestNeighbors

    return torch.from_numpy(NearestNeighbors(n_neighbors=K).fit(x.numpy()).kneighbors()[0])  # a point is not its own


ENGINES: dict[str, Callable[[Tensor], Tensor]] = {
    "auto": lambda x: knn(x, K, metric="euclidean")[0],
    "tree": lambda x: knn(x, K, metric="euclidean", backend="tree")[0],
    "brute": lambda x: knn(x, K, metric="euclidean", backend="brute")[0],
    "scikit-learn": scikit_learn,
    "float32 products": product_float32,
}


def entropy_of(distances: Tensor, n: int, d: int) -> float:
    """The estimate from the distances to the K-th neighbor, in nats."""
    unit_ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    psi = torch.digamma(torch.tensor([n, K], dtype=torch.float64))
    return float(psi[0] - psi[1] + unit_ball + d * distances[:, -1].log().mean())


def principal_components(x: Tensor, count: int) -> Tensor:
    """Scores of the first components, float64."""
    x = x.double() - x.double().mean(0)
    return x @ torch.linalg.eigh(x.T @ x)[1][:, -count:]


def points(n: int, seed: int, pictures: Tensor) -> dict[str, tuple[Tensor, float | None]]:
    """Sets of points with their entropy, where it is known."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Tensor, float | None]] = {}
    for d in DIMENSIONS:
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        found[f"normal, d={d}"] = x, d / 2 * math.log(2 * math.pi * math.e)
    for d in CLUSTERS:
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        x[n // 2 :] += 1000
        found[f"two clusters, d={d}"] = x, None
    found[f"images, d={COMPONENTS}"] = principal_components(pictures, COMPONENTS), None
    return found


def measure(sets: dict[str, tuple[Tensor, float | None]], bar: Any) -> dict[str, dict[str, tuple[float, float]]]:
    """Seconds of processor time and entropy, for every set and engine."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, (x, _) in sets.items():
        found[name] = {}
        for engine, search in ENGINES.items():
            bar.set_description(f"{name}, {engine}")
            start = time.process_time()
            distances = search(x)
            found[name][engine] = time.process_time() - start, entropy_of(distances, *x.shape)
            bar.update()
        own = float(kl_entropy(x, K, metric="euclidean"))
        assert abs(own - found[name]["auto"][1]) < 1e-9, "the library's estimator is another formula"
    return found


def plot(seconds: dict[str, Any], off: dict[str, Any], n: int, path: Path) -> None:
    plt = plotting()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4), gridspec_kw={"width_ratios": (1, 1.3)})
    for engine in ENGINES:
        means = [seconds[f"normal, d={d}"][engine]["mean"] for d in DIMENSIONS]
        style = {"linestyle": "--", "linewidth": 3.5, "zorder": 1} if engine == "auto" else {"marker": "o"}
        left.plot(DIMENSIONS, means, label=engine, **style)
    left.set(xscale="log", yscale="log", xlabel="dimension", title=f"{n} normal points: seconds")
    left.set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS])
    left.minorticks_off()
    left.legend()
    others = [engine for engine in ENGINES if engine not in ("auto", "tree")]
    for i, engine in enumerate(others):
        heights = [max(off[name][engine], 1e-16) for name in off]
        # The colors of the left panel.
        right.bar([j + 0.27 * (i - 1) for j in range(len(off))], heights, 0.25, label=engine, color=f"C{i + 2}")
    right.axhline(1e-3, color="black", linewidth=0.8, linestyle="--")
    right.set(yscale="log", ylim=(1e-16, 1e2), title="distance from the tree's entropy, nats (dashed: 1e-3)")
    right.set_xticks(range(len(off)), [name.replace(", ", "\n").replace("two ", "") for name in off], fontsize=8)
    right.legend(loc="upper left", ncols=3)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="koleo-neighbours", seeds=3)
    add_data_root(parser)
    parser.add_argument("--points", type=int, default=None, help="of each set (none given: 10000, or 50000 if --full)")
    args = parser.parse_args()
    n = args.points or (50_000 if args.full else 10_000)
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    torch.set_num_threads(1)
    for search in ENGINES.values():
        search(torch.randn(100, 3, dtype=torch.float64))  # first calls import and allocate
    runs, sets, data = [], {}, None
    with tqdm(total=len(seeds) * (len(DIMENSIONS) + len(CLUSTERS) + 1) * len(ENGINES), unit="search") as bar:
        for seed in seeds:
            data = images(args.data_root, train=n, test=1, seed=seed).flat()
            sets = points(n, seed, data.train)
            runs.append(measure(sets, bar))
    assert data is not None
    truths = {name: truth for name, (_, truth) in sets.items()}

    def table(cell: Callable[[str, str], Any]) -> dict[str, dict[str, Any]]:
        return {name: {engine: cell(name, engine) for engine in ENGINES} for name in sets}

    seconds = table(lambda name, engine: spread([run[name][engine][0] for run in runs]))
    off_tree = table(lambda name, engine: max(abs(run[name][engine][1] - run[name]["tree"][1]) for run in runs))
    off_truth = {
        name: {engine: spread([run[name][engine][1] - truth for run in runs]) for engine in ENGINES}
        for name, truth in truths.items()
        if truth is not None
    }
    write_ledger(
        args.out / "koleo-neighbours.json",
        slug="koleo-neighbours",
        claim=CLAIM,
        experiment=(
            f"Kozachenko-Leonenko entropy, k = {K}, Euclidean, of {n} standard normal points, of two standard normal "
            f"clusters 1000 apart on every axis, and of the first {COMPONENTS} principal components of "
            f"{len(data.train)} images from {data.name.split(' (')[0]}; seconds of processor time of one search on one "
            "thread, building the tree included; the float32 products' neighbors are taken at their exact distances"
        ),
        seeds=seeds,
        results={
            "seconds": seconds,
            "largest distance from the tree's entropy over the seeds, in nats": off_tree,
            "distance from the true entropy, in nats (the estimator's bias)": off_truth,
        },
        packages=(
            "scipy",
            "scikit-learn",
        ),
    )
    plot(seconds, off_tree, n, args.out / "koleo-neighbours.png")
    rows = [
        [name, *(f"{format_spread(seconds[name][e]['values'], 2)} ({off_tree[name][e]:.0e})" for e in ENGINES)]
        for name in sets
    ]
    print_table(("seconds (off the tree, nats)", *ENGINES), rows)


if __name__ == "__main__":
    main()

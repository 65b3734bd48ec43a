"""Diffusion spectral entropy and information: does the information fall with corrupted labels and rise with learning?

First on three Gaussian blobs in 20 to 1000 dimensions whose labels are corrupted more and more, beside the information
of a histogram (the paper's baseline) and of nearest neighbors. Then on a network while it learns images with true or
with random labels: the information about labels should rise on test images in the first case only. The entropy is taken
at the authors' fixed width 10 and at the median distance, which tells a change of shape from a change of scale.

    python examples/dse.py                            scikit-learn's digits, about a minute and a half on two CPU cores
    python examples/dse.py --data-root data           MNIST
    python examples/dse.py --data-root data --full    and a small convolutional network on CIFAR-10

Written to --out: dse.json and dse.png.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _data import Images, add_data_root, images
from common import (
    COLORS,
    base_parser,
    format_spread,
    plotting,
    print_table,
    spread,
    write_ledger,
)
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from infotorch.core.differential import ross_mi
from infotorch.core.diffusion import OperatorOptions, diffusion_spectral_entropy
from infotorch.core.diffusion_information import binned_information, diffusion_mutual_information, spectral_clusters

CORRUPTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
DIMENSIONS = (20, 100, 1000)
MEASURES = {
    "DSMI": lambda x, y: diffusion_mutual_information(x, y, sigma="median").value,
    "histogram": lambda x, y: binned_information(x, y).value,
    "nearest neighbors": lambda x, y: ross_mi(x, y, metric="euclidean"),
}
CLAIM = (
    "The information falls smoothly with label corruption where estimates by histograms and neighbors fail (dimension "
    "100 and more); during training the entropy rises whether or not the network generalizes, the information about "
    "labels rises only where it does, and that about inputs rises on MNIST and falls on CIFAR-10 (arXiv 2312.04823)."
)


def blobs(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three unit normal clusters, 6 from the origin in random directions."""
    label = torch.arange(n) % 3
    centers = 6 * F.normalize(torch.randn(3, d, generator=generator, dtype=torch.float64), dim=1)
    return centers[label] + torch.randn(n, d, generator=generator, dtype=torch.float64), label


def corruption(seed: int, n: int, bar: Any) -> dict[str, dict[str, list[float]]]:
    """Each measure at each corruption, per dimension."""
    found: dict[str, dict[str, list[float]]] = {}
    for d in DIMENSIONS:
        generator = torch.Generator().manual_seed(1000 * seed + d)
        x, label = blobs(n, d, generator)
        for share in CORRUPTIONS:
            wrong = torch.rand(n, generator=generator) < share
            noisy = torch.where(wrong, torch.randint(3, (n,), generator=generator), label)
            for name, measure in MEASURES.items():
                found.setdefault(f"{name}, d={d}", {}).setdefault("values", []).append(float(measure(x, noisy)))
            bar.update()
    return found


class Network(nn.Module):
    """Features of 64 numbers and a linear layer on them."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        channels, size = x.shape[1], x.shape[2]
        if channels == 1:
            body = [nn.Flatten(), nn.Linear(size * size, 64), nn.ReLU(), nn.Linear(64, 64)]
        else:
            body = []
            for before, after in ((channels, 16), (16, 32), (32, 64)):
                body += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
            body += [nn.Flatten(), nn.Linear(64 * (size // 8) ** 2, 64)]
        self.features = nn.Sequential(*body, nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.features(x))


def train(data: Images, seed: int, *, shuffled: bool, epochs: int, every: int, bar: Any) -> list[dict[str, float]]:
    """Train on true or on random labels; what is measured before, during and after."""
    torch.manual_seed(seed)
    network = Network(data.train)
    labels, test_labels = data.train_labels, data.test_labels
    if shuffled:
        labels, test_labels = torch.randint(10, labels.shape), torch.randint(10, test_labels.shape)
    inputs = spectral_clusters(data.test.flatten(1), 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    rows = []
    for epoch in range(epochs + 1):
        if epoch % every == 0:
            rows.append({"epoch": epoch, **watch(network, data, labels, test_labels, inputs)})
        network.train()
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(data.train[batch]), labels[batch]).backward()
            optimizer.step()
        bar.update()
    return rows


@torch.no_grad()
def watch(network: Network, data: Images, labels: Tensor, test_labels: Tensor, inputs: Tensor) -> dict[str, float]:
    """Entropies and information of the features, in nats."""
    network.eval()
    z, seen = network.features(data.test), network.features(data.train[: len(data.test)])
    options: OperatorOptions = {"sigma": "median"}
    return {
        "train_accuracy": float((network(data.train).argmax(1) == labels).float().mean()),
        "test_accuracy": float((network(data.test).argmax(1) == test_labels).float().mean()),
        "entropy": float(diffusion_spectral_entropy(z, **options)),
        "entropy_width_10": float(diffusion_spectral_entropy(z, sigma=10.0)),
        "information_labels": float(diffusion_mutual_information(z, test_labels, **options).value),
        "information_labels_train": float(diffusion_mutual_information(seen, labels[: len(seen)], **options).value),
        "information_inputs": float(diffusion_mutual_information(z, inputs, **options).value),
    }


def rank_correlation(values: list[float]) -> float:
    """With the corruption."""
    found: Any = spearmanr(CORRUPTIONS, values)
    return float(found.statistic)


def summarize_corruption(runs: list[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, Any]]:
    """Value without corruption, what is left of it at full corruption, and rank correlation with the corruption."""
    found = {}
    for name in runs[0]:
        values = [run[name]["values"] for run in runs]
        varied = [v for v in values if len(set(v)) > 1]
        found[name] = {
            "at_0": spread([v[0] for v in values]),
            "at_1": spread([v[-1] for v in values]),
            "spearman": spread([rank_correlation(v) for v in varied]) if varied else None,
        }
    return found


def summarize_training(runs: dict[str, list[list[dict[str, float]]]]) -> dict[str, dict[str, Any]]:
    """First and last value of everything that was watched."""
    found: dict[str, dict[str, Any]] = {}
    for name, histories in runs.items():
        found[name] = {
            key: spread([history[-1][key] for history in histories]) for key in ("train_accuracy", "test_accuracy")
        }
        for key in list(histories[0][0])[3:]:
            for when, place in (("start", 0), ("end", -1)):
                found[name][f"{key}_{when}"] = spread([history[place][key] for history in histories])
    return found


def plot(blobs_found: list[dict[str, dict[str, list[float]]]], runs: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    styles = {20: "-", 100: "--", 1000: ":"}
    for color, measure in zip(COLORS[1:], MEASURES, strict=False):
        for d in DIMENSIONS:
            curves = torch.tensor([run[f"{measure}, d={d}"]["values"] for run in blobs_found])
            start = curves[:, :1].mean()
            if start > 1e-3:
                axes[0].plot(
                    CORRUPTIONS, (curves / start).mean(0), styles[d], color=color, marker=".", label=f"{measure}, d={d}"
                )
    axes[0].set(xlabel="share of corrupted labels", title="blobs: share of the information left")
    axes[0].legend(fontsize=8)
    for color, (name, histories) in zip(COLORS[1:], runs.items(), strict=False):
        epochs = [row["epoch"] for row in histories[0]]
        for axis, key, style in (
            (axes[1], "information_labels", "-"),
            (axes[1], "information_labels_train", ":"),
            (axes[2], "entropy", "-"),
            (axes[2], "entropy_width_10", ":"),
        ):
            curves = torch.tensor([[row[key] for row in history] for history in histories])
            axis.plot(epochs, curves.mean(0), style, color=color, label=name if style == "-" else None)
            axis.fill_between(epochs, curves.amin(0), curves.amax(0), color=color, alpha=0.12, linewidth=0)
    axes[1].set(xlabel="epoch", title="DSMI with the labels, nats (dotted: training images)")
    axes[2].set(xlabel="epoch", title="DSE, nats (dotted: at the fixed width 10)")
    axes[2].legend(fontsize=8)  # of both
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="dse", seeds=3)
    add_data_root(parser)
    parser.add_argument("--epochs", type=int, default=120, help="on CIFAR-10 a quarter")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    blob_seeds = [args.seed + i for i in range(max(5, len(seeds)))]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="diffusion_.*saturated")  # part of what is measured
    kinds = {"mnist": args.epochs} | ({"cifar": args.epochs // 4} if args.full and args.data_root else {})
    total = len(blob_seeds) * len(DIMENSIONS) * len(CORRUPTIONS)
    total += len(seeds) * 2 * sum(epochs + 1 for epochs in kinds.values())
    runs: dict[str, list[list[dict[str, float]]]] = {}
    names: dict[str, None] = {}
    with tqdm(total=total) as bar:
        bar.set_description("blobs")
        found = [corruption(seed, 600, bar) for seed in blob_seeds]
        for kind, epochs in kinds.items():
            for seed in seeds:
                data = images(args.data_root, kind, train=2000, test=600, seed=seed)
                names[data.name] = None
                short = data.name.split(" (")[0]
                for shuffled in (False, True):
                    name = f"{short}, {'random' if shuffled else 'true'} labels"
                    bar.set_description(f"{name}, seed {seed}")
                    history = train(data, seed, shuffled=shuffled, epochs=epochs, every=max(1, epochs // 12), bar=bar)
                    runs.setdefault(name, []).append(history)
    training, blob_table = summarize_training(runs), summarize_corruption(found)
    write_ledger(
        args.out / "dse.json",
        slug="dse",
        claim=CLAIM,
        experiment=(
            "Blobs: 600 points, three unit normal clusters 6 from the origin, seeds "
            f"{blob_seeds[0]} to {blob_seeds[-1]}; width the median distance, t = 1, 5 subsets; histogram of 2 bins a "
            "dimension; Ross's estimator with 3 neighbors; rank correlation with the corrupted share. Training: "
            f"{' and '.join(names)}, a perceptron 64-64-10 (CIFAR-10: three convolutions), Adam 2e-3, batch 64, "
            f"{' and '.join(str(epochs) for epochs in kinds.values())} epochs; features of the last hidden layer on "
            "test images, or where said on as many training images; information about inputs: about 10 spectral "
            "clusters of them. Random labels of test images are independent of everything"
        ),
        seeds=seeds,
        results={"blobs, nats": blob_table, "training, nats": training},
        packages=(
            "scipy",
            "scikit-learn",
        ),
        curves={
            name: {
                key: torch.tensor([[float(row[key]) for row in h] for h in histories]).mean(0).tolist()
                for key in histories[0][0]
            }
            for name, histories in runs.items()
        },
    )
    plot(found, runs, args.out / "dse.png")
    print_table(
        ("blobs", "clean labels", "random labels", "rank correlation"),
        [
            [name, *("-" if row[key] is None else format_spread(row[key]["values"]) for key in row)]
            for name, row in blob_table.items()
        ],
    )
    print()
    keys = list(next(iter(training.values())))
    print_table(
        ("training", *training), [[key, *(format_spread(training[n][key]["values"]) for n in training)] for key in keys]
    )


if __name__ == "__main__":
    main()

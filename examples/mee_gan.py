"""Does manifold entropy keep a generator from losing modes? Points on a ring, points on a grid, and stacked digits.

Four arms on the same networks and seeds: the plain adversarial loss, the same with the regularizers DLLE and DIsoMap,
with the entropy of generated codes, and with both (MEE). A mode is a point of the ring or grid, or one of the 1000
triples of digits, read by a classifier.

    python examples/mee_gan.py                                one seed, two minutes on two CPU cores
    python examples/mee_gan.py --data-root data               MNIST at 16 x 16, not scikit-learn's 8 x 8 digits
    python examples/mee_gan.py --data-root data --seeds 5     what the documentation shows

Written to --out: mee-gan.json and mee-gan.png.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _data import add_data_root, images
from common import (
    base_parser,
    format_spread,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spreads,
    write_ledger,
)
from lightning import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from infotorch.generative import MEEGAN, ManifoldEntropy, ModeCoverage, coverage_of_labels, mode_coverage
from infotorch.nn import mlp

CODE, BATCH, SHOTS = 8, 64, 5
OFF: dict[str, Any] = {"dlle": 0.0, "disomap": 0.0, "entropy": 0.0, "entropy_real": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "plain": OFF,
    "DLLE, DIsoMap": OFF | {"dlle": 0.01, "disomap": 0.01},
    "entropy": OFF | {"entropy": 0.05},
    "MEE": OFF | {"entropy": 0.05, "dlle": 0.01, "disomap": 0.01},
}
CLAIM = (
    "A discriminator that embeds, shaped by DLLE and DIsoMap, and paid with the entropy of its codes by nearest "
    "neighbors keeps a generator from losing modes: FID 9.13 on CelebA against 12.43 of the same network without it, "
    "inception score 2.80 on AnimeFace against 2.26 of an energy-based model."
)


@dataclass
class Task:
    """Where samples come from, which networks learn them, and how modes are counted."""

    name: str
    modes: int
    draw: Callable[[torch.Generator], Tensor]
    networks: Callable[[], tuple[nn.Module, nn.Module]]
    coverage: Callable[[Tensor], ModeCoverage]
    steps: int
    latent_dim: int = 16
    samples: int = 5000
    centers: Tensor | None = None


class Batches(IterableDataset[Tensor]):
    """Batches drawn anew, the same for every arm of a seed."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.task.steps):
            yield self.task.draw(generator)


@dataclass
class Watch(Callback):
    """Coverage and samples at equal distances over training."""

    task: Task
    bar: Any
    found: list[ModeCoverage] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, and look at the samples at a fifth of the training."""
        self.bar.update()
        if (batch_idx + 1) % (self.task.steps // SHOTS) == 0:
            # In parts, since images of all samples at once would not fit a cache and take twice as long.
            samples = torch.cat([pl_module.sample(1000, seed=1 + i) for i in range(self.task.samples // 1000)])
            self.found.append(self.task.coverage(samples))
            self.pictures.append(samples[:1000])


def points(name: str, centers: Tensor, deviation: float, radius: float, steps: int) -> Task:
    """A mixture of equal normal clusters in the plane."""

    def draw(generator: torch.Generator) -> Tensor:
        chosen = centers[torch.randint(len(centers), (BATCH,), generator=generator)]
        return chosen + deviation * torch.randn(BATCH, 2, generator=generator)

    def networks() -> tuple[nn.Module, nn.Module]:
        discriminator = [nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, CODE)]
        return mlp((16, 64, 64, 2)), nn.Sequential(*discriminator)

    def coverage(x: Tensor) -> ModeCoverage:
        return mode_coverage(x, centers, radius=radius)

    return Task(name, len(centers), draw, networks, coverage, steps, centers=centers)


def ring(steps: int) -> Task:
    angles = torch.arange(8) * math.pi / 4
    return points("ring", 2 * torch.stack((angles.cos(), angles.sin()), 1), 0.02, 0.15, steps)


def grid(steps: int) -> Task:
    line = torch.arange(-2.0, 3.0) * 2 / 2.83
    return points("grid", torch.cartesian_prod(line, line), 0.05 / 2.83, 0.15, steps)


def stacked_digits(root: Path | None, steps: int, seed: int) -> tuple[Task, dict[str, Any]]:
    """Three digits as the channels of one image."""
    data = images(root, train=60_000, test=10_000, seed=seed)
    train, test = data.train, data.test
    if root is not None:
        train, test = (
            nn.functional.interpolate(x, size=(16, 16), mode="bilinear", antialias=True) for x in (train, test)
        )
    size, channels = train.shape[-1], 16
    classify, accuracy = classifier(train, data.train_labels, test, data.test_labels, seed)

    def draw(generator: torch.Generator) -> Tensor:
        return train[torch.randint(len(train), (BATCH, 3), generator=generator), 0]

    def networks() -> tuple[nn.Module, nn.Module]:
        halvings = int(math.log2(size)) - 1
        widths = [3, *(channels * 2**i for i in range(halvings))]
        down: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            down += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
        up: list[nn.Module] = [nn.Linear(32, 4 * widths[-1]), nn.ReLU(), nn.Unflatten(1, (widths[-1], 2, 2))]
        for outputs, inputs in zip(widths[-2::-1], widths[:0:-1], strict=True):
            last = nn.Sigmoid() if outputs == 3 else nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU())
            up += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), last]
        generator, discriminator = (
            nn.Sequential(*up),
            nn.Sequential(*down, nn.Flatten(), nn.Linear(4 * widths[-1], CODE)),
        )
        for layer in (*generator.modules(), *discriminator):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.normal_(layer.weight, 0, 0.02)
        for layer in discriminator:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.utils.parametrizations.spectral_norm(layer)
        return generator, discriminator

    def coverage(x: Tensor) -> ModeCoverage:
        with torch.no_grad():
            digits = classify(x.reshape(-1, size * size)).argmax(1).view(-1, 3)
        return coverage_of_labels(digits @ torch.tensor([100, 10, 1]), 1000)

    task = Task("stacked digits", 1000, draw, networks, coverage, steps, latent_dim=32, samples=20_000)
    return task, {"data": data.name, "accuracy of the classifier": accuracy}


def classifier(x: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, seed: int) -> tuple[nn.Module, float]:
    """A network that reads one digit, and its accuracy on images that it did not see."""
    torch.manual_seed(seed)
    network = mlp((x[0].numel(), 256, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    for _ in range(1500):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(network(x[rows].flatten(1)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = network.eval()(test.flatten(1)).argmax(1) == test_labels
    return network, float(right.double().mean())


def train(task: Task, weights: dict[str, Any], seed: int, bar: Any) -> Watch:
    torch.manual_seed(seed)
    watch = Watch(task, bar)
    module = MEEGAN(
        *task.networks(),
        ManifoldEntropy(CODE, 256, seed=seed),
        latent_dim=task.latent_dim,
        loss="non_saturating",
        generator_every=1,
        ramp=300,
        lr=1e-3,
        betas=(0.5, 0.9),
        ema=0.99,
        seed=seed,
        **weights,
    )
    trainer = plain_trainer(callbacks=[watch])
    trainer.fit(module, DataLoader(Batches(task, seed), batch_size=None))
    return watch


def plot(runs: dict[str, dict[str, list[Watch]]], path: Path) -> None:
    plt = plotting()
    shown = ("plain", "MEE")
    figure = plt.figure(figsize=(9.5, 3.4 * len(runs) + 3), layout="constrained")
    parts = figure.subfigures(len(runs) + 1, 1, height_ratios=[3.4] * len(runs) + [3])
    for part, (name, arms) in zip(parts, runs.items(), strict=False):
        part.suptitle(f"{name}: samples over training, first seed", x=0.01, ha="left", fontsize=11)
        axes = part.subplots(len(shown), SHOTS)
        for row, arm in zip(axes, shown, strict=True):
            watch = arms[arm][0]
            for i, (axis, picture, found) in enumerate(zip(row, watch.pictures, watch.found, strict=True)):
                if (centers := watch.task.centers) is not None:
                    reach = 1.3 * float(centers.max())
                    axis.scatter(*centers.T, s=60, facecolors="none", edgecolors="C1", linewidths=0.8)
                    axis.scatter(*picture.T, s=1, alpha=0.4)
                    axis.set(xlim=(-reach, reach), ylim=(-reach, reach))
                    axis.set_aspect("equal")
                else:
                    tiles = picture[:32].view(4, 8, *picture.shape[1:]).permute(0, 3, 1, 4, 2)
                    axis.imshow(tiles.reshape(4 * picture.shape[2], 8 * picture.shape[3], 3))
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(visible=False)
                if i == 0:
                    axis.set_ylabel(arm)
                step = watch.task.steps * (i + 1) // SHOTS
                axis.set_title(f"step {step}: {found.covered} modes", fontsize=8)
    below = parts[-1].subplots(1, len(runs), squeeze=False)[0]
    for axis, (name, arms) in zip(below, runs.items(), strict=True):
        for arm, watches in arms.items():
            steps = [watches[0].task.steps * (i + 1) // SHOTS for i in range(SHOTS)]
            covered = torch.tensor([[float(found.covered) for found in watch.found] for watch in watches])
            (line,) = axis.plot(steps, covered.mean(0), marker="o", label=arm)
            axis.fill_between(steps, covered.amin(0), covered.amax(0), color=line.get_color(), alpha=0.1)
        axis.set(title=f"{name}: modes covered", xlabel="step", ylim=(0, None))
    below[0].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="mee-gan", seeds=1)
    add_data_root(parser)
    parser.add_argument("--tasks", nargs="+", default=["ring", "grid", "digits"], choices=("ring", "grid", "digits"))
    parser.add_argument(
        "--steps", type=int, default=None, help="of every run (none given: 3000, digits 1000; 10 x if --full)"
    )
    args = parser.parse_args()
    if args.steps is not None and args.steps < SHOTS:
        parser.error(f"--steps: expected at least {SHOTS}, got {args.steps}")
    quiet_lightning()
    torch.set_num_threads(1)
    longer = 10 if args.full else 1
    seeds = [args.seed + i for i in range(args.seeds or 1)]
    about: dict[str, Any] = {}
    tasks: list[Task] = []
    for name in args.tasks:
        if name == "digits":
            task, about = stacked_digits(args.data_root, args.steps or 1000 * longer, args.seed)
        else:
            task = (ring if name == "ring" else grid)(args.steps or 3000 * longer)
        tasks.append(task)
    runs: dict[str, dict[str, list[Watch]]] = {}
    with tqdm(total=sum(task.steps for task in tasks) * len(ARMS) * len(seeds), unit="step") as bar:
        for task in tasks:
            runs[task.name] = {arm: [] for arm in ARMS}
            for arm, weights in ARMS.items():
                bar.set_description(f"{task.name}, {arm}")
                runs[task.name][arm] = [train(task, weights, seed, bar) for seed in seeds]
    results: dict[str, dict[str, Any]] = {}
    for task in tasks:
        results[task.name] = {}
        for arm, watches in runs[task.name].items():
            rows = [
                {"modes covered": w.found[-1].covered, "share in a mode": w.found[-1].share}
                | {"reverse KL": w.found[-1].reverse_kl}
                for w in watches
            ]
            kept = [key for key in rows[0] if key != "share in a mode" or task.name != "stacked digits"]
            results[task.name][arm] = spreads(rows, kept)
    write_ledger(
        args.out / "mee-gan.json",
        slug="mee-gan",
        claim=CLAIM,
        experiment=(
            "8 normal clusters on a ring, 25 on a grid, triples of digits stacked as channels "
            f"({', '.join(f'{task.name}: {task.steps} steps' for task in tasks)}); non-saturating loss, codes of "
            f"{CODE} entries, batches of {BATCH}, Adam 1e-3, alternating steps, the discriminator of digits (alone) "
            "spectrally normalized; entropy of generated codes only, weight 0.05, bank of 256; DLLE and DIsoMap at "
            "weight 0.01. Covered: at least 20 of 5000 samples within 0.15 of a cluster, or any of 20000 samples read "
            "as the triple. Reverse KL from the histogram of modes to the uniform one, in nats"
        ),
        seeds=seeds,
        results=results,
        packages=("lightning", "scikit-learn"),
        **about,
    )
    plot(runs, args.out / "mee-gan.png")
    rows = [
        [f"{task.name} ({task.modes} modes), {arm}", *(format_spread(v["values"], 2) for v in found.values())]
        for task in tasks
        for arm, found in results[task.name].items()
    ]
    for row in rows:
        row[2:2] = ["-"] if len(row) == 3 else []
    print_table(("", "modes covered", "share in a mode", "reverse KL"), rows)


if __name__ == "__main__":
    main()

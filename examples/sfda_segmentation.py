"""Segmentation of images whose look has changed: what unlabeled images and a rough idea of sizes bring back.

A small U-Net learns ellipses and bars on one appearance and is adapted to others without its training images: by the
pixels' entropy alone (training normalization layers as in Tent, or all), by class ratios alone, and by both (SFDA,
AdaMI), whose ratios come from sizes and tags, from sizes alone, from an auxiliary network, or from the truth. An oracle
trains on the target's labels. Nobody looks at them otherwise, and what counts is the last epoch.

    python examples/sfda_segmentation.py                     rendered scenes, two seeds, under two minutes
    python examples/sfda_segmentation.py --data-root data    also MNIST's zeros and fours on CIFAR-10's images
    python examples/sfda_segmentation.py --full              more images, longer, three seeds

Written to --out: sfda-segmentation.json and sfda-segmentation.png.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _data import add_data_root, images
from _scenes import CLASSES, PRESENT, SHIFTS, SIDE, Scenes, pasted, rendered
from common import (
    COLORS,
    base_parser,
    format_spread,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spread,
    write_ledger,
)
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from infotorch.adaptation import (
    DiceScore,
    HausdorffDistance,
    RatioModule,
    RatioNetwork,
    SFDALoss,
    SFDAModule,
    inverse_ratio_weights,
    ratios_from_masks,
    ratios_from_sizes,
    tagged_ratios,
)
from infotorch.nn import UNet

BATCH, LR, SOURCE_EPOCHS = 20, 5e-4, 3  # the source model trains three times as long
CLAIM = (
    "Minimizing the pixels' entropy while class ratios stay near those that anatomy suggests adapts a segmentation "
    "network to a new appearance without source images, comparably with methods that see them (arXiv 2108.03152; its "
    "tables could not be read, so the order of the arms is what is tested)."
)


def batches(**fields: Tensor) -> DataLoader[dict[str, Tensor]]:
    """Shuffled batches of mappings, as the module takes them."""
    rows = [{name: values[i] for name, values in fields.items()} for i in range(len(fields["image"]))]
    return DataLoader(_Rows(rows), batch_size=BATCH, shuffle=True, drop_last=True)


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.rows[i]


def supervised(network: nn.Module, data: Scenes, epochs: int, lr: float) -> nn.Module:
    """Plain cross-entropy: the source model, and the oracle."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=1e-4)
    network.train()
    for _ in range(epochs):
        for batch in batches(image=data.x, mask=data.y):
            optimizer.zero_grad()
            F.cross_entropy(network(batch["image"]), batch["mask"]).backward()
            optimizer.step()
    return network


def adapted(network: nn.Module, loss: SFDALoss, epochs: int, patience: int | None, **fields: Tensor) -> nn.Module:
    """A copy, adapted to unlabeled images."""
    network = copy.deepcopy(network)
    module = SFDAModule(network, loss, lr=LR, patience=patience)
    plain_trainer(max_epochs=epochs, log_every_n_steps=1).fit(module, batches(**fields))
    return network


def norm_layers_only(network: nn.Module) -> nn.Module:
    """A copy of which only scales and offsets of batch normalization are trained."""
    network = copy.deepcopy(network).requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(True)
    return network


@torch.no_grad()
def batch_statistics(network: nn.Module, x: Tensor) -> nn.Module:
    """A copy with batch normalization's statistics of the target, and nothing trained."""
    network = copy.deepcopy(network).train()
    for _ in range(3):
        for rows in x.split(BATCH):
            network(rows)
    return network


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    network.eval()
    return torch.cat([network(rows).argmax(1) for rows in x.split(100)])


def scores(network: nn.Module, test: Scenes) -> dict[str, float]:
    """Dice and Hausdorff distance over the test images in which an object is, and false alarms where it is not."""
    found = predict(network, test.x)
    dice, far = DiceScore(CLASSES)(found, test.y)[1:], HausdorffDistance(CLASSES)(found, test.y)[1:]
    absent = ~test.tags[:, 1:]
    alarm = (ratios_from_masks(found, CLASSES)[:, 1:] > 0) & absent
    return {
        "dice_1": float(dice[0]),
        "dice_2": float(dice[1]),
        "dice": float(dice.mean()),
        "hausdorff_95": float(far.mean()),
        "false_alarms": float(alarm.sum() / absent.sum()),
    }


Progress = Callable[[str], None]


def study(
    make: Callable[[int, str, Generator], Scenes], sizes: Tensor | None, seed: int, args: Any, tell: Progress
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, dict[str, float]]], dict[str, Any]]:
    """One seed: the arms on the first shift, five of them on all shifts, and what the picture shows."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    source, target = make(args.images, "train", generator), make(args.images, "train", generator)
    test, source_test = make(args.tests, "test", generator), make(args.tests, "test", generator)
    tell("source model")
    network = UNet(source.x.shape[1], CLASSES, channels=(8, 16, 32)).to(memory_format=torch.channels_last)
    supervised(network, source, SOURCE_EPOCHS * args.epochs, 2e-3)
    guesser = RatioNetwork(source.x.shape[1], CLASSES)
    pairs = DataLoader(list(zip(source.x, source.y, strict=True)), batch_size=BATCH, shuffle=True)  # pyright: ignore
    plain_trainer(max_epochs=SOURCE_EPOCHS * args.epochs).fit(RatioModule(guesser, CLASSES), pairs)
    if sizes is None:  # known of digits in general, here from the source's masks
        known = ratios_from_masks(source.y, CLASSES)
        sizes = torch.stack([known[known[:, k] > 0, k].mean() for k in (1, 2)]) * SIDE**2
    present = ratios_from_sizes(sizes, SIDE**2)
    average = ratios_from_sizes(PRESENT * sizes, SIDE**2)
    nu = inverse_ratio_weights(average)
    clean = {"source on source": scores(network, source_test)}
    arms: dict[str, dict[str, float]] = {}
    shifts: dict[str, dict[str, dict[str, float]]] = {}
    shown: dict[str, Any] = {}
    for name, shift in SHIFTS.items():
        x, seen = shift(target.x, generator), Scenes(shift(test.x, generator), test.y)

        def loss(prior: Tensor | None = present, **options: Any) -> SFDALoss:
            return SFDALoss(prior, nu, **options)

        def adapt(loss: SFDALoss, start: nn.Module = network, x: Tensor = x, **fields: Tensor) -> nn.Module:
            return adapted(start, loss, args.epochs, args.patience, image=x, **fields)

        tell(f"{name}: SFDA with tags")
        with_tags = adapt(loss(), tags=target.tags)
        entropy_only = adapt(SFDALoss(prior_weight=0.0))
        tell(f"{name}: oracle")
        oracle = supervised(copy.deepcopy(network), Scenes(x, target.y), args.epochs, LR)
        models: dict[str, nn.Module] = {
            "no adaptation": network,
            "batch statistics only": batch_statistics(network, x),
            "entropy, all layers": entropy_only,
            "SFDA, sizes and tags": with_tags,
            "oracle": oracle,
        }
        shifts[name] = {arm: scores(model, seen) for arm, model in models.items()}
        if name != "scanner":
            continue
        tell("the other arms")
        own, true = tagged_ratios(present, target.tags), ratios_from_masks(target.y, CLASSES)
        guessed = guesser.ratios(x, least=0.01)
        models = {
            "no adaptation": network,
            "batch statistics only": models["batch statistics only"],
            "entropy, norm layers (Tent)": adapt(SFDALoss(prior_weight=0.0), norm_layers_only(network)),
            "entropy, all layers": entropy_only,
            "ratios only, tags": adapt(loss(entropy_weight=0.0), prior=own),
            "SFDA, sizes and tags": with_tags,
            "SFDA, forward KL, tags": adapt(loss(divergence="forward"), prior=own),
            "SFDA, sizes alone": adapt(loss(average)),
            "SFDA, guessed ratios": adapt(loss(), prior=guessed),
            "SFDA, true ratios": adapt(loss(), prior=true),
            "oracle": oracle,
        }
        arms = clean | {arm: scores(model, seen) for arm, model in models.items()}
        for arm, prior in {
            "SFDA, sizes and tags": own,
            "SFDA, sizes alone": average,
            "SFDA, guessed ratios": guessed,
        }.items():
            arms[arm]["ratio_error"] = float((prior - true).abs()[..., 1:].mean())
        pick = test.tags[:, 1:].all(1).nonzero().squeeze(1)[:2]
        columns = {"before": network, "entropy only": entropy_only, "SFDA, tags": with_tags}
        shown = {"source": source.x[source.tags[:, 1:].all(1)][:2], "target": seen.x[pick], "truth": test.y[pick]}
        shown |= {title: predict(model, seen.x[pick]) for title, model in columns.items()}
    return arms, shifts, shown


def grouped_bars(axis: Any, groups: dict[str, tuple[list[dict[str, float]], int]]) -> None:
    """Lying bars of means with their spread, side by side; every group has its color."""
    wide = 0.8 / len(groups)
    for i, (label, (cells, color)) in enumerate(groups.items()):
        at = [place + wide * (i - (len(groups) - 1) / 2) for place in range(len(cells))]
        spreads = {"xerr": [cell["std"] for cell in cells], "error_kw": {"linewidth": 1}}
        axis.barh(at, [cell["mean"] for cell in cells], 0.95 * wide, color=COLORS[color], label=label, **spreads)
    axis.set(xlim=(0, 1.05))
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.08))


def plot(results: dict[str, Any], pictures: dict[str, dict[str, Tensor]], path: Path) -> None:
    plt = plotting()
    from matplotlib.colors import ListedColormap

    labels = ListedColormap(["#202020", COLORS[1], COLORS[2]])
    rows = 2 * len(pictures)
    figure = plt.figure(figsize=(16, 1.8 * rows), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
    titles = list(next(iter(pictures.values())))
    axes = left.subplots(rows, len(titles))
    for j, shown in enumerate(pictures.values()):
        for column, (title, values) in enumerate(shown.items()):
            for i, value in enumerate(values):
                axis = axes[2 * j + i, column]
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                if value.ndim == 3:
                    axis.imshow(value.clamp(0, 1).permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
                else:
                    axis.imshow(value, cmap=labels, vmin=0, vmax=2, interpolation="nearest")
                if 2 * j + i == 0:
                    axis.set_title(title, fontsize=10)
    panels = right.subplots(len(pictures), 2, squeeze=False)
    ends = {"no adaptation": 7, "batch statistics only": 2, "entropy, all layers": 4}
    ends |= {"SFDA, sizes and tags": 3, "oracle": 0}
    for kind, (one, two) in zip(pictures, panels, strict=True):
        arms, shifts = results[f"{kind}: arms"], results[f"{kind}: shifts"]
        classes = {f"class {k}": (k, list(arms.values())) for k in (1, 2)}
        grouped_bars(one, {name: ([row[f"dice_{k}"] for row in rows], k) for name, (k, rows) in classes.items()})
        one.set(title=f"{kind}: Dice, shift 'scanner'", yticks=range(len(arms)), yticklabels=arms)
        cells = {arm: ([shifts[f"{name}, {arm}"]["dice"] for name in SHIFTS], color) for arm, color in ends.items()}
        grouped_bars(two, cells)
        two.set(title="mean Dice, every shift", yticks=range(len(SHIFTS)), yticklabels=[s.split()[-1] for s in SHIFTS])
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="sfda-segmentation", seeds=2)
    add_data_root(parser)
    parser.add_argument("--images", type=int, default=None, help="source, and target (none given: 140; 400 if --full)")
    parser.add_argument("--epochs", type=int, default=None, help="of adaptation (none given: 8; 12 if --full)")
    parser.add_argument("--patience", type=int, default=None, help="stop an adaptation on a plateau of its loss")
    args = parser.parse_args()
    args.images = args.images or (400 if args.full else 140)
    args.epochs = args.epochs or (12 if args.full else 8)
    args.tests = 200 if args.full else 100
    seeds = [args.seed + i for i in range(args.seeds or (3 if args.full else 2))]
    torch.set_num_threads(1)
    quiet_lightning()
    warnings.filterwarnings("ignore", message="prior_weight: at 0")  # that it collapses is what is to be shown
    area = torch.tensor([math.pi * 7.5 * 6.5, 4 * 8.5 * 2.5])
    kinds: dict[str, tuple[Callable[[int, str, Generator], Scenes], Tensor | None]] = {
        "rendered": (lambda n, part, g: rendered(n, g), area)
    }
    if args.data_root is not None:
        pools = (images(args.data_root, train=6000, test=2000), images(args.data_root, "cifar", train=2000, test=1000))
        kinds["digits on photographs"] = (lambda n, part, g: pasted(n, *pools, part, g), None)
    results: dict[str, Any] = {}
    pictures = {}
    with tqdm(total=len(kinds) * len(seeds) * (2 + 2 * len(SHIFTS)), unit="stage") as bar:

        def tell(what: str) -> None:
            bar.set_description(what)
            bar.update()

        for kind, (make, sizes) in kinds.items():
            runs = []
            for seed in seeds:
                runs.append(study(make, sizes, seed, args, tell))
                pictures.setdefault(kind, runs[-1][2])
            results[f"{kind}: arms"] = {
                arm: {key: spread([run[0][arm][key] for run in runs]) for key in runs[0][0][arm]} for arm in runs[0][0]
            }
            results[f"{kind}: shifts"] = {
                f"{name}, {arm}": {key: spread([run[1][name][arm][key] for run in runs]) for key in row}
                for name, found in runs[0][1].items()
                for arm, row in found.items()
            }
    args.out.mkdir(parents=True, exist_ok=True)
    write_ledger(
        args.out / "sfda-segmentation.json",
        slug="sfda-segmentation",
        claim=CLAIM,
        experiment=(
            f"{args.images} source and as many target images of {SIDE} x {SIDE} pixels, {args.tests} test images; two "
            f"objects, each in an image with probability {PRESENT:g}. Rendered: an ellipse and a bar, equally bright, "
            "with two dark discs that are nothing; sizes known from their formulas. Digits on photographs (if there): "
            "zeros and fours of MNIST on darkened CIFAR-10 images; average sizes of the source. U-Net of 8, 16, 32 "
            f"channels; source: Adam 2e-3, {SOURCE_EPOCHS * args.epochs} epochs; adaptation: Adam {LR:g}, weight decay "
            f"1e-4, batch {BATCH}, {args.epochs} epochs, of which the last counts; entropy only: without class weights "
            "as in Tent; SFDA: with weights inverse to the average ratios. Dice and the 95 % Hausdorff distance "
            "(pixels; an object not found counts with the diagonal) over the test images in which an object is; false "
            "alarms: share of images without the object in which some of it is found; ratio error: mean absolute error "
            "of the prior's foreground ratios on the target"
        ),
        seeds=seeds,
        results=results,
        packages=("lightning", "torchmetrics", "scipy"),
    )
    plot(results, pictures, args.out / "sfda-segmentation.png")
    for title, rows in results.items():
        keys = ("dice_1", "dice_2", "dice", "hausdorff_95", "false_alarms")
        digits = {"hausdorff_95": 1}
        cells = [[arm, *(format_spread(row[k]["values"], digits.get(k, 3)) for k in keys)] for arm, row in rows.items()]
        print_table((title, *keys), cells)
        print()


if __name__ == "__main__":
    main()

"""Regression as classification: HL-Gauss against the squared error on noisy and moving targets, on wider networks.

The same network with another head, on three questions. Noisy targets: how far is the prediction from the noise-free
function? A histogram clamps its targets, which alone helps against outliers, so the squared error on clamped targets is
a control. Width: does one head gain more from a larger network? Moving targets: random labels of images whose level
jumps; how well are they fit after each jump?

    python examples/hl_gauss.py            two seeds, about a minute on one CPU core
    python examples/hl_gauss.py --full     four times the steps, five seeds

Written to --out: hl-gauss.json and hl-gauss.png.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _data import images
from common import base_parser, difference, format_spread, interval, plotting, print_table, spreads, write_ledger
from torch import Tensor, nn
from tqdm import tqdm

from infotorch.nn import HLGauss, TwoHot, mlp
from infotorch.rl import ScalarHead

INPUTS, TRAIN, TEST, BATCH, BINS = 16, 8_000, 4_000, 128, 51
HIDDEN = 128
WIDTHS = (16, 64, 256)
WIDTH_NOISE = "normal"
LEVELS = (0.0, 8.0, 16.0, 24.0, 32.0)
CLAIM = (
    "Value functions trained by cross-entropy on HL-Gauss histograms are more robust to noisy and to non-stationary "
    "targets than those trained by the squared error, and gain more from larger networks (arXiv:2403.03950; there with "
    "large networks in reinforcement learning)."
)
HEADS = ("MSE", "MSE, clamped", "Huber", "two-hot", "HL-Gauss")


def make_head(name: str, v_min: float, v_max: float) -> Any:
    """A head for a range."""
    if name.startswith("MSE"):
        return ScalarHead("mse", v_min, v_max) if "clamped" in name else ScalarHead("mse")
    if name == "Huber":
        return ScalarHead("huber")
    return TwoHot(v_min, v_max, BINS) if name == "two-hot" else HLGauss(v_min, v_max, BINS, pad_sigma=3)


def noises(generator: torch.Generator) -> dict[str, Callable[[int], Tensor]]:
    """What is added to the targets: nothing, normal, heavy-tailed, or now and then a lot."""

    def student(n: int) -> Tensor:
        normal = torch.randn(3, n, generator=generator)
        return normal[0] / (normal[1:].square().sum(0) / 2).sqrt()

    def outliers(n: int) -> Tensor:
        hit, side = torch.rand(2, n, generator=generator)
        return 20 * (hit < 0.1) * (1 - 2 * (side < 0.5).float())

    return {
        "none": lambda n: torch.zeros(n),
        "normal": lambda n: torch.randn(n, generator=generator),
        "Student, df 2": student,
        "10 % outliers": outliers,
    }


def function(seed: int) -> nn.Module:
    """A fixed random network with outputs of mean 0 and standard deviation 1 on normal inputs."""
    torch.manual_seed(1_000 + seed)
    net = nn.Sequential(nn.Linear(INPUTS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 2 / layer.in_features**0.5)
        y = net(torch.randn(20_000, INPUTS))
        last = net[-1]
        assert isinstance(last, nn.Linear)
        last.weight /= y.std()
        last.bias.copy_((last.bias - y.mean()) / y.std())
    return net.requires_grad_(False)


class Regressor:
    """A perceptron with a head, and the optimizer that goes on from one fit to the next."""

    def __init__(self, head: Any, inputs: int, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.net, self.head = mlp((inputs, width, width, head.bins)), head
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.generator = torch.Generator().manual_seed(seed)

    def fit(self, x: Tensor, y: Tensor, steps: int) -> None:
        """Steps on random batches."""
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH,), generator=self.generator)
            self.optimizer.zero_grad()
            self.head.loss(self.net(x[rows]), y[rows]).backward()
            self.optimizer.step()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Predictions."""
        return self.head(self.net(x))


def noisy(seed: int, steps: int, bar: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Distance from the noise-free function: by noise and head, by width and head."""
    truth = function(seed)
    generator = torch.Generator().manual_seed(seed)
    x, test = (torch.randn(n, INPUTS, generator=generator) for n in (TRAIN, TEST))
    clean, wanted = truth(x).squeeze(1), truth(test).squeeze(1)
    by_noise: dict[str, Any] = {}
    by_width: dict[str, Any] = {}
    for noise, draw in noises(generator).items():
        y = clean + draw(TRAIN)
        around = HLGauss.from_data(y, q=(0.01, 0.99), bins=BINS)

        def distance(name: str, width: int, y: Tensor = y, around: HLGauss = around) -> float:
            model = Regressor(make_head(name, around.v_min, around.v_max), INPUTS, width, seed)
            model.fit(x, y, steps)
            bar.update()
            return float((model(test) - wanted).square().mean().sqrt())

        by_noise[noise] = {name: distance(name, HIDDEN) for name in HEADS}
        if noise == WIDTH_NOISE:
            by_width = {f"width {w}": {name: distance(name, w) for name in ("MSE", "HL-Gauss")} for w in WIDTHS}
    return by_noise, by_width


def moving(seed: int, steps: int, bar: Any) -> dict[str, Any]:
    """Squared error on the labels at the end of each level, one network for all levels."""
    x = images(None, train=10_000, test=1, seed=0).flat().train
    torch.manual_seed(2_000 + seed)
    labels = torch.sin(1e5 * mlp((x.shape[1], 64, 1)).double()(x.double())).squeeze(1).float().detach()
    found: dict[str, Any] = {}
    for name in ("MSE", "two-hot", "HL-Gauss"):
        model = Regressor(make_head(name, LEVELS[0] - 1.5, LEVELS[-1] + 1.5), x.shape[1], HIDDEN, seed)
        for level in LEVELS:
            model.fit(x, labels + level, steps)
            error = (model(x) - labels - level).square().mean()
            found.setdefault(f"level {level:g}", {})[name] = float(error)
            bar.update()
    return found


def against(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """HL-Gauss minus the others, run by run, in every row of every table."""
    return {
        f"{title} {key}: minus {name}".strip(): difference(row["HL-Gauss"]["values"], row[name]["values"])
        for title, table in tables.items()
        for key, row in table.items()
        for name in row
        if name != "HL-Gauss"
    }


def half(row: dict[str, Any]) -> float:
    """Half of the 95 % interval."""
    return interval(row["values"])[1] - row["mean"]


def plot(noise: dict[str, Any], width: dict[str, Any], levels: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), gridspec_kw={"width_ratios": (1.7, 1, 1)})
    colors = {name: f"C{i}" for i, name in enumerate(HEADS)}
    for i, name in enumerate(HEADS):
        heights, errors = zip(*((noise[n][name]["mean"], half(noise[n][name])) for n in noise), strict=True)
        places = [j + 0.16 * (i - 2) for j in range(len(noise))]
        axes[0].bar(places, heights, 0.15, yerr=errors, label=name, color=colors[name], ecolor="gray")
    axes[0].set_xticks(range(len(noise)), list(noise), fontsize=9)
    axes[0].set(title="noisy targets: RMSE to the noise-free function", ylim=(0, None))
    axes[0].legend(fontsize=8)
    panels = ((axes[1], width, f"{WIDTH_NOISE} noise: RMSE by width"), (axes[2], levels, "moving targets: MSE"))
    for axis, table, title in panels:
        for name in next(iter(table.values())):
            heights, errors = zip(*((row[name]["mean"], half(row[name])) for row in table.values()), strict=True)
            axis.errorbar(range(len(table)), heights, errors, label=name, color=colors[name], marker="o", capsize=3)
        axis.set_xticks(range(len(table)), [key.split()[1] for key in table])
        axis.set(title=title, xlabel=next(iter(table)).split()[0], ylim=(0, None))
        axis.legend(fontsize=8)
    axes[2].axhline(0.5, color="gray", linestyle="--", linewidth=1)
    axes[2].annotate("predicting the level", (0.05, 0.52), fontsize=8, color="gray")
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="hl-gauss", seeds=2)
    parser.add_argument("--steps", type=int, default=None, help="of each fit (none given: 1000, or 4000 if --full)")
    args = parser.parse_args()
    steps = args.steps or (4_000 if args.full else 1_000)
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 2))]
    torch.set_num_threads(1)
    runs, moved = [], []
    total = len(HEADS) * 4 + 2 * len(WIDTHS) + 3 * len(LEVELS)
    with tqdm(total=total * len(seeds), unit="fit") as bar:
        for seed in seeds:
            runs.append(noisy(seed, steps, bar))
            moved.append(moving(seed, steps, bar))
    noise, width, levels = (
        {key: spreads([run[key] for run in part]) for key in part[0]} for part in (*zip(*runs, strict=True), moved)
    )
    write_ledger(
        args.out / "hl-gauss.json",
        slug="hl-gauss",
        claim=CLAIM,
        experiment=(
            f"The same perceptron (two layers of {HIDDEN}), Adam with 1e-3, batches of {BATCH}, {steps} steps. Noisy "
            f"targets: {TRAIN} normal inputs in {INPUTS} dimensions, a random network of unit variance plus noise; "
            f"range between the 1st and 99th percentile of the targets, {BINS} bins, HL-Gauss with sigma 0.75 bins and "
            "the support padded by 3 sigma. Moving targets: sin(1e5 g(x)) plus a level that jumps, g a random network, "
            "x scikit-learn's digits"
        ),
        seeds=seeds,
        results={
            "RMSE to the noise-free function, by noise": noise,
            f"RMSE to the noise-free function with {WIDTH_NOISE} noise, by width": width,
            "MSE on moving targets at the end of each level (0.5 is predicting the level)": levels,
            "HL-Gauss minus the others with the same seed": against({"noise": noise, "": width, "moving,": levels}),
        },
        packages=("scikit-learn",),
    )
    plot(noise, width, levels, args.out / "hl-gauss.png")
    for title, table in (("RMSE, noisy targets", noise), ("RMSE by width", width), ("MSE, moving targets", levels)):
        names = list(next(iter(table.values())))
        rows = [[key, *(format_spread(row[name]["values"]) for name in names)] for key, row in table.items()]
        print_table(("", *names), rows, title=title)


if __name__ == "__main__":
    main()

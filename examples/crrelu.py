"""CRReLU against other activations: a small vision transformer, a small language model, and what the theory says.

Every activation gets the same seeds, data and schedule. The vision transformer is timm's, with ``act_layer`` set and
nothing else; the language model predicts characters. Printed beside the results: where the learnable sizes of the bump
end, and the entropy of the output that the derivation of the bump wants low.

    python examples/crrelu.py                             scikit-learn's digits, about two minutes on two CPU cores
    python examples/crrelu.py --data-root data            CIFAR-10 images and tiny Shakespeare
    python examples/crrelu.py --data-root data --full     ViT-Tiny's width and more epochs, for a GPU

Written to --out: crrelu.json and crrelu.png.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _data import Images, add_data_root, images, text
from common import COLORS, base_parser, difference, format_spread, plotting, print_table, spreads, write_ledger
from scipy import integrate
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from infotorch.nn import CRReLU

BATCH = 32
CLAIM = (
    "CRReLU is more accurate than GELU, SiLU, ELU, PReLU and Mish in small ViT, DeiT and TNT on CIFAR-10, CIFAR-100 "
    "and ImageNet-1K (arXiv 2405.12954; no seeds or error bars)."
)


class CRReLUNegative(CRReLU):
    """The start that lowers the entropy of the output."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(inplace, epsilon=-0.01)


class PReLU(nn.PReLU):
    """PReLU for code that passes ``inplace``."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "PReLU": PReLU,
    "CRReLU": CRReLU,
    "CRReLU, start -0.01": CRReLUNegative,
}


def vision_model(x: Tensor, activation: Callable[..., nn.Module], full: bool) -> nn.Module:
    """A vision transformer for images of this shape."""
    from timm.models import VisionTransformer

    size = x.shape[2]
    width, depth, heads = (192, 9, 3) if full else (64, 2, 4)
    options: Any = {"act_layer": activation}
    return VisionTransformer(
        img_size=size, patch_size=max(2, size // 8), in_chans=x.shape[1], num_classes=10, embed_dim=width, depth=depth,
        num_heads=heads, mlp_ratio=2.0, **options,
    )  # fmt: skip


class LanguageModel(nn.Module):
    """Next character from the ones before, by causal self-attention."""

    def __init__(
        self, characters: int, activation: Callable[..., nn.Module], width: int = 64, context: int = 64
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.randn(context, width) / width**0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, activation(), batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, T, characters)``."""
        length = tokens.shape[1]
        h, future = self.embedding(tokens) + self.position[:length], torch.ones(length, length).triu(1).bool()
        for block in self.blocks:
            h = block(h, src_mask=future.to(h.device))
        return self.head(h)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices alone."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def fit(model: nn.Module, steps: int, loss_of: Callable[[int], Tensor], lr: float, bar: Any) -> None:
    """AdamW with a cosine."""
    optimizer = torch.optim.AdamW(groups(model), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        optimizer.step()
        schedule.step()
        bar.update()


def sizes(model: nn.Module) -> dict[str, Any]:
    """The bumps' sizes, layer by layer, and their mean, if there are any."""
    found = [m.epsilon.item() for m in model.modules() if isinstance(m, CRReLU)]
    return {"epsilon": found} | ({"bump": mean(found)} if found else {})


def see(
    data: Images, activation: Callable[..., nn.Module], seed: int, epochs: int, full: bool, bar: Any
) -> dict[str, Any]:
    """Train on images; accuracy on the test part."""
    torch.manual_seed(seed)
    model = vision_model(data.train, activation, full)
    batches = len(data.train) // BATCH
    order: list[Tensor] = []

    def loss_of(step: int) -> Tensor:
        if step % batches == 0:
            order[:] = torch.randperm(len(data.train)).split(BATCH)[:batches]
        rows = order[step % batches]
        return F.cross_entropy(model(data.train[rows]), data.train_labels[rows])

    fit(model, epochs * batches, loss_of, 1e-3, bar)
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) for x in data.test.split(500)]) == data.test_labels
    return {"accuracy": float(right.float().mean())} | sizes(model)


def read(codes: Tensor, activation: Callable[..., nn.Module], seed: int, steps: int, bar: Any) -> dict[str, Any]:
    """Train on text; nats per character on its last tenth."""
    torch.manual_seed(seed)
    model, cut = LanguageModel(int(codes.max()) + 1, activation), 9 * len(codes) // 10

    def batch(low: int, high: int, count: int) -> Tensor:
        start = torch.randint(low, high - 65, (count, 1))
        windows = codes[start + torch.arange(65)]
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    fit(model, steps, lambda step: batch(0, cut, 16), 3e-3, bar)
    torch.manual_seed(0)
    with torch.no_grad():
        nats = float(torch.stack([batch(cut, len(codes), 32) for _ in range(8)]).mean())
    return {"nats": nats} | sizes(model)


def output_entropy(epsilon: float) -> float:
    """Entropy of CRReLU's output, nats, for a standard normal input that is positive."""

    def integrand(x: float) -> float:
        density = math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
        return -density * math.log(density / (1 + epsilon * (1 - x * x) * math.exp(-x * x / 2)))

    return integrate.quad(integrand, 0, 12)[0]


def plot(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), width_ratios=(1, 1, 0.8))
    for axis, (task, key, title) in zip(
        axes,
        (("vision", "accuracy", "Vision: test accuracy"), ("language", "nats", "Language: nats per character")),
        strict=False,
    ):
        for i, name in enumerate(ACTIVATIONS):
            values = results[task][name][key]["values"]
            axis.scatter(values, [i] * len(values), color=COLORS[i], s=22)
            axis.plot([results[task][name][key]["mean"]] * 2, [i - 0.3, i + 0.3], color=COLORS[i])
        axis.set_yticks(range(len(ACTIVATIONS)), list(ACTIVATIONS) if task == "vision" else [""] * len(ACTIVATIONS))
        axis.set(title=title)
        axis.invert_yaxis()
    grid = [e / 100 for e in range(-40, 41, 2)]
    axes[2].plot(grid, [output_entropy(e) for e in grid], color=COLORS[5])
    axes[2].axvline(0.01, color="0.6", lw=1)
    axes[2].set(
        title="Entropy of the positive output", xlabel="size of the bump (line: published start)", ylabel="nats"
    )
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="crrelu", seeds=3)
    add_data_root(parser)
    parser.add_argument("--images", type=int, default=None, help="to train on (none given: 1500, or 20000 if --full)")
    parser.add_argument("--epochs", type=int, default=None, help="over them (none given: 12, or 30 if --full)")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + (args.seeds or 3))
    epochs, steps = args.epochs or (30 if args.full else 12), 3000 if args.full else 80
    count = args.images or (20_000 if args.full else 1_500)
    data = images(args.data_root, "cifar", train=count, test=5_000 if count > 1_500 else 1_000)
    name, corpus = text(args.data_root)
    letters = {c: i for i, c in enumerate(sorted(set(corpus)))}
    codes = torch.tensor([letters[c] for c in corpus])
    rounds = len(ACTIVATIONS) * len(seeds) * (epochs * (len(data.train) // BATCH) + steps)
    results: dict[str, Any] = {"vision": {}, "language": {}}
    ends: dict[str, dict[str, list[list[float]]]] = {}
    with tqdm(total=rounds, desc="steps") as bar:
        for label, kind in ACTIVATIONS.items():
            seen = [see(data, kind, seed, epochs, args.full, bar) for seed in seeds]
            told = [read(codes, kind, seed, steps, bar) for seed in seeds]
            for task, key, found in (("vision", "accuracy", seen), ("language", "nats", told)):
                results[task][label] = spreads(found, (key, "bump"))
                ends.setdefault(task, {})[label] = [r["epsilon"] for r in found]
    if len(seeds) > 1:
        results["CRReLU minus the others with the same seed"] = {
            f"{key}: {label}": difference(row["CRReLU"][key]["values"], values[key]["values"])
            for key, row in (("accuracy", results["vision"]), ("nats", results["language"]))
            for label, values in row.items()
            if label != "CRReLU"
        }
    results["entropy of the positive output"] = {str(e): output_entropy(e) for e in (-0.05, -0.01, 0.0, 0.01, 0.05)}
    args.out.mkdir(parents=True, exist_ok=True)
    plot(results, args.out / "crrelu.png")
    write_ledger(
        args.out / "crrelu.json",
        slug="crrelu",
        claim=CLAIM,
        experiment=(
            f"{data.name}, {epochs} epochs of a small vision transformer, batches of {BATCH}; {name}, {steps} steps of "
            "a small language model."
        ),
        seeds=list(seeds),
        results=results,
        packages=("timm",),
        curves={"sizes of bumps": ends},
    )
    rows = [
        [
            label,
            format_spread(results["vision"][label]["accuracy"]["values"]),
            format_spread(results["language"][label]["nats"]["values"]),
            *(
                format_spread(results[task][label]["bump"]["values"]) if "bump" in results[task][label] else ""
                for task in ("vision", "language")
            ),
        ]
        for label in ACTIVATIONS
    ]
    print_table(["activation", "accuracy", "nats per character", "bump, vision", "bump, language"], rows)


if __name__ == "__main__":
    main()

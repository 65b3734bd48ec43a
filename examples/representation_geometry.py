"""Rank and spectral decay of representations: do the estimators find what is there, and does training show phases?

First features whose spectrum is an exact power law. Then a model of nothing but free features and output vectors under
cross-entropy, with skewed or uniform labels and with more or fewer classes than dimensions. Then a small language model
on text, on the same text shuffled (the words' frequencies and nothing else) and on uniform words. The paper's phases:
the rank falls (collapse), rises (expansion), and falls again (compression).

    python examples/representation_geometry.py                             text: Python's help topics; about 90 seconds
    python examples/representation_geometry.py --data-root data --full     tiny Shakespeare, wider and longer

Written to --out: representation-geometry.json and representation-geometry.png.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _data import add_data_root, text
from common import (
    COLORS,
    base_parser,
    format_spread,
    plotting,
    print_table,
    spread,
    spreads,
    write_ledger,
)
from torch import Generator, Tensor
from tqdm import tqdm

from infotorch.core.rank_phases import rank_phases
from infotorch.core.spectrum import alpha_req, last_token_features, rankme
from infotorch.nn import TinyDecoder

ALPHAS = (0.5, 1.0, 1.5, 2.0)
VOCABULARY, CONTEXT = 2000, 24
CLAIM = (
    "In pretraining the representation's rank falls, rises and falls again (collapse, expansion, compression) while "
    "the spectrum's decay moves the other way; skewed token frequencies and fewer dimensions than tokens are enough "
    "for it (arXiv 2509.23024)."
)


def recovered(seed: int, n: int, d: int = 256) -> dict[str, float]:
    """Fitted exponents of features whose covariance has an exact power law."""
    generator, ranks = torch.Generator().manual_seed(seed), torch.arange(1.0, d + 1)
    found = {}
    for alpha in ALPHAS:
        x = torch.randn(n, d, generator=generator) * ranks.pow(-alpha / 2)
        found[f"alpha {alpha:g}"] = float(alpha_req(x).alpha)
    return found


def free_features(seed: int, classes: int, *, skewed: bool, steps: int) -> list[dict[str, float]]:
    """Gradient descent on cross-entropy over 256 free features of 10 numbers and one output vector per class."""
    generator, n, d = torch.Generator().manual_seed(seed), 256, 10
    share = torch.arange(1.0, classes + 1).pow(-1.2 if skewed else 0.0)
    counts = (n * share / share.sum()).round().clamp(min=1).long()
    labels = torch.arange(classes).repeat_interleave(counts)
    n = len(labels)
    z = 0.3 * torch.randn(n, d, generator=generator)
    w = 0.3 * torch.randn(classes, d, generator=generator)
    target, rows = F.one_hot(labels, classes).float(), []
    checkpoints = set(log_spaced(steps, 40))
    for step in range(steps + 1):
        if step in checkpoints:
            rows.append({"step": step, "rank": float(rankme(z))})
        error = ((z @ w.T).softmax(1) - target) / n
        z, w = z - n / 8 * error @ w, w - error.T @ z
    return rows


def log_spaced(last: int, count: int) -> list[int]:
    """0 and whole numbers evenly spaced in the logarithm."""
    return sorted({0, *(round(last ** (i / count)) for i in range(count + 1))})


def encode(name: str, raw: str, kind: str, generator: Generator) -> Tensor:
    """Numbers of the most frequent words (0 for all others): as written, shuffled, or drawn uniformly instead."""
    words = re.findall(r"\w+|[^\w\s]", raw.lower())
    number = {word: i + 1 for i, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1))}
    tokens = torch.tensor([number.get(word, 0) for word in words])
    if kind == "shuffled":
        return tokens[torch.randperm(len(tokens), generator=generator)]
    if kind == "uniform":
        return torch.randint(VOCABULARY, tokens.shape, generator=generator)
    return tokens


def language_model(tokens: Tensor, seed: int, steps: int, dim: int, bar: Any) -> list[dict[str, float]]:
    """Train on nine tenths of the tokens; rank and decay of the last token's features on contexts from the rest."""
    generator = torch.Generator().manual_seed(seed)
    cut = len(tokens) * 9 // 10
    starts = torch.randint(cut, len(tokens) - CONTEXT - 1, (1024,), generator=generator)
    held_out = tokens[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    model = TinyDecoder(VOCABULARY, dim=dim, layers=2, heads=4, max_length=CONTEXT, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    checkpoints, rows = set(log_spaced(steps, 24)), []
    for step in range(steps + 1):
        if step in checkpoints:
            rows.append({"step": step, **geometry(model, held_out)})
        at = torch.randint(cut - CONTEXT - 1, (16,), generator=generator)
        batch = tokens[at.unsqueeze(1) + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        bar.update()
    return rows


@torch.no_grad()
def geometry(model: TinyDecoder, tokens: Tensor) -> dict[str, float]:
    """Of the last token's features, and the loss of the next one."""
    hidden = model.base_model(tokens[:, :-1]).last_hidden_state
    features = last_token_features(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))
    loss = F.cross_entropy(model.lm_head(features), tokens[:, -1])
    law = alpha_req(features, ranks=(6, min(100, features.shape[1] - 4)))
    return {
        "rank": float(rankme(features)),
        "rank_singular": float(rankme(features, spectrum="singular", center=False)),
        "alpha": float(law.alpha),
        "loss": float(loss),
    }


def summarize(histories: Sequence[Sequence[dict[str, float]]]) -> dict[str, Any]:
    """Start, least and last rank; and the share of seeds in which each phase was found."""
    phases = [rank_phases([row["rank"] for row in h]) for h in histories]
    found: dict[str, Any] = {
        "rank_start": spread([h[0]["rank"] for h in histories]),
        "rank_least": spread([min(row["rank"] for row in h) for h in histories]),
        "rank_end": spread([h[-1]["rank"] for h in histories]),
    }
    for key in ("rank_singular", "alpha", "loss"):
        if key in histories[0][0]:
            found |= {f"{key}_start": spread([h[0][key] for h in histories])}
            found |= {f"{key}_end": spread([h[-1][key] for h in histories])}
    return found | {
        "share_collapse": sum(p.minimum is not None for p in phases) / len(phases),
        "share_expansion": sum(p.maximum is not None for p in phases) / len(phases),
        "share_compression": sum(p.compressing for p in phases) / len(phases),
    }


def plot(panels: dict[str, dict[str, list[list[dict[str, float]]]]], path: Path) -> None:
    plt = plotting()
    columns = [(title, "rank") for title in panels] + [(list(panels)[-1], "alpha")]
    figure, axes = plt.subplots(1, len(columns), figsize=(4.8 * len(columns), 3.9))
    for axis, (title, key) in zip(axes, columns, strict=True):
        for color, (name, histories) in zip(COLORS[1:], panels[title].items(), strict=False):
            steps = [row["step"] + 1 for row in histories[0]]
            curves = torch.tensor([[row[key] for row in h] for h in histories])
            axis.plot(steps, curves.mean(0), color=color, label=name)
            axis.fill_between(steps, curves.amin(0), curves.amax(0), color=color, alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel="step + 1", title=f"{title}: {'RankMe' if key == 'rank' else 'decay alpha'}")
        axis.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="representation-geometry", seeds=3)
    add_data_root(parser)
    parser.add_argument(
        "--steps", type=int, default=None, help="of the language model (none given: 300; 2000 if --full)"
    )
    args = parser.parse_args()
    steps, dim = args.steps or (2000 if args.full else 300), 128 if args.full else 64
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="alpha_req|fit_power_law|rankme")  # small samples are among the cases
    exponents = {f"n = {n}": spreads(runs) for n in (512, 4096) if (runs := [recovered(seed, n) for seed in seeds])}
    settings = {"40 classes, skewed": (40, True), "40 classes, uniform": (40, False), "8 classes, skewed": (8, True)}
    free = {
        name: [free_features(seed, classes, skewed=skewed, steps=4000) for seed in seeds]
        for name, (classes, skewed) in settings.items()
    }
    source, raw = text(args.data_root)
    models: dict[str, list[list[dict[str, float]]]] = {}
    kinds = {source: "as written", "the same, shuffled": "shuffled", "uniform words": "uniform"}
    with tqdm(total=len(seeds) * len(kinds) * (steps + 1), unit="step") as bar:
        for name, kind in kinds.items():
            for seed in seeds:
                bar.set_description(f"{name}, seed {seed}")
                tokens = encode(name, raw, kind, torch.Generator().manual_seed(seed))
                models.setdefault(name, []).append(language_model(tokens, seed, steps, dim, bar))
    panels = {"free features": free, "language model": models}
    results = {
        "fitted exponent of exact power laws, 256 features": exponents,
        "free features of 10 numbers": {name: summarize(h) for name, h in free.items()},
        "language model": {name: summarize(h) for name, h in models.items()},
    }
    write_ledger(
        args.out / "representation-geometry.json",
        slug="representation-geometry",
        claim=CLAIM,
        experiment=(
            "Exponents: normal features with covariance r^-alpha, fit over ranks 12 to 100. Free features: 256 vectors "
            "and one output vector a class, gradient descent on cross-entropy, 4000 steps, labels uniform or with "
            f"frequencies r^-1.2. Language model: 2 layers of width {dim}, {VOCABULARY} words of {source}, contexts of "
            f"{CONTEXT}, batch 16, AdamW 2e-3, {steps} steps; features after the last norm at the last token of 1024 "
            "held-out contexts. Phases: turning points of the smoothed log rank beyond 5 %, as a share of the seeds"
        ),
        seeds=seeds,
        results=results,
        curves={
            title: {
                name: {
                    key: torch.tensor([[float(row[key]) for row in h] for h in histories]).mean(0).tolist()
                    for key in histories[0][0]
                }
                for name, histories in found.items()
            }
            for title, found in panels.items()
        },
    )
    plot(panels, args.out / "representation-geometry.png")
    keys = [f"alpha {alpha:g}" for alpha in ALPHAS]
    print_table(
        ("fitted exponent", *keys),
        [[n, *(format_spread(row[k]["values"]) for k in keys)] for n, row in exponents.items()],
    )
    for title in ("free features of 10 numbers", "language model"):
        print()
        rows = results[title]
        keys = list(next(iter(rows.values())))
        print_table(
            (title, *rows),
            [
                [
                    k,
                    *(
                        format_spread(r[k]["values"]) if isinstance(r[k], dict) else f"{r[k]:.2f}"
                        for r in rows.values()
                    ),
                ]
                for k in keys
            ],
        )


if __name__ == "__main__":
    main()

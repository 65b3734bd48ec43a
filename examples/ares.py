"""ARES on running sums of two to six digits: do easy problems get shorter answers, and hard ones not?

Problems with few digits are easy, those with many hard; half of the demonstrations repeat their chain for nothing, so
that there is length to save. Arms from the same weights: GRPO with a constant KL penalty, ARES as in the paper (targets
that follow the batches) and as in the released code (trigger words: here the digits).

    python examples/ares.py                          three seeds

Written to --out: ares.json and ares.png.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import (
    base_parser,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spreads,
    write_ledger,
)
from torch import nn
from tqdm import tqdm

from infotorch.losses import Recipe, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptBatch, PromptLoader, RLVRModule, warm_start
from infotorch.rlvr.tasks import RunSum

LEVELS = {"easy": (2, 2), "medium": (3, 4), "hard": (5, 6)}
CLAIM = (
    "ARES-7B after its cold start: GSM8K 92.3 % with 332 tokens to 95.7 % with 279, MathVerse 52.8 / 3575 to 56.5 / "
    "3198, AIME25 55.0 / 17895 to 61.7 / 22619: fewer tokens on easy problems, more on hard ones (arXiv 2510.08457)."
)


def arms(task: RunSum) -> dict[str, Recipe]:
    """One recipe each; windows of two tokens, since answers are short."""
    digits = task.codec.encode("0123456789")
    return {
        "GRPO and KL": recipe("kl", coef=0.01),
        "ARES, paper": recipe("ares", window=2),
        "ARES, code": recipe("ares", variant="code", window=2, trigger_tokens=digits),
    }


def measure(model: nn.Module, task: RunSum, held_out: dict[str, list[Any]], seed: int) -> dict[str, float]:
    """Accuracy and tokens of each level on held-out problems."""
    module = RLVRModule(model, task, "grpo", samples=8, seed=seed)
    found = {}
    for level, problems in held_out.items():
        responses = module.roll_out(PromptBatch(tuple(problems), torch.arange(len(problems))))
        found[f"accuracy {level}"] = float(responses.rewards.mean())
        found[f"tokens {level}"] = float(responses.mask.sum(1).double().mean())
    return found


def run(start: nn.Module, method: Recipe, task: RunSum, problems: list[Any], steps: int, seed: int) -> nn.Module:
    """Reinforcement learning with one method from a copy of the start."""
    model = copy.deepcopy(start)
    module = RLVRModule(
        model,
        task,
        method,
        samples=8,
        minibatches=2,
        lr=5e-4,
        old_log_probs="sampler",
        reference=copy.deepcopy(start),
        seed=seed,
    )
    plain_trainer().fit(module, PromptLoader(problems, 16, steps, seed=seed))
    return model


def main() -> None:
    parser = base_parser(__doc__, slug="ares", seeds=3)
    parser.add_argument("--steps", type=int, default=15, help="rollout batches per run")
    parser.add_argument("--warmup", type=int, default=300, help="steps of supervised training before")
    args = parser.parse_args()
    quiet_lightning()
    torch.set_num_threads(1)
    steps = args.steps * (4 if args.full else 1)
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 3))]
    task = RunSum(terms=(2, 6), rechecks=1)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("start", *arms(task))}
    with tqdm(total=len(seeds) * (len(runs) - 1), unit="run") as bar:
        for seed in seeds:
            problems, pool = task.train(512, seed), task.test(96, seed)
            held_out = {
                level: [p for p in pool if low <= len(p.digits) <= high][:16] for level, (low, high) in LEVELS.items()
            }
            length = task.max_prompt + task.max_response + 1
            start = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=length, seed=seed)
            warm_start(start, task, problems, steps=args.warmup, lr=4e-3, seed=seed, progress=False)
            runs["start"].append(measure(start, task, held_out, seed))
            for name, method in arms(task).items():
                bar.set_description(f"{name}, seed {seed}")
                model = run(start, method, task, problems, steps, seed)
                runs[name].append(measure(model, task, held_out, seed))
                bar.update()
    results = {name: spreads(found) for name, found in runs.items()}

    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for axis, key in zip(axes, ("accuracy", "tokens"), strict=True):
        for i, (name, row) in enumerate(results.items()):
            heights = [row[f"{key} {level}"]["mean"] for level in LEVELS]
            errors = [row[f"{key} {level}"]["std"] for level in LEVELS]
            axis.bar([x + 0.2 * (i - 1.5) for x in range(3)], heights, 0.19, yerr=errors, label=name, color=f"C{i + 1}")
        axis.set_xticks(range(3), list(LEVELS))
        axis.set_title(key)
    axes[1].legend(fontsize=8)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "ares.png")
    path = write_ledger(
        args.out / "ares.json",
        slug="ares",
        claim=CLAIM,
        experiment=(
            f"Running sums of 2 to 6 digits with redundant repeats, decoder (d=64), {args.warmup} supervised steps, "
            f"{steps} rollout batches of 16 x 8, windows of 2 tokens; accuracy and tokens on 16 held-out problems a "
            "level, 8 samples each"
        ),
        seeds=seeds,
        results=results,
        packages=("lightning",),
    )
    columns = list(next(iter(results.values())))
    print_table(["run", *columns], [[n, *(f"{row[c]['mean']:.2f}" for c in columns)] for n, row in results.items()])
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()

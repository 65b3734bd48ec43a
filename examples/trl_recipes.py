"""Entropy methods in TRL's own trainer: the same run with several recipes, and with TRL's own loss beside them.

A tiny Qwen-style model and its tokenizer are built in code, the prompts are arithmetic word problems made offline. The
model first learns the form of an answer from demonstrations of which half are wrong; then TRL trains it by GRPO with
`RecipeGRPOTrainer`, one run per recipe, from the same weights and seeds. TRL's own GRPOTrainer makes the first run: the
recipe ``grpo`` with TRL's conventions has to give the same losses step by step.

    pip install -e '.[trl]' && python examples/trl_recipes.py      three seeds, under two minutes on two CPU cores

Written to --out: trl-recipes.json and trl-recipes.png.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from statistics import mean
from typing import Any

import _tiny_lm as tiny
import torch
from common import base_parser, format_spread, plotting, print_table, write_ledger
from datasets import Dataset
from tqdm import tqdm, trange
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from infotorch.core import token_stats
from infotorch.integrations.trl import RecipeGRPOTrainer
from infotorch.losses import recipe

# TRL's conventions: its eps, no dual clip, no bound on log-ratios.
AS_TRL = {"eps": 1e-4, "dual_clip": None, "log_ratio_bound": None}
# A mini-batch has about 100 tokens: fractions made for 100,000 would select none.
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": AS_TRL,
    "clip_cov": {"ratio": 0.05, "lower": 0.5},
    "siren": {},
    "empg": {},
    "hapo": {},
    # These two train on rows besides TRL's: a second sample set, and repeated ones (from a buffer for 64 rows a step).
    "arbitrary_entropy": {},
    "spear": {"ratio": 0.05, "lower": 0.5, "buffer": {"size": 32}, "warmup": 20},
}
OWN = "TRL's own loss"
WARMUP, LR = 400, 1e-3


def warm_start(model: Any, tokenizer: Any, rows: list[dict[str, str]], steps: int, seed: int) -> None:
    """Supervised steps on answers of which half are off by one or two."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in trange(steps, desc="warm start", unit="step", leave=False):
        chosen = [rows[int(i)] for i in torch.randint(len(rows), (32,), generator=generator)]
        noise = torch.randint(-2, 3, (32,), generator=generator) * (torch.rand(32, generator=generator) < 0.5)
        texts = [
            r["prompt"] + str(max(0, int(r["target"]) + int(n))) for r, n in zip(chosen, noise.tolist(), strict=True)
        ]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        width = max(map(len, ids))
        batch = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
        start = torch.tensor([len(tokenizer(r["prompt"])["input_ids"]) for r in chosen])
        at = torch.arange(1, width)
        mask = (at >= start[:, None]) & (at < torch.tensor([len(row) for row in ids])[:, None])
        stats = token_stats(model(batch).logits[:, :-1], batch[:, 1:], mask=mask)
        assert stats.log_probs is not None
        optimizer.zero_grad()
        (-stats.log_probs.sum() / mask.sum()).backward()
        optimizer.step()


def exact(completions: list[str], target: list[str], **_: Any) -> list[float]:
    """1 for the right sum."""
    return [float(text.strip() == right) for text, right in zip(completions, target, strict=True)]


def run(name: str, start: Any, tokenizer: Any, rows: list[dict[str, str]], steps: int, seed: int) -> dict[str, Any]:
    """One training run: the logs of every step."""
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=128,
            num_generations=8,
            num_iterations=2,
            max_completion_length=3,
            max_steps=steps,
            learning_rate=LR,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            log_level="error",
            seed=seed,
        )
        common: dict[str, Any] = {
            "model": copy.deepcopy(start),
            "reward_funcs": exact,
            "args": config,
            "train_dataset": Dataset.from_list(rows),
            "processing_class": tokenizer,
        }
        if name == OWN:
            trainer: Any = GRPOTrainer(**common)
        else:
            trainer = RecipeGRPOTrainer(**common, recipe=recipe(name, **OPTIONS.get(name, {})), counts="generation")
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        logs = [row for row in trainer.state.log_history if "loss" in row]
    rewards = [row["reward"] for row in logs if "reward" in row]
    return {
        "losses": [row["loss"] for row in logs],
        "entropy": [row["entropy"] for row in logs],
        "reward": rewards,
        "seconds": trainer.state.log_history[-1]["train_runtime"],
    }


def summarize(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of the table: means of the first and the last five steps."""
    return {
        "reward_start": mean(found["reward"][:5]),
        "reward_end": mean(found["reward"][-5:]),
        "entropy_start": found["entropy"][0],
        "entropy_end": mean(found["entropy"][-5:]),
        "seconds": found["seconds"],
    }


def main() -> None:
    parser = base_parser(__doc__, slug="trl-recipes", seeds=3)
    parser.add_argument("--recipe", default=",".join(OPTIONS), help="recipes, comma-separated")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps per run (none given: 60)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    steps = args.steps or (300 if args.full else 60)
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 3))]
    names = [OWN, *args.recipe.split(",")]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    tokenizer, rows = tiny.tokenizer(), tiny.problems(512)
    with tqdm(total=len(names) * len(seeds), unit="run") as bar:
        for seed in seeds:
            start = tiny.model(seed)
            warm_start(start, tokenizer, rows, WARMUP, seed)
            for name in names:
                bar.set_description(f"{name}, seed {seed}")
                runs[name].append(run(name, start, tokenizer, rows, steps, seed))
                bar.update()
    results = {name: [summarize(found) for found in runs[name]] for name in names}
    gap = max(
        abs(a - b)
        for theirs, ours in zip(runs[OWN], runs.get("grpo", runs[OWN]), strict=True)
        for a, b in zip(theirs["losses"], ours["losses"], strict=True)
    )

    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), constrained_layout=True)
    for name in names:
        # Over the recipe grpo, with which it coincides.
        style = {"linestyle": "--", "color": "#bbbbbb", "zorder": 3} if name == OWN else {}
        for axis, key in zip(axes, ("reward", "entropy"), strict=True):
            axis.plot(torch.tensor([found[key] for found in runs[name]]).mean(0), label=name, **style)
    for axis, title, unit in zip(axes, ("reward", "entropy, nats per token"), ("batch", "optimizer step"), strict=True):
        axis.set(title=title, xlabel=unit)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "trl-recipes.png")
    path = write_ledger(
        args.out / "trl-recipes.json",
        slug="trl-recipes",
        claim="None of a paper: a recipe takes the place of TRL's loss and nothing else changes.",
        experiment=(
            "Qwen2-style model (d=32, 2 layers) and character tokenizer built in code, sums of one-digit numbers as "
            f"word problems, {WARMUP} supervised steps, then {steps} optimizer steps of TRL's trainer: 16 prompts x 8 "
            f"completions, 2 iterations, Adam {LR:g}, from the same weights and seeds"
        ),
        seeds=seeds,
        results=results,
        packages=(
            "trl",
            "transformers",
        ),
        options=OPTIONS,
        largest_gap_to_trl_loss=gap,
        curves={name: {key: runs[name][0][key] for key in ("losses", "reward", "entropy")} for name in names},
    )
    columns = ("reward_start", "reward_end", "entropy_start", "entropy_end", "seconds")
    table = [[name, *(format_spread([r[c] for r in results[name]], 3) for c in columns)] for name in names]
    print_table(["run", "reward start", "reward end", "H start", "H end", "s"], table)
    print(f"\nlargest difference between TRL's loss and the recipe grpo at any step: {gap:.1e}; wrote {path}")


if __name__ == "__main__":
    main()

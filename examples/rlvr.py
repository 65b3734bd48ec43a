"""Does the policy's entropy collapse, and which method prevents it, at which reward?

A small decoder is warm-started on Countdown-like arithmetic (reach a target with given numbers; most problems have
many correct answers). From the same weights and seeds it is then trained by reinforcement learning with verifiable
rewards: GRPO, DAPO (clip-higher), GRPO with an entropy bonus, Clip-Cov, KL-Cov and forking tokens (80/20).

    python examples/rlvr.py                          all six methods, about three minutes on two CPU cores
    python examples/rlvr.py --recipe grpo,kl_cov     some of them
    python examples/rlvr.py --model path/to/model    a local Hugging Face model and its tokenizer

Written to --out: rlvr.json (settings, results, all curves) and rlvr.png (entropy, reward, and the fitted law
R = -a exp(H) + b between validation accuracy and entropy).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _rlvr import K, average, countdown, fit_law, smooth, summarize, train
from common import (
    COLORS,
    base_parser,
    format_spread,
    plotting,
    print_table,
    write_ledger,
)
from torch import nn
from tqdm import tqdm

from infotorch.losses import recipe_names
from infotorch.nn import TinyDecoder
from infotorch.rlvr import TrainingHistory, warm_start
from infotorch.rlvr.tasks import Task, TokenizerCodec

# One setting for all methods; each method has its published defaults. Two exceptions, because a mini-batch here
# has some 400 tokens where an LLM's has 100,000: Clip-Cov and KL-Cov select 2 % of the tokens instead of 0.02 %,
# which would be less than one token. The bonus has no published default; 0.02 is the value usual on toy tasks.
OPTIONS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {},
    "entropy_bonus": {"coef": 0.02},
    "clip_cov": {"ratio": 0.02},
    "kl_cov": {"ratio": 0.02},
    "forking_tokens": {},
}
LABELS = {
    "grpo": "GRPO",
    "dapo": "DAPO (clip-higher)",
    "entropy_bonus": "GRPO + entropy bonus",
    "clip_cov": "Clip-Cov",
    "kl_cov": "KL-Cov",
    "forking_tokens": "80/20 forking tokens",
}
CLAIM = (
    "Policy-gradient training of reasoning models exchanges entropy for reward along R = -a exp(H) + b and stalls when "
    "entropy is spent; Clip-Cov and KL-Cov keep entropy alive and reach a higher reward (arXiv 2505.22617)."
)


def parse_arguments() -> argparse.Namespace:
    parser = base_parser(__doc__, slug="rlvr")
    parser.add_argument("--recipe", action="append", help="method, repeatable or comma-separated (none given: all six)")
    parser.add_argument("--steps", type=int, default=None, help="rollout batches per method (none given: 120)")
    parser.add_argument("--warmup-steps", type=int, default=None, help="supervised steps (none given: 600)")
    parser.add_argument("--lr", type=float, default=None, help="learning rate (none given: 3e-4, or 1e-5 with --model)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per rollout batch")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--minibatches", type=int, default=4, help="updates per rollout batch")
    parser.add_argument("--eval-problems", type=int, default=96, help="held-out problems")
    jobs = 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, help="methods trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--model", type=Path, help="local Hugging Face model directory instead of the tiny decoder")
    args = parser.parse_args()
    args.recipe = [name for given in args.recipe or [",".join(OPTIONS)] for name in given.split(",")]
    for name in args.recipe:
        if name not in recipe_names():
            parser.error(f"--recipe: expected one of {', '.join(recipe_names())}, got {name!r}")
    args.steps = args.steps or (300 if args.full else 120)
    args.seeds = args.seeds or (3 if args.full else 1)
    if args.warmup_steps is None:
        args.warmup_steps = 100 if args.model else 600
    if args.lr is None:
        args.lr = 1e-5 if args.model else 3e-4
    if args.model and not args.model.is_dir():
        parser.error(f"--model: expected a directory with a Hugging Face model, got {args.model}")
    return args


def build_model(path: Path | None, task: Task[Any], seed: int) -> tuple[nn.Module, Task[Any]]:
    """The tiny decoder, or a local Hugging Face model with the task in its vocabulary."""
    if path is None:
        length = task.max_prompt + task.max_response + 1
        return TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=length, seed=seed), task
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    return model, task.with_codec(TokenizerCodec(tokenizer))


def train_all(
    start: nn.Module, task: Task[Any], problems: list[Any], held_out: list[Any], seed: int, args: argparse.Namespace
) -> dict[str, tuple[TrainingHistory, float]]:
    """Every method from the same start, ``args.jobs`` at a time, each in a process of its own."""
    calls: dict[str, tuple[Any, ...]] = {
        name: (start, task, name, OPTIONS.get(name, {}), LABELS.get(name, name), problems, held_out, seed, i, args)
        for i, name in enumerate(args.recipe)
    }
    if args.jobs == 1:
        return {name: train(*call) for name, call in calls.items()}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        args.jobs, mp_context=context, initializer=tqdm.set_lock, initargs=(context.RLock(),)
    ) as pool:
        futures = {name: pool.submit(train, *call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """The table, printed last."""
    headers = [
        "method", "reward", "pass@1", f"pass@{K}", "distinct", "H start", "H middle", "H end", "H kept", "s", "tok/s",
    ]  # fmt: skip
    first = next(iter(results.values()))
    start = [
        "(warm start)",
        *(format_spread([s[f"{c}_start"] for s in first], 2) for c in ("reward", "pass@1", f"pass@{K}", "distinct")),
        format_spread([s["entropy_start"] for s in first]), "", "", "", "", "",
    ]  # fmt: skip
    rows = [start]
    for name, runs in results.items():
        columns = ("reward_end", "pass@1_end", f"pass@{K}_end", "distinct_end")
        rows.append(
            [
                LABELS.get(name, name),
                *(format_spread([run[column] for run in runs], 2) for column in columns),
                *(format_spread([run[f"entropy_{when}"] for run in runs]) for when in ("start", "middle", "end")),
                f"{mean(run['entropy_end'] / run['entropy_start'] for run in runs):.0%}",
                f"{mean(run['seconds'] for run in runs):.0f}",
                f"{mean(run['tokens_per_second'] for run in runs):.0f}",
            ]
        )
    print_table(headers, rows)
    print(
        f"\nreward: training prompts, last tenth of the steps. pass@k and distinct correct answers (of {K} samples): "
        "held-out problems, last three evaluations.\nH: nats per token; H kept: entropy at the end as a share of the "
        "start. Seconds include evaluation."
    )


def draw(path: Path, histories: dict[str, list[TrainingHistory]], laws: dict[str, dict[str, float] | None]) -> None:
    """Entropy curves, reward curves and the law of the first method."""
    plt = plotting()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.3), constrained_layout=True)
    for color, (name, runs) in zip(COLORS * 9, histories.items(), strict=False):
        label = LABELS.get(name, name)
        steps, entropy = average(runs, "entropy")
        left.plot(steps, smooth(entropy, 3), color=color, label=label)
        steps, reward = average(runs, "reward")
        middle.plot(steps, smooth(reward, 10), color=color)
        xs, ys = ([value for run in runs for value in run.column(column)[1]] for column in ("eval_entropy", "pass@1"))
        right.scatter(xs, ys, color=color, s=16, alpha=0.8, linewidths=0)
        law = laws[name]
        if law is not None and name == next(iter(histories)):
            h = torch.linspace(0, max(xs), 100)
            curve = -law["law_a"] * h.exp() + law["law_b"]
            right.plot(h, curve, color=color, linestyle="--", linewidth=1.2)
            formula = f"{label}: R = -{law['law_a']:.2f} exp(H) + {law['law_b']:.2f},  R² = {law['law_r2']:.2f}"
            right.text(0.03, 0.04, formula, transform=right.transAxes, color=color)
    left.set(xlabel="step", ylabel="entropy (nats per token)", title="entropy of the policy", yscale="log")
    left.yaxis.set_major_formatter("{x:.2f}")
    left.yaxis.set_minor_formatter("{x:.2f}")
    middle.set(xlabel="step", ylabel="reward", title="training reward (mean of 10 steps)")
    right.set(xlabel="entropy (nats per token)", ylabel="pass@1", title="held-out problems: the price of entropy")
    figure.legend(loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    started = time.perf_counter()
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    seeds = [args.seed + i for i in range(args.seeds)]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.recipe}
    histories: dict[str, list[TrainingHistory]] = {name: [] for name in args.recipe}
    for seed in seeds:
        task = countdown()
        problems, held_out = task.train(2048, seed), task.test(args.eval_problems, seed)
        model, task = build_model(args.model, task, seed)
        warm_lr = 4e-3 if args.model is None else 10 * args.lr
        warm_start(model, task, problems, steps=args.warmup_steps, lr=warm_lr, seed=seed)
        for name, (history, seconds) in train_all(model, task, problems, held_out, seed, args).items():
            histories[name].append(history)
            results[name].append(summarize(history, seconds))

    laws = {name: fit_law(runs) for name, runs in histories.items()}
    draw(args.out / "rlvr.png", histories, laws)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    path = write_ledger(
        args.out / "rlvr.json",
        slug="rlvr",
        claim=CLAIM,
        experiment="Countdown-like arithmetic, warm-started "
        + ("2-layer decoder (d=64)" if args.model is None else f"model {args.model.name}")
        + "; all methods from the same weights, prompts and seeds, one shared setting.",
        seeds=seeds,
        results=results,
        packages=(
            "lightning",
            *(["transformers"] if args.model else []),
        ),
        settings=settings,
        options={name: OPTIONS.get(name, {}) for name in args.recipe},
        laws=laws,
        curves={name: [run.rows for run in runs] for name, runs in histories.items()},
    )
    print("\n" * len(args.recipe))
    report(results)
    print(f"\n{time.perf_counter() - started:.0f} s in all; wrote {path} and {args.out / 'rlvr.png'}")


if __name__ == "__main__":
    main()

"""Which entropy method? Every registered one, on the main job's task, from one warm start.

A small decoder learns Countdown-like arithmetic from demonstrations (most problems have many correct answers). From the
same weights, with the same prompts and random numbers, every method of `infotorch.losses` trains it by reinforcement
learning with verifiable rewards. Each stands at the defaults of its paper or of the authors' code, except where those
mean nothing on mini-batches of 400 tokens; the changes, with reasons, are in the table SCALED below and in the record.

    python examples/entropy_leaderboard.py --quick           one seed, few steps: under five minutes on two CPU cores
    python examples/entropy_leaderboard.py                   three seeds, 80 steps: most of an hour
    python examples/entropy_leaderboard.py --methods grpo,siren

Finished runs are kept in --out/runs and taken up again: the command can be stopped and repeated, also with more seeds
or methods. Written to --out: entropy-leaderboard.json and entropy-leaderboard.png.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _rlvr import K, average, countdown, leave_with_parent, smooth, step_seconds, summarize, train
from common import (
    COLORS,
    base_parser,
    format_spread,
    kept_run,
    label_points,
    plotting,
    print_table,
    run_file,
    write_ledger,
)
from torch import nn
from tqdm import tqdm

from infotorch.losses import recipe, recipe_names
from infotorch.nn import TinyDecoder
from infotorch.rlvr import TrainingHistory, warm_start
from infotorch.rlvr.tasks import Task

# Defaults that were made for 100,000 tokens an update; here there are 400. Everything else stands as published.
FEW = "2 % of the tokens instead of 0.02 %, which would be less than one"
TOY = "the published coefficient is made for a vocabulary of 150,000; this is the value that toy tasks ask for"
WHOLE, HALF = "steps", "half of the steps"  # numbers that go with the length of a run
SCALED: dict[str, tuple[dict[str, Any], str]] = {
    "clip_cov": ({"ratio": 0.02}, FEW),
    "kl_cov": ({"ratio": 0.02}, FEW),
    "entropy_bonus": ({"coef": 0.02}, "no published default; the value usual on toy tasks"),
    "entropy_cap": ({"coef": 0.02, "cap": 0.5}, "coefficient as entropy_bonus; a cap within this task's range"),
    "adaptive_entropy_bonus": ({"target": 0.4, "delta": 0.002}, "a target between start (0.67) and collapse (0.14)"),
    "entropy_dual": ({"target": 0.4}, "the same target"),
    "arbitrary_entropy": ({"target": 0.4, "alpha": 0.25}, "the same target; a batch has 64 extra answers, not 640"),
    "arbitrary_entropy_repo": ({"target": 0.4}, "the same target"),
    "entropy_regularizer": ({"coef": 0.2}, TOY),
    "siren": ({"coef": 0.2}, TOY),
    "epo": ({"coef": 0.01, "total_steps": WHOLE}, "coefficient as on toy tasks; the length of this run"),
    "tea": ({"coef": 0.02}, "answers of 8 tokens get weights above 1, those of 8,000 get 0.001"),
    "self_imitation": (
        {"warmup": HALF, "buffer": {"size": 64}},
        "half of this run, as published; a buffer that 256 rows a step can fill",
    ),
    "spear": (
        {"warmup": HALF, "buffer": {"size": 64}},
        "half of this run, as published; a buffer that 256 rows a step can fill",
    ),
    "overlong": ({"max_length": 9, "buffer": 4}, "lengths of this task"),
    "cure_stage1": ({"max_length": 9, "buffer": 4}, "lengths of this task; no branches: its loss alone"),
}
# Not methods of their own, or no way to train on this task.
LEFT_OUT: dict[str, str] = {
    "ppo": "the same recipe as grpo",
    "cure_stage2": "the same loss as cure_stage1",
    "entropy_sft": "supervised fine-tuning",
    "tool_reward": "rewards tool calls, of which there are none",
}
CLAIM = (
    "Each method's paper reports that it keeps the policy's entropy from collapsing and ends at a higher reward than "
    "GRPO or DAPO, on language models of 1.5 to 32 billion parameters."
)
COLUMNS = (
    "reward_end",
    "pass@1_end",
    f"pass@{K}_end",
    "distinct_end",
    "entropy_start",
    "entropy_middle",
    "entropy_end",
)


def parse_arguments() -> argparse.Namespace:
    parser = base_parser(__doc__, slug="entropy-leaderboard")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps")
    parser.add_argument("--redraw", action="store_true", help="only draw the record that lies in --out anew")
    parser.add_argument("--methods", default=None, help="comma-separated (none given: every registered one)")
    parser.add_argument("--steps", type=int, default=None, help="rollout batches per run (none given: 80)")
    parser.add_argument("--warmup-steps", type=int, default=600, help="supervised steps before")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per rollout batch")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--minibatches", type=int, default=4, help="updates per rollout batch")
    parser.add_argument("--eval-problems", type=int, default=None, help="held-out problems (none given: 96)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    args = parser.parse_args()
    chosen = recipe_names() if args.methods is None else args.methods.split(",")
    for name in chosen:
        if name not in recipe_names():
            parser.error(f"--methods: expected one of {', '.join(recipe_names())}, got {name!r}")
    args.methods = [name for name in chosen if name not in LEFT_OUT]
    args.seeds = args.seeds or (1 if args.quick else 5 if args.full else 3)
    args.steps = args.steps or (20 if args.quick else 300 if args.full else 80)
    args.eval_problems = args.eval_problems or (32 if args.quick else 96)
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a finished run depends on, besides method and seed."""
    names = ("steps", "warmup_steps", "lr", "prompts", "samples", "minibatches", "eval_problems", "seed")
    return {name: getattr(args, name) for name in names}


def file_of(args: argparse.Namespace, name: str, seed: int, kind: str = "") -> Path:
    """Where a run is kept."""
    said = [settings(args), recipe(name, **options_of(args, name)).to_dict()]
    return run_file(args.out, f"{kind}{name}-{seed}", said)


def options_of(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What a method has other than its defaults."""
    lengths = {WHOLE: args.steps, HALF: max(1, args.steps // 2)}
    options = SCALED[name][0] if name in SCALED else {}
    return {key: lengths[value] if isinstance(value, str) else value for key, value in options.items()}


def one_run(start: nn.Module, task: Task[Any], name: str, seed: int, args: argparse.Namespace) -> None:
    """Train with one method and seed, and keep the result; in a process of its own."""

    def result() -> dict[str, Any]:
        problems, held_out = task.train(2048, seed), task.test(args.eval_problems, seed)
        history, seconds = train(start, task, name, options_of(args, name), name, problems, held_out, seed, None, args)
        return {"rows": history.rows, "seconds": seconds}

    kept_run(file_of(args, name, seed), result)


def run_all(start: nn.Module, task: Task[Any], seeds: Sequence[int], args: argparse.Namespace) -> None:
    """Every run that is not there yet, ``args.jobs`` at a time."""
    wanted = [(name, seed) for seed in seeds for name in args.methods]
    files = {run: file_of(args, *run) for run in wanted}
    missing = [run for run, path in files.items() if not path.exists()]
    others = sum(len({*path.parent.glob(f"{name}-{seed}-*.json")} - {path}) for (name, seed), path in files.items())
    if others:
        print(f"{args.out / 'runs'}: {others} runs with other settings are left alone")
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="run", smoothing=0.05) as bar:
        if args.jobs == 1:
            for name, seed in missing:
                bar.set_description(f"{name}, seed {seed}")
                one_run(start, task, name, seed, args)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=leave_with_parent) as pool:
            futures = {pool.submit(one_run, start, task, name, seed, args): (name, seed) for name, seed in missing}
            for future in as_completed(futures):
                future.result()
                bar.set_description("{}, seed {}".format(*futures[future]))
                bar.update()


def time_all(start: nn.Module, task: Task[Any], seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of every method, one after the other, so that what slows the machine slows all."""
    found, problems = {}, task.train(2048, seed)
    for name in tqdm(args.methods, desc=f"time of a step, seed {seed}", unit="method", leave=False):
        path, options = file_of(args, name, seed, "time-"), options_of(args, name)
        measure = partial(step_seconds, start, task, name, options, problems, seed, args)
        found[name] = float(kept_run(path, measure))
    return found


def load(args: argparse.Namespace, name: str, seeds: Sequence[int]) -> tuple[list[TrainingHistory], list[float]]:
    """Histories and seconds of a method's runs."""
    kept = [json.loads(file_of(args, name, seed).read_text()) for seed in seeds]
    return [TrainingHistory(run["rows"]) for run in kept], [run["seconds"] for run in kept]


def report(results: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """The table, best pass@1 first, printed last."""
    headers = ["method", "reward", "pass@1", f"pass@{K}", "distinct", "H start", "H middle", "H end", "s/step"]
    ordered = sorted(results, key=lambda name: -mean(run["pass@1_end"] for run in results[name]))
    rows = [
        [
            name,
            *(format_spread([run[c] for run in results[name]], 2 if c != "entropy_start" else 3) for c in COLUMNS),
            format_spread([run["step_seconds"] for run in results[name]], 2),
        ]
        for name in ordered
    ]
    print(
        f"reward: training prompts, last tenth of the steps. pass@k and distinct correct answers (of {K} samples): "
        "held-out problems, last three evaluations. H: nats per token. s/step: processor time of a step on a CPU."
    )
    for name, reason in LEFT_OUT.items():
        print(f"left out: {name}: {reason}")
    print()
    print_table(headers, rows)


def draw(path: Path, record: Mapping[str, Any]) -> None:
    """Where every method ends, and a panel each: entropy and reward, with GRPO's behind."""
    plt = plotting()
    curves, columns = record["curves"], 6
    lines = math.ceil(len(curves) / columns)
    figure = plt.figure(figsize=(16, 2.1 * lines + 5.5), constrained_layout=True)
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[5.5 / 2.1, *[1] * lines])
    ends = figure.add_subplot(grid[0, :])
    points = {}
    for place, (name, curve) in enumerate(curves.items()):
        axis = figure.add_subplot(grid[1 + place // columns, place % columns])
        for key, color in (("entropy", COLORS[5]), ("reward", COLORS[4])):
            if name != "grpo" and "grpo" in curves:
                axis.plot(smooth(curves["grpo"][key], 5), color="#bbbbbb", linewidth=1.0)
            axis.plot(smooth(curve[key], 5), color=color)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(0, 1.02)
        axis.tick_params(labelsize=7)
        found = record["results"][name]
        points[name] = mean(r["entropy_end"] for r in found), mean(r["pass@1_end"] for r in found)
        ends.scatter(*points[name], color=COLORS[4] if name == "grpo" else COLORS[5], s=18, linewidths=0)
    ends.set(xlabel="entropy at the end, nats per token", ylabel="held-out pass@1 at the end")
    label_points(ends, points)
    title = "Entropy in nats per token (blue) and reward (orange) over rollout batches, mean over seeds; gray: GRPO"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def curve(runs: Sequence[TrainingHistory], key: str) -> list[float]:
    return [round(value, 4) for value in average(list(runs), key)[1]]


def main() -> None:
    started = time.perf_counter()
    args = parse_arguments()
    picture = args.out / "entropy-leaderboard.png"
    if args.redraw:
        draw(picture, json.loads(picture.with_suffix(".json").read_text()))
        return
    torch.set_num_threads(args.threads)
    seeds = [args.seed + i for i in range(args.seeds)]
    task = countdown()
    length = task.max_prompt + task.max_response + 1
    start = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=length, seed=args.seed)
    warm_start(start, task, task.train(2048, args.seed), steps=args.warmup_steps, lr=4e-3, seed=args.seed)
    run_all(start, task, seeds, args)
    times = [time_all(start, task, seed, args) for seed in seeds]

    histories: dict[str, list[TrainingHistory]] = {}
    results: dict[str, list[dict[str, float]]] = {}
    for name in args.methods:
        histories[name], seconds = load(args, name, seeds)
        results[name] = [
            {**summarize(h, s), "step_seconds": t[name]}
            for h, s, t in zip(histories[name], seconds, times, strict=True)
        ]
    path = write_ledger(
        picture.with_suffix(".json"),
        slug="entropy-leaderboard",
        claim=CLAIM,
        experiment=(
            f"Countdown-like arithmetic, one warm-started 2-layer decoder (d=64) for all; {args.steps} rollout batches "
            f"of {args.prompts} prompts with {args.samples} responses, {args.minibatches} updates each, Adam "
            f"{args.lr:g}; every method at its published defaults but for the changes named under scaled; reward: "
            "training prompts, mean over the last tenth of the steps; pass@k and distinct: held-out problems, mean "
            "over the last three evaluations; step_seconds: time of a step (of the processor, on a CPU), taken alone"
        ),
        seeds=seeds,
        results=results,
        packages=("lightning",),
        settings=settings(args),
        scaled={
            name: {"options": options_of(args, name), "why": SCALED[name][1]} for name in args.methods if name in SCALED
        },
        left_out=LEFT_OUT,
        curves={name: {key: curve(runs, key) for key in ("entropy", "reward")} for name, runs in histories.items()},
    )
    draw(picture, json.loads(path.read_text()))
    print(f"{time.perf_counter() - started:.0f} s; wrote {path} and {picture}\n")
    report(results)


if __name__ == "__main__":
    main()

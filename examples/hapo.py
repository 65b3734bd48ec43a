"""HAPO: do its four parts, alone and together, with the corrected sign and with that of the released code, beat DAPO?

A small decoder is warm-started on Countdown-like arithmetic (a smaller task than the two-digit addition one would like;
answers differ in length, which part B is about), then trained by reinforcement learning from the same weights, prompts
and random numbers: DAPO; temperatures (A), advantages over tokens (B), redistribution (C), adaptive clip (D); all four.

    python examples/hapo.py                          one seed, under two minutes on two CPU cores
    python examples/hapo.py --seeds 3                three seeds

Written to --out: hapo.json and hapo.png.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from statistics import mean
from typing import Any

import torch
from _rlvr import average, countdown, smooth
from common import (
    COLORS,
    base_parser,
    format_spread,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spreads,
    write_ledger,
)
from torch import nn
from tqdm import tqdm

from infotorch.losses import Recipe, TokenBatch
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptLoader, RLVRModule, TrainingHistory, warm_start
from infotorch.rlvr.responses import ResponseBatch

K = 8
OFF = {"alpha": 0.0, "beta": 0.0, "tau": 0.0}  # HAPO's loss without its parts is DAPO's


def arm(advantage: str = "grpo", **strengths: Any) -> dict[str, Any]:
    """A recipe with the parts whose strength is given."""
    return {"advantage": advantage, "policy": {"name": "hapo", **OFF, **strengths}}


FULL = {"alpha": 1.0, "beta": 1.0, "tau": 0.05}
ARMS = {
    "DAPO": arm(),
    "A: temperature": arm(tau=0.05),
    "B: advantages over tokens": arm("hapo_advantage"),
    "C: redistribution": arm(beta=1.0),
    "D: clip": arm(alpha=1.0),
    "HAPO": arm("hapo_advantage", **FULL),
    "HAPO, released sign": arm("hapo_advantage", **FULL, sign_bug_compat=True),
}
COLUMNS = (
    "pass@1",
    "cold",
    f"pass@{K}",
    "distinct",
    "entropy_end",
    "wrong_share",
    "clip_certain",
    "clip_uncertain",
)
CLAIM = (
    "Qwen2.5-Math-7B, mean of six benchmarks: DAPO 46.97, HAPO 50.04; its parts alone A 48.85, B 48.56, C 48.28, D "
    "48.02 (arXiv 2509.16591; from released code with a sign error)."
)


class Watched(RLVRModule):
    """Notes which share of the advantages' mass lies on tokens of worse than average answers."""

    def token_batch(self, responses: ResponseBatch) -> TokenBatch:
        """The record, after a look at its advantages."""
        batch = super().token_batch(responses)
        assert self.recipe.advantage is not None
        advantages = self.recipe.advantage(batch)
        share = (-advantages.clamp(max=0)).sum() / advantages.abs().sum().clamp(min=1e-9)
        self.history.append(self.rollout_step, wrong_share=float(share))
        return batch

    @torch.no_grad()
    def cold_accuracy(self) -> float:
        """Share of right answers on the held-out problems at temperature 0.5."""
        prompts = [self.task.prompt(problem) for problem in self.eval_problems]
        found = self.sampler.generate(prompts, K, temperature=0.5, max_new_tokens=self.max_new_tokens, seed=self.seed)
        problems = [self.eval_problems[i] for i in found.prompt_index.tolist()]
        return mean(self.task.reward(p, tokens) for p, tokens in zip(problems, found.tokens, strict=True))


def train(start: nn.Module, name: str, seed: int, args: argparse.Namespace) -> tuple[str, int, TrainingHistory, float]:
    """One run from a copy of the warm-started model."""
    torch.set_num_threads(1)
    quiet_lightning()
    task = countdown()
    module = Watched(
        copy.deepcopy(start),
        task,
        Recipe.from_dict(ARMS[name]),
        samples=args.samples,
        minibatches=args.minibatches,
        lr=args.lr,
        eval_problems=task.test(args.eval_problems, seed),
        eval_every=max(1, args.steps // 6),
        eval_samples=K,
        seed=seed,
    )
    plain_trainer().fit(module, PromptLoader(task.train(2048, seed), args.prompts, args.steps, seed=seed))
    return name, seed, module.history, module.cold_accuracy()


def summarize(history: TrainingHistory, cold: float) -> dict[str, float]:
    """Held-out numbers are means of the last two evaluations, the reward of the last tenth, the rest of all steps."""
    tenth = max(1, len(history.column("reward")[1]) // 10)

    def whole(*names: str) -> float:
        return mean(sum(values) for values in zip(*(history.column(f"loss/{n}")[1] for n in names), strict=True))

    return {
        "reward_end": mean(history.column("reward")[1][-tenth:]),
        **{c: mean(history.column(c)[1][-2:]) for c in ("pass@1", f"pass@{K}", "distinct")},
        "cold": cold,
        "entropy_start": history.column("eval_entropy")[1][0],
        "entropy_end": mean(history.column("eval_entropy")[1][-2:]),
        "wrong_share": mean(history.column("wrong_share")[1]),
        "clip_certain": whole("clip_low_certain", "clip_high_certain"),
        "clip_uncertain": whole("clip_low_uncertain", "clip_high_uncertain"),
    }


def draw(args: argparse.Namespace, histories: dict[str, list[TrainingHistory]]) -> None:
    """Held-out accuracy and entropy, mean over seeds."""
    plt = plotting()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.0), constrained_layout=True)
    panels = (
        ("reward", "reward on training prompts (mean of 10 steps)", 10),
        ("eval_entropy", "entropy on held-out problems, nats per token", 1),
        ("distinct", f"distinct correct answers of {K} samples", 1),
    )
    for axis, (column, title, width) in zip(axes, panels, strict=True):
        for color, (name, runs) in zip(COLORS, histories.items(), strict=False):
            steps, values = average(runs, column)
            axis.plot(steps, smooth(values, width), color=color, label=name)
        axis.set(title=title, xlabel="step", ylim=(0, None))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "hapo.png")
    plt.close(figure)


def main() -> None:
    parser = base_parser(__doc__, slug="hapo")
    parser.add_argument("--steps", type=int, default=None, help="rollout batches per run (none given: 60)")
    parser.add_argument("--warmup-steps", type=int, default=400, help="supervised steps before")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--prompts", type=int, default=32, help="prompts per rollout batch")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--minibatches", type=int, default=4, help="updates per rollout batch")
    parser.add_argument("--eval-problems", type=int, default=64, help="held-out problems")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at the same time")
    args = parser.parse_args()
    args.steps = args.steps or (150 if args.full else 60)
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 1))]
    torch.set_num_threads(1)
    task, starts = countdown(), {}
    for seed in seeds:
        length = task.max_prompt + task.max_response + 1
        model = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=length, seed=seed)
        warm_start(model, task, task.train(2048, seed), steps=args.warmup_steps, lr=4e-3, seed=seed)
        starts[seed] = model
    calls = [(starts[seed], name, seed, args) for seed in seeds for name in ARMS]
    found: dict[tuple[str, int], tuple[TrainingHistory, float]] = {}
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(train, *call) for call in calls]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            name, seed, history, cold = future.result()
            found[name, seed] = history, cold
    histories = {name: [found[name, seed][0] for seed in seeds] for name in ARMS}
    runs = {name: [summarize(*found[name, seed]) for seed in seeds] for name in ARMS}
    results = {name: spreads(rows) for name, rows in runs.items()}
    write_ledger(
        args.out / "hapo.json",
        slug="hapo",
        claim=CLAIM,
        experiment=(
            "Countdown-like arithmetic (answers of different length), 2-layer decoder (d=64), warm-started for "
            f"{args.warmup_steps} steps; then {args.steps} steps of {args.prompts} prompts x {args.samples} responses, "
            f"{args.minibatches} updates each, Adam {args.lr:g}, DAPO's clip. Held-out: {args.eval_problems} problems, "
            f"{K} samples, at temperature 1 (cold: 0.5), entropy in nats per token. wrong_share: share of the sum of "
            "absolute advantages over tokens that lies on negative ones (1/2 is balance); clip_certain, clip_uncertain "
            "are the shares of the tokens of low and high entropy that are clipped"
        ),
        seeds=seeds,
        results=results,
        packages=("lightning",),
        curves={
            name: {key: average(rows, key)[1] for key in ("reward", "eval_entropy")} for name, rows in histories.items()
        },
    )
    draw(args, histories)
    rows = [[name, *(format_spread(results[name][c]["values"]) for c in COLUMNS)] for name in ARMS]
    print_table(("method", *COLUMNS), rows)


if __name__ == "__main__":
    main()

"""Light-IF's two parts: fine-tuning that leaves entropy, and an entropy bonus where covariance is large.

Entropy-SFT: a decoder that learned running sums from noisy demonstrations is fine-tuned on clean ones: cross-entropy
on all tokens, on the 80 % that are most wrong for their confidence (Entropy-SFT), or on a random 80 %; then GRPO trains
each. TEA: GRPO, a plain entropy bonus, and TEA with the same coefficient, on the tabular ModularSum.

    python examples/light_if.py                      three seeds, about two minutes on two CPU cores

Written to --out: light-if.json and light-if.png.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _arms import curves, run_arms, summarize
from _rlvr import K
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
from torch import nn
from tqdm import tqdm

from infotorch.losses import LossOutput, TokenBatch, entropy_sft, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptLoader, RLVRModule, warm_start
from infotorch.rlvr.tasks import RunSum

Loss = Callable[[TokenBatch], LossOutput]
CLAIM = (
    "Qwen3-32B on four instruction-following benchmarks: 0.23, 0.88, 0.82, 0.38 before, 0.58, 0.94, 0.85, 0.58 after "
    "the whole pipeline; the gains of Entropy-SFT and of TEA alone are not reported (arXiv 2508.03178)."
)
AFTER = ("entropy", "pass@1", f"pass@{K}")


def random_tokens(batch: TokenBatch) -> LossOutput:
    """Cross-entropy of a random 80 %: the ranking is by a number drawn for every token."""
    return entropy_sft(batch.replace(entropy=1e6 * torch.rand(batch.mask.shape)), ratio=0.8)


TUNING: dict[str, Loss | None] = {
    "cross-entropy": None,
    "Entropy-SFT 0.8": recipe("entropy_sft"),
    "random 80 %": random_tokens,
}
BONUS = 0.02
TABULAR = {
    "GRPO": lambda: recipe("grpo"),
    f"entropy bonus {BONUS}": lambda: recipe("entropy_bonus", coef=BONUS),
    f"TEA {BONUS}": lambda: recipe("tea", coef=BONUS),
    f"TEA {BONUS}, weighted mean": lambda: recipe("tea", coef=BONUS, normalize="weighted_mean"),
}


def evaluate(model: nn.Module, task: RunSum, held_out: list[Any], seed: int) -> dict[str, float]:
    """Entropy in nats per token and pass@k on held-out problems."""
    module = RLVRModule(model, task, "grpo", eval_problems=held_out, eval_samples=K, seed=seed)
    found = module.evaluate()
    return {"entropy": found["eval_entropy"], "pass@1": found["pass@1"], f"pass@{K}": found[f"pass@{K}"]}


def reinforce(model: nn.Module, task: RunSum, problems: list[Any], steps: int, seed: int) -> None:
    """GRPO, in place."""
    module = RLVRModule(model, task, "grpo", samples=8, minibatches=2, lr=3e-4, old_log_probs="sampler", seed=seed)
    plain_trainer().fit(module, PromptLoader(problems, 16, steps, seed=seed))


def tune(seed: int, steps: int, rl_steps: int, bar: tqdm) -> dict[str, dict[str, float]]:
    """Entropy and accuracy after fine-tuning with each loss, and after GRPO."""
    noisy, clean = RunSum(terms=4, noise=0.2), RunSum(terms=4, noise=0.0)
    problems, held_out = noisy.train(500, seed), noisy.test(64, seed)
    length = noisy.max_prompt + noisy.max_response + 1
    start = TinyDecoder(noisy.codec.vocab_size, dim=64, layers=2, heads=4, max_length=length, seed=seed)
    warm_start(start, noisy, problems, steps=300, lr=4e-3, seed=seed, progress=False)
    found = {"before": evaluate(start, clean, held_out, seed)}
    for name, loss in TUNING.items():
        bar.set_description(f"{name}, seed {seed}")
        model = copy.deepcopy(start)
        torch.manual_seed(seed)
        warm_start(model, clean, problems, steps=steps, lr=1e-3, seed=seed + 1, loss=loss, progress=False)
        row = evaluate(model, clean, held_out, seed)
        reinforce(model, clean, problems, rl_steps, seed)
        row |= {f"{key} after GRPO": value for key, value in evaluate(model, clean, held_out, seed).items()}
        found[name] = row
        bar.update()
    return found


def main() -> None:
    parser = base_parser(__doc__, slug="light-if", seeds=3)
    parser.add_argument("--steps", type=int, default=60, help="fine-tuning steps")
    parser.add_argument("--rl-steps", type=int, default=15, help="rollout batches of GRPO after it")
    args = parser.parse_args()
    quiet_lightning()
    torch.set_num_threads(1)
    factor = 4 if args.full else 1
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 3))]
    tuned: list[dict[str, dict[str, float]]] = []
    with tqdm(total=len(TUNING) * len(seeds), unit="run") as bar:
        tuned += [tune(seed, factor * args.steps, factor * args.rl_steps, bar) for seed in seeds]
    tabular = run_arms(TABULAR, seeds, steps=100 * factor)
    rows = {name: spreads([run[name] for run in tuned]) for name in ("before", *TUNING)}
    summaries = {name: summarize(histories) for name, histories in tabular.items()}

    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for at, name in enumerate(TUNING):
        for shift, key in ((-0.15, "entropy"), (0.15, "entropy after GRPO")):
            axes[0].bar(at + shift, rows[name][key]["mean"], 0.3, yerr=rows[name][key]["std"], color=f"C{at + 1}",
                        alpha=1.0 if shift < 0 else 0.5)  # fmt: skip
    axes[0].axhline(rows["before"]["entropy"]["mean"], color="#999999", linestyle="--", linewidth=1)
    axes[0].set_xticks(range(len(TUNING)), list(TUNING))
    axes[0].set_title("entropy after fine-tuning (and, pale, after GRPO); dashed: before")
    for name, histories in tabular.items():
        axes[1].plot(torch.tensor([h.column("entropy")[1] for h in histories]).mean(0), label=name)
    axes[1].set(title="ModularSum: entropy, nats per token", xlabel="step", ylim=(0, None))
    axes[1].legend(fontsize=8)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "light-if.png")
    path = write_ledger(
        args.out / "light-if.json",
        slug="light-if",
        claim=CLAIM,
        experiment=(
            "Entropy-SFT: running sums of four digits, decoder (d=64), 300 steps on demonstrations with 20 % noise, "
            f"{factor * args.steps} on clean ones, {factor * args.rl_steps} rollout batches of GRPO (16 x 8). TEA: "
            f"ModularSum, {100 * factor} steps, 4 updates each"
        ),
        seeds=seeds,
        results={"fine-tuning": rows, "entropy bonuses": summaries},
        packages=("lightning",),
        curves=curves(tabular, ("reward", "entropy")),
    )
    columns = [*AFTER, *(f"{key} after GRPO" for key in AFTER)]
    print_table(
        ["fine-tuning", *columns],
        [[n, *(format_spread(r[c]["values"]) if c in r else "" for c in columns)] for n, r in rows.items()],
    )
    print()
    keys = ("reward_end", "entropy_middle", "entropy_end", "distinct_correct")
    print_table(["bonus", *keys], [[n, *(format_spread(s[k]["values"]) for k in keys)] for n, s in summaries.items()])
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()

"""Agentic AEPO, the loss: does a clip that keeps the gradient of rewarded tokens help where rewards are rare?

ModularSum with modulus 23, on which one answer in seventy is right by chance, and four updates per rollout batch, so
that the ratios of rewarded tokens leave the window. The two parts of the loss alone and together, the gate of the
paper's text, and as controls PPO's clip, clip-higher, a gradient kept on both sides (GPPO) and a plain entropy bonus.

    python examples/agentic_aepo.py                  three seeds, about two minutes on two CPU cores

Written to --out: agentic-aepo.json and agentic-aepo.png.
"""

from __future__ import annotations

from typing import Any

from _arms import curves, first_above, plot_curves, run_arms, summarize, table_row
from common import base_parser, print_table, spread, write_ledger

from infotorch.losses import recipe
from infotorch.rlvr import TrainingHistory
from infotorch.rlvr.tasks.modular_sum import ModularSum

ARMS = {
    "GRPO": lambda: recipe("grpo"),
    "clip-higher": lambda: recipe("grpo", clip_high=0.28),
    "balanced clip": lambda: recipe("agentic_aepo", alpha=0.0),
    "entropy-aware advantage": lambda: recipe("agentic_aepo", preserve="none"),
    "AEPO (both)": lambda: recipe("agentic_aepo"),
    "AEPO, uncertain tokens only": lambda: recipe("agentic_aepo", gate="positive_z"),
    "GPPO (both sides kept)": lambda: recipe("agentic_aepo", alpha=0.0, preserve="both"),
    "entropy bonus 0.02": lambda: recipe("entropy_bonus", coef=0.02),
}
KEYS = ("steps_to_50", "reward_middle", "reward_end", "entropy_middle", "entropy_end", "distinct_correct", "clipped")
CLAIM = (
    "Qwen3-14B with 1,000 training samples: GAIA 47.6, Humanity's Last Exam 11.2, WebWalker 43.0 pass@1, above seven "
    "other reinforcement-learning methods on 14 data sets (arXiv 2510.14545)."
)


def further(histories: list[TrainingHistory], steps: int) -> dict[str, Any]:
    """Speed, the reward half way, and the share of tokens outside the clip."""
    reached = [first_above(history, 0.5) for history in histories]
    half = [sum(h.column("reward")[1][steps // 2 - 5 : steps // 2 + 5]) / 10 for h in histories]
    clipped = [h.column("loss/clip_fraction")[1] for h in histories]
    return {
        "steps_to_50": {**spread([steps if s is None else s for s in reached]), "never": reached.count(None)},
        "reward_middle": spread(half),
        "clipped": spread([sum(run) / len(run) for run in clipped]),
    }


def main() -> None:
    parser = base_parser(__doc__, slug="agentic-aepo", seeds=3)
    parser.add_argument("--steps", type=int, default=150, help="rollout batches per run, at least 10")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate of Adam")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    found = run_arms(ARMS, seeds, steps=args.steps, lr=args.lr, task=lambda seed: ModularSum(modulus=23, seed=seed))
    results = {name: {**summarize(h, args.steps // 2), **further(h, args.steps)} for name, h in found.items()}
    write_ledger(
        args.out / "agentic-aepo.json",
        slug="agentic-aepo",
        claim=CLAIM,
        experiment=(
            "The loss alone (no branching): tabular policy on ModularSum (16 prompts, length 6, vocabulary 12, modulus "
            f"23), 8 samples per prompt, 4 updates per batch, Adam {args.lr:g}, {args.steps} steps. steps_to_50 "
            "is the first step with reward 0.5 (a run that never got there counts with all its steps), clipped the "
            "share of tokens whose ratio the clip bounds; middle: half way; entropy is exact, in nats per token; "
            "distinct correct answers among 256 samples per prompt"
        ),
        seeds=seeds,
        results=results,
        curves=curves(found, ("reward", "entropy")),
    )
    titles = {"reward": "reward", "entropy": "entropy, nats per token"}
    plot_curves(found, args.out / "agentic-aepo.png", titles, "ModularSum with rare rewards: gradients above the clip")
    digits = {"distinct_correct": 1, "steps_to_50": 0, "clipped": 4}
    print_table(("method", *KEYS), [table_row(n, s, KEYS, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

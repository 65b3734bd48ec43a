"""80/20: does the high-entropy fifth of the tokens carry the learning signal?

ModularSum with 15 tokens of which three (0, 5, 10) are decisions; at the others one token is right and nearly certain
from the start. Trained on all tokens, on the top 20 % by entropy, on a random 20 %, and on the bottom 80 %.

    python examples/forking_tokens.py                three seeds, about two minutes on two CPU cores

Written to --out: forking-tokens.json and forking-tokens.png.
"""

from __future__ import annotations

from typing import Any

from _arms import curves, first_above, plot_curves, run_arms, summarize, table_row
from common import base_parser, print_table, spread, write_ledger

from infotorch.losses import recipe
from infotorch.rlvr import TrainingHistory
from infotorch.rlvr.tasks.modular_sum import ModularSum

# The clip of the control, so that the arms differ in their tokens only.
CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
ARMS = {
    "all tokens": lambda: recipe("grpo"),
    "top 20%": lambda: recipe("forking_tokens", normalize="kept", **CLIP),
    "top 20%, divided by all": lambda: recipe("forking_tokens", **CLIP),
    "random 20%": lambda: recipe("forking_tokens", normalize="kept", select="random", **CLIP),
    "bottom 80%": lambda: recipe("forking_tokens", normalize="kept", select="bottom", **CLIP),
}
KEYS = ("steps_to_90", "early_reward", "reward_end", "entropy_start", "entropy_end", "distinct_correct")
CLAIM = (
    "Training on the 20 % of tokens of highest entropy matches or beats all tokens (Qwen3-32B: +11.04 on AIME25, +7.71 "
    "on AIME24; 14B: +4.79, +5.21; 8B on par), and on the other 80 % fails (arXiv 2506.01939)."
)


def decision_task(seed: int) -> ModularSum:
    """Fifteen tokens, three of them forks."""
    return ModularSum(length=15, decisions=(0, 5, 10), seed=seed)


def further(histories: list[TrainingHistory], steps: int) -> dict[str, Any]:
    """Speed of learning: runs that never reach 90 % count with the number of steps, and are counted."""
    reached = [first_above(history, 0.9) for history in histories]
    early = [sum(h.column("reward")[1][20:31]) / 11 for h in histories]
    return {
        "steps_to_90": {**spread([steps if s is None else s for s in reached]), "never": reached.count(None)},
        "early_reward": spread(early),
    }


def main() -> None:
    parser = base_parser(__doc__, slug="forking-tokens", seeds=3)
    parser.add_argument("--steps", type=int, default=150, help="rollout batches per run, at least 31")
    args = parser.parse_args()
    if args.steps < 31:
        parser.error(f"--steps: expected at least 31, got {args.steps}")
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    found = run_arms(ARMS, seeds, steps=args.steps, task=decision_task)
    summaries = {name: {**summarize(h), **further(h, args.steps)} for name, h in found.items()}
    write_ledger(
        args.out / "forking-tokens.json",
        slug="forking-tokens",
        claim=CLAIM,
        experiment=(
            "Tabular policy on ModularSum (16 prompts, length 15, decisions at 0, 5, 10, filler logit 6), 8 samples "
            f"per prompt, 4 updates per rollout batch, Adam 0.05, {args.steps} steps, clip 0.2 / 0.2 for all arms; "
            "steps_to_90 is the first step with reward 0.9 (a run that never got there counts with all its steps); "
            "early_reward is the mean reward of steps 20 to 30"
        ),
        seeds=seeds,
        results=summaries,
        curves=curves(found, ("reward", "entropy")),
    )
    titles = {"reward": "reward", "entropy": "entropy, nats per token"}
    plot_curves(found, args.out / "forking-tokens.png", titles, "Three forks among fifteen tokens: who learns?")
    digits = {"distinct_correct": 1, "steps_to_90": 0}
    print_table(("trained on", *KEYS), [table_row(n, s, KEYS, digits) for n, s in summaries.items()])


if __name__ == "__main__":
    main()

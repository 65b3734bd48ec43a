"""The shared objective: what the clipped family does to reward and entropy when nothing protects entropy.

Runs GRPO, DAPO, Dr. GRPO, GSPO, CISPO, SAPO and GRPO with an entropy bonus on the tabular ModularSum task (16 prompts,
6 tokens out of 12, thousands of correct answers each), from the same start, with the same seeds.

    python examples/grpo_base.py                     three seeds, about two minutes on two CPU cores

Written to --out: grpo-base.json and grpo-base.png.
"""

from __future__ import annotations

from _arms import curves, plot_curves, run_arms, summarize, table_row
from common import base_parser, print_table, write_ledger

from infotorch.losses import recipe

ARMS = {
    "GRPO": lambda: recipe("grpo"),
    "DAPO (clip-higher)": lambda: recipe("dapo"),
    "Dr. GRPO": lambda: recipe("dr_grpo"),
    # GSPO's published widths are for the geometric mean over thousands of tokens; six tokens move it far more.
    "GSPO (0.1 / 0.1)": lambda: recipe("gspo", clip_low=0.1, clip_high=0.1),
    "CISPO": lambda: recipe("cispo"),
    "SAPO": lambda: recipe("sapo"),
    "GRPO + bonus 0.02": lambda: recipe("entropy_bonus", coef=0.02),
}
KEYS = ("reward_start", "reward_end", "entropy_start", "entropy_middle", "entropy_end", "distinct_correct")
CLAIM = (
    "Group-relative policy optimization raises reward while the policy's entropy falls to a small fraction of its "
    "start; none of the clipped surrogates prevents it by itself."
)


def main() -> None:
    parser = base_parser(__doc__, slug="grpo-base", seeds=3)
    parser.add_argument("--steps", type=int, default=200, help="rollout batches per run")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    found = run_arms(ARMS, seeds, steps=args.steps)
    summaries = {name: summarize(histories) for name, histories in found.items()}
    write_ledger(
        args.out / "grpo-base.json",
        slug="grpo-base",
        claim=CLAIM,
        experiment=(
            "Tabular policy on ModularSum (16 prompts, length 6, vocabulary 12, modulus 7), 8 samples per prompt, 4 "
            f"updates per rollout batch, Adam 0.05, {args.steps} steps; entropy is exact, in nats per token; distinct "
            "correct answers among 256 samples per prompt"
        ),
        seeds=seeds,
        results=summaries,
        curves=curves(found, ("reward", "entropy")),
    )
    titles = {"entropy": "entropy, nats per token", "reward": "reward"}
    plot_curves(found, args.out / "grpo-base.png", titles, "ModularSum: the clipped family spends its entropy")
    digits = {"distinct_correct": 1}
    print_table(("method", *KEYS), [table_row(n, s, KEYS, digits) for n, s in summaries.items()])


if __name__ == "__main__":
    main()

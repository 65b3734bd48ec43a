"""BAPO: do clip bounds that balance positive and negative tokens keep entropy and reward where fixed ones lose them?

Two settings on ModularSum. Stale: 12 updates per rollout batch, advantages centered as usual, so that positive tokens
carry half of the update from the start. Imbalanced: 4 updates, negative advantages doubled, as long wrong answers do in
language models; the natural share of positive tokens is then 1/3. The controls tell the search from what it may end at:
windows that are wide from the start, above, below or both; clip-higher; and a plain entropy bonus.

    python examples/bapo.py                          three seeds, about two minutes on two CPU cores

Written to --out: bapo.json and bapo.png.
"""

from __future__ import annotations

from typing import Any

from _arms import curves, plot_curves, run_arms, summarize, table_row
from common import base_parser, print_table, spread, write_ledger
from torch import Tensor

from infotorch.losses import Part, Recipe, TokenBatch, grpo_advantage, recipe, register
from infotorch.rlvr import TrainingHistory

FACTOR = 2.0


@register("heavy_negatives", "advantage", requires=("rewards", "group"))
def heavy_negatives(batch: TokenBatch, *, factor: float = FACTOR) -> Tensor:
    """GRPO's advantages with the negative ones multiplied: a stand-in for wrong answers that are longer."""
    advantages = grpo_advantage(batch)
    return advantages.where(advantages > 0, factor * advantages)


class HeavyNegatives(Part, name="heavy_negatives"):
    """Module of :func:`heavy_negatives`."""


def imbalanced(policy: str, regularizers: tuple[dict[str, Any], ...] = (), **options: Any) -> Recipe:
    """A policy loss on top of the imbalanced advantages."""
    return Recipe({"name": policy, **options}, advantage="heavy_negatives", regularizers=regularizers)


def fixed(low: float, high: float) -> Recipe:
    """The same loss with bounds that stay: what the search starts from and what it may end at."""
    return imbalanced("bapo", low=low, high=high, low_step=0.0, high_step=0.0)


STALE = {
    "stale: GRPO": lambda: recipe("grpo"),
    "stale: BAPO, share 0.4": lambda: recipe("bapo"),
}
VERL = recipe("bapo_verl").to_dict()["policy"]
IMBALANCED = {
    "GRPO": lambda: imbalanced("ppo"),
    "clip-higher": lambda: imbalanced("ppo", clip_high=0.28),
    "fixed 0.9..3.0": lambda: fixed(0.9, 3.0),
    "fixed 0.6..3.0": lambda: fixed(0.6, 3.0),
    "fixed 0.9..1.2": lambda: fixed(0.9, 1.2),
    "BAPO, share 0.4": lambda: imbalanced("bapo"),
    "BAPO, active share 0.4": lambda: imbalanced("bapo", contribution="active"),
    "BAPO, authors' code": lambda: imbalanced("bapo", **{k: v for k, v in VERL.items() if k != "name"}),
    "entropy bonus 0.02": lambda: imbalanced("ppo", ({"name": "entropy_bonus", "coef": 0.02},)),
}
KEYS = ("reward_end", "entropy_start", "entropy_middle", "entropy_end", "distinct_correct")
BOUNDS = {"ratio_low": "bound_low", "ratio_high": "bound_high", "positive_share": "positive_share"}
CLAIM = (
    "AIME24 / AIME25, 32B: GRPO 84.6 / 78.8, BAPO 87.1 / 80.0; raising the upper bound lifts entropy and reward, "
    "lowering the lower one hurts both (arXiv 2510.18927)."
)


def bounds(histories: list[TrainingHistory]) -> dict[str, Any]:
    """Mean over a run of the bounds and of the share that they reach; nothing for losses without them."""
    found = {}
    for column, name in BOUNDS.items():
        values = [history.column(f"loss/{column}")[1] for history in histories]
        if values[0]:
            found[name] = spread([sum(run) / len(run) for run in values])
    return found


def main() -> None:
    parser = base_parser(__doc__, slug="bapo", seeds=3)
    parser.add_argument("--steps", type=int, default=None, help="rollout batches per run (none given: 100)")
    args = parser.parse_args()
    steps = args.steps or (200 if args.full else 100)
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    options: dict[str, Any] = {"steps": steps}
    found = {**run_arms(STALE, seeds, epochs=12, **options), **run_arms(IMBALANCED, seeds, epochs=4, **options)}
    results = {name: {**summarize(histories), **bounds(histories)} for name, histories in found.items()}
    write_ledger(
        args.out / "bapo.json",
        slug="bapo",
        claim=CLAIM,
        experiment=(
            "Tabular policy on ModularSum (16 prompts, length 6, vocabulary 12, modulus 7), 8 samples per prompt, Adam "
            f"0.05, {steps} steps. Stale: 12 updates per rollout batch. All others: 4 updates and negative advantages "
            f"times {FACTOR:g}. bound_low, bound_high and positive_share are means over all updates of the bounds and "
            "of P / (P + N) at them; entropy is exact, in nats per token; distinct correct answers among 256 samples "
            "per prompt"
        ),
        seeds=seeds,
        results=results,
        curves=curves(found, ("reward", "entropy")),
    )
    titles = {"entropy": "entropy, nats per token", "reward": "reward"}
    shown = {name: found[name] for name in IMBALANCED}
    plot_curves(shown, args.out / "bapo.png", titles, "ModularSum, negative advantages doubled: who keeps entropy?")
    digits = {"distinct_correct": 1}
    columns = (*KEYS, *BOUNDS.values())
    print_table(("method", *columns), [table_row(n, s, columns, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

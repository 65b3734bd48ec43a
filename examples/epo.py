"""EPO against the plain entropy bonus, the released penalty without a gradient, and a cap on each turn's entropy.

Corridor with a key and a door: 16 turns, 6 actions, reward 1 for the open door only. A recurrent policy, 32 tasks of 8
dialogues a step. Three measures, chosen before the first run: how far entropy jumps from step to step, how far it is
from its running mean, and the success of the last fifth of training.

    python examples/epo.py                   three seeds, about a minute and a half on two CPU cores

Written to --out: epo.json and epo.png.
"""

from __future__ import annotations

from statistics import stdev
from typing import Any

import torch
from _arms import curves, plot_curves, run_arms, table_row
from _envs import GRUPolicy, KeyDoor, run_agent
from common import base_parser, print_table, spreads, write_ledger
from torch import Tensor

from infotorch.losses import Recipe, recipe
from infotorch.rlvr import TrainingHistory

CORRIDOR = {"coef": 0.01, "low": 0.5, "high": 1.5}
KEYS = ("oscillation", "deviation", "success_last_fifth", "entropy_end", "outside", "steps_to_90")
WARMUP = 20  # steps left out of the measures of entropy
CLAIM = (
    "Success on ScienceWorld, Qwen2.5-7B: PPO 38.4, with EPO 96.8; GRPO 81.6, with EPO 83.8. ALFWorld, Qwen2.5-3B: "
    "GRPO 63.3, with EPO 75.8; entropy that oscillates settles in a corridor (arXiv 2509.22576). The released code's "
    "penalty has no gradient, so that such code trains like the bonus alone."
)
EXPERIMENT = (
    "Key and door in a corridor of five cells (16 turns, 6 actions, one reward at the end), recurrent policy of 64 "
    "units, 32 tasks of 8 dialogues a step, one update, Adam 0.003, {steps} steps; bonus 0.01, corridor 0.5 to 1.5 of "
    "the running mean, cap 1 nat. Oscillation: standard deviation of the change of entropy between steps; deviation: "
    "mean distance from the running mean (both without the first 20 steps); outside: share of actions outside the "
    "corridor; steps to 90 % success"
)


def arms(steps: int) -> dict[str, Any]:
    def epo(alpha: float, **options: Any) -> Recipe:
        return recipe("epo", alpha=alpha, total_steps=steps, **CORRIDOR, **options)

    cap = [{"name": "entropy_bonus", "coef": 0.01}, {"name": "entropy_cap", "coef": 0.01, "cap": 1.0}]
    return {
        "GRPO": lambda: recipe("grpo"),
        "entropy bonus": lambda: recipe("entropy_bonus", coef=0.01),
        "EPO, indicator": lambda: epo(0.1, penalty="indicator"),
        "EPO, hinge, alpha 0.1": lambda: epo(0.1),
        "EPO, hinge, alpha 1": lambda: epo(1.0),
        "bonus and cap": lambda: Recipe("ppo", advantage="grpo", regularizers=cap),
    }


def measures(history: TrainingHistory) -> dict[str, float]:
    """The three measures, and what else there is to see."""
    entropy, success = history.column("entropy")[1], history.column("success")[1][:-1]
    jumps = [b - a for a, b in zip(entropy[WARMUP:], entropy[WARMUP + 1 :], strict=False)]
    means = [sum(entropy[:k]) / k for k in range(WARMUP, len(entropy))]
    gaps = [abs(h - mean) for h, mean in zip(entropy[WARMUP:], means, strict=True)]
    last = success[-max(1, len(success) // 5) :]
    outside = history.column("loss/epo_outside")[1] if "loss/epo_outside" in history.names() else []
    return {
        "oscillation": stdev(jumps),
        "deviation": sum(gaps) / len(gaps),
        "success_last_fifth": sum(last) / len(last),
        "entropy_end": entropy[-1],
        "steps_to_90": float(next((k for k, s in enumerate(success) if s >= 0.9), len(success))),
        **({"outside": sum(outside) / len(outside)} if outside else {}),
    }


def main() -> None:
    parser = base_parser(__doc__, slug="epo", seeds=3)
    parser.add_argument("--steps", type=int, default=200, help=f"rollout batches per run, at least {WARMUP + 5}")
    args = parser.parse_args()
    if args.steps < WARMUP + 5:
        parser.error(f"--steps: expected at least {WARMUP + 5}, got {args.steps}")
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    environment, weights = KeyDoor(), []

    def run(method: Recipe, *, seed: int) -> TrainingHistory:
        policy = GRUPolicy(environment, seed)
        history = run_agent(method, environment, policy, steps=args.steps, seed=seed)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]))
        return history

    chosen = arms(args.steps)
    found = run_arms(chosen, seeds, run)
    by_arm: dict[str, list[Tensor]] = {name: weights[i :: len(chosen)] for i, name in enumerate(chosen)}
    pairs = zip(by_arm["EPO, indicator"], by_arm["entropy bonus"], strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    results = {}
    for name, histories in found.items():
        rows = [measures(history) for history in histories]
        results[name] = spreads(rows, KEYS)
    write_ledger(
        args.out / "epo.json",
        slug="epo",
        claim=CLAIM,
        experiment=EXPERIMENT.format(steps=args.steps),
        seeds=seeds,
        results=results,
        largest_difference_of_a_weight_between_indicator_and_bonus=difference,
        curves=curves(found, ("success", "entropy")),
    )
    titles = {"entropy": "entropy, nats per action", "success": "success"}
    plot_curves(found, args.out / "epo.png", titles, "Key and door: EPO against its controls")
    print(f"weights of indicator and bonus differ by at most {difference:g} after training")
    digits = {"steps_to_90": 0, "oscillation": 4}
    print_table(("method", *KEYS), [table_row(n, s, KEYS, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

"""EMPG: do confident steps deserve more of the credit? Two corridors, one of which should say no.

Twelve rooms, four doors each, one reward at the end. In the first corridor eight rooms matter and are nearly known from
the start, four do not and stay uncertain: uncertainty is noise. In the second six rooms are mastered, two uncertain
ones decide, and four do not matter: the uncertain step is the one that has to be learned.
Controls: plain GRPO, scaling alone, bonus alone, and the same scales on shuffled steps.

    python examples/empg.py                  three seeds, about a minute and a half on two CPU cores

Written to --out: empg.json and empg.png.
"""

from __future__ import annotations

from typing import Any

import torch
from _arms import curves, first_above, plot_curves, run_arms, table_row
from _envs import GRUPolicy, NoiseRooms, run_agent, sample_batch
from common import base_parser, print_table, spreads, write_ledger
from torch import Tensor

from infotorch.losses import Recipe, recipe
from infotorch.rlvr import TrainingHistory

NOISE = (1, 4, 7, 10)
CORRIDORS = {
    "uncertain rooms do not matter": {"certain": (0, 2, 3, 5, 6, 8, 9, 11), "chance": 0.85},
    "uncertain rooms decide": {"certain": (0, 2, 3, 5, 6, 8), "chance": 0.98},
}
ARMS = {
    "GRPO": lambda: recipe("grpo"),
    "scaling only": lambda: recipe("empg", zeta=0.0),
    "bonus only": lambda: recipe("empg", k=0.0),
    "EMPG": lambda: recipe("empg"),
    "EMPG, no bonus on equal rewards": lambda: recipe("empg", bonus_on_zero_adv=False),
    "EMPG, shuffled steps": lambda: recipe("empg", shuffle=True),
}
KEYS = ("steps_to_90", "success_auc", "success_end", "gradient_noise", "entropy_noise_rooms")
CLAIM = (
    "Success, ALFWorld / WebShop: Qwen2.5-1.5B GRPO 65.6 / 58.2, with EMPG 73.7 / 60.8; DAPO 80.8 / 73.2, with EMPG "
    "88.1 / 73.8; 7B: GRPO 74.8 / 65.6, with EMPG 78.5 / 69.3 (arXiv 2509.09265)."
)
EXPERIMENT = (
    "Twelve rooms of four doors, four of which do not matter; 4 cues; recurrent policy of 64 units, trained beforehand "
    "to take the right door of eight rooms with 85 % (first corridor) or of six with 98 %, which leaves two uncertain "
    "rooms to decide (second); 32 tasks of 8 dialogues a step, one update, Adam 0.003, {steps} steps. Steps to 90 % "
    "success; area under the success curve; gradient noise: variance of the gradient over 50 batches at the start over "
    "the squared norm of its mean; entropy at the end in rooms that do not matter, nats"
)


def start(corridor: dict[str, Any], seed: int) -> tuple[NoiseRooms, GRUPolicy]:
    environment = NoiseRooms(NOISE, corridor["certain"])
    policy = GRUPolicy(environment, seed)
    environment.head_start(policy, corridor["chance"])
    return environment, policy


def gradient_noise(method: Recipe, corridor: dict[str, Any], seed: int, batches: int = 50) -> float:
    """Variance of the gradient over fresh batches at fixed parameters, over the squared norm of its mean."""
    environment, policy = start(corridor, seed)
    generator = torch.Generator().manual_seed(10_000 + seed)
    found: list[Tensor] = []
    for _ in range(batches):
        batch, seen, _ = sample_batch(environment, policy, tasks=32, samples=8, generator=generator)
        assert batch.tokens is not None
        log_probs = policy(seen).log_softmax(-1).gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)
        loss = method(method.prepare(batch).replace(log_probs=log_probs)).loss
        gradient = torch.autograd.grad(loss, list(policy.parameters()))
        found.append(torch.cat([x.flatten() for x in gradient]))
    gradients = torch.stack(found)
    return float(gradients.var(0).sum() / gradients.mean(0).square().sum())


def measures(history: TrainingHistory, steps: int) -> dict[str, float]:
    success = history.column("success")[1]
    reached = first_above(history, 0.9, "success")
    rooms = [history.rows[-1][f"entropy_turn_{room}"] for room in NOISE]
    return {
        "steps_to_90": float(steps if reached is None else reached),
        "success_auc": sum(success[:-1]) / steps,
        "success_end": success[-1],
        "entropy_noise_rooms": sum(rooms) / len(rooms),
    }


def main() -> None:
    parser = base_parser(__doc__, slug="empg", seeds=3)
    parser.add_argument("--steps", type=int, default=60, help="rollout batches per run")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    results: dict[str, Any] = {}
    lines: dict[str, list[TrainingHistory]] = {}
    for corridor, options in CORRIDORS.items():

        def run(method: Recipe, *, seed: int, options: dict[str, Any] = options) -> TrainingHistory:
            environment, policy = start(options, seed)
            return run_agent(method, environment, policy, steps=args.steps, seed=seed)

        found = run_arms(ARMS, seeds, run)
        lines |= {f"{corridor}: {name}": histories for name, histories in found.items()}
        results[corridor] = {}
        for name, histories in found.items():
            rows = [measures(history, args.steps) for history in histories]
            for row, seed in zip(rows, seeds, strict=True):
                torch.manual_seed(seed)
                row["gradient_noise"] = gradient_noise(ARMS[name](), options, seed)
            results[corridor][name] = spreads(rows, KEYS)
    write_ledger(
        args.out / "empg.json",
        slug="empg",
        claim=CLAIM,
        experiment=EXPERIMENT.format(steps=args.steps),
        seeds=seeds,
        results=results,
        curves=curves(lines, ("success",)),
    )
    first, second = ({n: lines[f"{c}: {n}"] for n in ARMS} for c in CORRIDORS)
    plot_pair(first, second, args.out / "empg.png")
    digits = {"steps_to_90": 0}
    for corridor, summaries in results.items():
        print_table(("method", *KEYS), [table_row(n, s, KEYS, digits) for n, s in summaries.items()], title=corridor)


def plot_pair(first: dict[str, list[TrainingHistory]], second: dict[str, list[TrainingHistory]], path: Any) -> None:
    """The success of both corridors, side by side."""
    renamed = {name: [both(a, b) for a, b in zip(first[name], second[name], strict=True)] for name in first}
    titles = {"first": "success: uncertain rooms do not matter", "second": "success: uncertain rooms decide"}
    plot_curves(renamed, path, titles, "Twelve rooms: EMPG against its controls")


def both(a: TrainingHistory, b: TrainingHistory) -> TrainingHistory:
    """One history with the success of two."""
    joined = TrainingHistory()
    for step, one, two in zip(a.column("success")[0], a.column("success")[1], b.column("success")[1], strict=True):
        joined.append(step, first=one, second=two)
    return joined


if __name__ == "__main__":
    main()

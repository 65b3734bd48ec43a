"""Does CANON find out by itself whether longer or shorter answers are better?

Responses of up to seven tokens: a "think" token up to six times, then an answer. To one half of the prompts every
thought raises the chance of success by 0.1, to the other half it lowers it by 0.05. The optimum is 0.8 for both, at six
thoughts and at none. One setting of CANON has to find both; a bonus and a price on length are given by hand.

    python examples/canon.py                         three seeds, about two minutes on a CPU

Written to --out: canon.json and canon.png.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _arms import curves, plot_curves, table_row
from _gru import GRUPolicy, train
from common import base_parser, print_table, spread, write_ledger
from torch import Tensor
from tqdm import tqdm

from infotorch.losses import Recipe, recipe
from infotorch.rlvr import TrainingHistory

THINK, THOUGHTS, OPTIMUM = 0, 6, 0.8
FAMILIES = {"longer": (0.2, 0.1), "shorter": (0.8, -0.05)}  # success without a thought, and change by each
CLAIM = (
    "Qwen2.5-7B: CANON-Inter on entropy 57.6 against Dr. GRPO's 55.7 on six math sets, 25.7 against 26.2 on logic, "
    "where CANON-Intra and the schedules gain; the length version shortens answers (arXiv 2509.23962)."
)


class Thoughts:
    """Sixteen tokens, of which one is a thought and all others answer; whatever comes seventh is an answer too."""

    length, vocab = THOUGHTS + 1, 16

    def __init__(self, prompts: int = 64) -> None:
        self.prompts = torch.arange(prompts).unsqueeze(1)
        base, slope = torch.tensor(list(FAMILIES.values())).T
        family = torch.arange(prompts) % 2
        self.success = base[family, None] + slope[family, None] * torch.arange(THOUGHTS + 1)  # [P, thoughts]

    def ends(self, tokens: Tensor) -> Tensor:
        """Anything but a thought."""
        return tokens != THINK

    def score(self, prompt: Tensor, tokens: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A coin with the prompt's chance of success; the answer is the last token."""
        thoughts = mask.sum(1) - 1
        right = torch.rand(len(prompt), generator=generator) < self.success[prompt, thoughts]
        return right.float(), tokens.gather(1, thoughts.unsqueeze(1)).squeeze(1)

    @torch.no_grad()
    def exact(self, policy: GRUPolicy) -> dict[str, float]:
        """Expected success and number of thoughts of each family."""
        thinking = torch.zeros(len(self.prompts), self.length, dtype=torch.long)
        think = policy(self.prompts, thinking).softmax(-1)[:, :THOUGHTS, THINK].cumprod(1)  # at least so many
        at_least = torch.cat((torch.ones(len(think), 1), think, torch.zeros(len(think), 1)), 1)
        success = ((at_least[:, :-1] - at_least[:, 1:]) * self.success).sum(1)
        values = {"success": success, "thoughts": think.sum(1)}
        return {f"{k}_{name}": float(x[i::2].mean()) for k, x in values.items() for i, name in enumerate(FAMILIES)}


def bonus(per_token: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A reward for every token."""
    return lambda rewards, mask: rewards + per_token * mask.sum(1)


def length(**options: Any) -> Recipe:
    """CANON on length."""
    return recipe("canon", metric="length", **options)


LOSS = {"clip_high": 0.28, "aggregation": "seq-mean-token-sum-norm"}
# Every arm has the same loss and reduction; they differ in their advantage, or in the reward.
ARMS: dict[str, tuple[Callable[[], Recipe], Callable[[Tensor, Tensor], Tensor] | None]] = {
    "Dr. GRPO": (lambda: recipe("dr_grpo", **LOSS), None),
    "CANON-Inter": (length, None),
    "CANON-Inter, ties averaged": (lambda: length(ties="average"), None),
    "CANON-Intra": (lambda: length(mu=0.0), None),
    "CANON-Inter, random halves": (lambda: recipe("canon", metric="random"), None),
    "CANON-Inter, entropy": (lambda: recipe("canon"), None),
    "Dr. GRPO, bonus on length": (lambda: recipe("dr_grpo", **LOSS), bonus(0.1)),
    "Dr. GRPO, price on length": (lambda: recipe("dr_grpo", **LOSS), bonus(-0.1)),
}
KEYS = ("steps_longer", "steps_shorter", "success_longer", "success_shorter", "thoughts_longer", "thoughts_shorter")


def run(name: str, steps: int, seed: int) -> TrainingHistory:
    """One arm with one seed."""
    env = Thoughts()
    policy = GRUPolicy([len(env.prompts)], env.vocab, seed=seed)
    with torch.no_grad():
        policy.head.bias[THINK] += torch.tensor(85.0).log()  # a thought with probability 0.85
    arm, shape = ARMS[name]
    return train(
        policy, env, arm(), steps=steps, prompts=64, samples=8, lr=3e-3, seed=seed, shape=shape, watch=env.exact
    )


def summarize(histories: list[TrainingHistory], steps: int) -> dict[str, Any]:
    """Steps to 90 % of the optimum (all steps where it is not reached), success and thoughts at the end."""
    found: dict[str, Any] = {}
    for family in FAMILIES:
        success = [history.column(f"success_{family}")[1] for history in histories]
        first = [next((i for i, s in enumerate(run) if s >= 0.9 * OPTIMUM), None) for run in success]
        found[f"steps_{family}"] = spread([steps if i is None else i for i in first])
        found[f"never_{family}"] = first.count(None)
        found[f"success_{family}"] = spread([run[-1] for run in success])
        found[f"thoughts_{family}"] = spread([history.column(f"thoughts_{family}")[1][-1] for history in histories])
    return found


def main() -> None:
    parser = base_parser(__doc__, slug="canon", seeds=3)
    parser.add_argument("--steps", type=int, default=200, help="rollout batches per run")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    jobs = [(name, seed) for seed in seeds for name in ARMS]
    found: dict[str, list[TrainingHistory]] = {name: [] for name in ARMS}
    for name, seed in tqdm(jobs, unit="run"):
        found[name].append(run(name, args.steps, seed))
    results = {name: summarize(histories, args.steps) for name, histories in found.items()}
    write_ledger(
        args.out / "canon.json",
        slug="canon",
        claim=CLAIM,
        experiment=(
            "GRU policy (64 units) on 64 prompts, 8 responses each, one update a rollout batch, Adam 0.003, "
            f"{args.steps} steps; a response is up to six thoughts (about 3.5 at the start) and an answer, its reward "
            "a coin whose chance rises by 0.1 a thought from 0.2 (longer is better) or falls by 0.05 from 0.8 (shorter "
            "is better); success and thoughts are exact expectations; steps is the first step at 90 % of the optimum "
            "0.8 (all steps where it is never reached; never counts those seeds); bonus and price are 0.1 a token"
        ),
        seeds=seeds,
        results=results,
        curves=curves(found, ("success_longer", "success_shorter", "thoughts_longer", "thoughts_shorter")),
    )
    titles = {
        "success_longer": "success where longer is better",
        "success_shorter": "success where shorter is better",
    }
    plot_curves(found, args.out / "canon.png", titles, "One setting for two directions")
    digits = {"steps_longer": 0, "steps_shorter": 0, "thoughts_longer": 1, "thoughts_shorter": 1}
    print_table(("method", *KEYS), [table_row(n, s, KEYS, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

"""A policy-gradient loop in plain PyTorch, without any framework: what it takes to use a method of `infotorch.losses`.

A one-layer recurrent policy learns to write sequences whose digits add up to a target. Everything before `main` is the
whole loop; `main` keeps the record.

    python examples/plain_loop.py --recipe clip_cov

Written to --out: plain-loop.json and plain-loop.png.
"""

from __future__ import annotations

from typing import Any

import torch
from common import base_parser, format_spread, plotting, print_table, spread, write_ledger
from torch import Tensor, nn
from tqdm import trange

from infotorch.core import token_stats
from infotorch.losses import TokenBatch, recipe

PROMPTS, SAMPLES, LENGTH, VOCAB = 16, 8, 6, 10


class Policy(nn.Module):
    """Logits of every next digit, given the target and the digits before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(VOCAB + 8 * VOCAB, 64), nn.GRU(64, 64, batch_first=True)
        self.head = nn.Linear(64, VOCAB)

    def forward(self, target: Tensor, digits: Tensor) -> Tensor:
        """``(B, T, V)`` for targets ``(B,)`` and digits ``(B, T)``."""
        ids = torch.cat([VOCAB + target[:, None], digits[:, :-1]], 1)
        return self.head(self.cell(self.embed(ids))[0])


@torch.no_grad()
def sample(policy: Policy, target: Tensor, generator: torch.Generator) -> Tensor:
    digits = torch.zeros(len(target), LENGTH, dtype=torch.long)
    for t in range(LENGTH):
        probs = policy(target, digits)[:, t].softmax(-1)
        digits[:, t] = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    return digits


def statistics(policy: Policy, target: Tensor, digits: Tensor) -> dict[str, Any]:
    stats = token_stats(policy(target, digits), digits)
    return {"log_probs": stats.log_probs, "entropy": stats.entropy}


def train(name: str, steps: int, seed: int) -> list[tuple[float, float]]:
    """Reward and entropy (nats per token) of every step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy, method, curve = Policy(), recipe(name), []
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    mask = torch.ones(PROMPTS * SAMPLES, LENGTH, dtype=torch.bool)
    group = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    for _ in trange(steps, desc=name, unit="step"):
        target = torch.randint(5, 50, (PROMPTS,), generator=generator).repeat_interleave(SAMPLES)
        digits = sample(policy, target, generator)
        reward = 1 - (digits.sum(1) - target).abs().clamp(max=10) / 10
        with torch.no_grad():  # rewards to advantages: needs complete groups
            now = statistics(policy, target, digits)
            batch = method.prepare(TokenBatch(**now, mask=mask, rewards=reward, group=group))
        curve.append((float(reward.mean()), float(now["entropy"].mean())))
        for rows in torch.randperm(len(mask), generator=generator).split(len(mask) // 4):  # mini-batches
            out = method(batch.select(rows).replace(**statistics(policy, target[rows], digits[rows])))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            method.after_step()
    return curve


def main() -> None:
    parser = base_parser(__doc__, slug="plain-loop", seeds=1)
    parser.add_argument("--recipe", default="grpo,clip_cov,entropy_bonus", help="methods, comma-separated")
    parser.add_argument("--steps", type=int, default=None, help="rollout batches (none given: 150)")
    args = parser.parse_args()
    steps = args.steps or (600 if args.full else 150)
    seeds = [args.seed + i for i in range(args.seeds or 1)]
    curves = {name: torch.tensor([train(name, steps, seed) for seed in seeds]) for name in args.recipe.split(",")}
    results = {}
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for name, runs in curves.items():  # [seeds, steps, 2]
        ends = {"reward_end": runs[:, -10:, 0].mean(1), "entropy_start": runs[:, 0, 1], "entropy_end": runs[:, -1, 1]}
        results[name] = {key: spread(values.tolist()) for key, values in ends.items()}
        for axis, column, title in zip(axes, runs.mean(0).T, ("reward", "entropy (nats per token)"), strict=True):
            axis.plot(column, label=name)
            axis.set(title=title, xlabel="step")
    axes[0].legend()
    path = write_ledger(
        args.out / "plain-loop.json",
        slug="plain-loop",
        claim="None: it shows that the losses need no framework.",
        experiment=f"Six digits that add up to a target; GRU policy (d=64), {steps} steps of {PROMPTS} x {SAMPLES}.",
        seeds=seeds,
        results=results,
    )
    figure.savefig(path.with_suffix(".png"))
    rows = [[name, *(format_spread(row[key]["values"]) for key in row)] for name, row in results.items()]
    print_table(["method", "reward", "H start", "H end"], rows)


if __name__ == "__main__":
    main()

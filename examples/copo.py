"""Does COPO learn from prompts whose completions all got the same reward?

200 problems (a op b) mod 17, answered digit by digit by a recurrent policy. Supervised training shows some of them far
more often than others and stops early, so that at the start about half of the problems get six wrong answers of six.
From there: GRPO, GRPO without prompts of equal rewards, the prompt's advantage alone, and COPO with its rules.

    python examples/copo.py                          three seeds, about a minute on a CPU
    python examples/copo.py --full                   300 steps, five seeds: about five minutes

Written to --out: copo.json and copo.png.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _arms import curves, plot_curves, table_row
from _gru import GRUPolicy, train
from common import base_parser, difference, print_table, spread, spreads, write_ledger
from torch import Tensor
from tqdm import tqdm

from infotorch.losses import Recipe, TokenBatch, majority_labels, recipe, uniform_groups
from infotorch.rlvr import TrainingHistory

MODULUS, END, SAMPLES = 17, 10, 6
CLAIM = (
    "Qwen2.5-3B and 7B-Instruct: 2 to 4 points over GRPO on MATH-500 at best, small or negative effects "
    "on AIME24; ablation of mean@8: prompt advantage alone 60.35, COPO 60.38 (arXiv 2508.04138)."
)


class Arithmetic:
    """Problems (a op b) mod 17; a response is digits and an end token."""

    length, vocab = 6, 11

    def __init__(self, prompts: int = 200, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        cells = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(2), torch.arange(MODULUS))
        self.prompts = cells[torch.randperm(len(cells), generator=generator)[:prompts]]
        a, op, b = self.prompts.T
        result = torch.where(op == 0, a + b, a - b) % MODULUS
        texts = [[*map(int, str(int(value))), END] for value in result]
        self.targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], True, END)  # [P, 3]
        self.right = torch.stack([self.code(t.unsqueeze(0))[0] for t in self.targets])
        # How often supervised training shows a problem: the most frequent one 150 times as often as the rarest.
        self.frequency = torch.exp(5 * torch.rand(prompts, generator=generator))

    def ends(self, tokens: Tensor) -> Tensor:
        """The end token."""
        return tokens == END

    @staticmethod
    def code(tokens: Tensor) -> Tensor:
        """A number for the digits before the end token; -1 where there is no digit or no end."""
        ended = (tokens == END).cumsum(1) > 0
        place = 11 ** torch.arange(tokens.shape[1])
        code = torch.where(ended, 0, (tokens + 1) * place).sum(1)
        return torch.where(ended.any(1) & ~ended[:, 0], code, -1)

    def score(self, prompt: Tensor, tokens: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """1 for the right digits."""
        answer = self.code(tokens)
        return (answer == self.right[prompt]).float(), answer

    @torch.no_grad()
    def success(self, policy: GRUPolicy) -> Tensor:
        """Exact probability of the right answer to each problem."""
        log_probs = policy(self.prompts, self.targets).log_softmax(-1).gather(2, self.targets.unsqueeze(2)).squeeze(2)
        counted = F.pad((self.targets == END).cumsum(1)[:, :-1] == 0, (1, 0), value=True)
        return (log_probs * counted).sum(1).exp()


def supervised(env: Arithmetic, steps: int, seed: int) -> GRUPolicy:
    """The policy that reinforcement learning starts from."""
    policy = GRUPolicy([MODULUS, 2, MODULUS], env.vocab, dim=128, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    counted = F.pad((env.targets == END).cumsum(1)[:, :-1] == 0, (1, 0), value=True)
    for _ in range(steps):
        rows = torch.multinomial(env.frequency, 64, replacement=True, generator=generator)
        logits = policy(env.prompts[rows], env.targets[rows])
        loss = F.cross_entropy(logits[counted[rows]], env.targets[rows][counted[rows]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return policy


def informative(batch: TokenBatch) -> Tensor:
    """Rows of prompts whose rewards differ."""
    assert batch.rewards is not None
    assert batch.group is not None
    return ~uniform_groups(batch.rewards, batch.group)


# Every arm divides by sequences and clips alike.
MEAN = {"aggregation": "seq-mean-token-mean"}
ARMS: dict[str, tuple[Callable[[], Recipe], Callable[[TokenBatch], Tensor] | None]] = {
    "GRPO": (lambda: recipe("grpo", **MEAN), None),
    "GRPO, equal rewards dropped": (lambda: recipe("grpo", **MEAN), informative),
    "prompt advantage alone": (lambda: recipe("copo", mode="global"), None),
    "COPO, whole group": (lambda: recipe("copo"), None),
    "COPO, per response": (lambda: recipe("copo", mode="soft_zero_per_response"), None),
    "COPO, soft": (lambda: recipe("copo", mode="soft"), None),
}
KEYS = ("mean_at_8", "majority_at_8", "success", "all_wrong", "signal", "easy_wrong_end", "easy_wrong_worst")


def run(name: str, start: GRUPolicy, env: Arithmetic, steps: int, lr: float, seed: int) -> tuple[TrainingHistory, dict]:
    """One arm from the supervised policy: its curves and numbers."""
    policy, before = copy.deepcopy(start), env.success(start)
    easy = before >= 0.7

    def watch(policy: GRUPolicy) -> dict[str, float]:
        chance = env.success(policy)
        return {"success": float(chance.mean()), "easy_wrong": float(1 - chance[easy].mean())}

    arm, keep = ARMS[name]
    history = train(
        policy, env, arm(), steps=steps, prompts=50, samples=SAMPLES, lr=lr, seed=seed, keep=keep, watch=watch
    )
    prompt = torch.arange(len(env.prompts)).repeat_interleave(8)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens, mask = policy.sample(env.prompts[prompt], env, generator)
    rewards, answer = env.score(prompt, tokens, mask, generator)
    wrong = history.column("easy_wrong")[1]
    return history, {
        "mean_at_8": float(rewards.mean()),
        "majority_at_8": float((majority_labels(answer, prompt)[::8] == env.right).float().mean()),
        "success": history.rows[-1]["success"],
        "all_wrong": float((rewards.view(-1, 8).amax(1) == 0).float().mean()),
        "signal": sum(history.column("signal")[1]) / steps,
        "easy_wrong_end": wrong[-1],
        "easy_wrong_worst": max(wrong),
    }


def at_start(starts: list[GRUPolicy], environments: list[Arithmetic]) -> dict[str, Any]:
    """What reinforcement learning has to do with: success, and expected shares of prompts with equal rewards."""
    chances = [env.success(policy) for env, policy in zip(environments, starts, strict=True)]
    return {
        "success": spread([float(p.mean()) for p in chances]),
        "all_wrong": spread([float(((1 - p) ** SAMPLES).mean()) for p in chances]),
        "all_right": spread([float((p**SAMPLES).mean()) for p in chances]),
        "easy_problems": spread([float((p >= 0.7).sum()) for p in chances]),
    }


def main() -> None:
    parser = base_parser(__doc__, slug="copo", seeds=3)
    parser.add_argument("--steps", type=int, default=None, help="rollout batches per run (none given: 100)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    args = parser.parse_args()
    steps = args.steps or (300 if args.full else 100)
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 3))]
    environments = [Arithmetic(seed=seed) for seed in seeds]
    starts = [supervised(env, 150, seed) for env, seed in zip(environments, seeds, strict=True)]
    histories: dict[str, list[TrainingHistory]] = {name: [] for name in ARMS}
    values: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    with tqdm(total=len(seeds) * len(ARMS), unit="run") as bar:
        for seed, env, start in zip(seeds, environments, starts, strict=True):
            for name in ARMS:
                history, found = run(name, start, env, steps, args.lr, seed)
                histories[name].append(history)
                values[name].append(found)
                bar.update()
    results = {name: spreads(rows, KEYS) for name, rows in values.items()}
    write_ledger(
        args.out / "copo.json",
        slug="copo",
        claim=CLAIM,
        experiment=(
            "(a op b) mod 17, 200 problems, some seen 150 times as often as others in 150 supervised steps; GRU of "
            f"128 units, up to 6 tokens; 50 problems a step, 6 responses each, one update, Adam {args.lr:g}, {steps} "
            "steps, equal rollouts for every arm; success is the exact mean probability of the right answer, all_wrong "
            "the share of problems with 8 wrong answers of 8 at the end, signal the share of sampled tokens with a "
            "gradient over the run, easy_wrong the probability of a wrong answer to problems that started at 0.7 or "
            "better (at the end, and at the worst step)"
        ),
        seeds=seeds,
        results=results,
        minus_grpo={
            f"{name}: {key}": difference(row[key]["values"], results["GRPO"][key]["values"])
            for name, row in results.items()
            for key in ("mean_at_8", "majority_at_8", "all_wrong")
            if name != "GRPO"
        },
        at_start=at_start(starts, environments),
        curves=curves(histories, ("success", "easy_wrong")),
    )
    titles = {"success": "probability of the right answer", "easy_wrong": "wrong answers to easy problems"}
    plot_curves(histories, args.out / "copo.png", titles, "Prompts with equal rewards: who learns from them?")
    print_table(("method", *KEYS), [table_row(n, s, KEYS, {}) for n, s in results.items()])


if __name__ == "__main__":
    main()

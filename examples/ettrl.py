"""TTRL and ETTRL: can a model learn from the majority of its own answers, and what does entropy add?

RunSum: running sums modulo 10, learned from demonstrations with wrong digits, so that single samples are right about
half the time and the majority nearly always. Part 1 compares 60 independent votes with trees that fork at the most
uncertain tokens, and with trees that fork anywhere. Part 2 trains without labels: rewards by majority, plain or
reshaped, against rewards by the true answer.

    python examples/ettrl.py                         three seeds, about two minutes on a CPU

Written to --out: ettrl.json and ettrl.png.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _arms import curves, plot_curves, table_row
from _branching import grow
from common import (
    base_parser,
    plain_trainer,
    print_table,
    quiet_lightning,
    spreads,
    write_ledger,
)
from torch import Tensor, nn
from tqdm import tqdm

from infotorch.losses import Recipe, majority_labels, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptLoader, RLVRModule, TrainingHistory, warm_start
from infotorch.rlvr.responses import answer_ids
from infotorch.rlvr.tasks import RunSum
from infotorch.rollout import HFSampler, fork_positions

TREES, FORKS, BRANCHES = 12, 2, 2
VOTES = TREES * (1 + FORKS * BRANCHES)
CLAIM = (
    "Llama-3.1-8B, AIME24: TTRL 10.0, with trees 16.9, with Adv-Res 13.5; MATH-500 63.7, 59.5, 61.3; trees use about "
    "60 % of the tokens of as many independent votes; Adv-Res is at least as good as Adv-Clip (arXiv 2508.11356)."
)
ARMS: dict[str, Callable[[], Recipe]] = {
    "true labels (GRPO, KL)": lambda: recipe("kl"),
    "TTRL": lambda: recipe("ttrl"),
    "TTRL, Adv-Clip": lambda: recipe("ettrl", mode="clip"),
    "TTRL, Adv-Res": lambda: recipe("ettrl"),
    "TTRL, Adv-Res, y_min 0": lambda: recipe("ettrl", y_min=0.0),
}
KEYS = (
    "greedy_start",
    "greedy_end",
    "reward_start",
    "reward_end",
    "entropy_start",
    "entropy_end",
    "label_accuracy",
    "reward_accuracy",
    "negative",
)
VOTING = ("new_tokens", "token_ratio", "majority_right", "distinct_answers")


def make_sampler(model: nn.Module, task: RunSum) -> HFSampler:
    """Sampling until the end token."""
    return HFSampler(model, pad_token_id=task.codec.pad_id, stop_token_ids={task.codec.eos_id})


def voting(model: nn.Module, task: RunSum, problems: Sequence[Any], seed: int) -> dict[str, dict[str, float]]:
    """Part 1: tokens and majorities of independent votes, forks at high entropy, and forks anywhere."""
    sampler, budget = make_sampler(model, task), task.max_response + 1
    prompts = [task.prompt(problem) for problem in problems]

    def measure(new_tokens: int, prompt: Tensor, responses: Sequence[Tensor]) -> dict[str, float]:
        asked = [problems[i] for i in prompt.tolist()]
        answer = answer_ids([task.final_answer(p, tokens) for p, tokens in zip(asked, responses, strict=True)])
        right = torch.tensor([task.reward(p, tokens) > 0 for p, tokens in zip(asked, responses, strict=True)])
        label = majority_labels(answer, prompt)
        agreed = [bool(right[(prompt == i) & (answer == label)].any()) for i in range(len(problems))]
        kinds = [len(answer[(prompt == i) & (answer >= 0)].unique()) for i in range(len(problems))]
        return {
            "new_tokens": new_tokens / len(problems),
            "majority_right": sum(agreed) / len(problems),
            "distinct_answers": sum(kinds) / len(problems),
        }

    alone = sampler.generate(prompts, VOTES, max_new_tokens=budget, seed=seed)
    found = {"60 independent": measure(alone.new_tokens, alone.prompt_index, alone.tokens)}
    roots = sampler.generate(prompts, TREES, max_new_tokens=budget, seed=seed + 1)
    padded = roots.padded(task.codec.pad_id)
    noise = torch.rand(padded.entropies.shape, generator=torch.Generator().manual_seed(seed))
    for name, scores in (("forks at high entropy", padded.entropies), ("forks anywhere", noise)):
        positions = fork_positions(scores, padded.mask, FORKS)
        starts, grown, root = grow(sampler, prompts, roots, positions, BRANCHES, budget=budget, seed=seed + 2)
        kept = [starts[i][len(prompts[p]) :] for i, p in zip(grown.prompt_index, roots.prompt_index[root], strict=True)]
        whole = [torch.cat((prefix, suffix)) for prefix, suffix in zip(kept, grown.tokens, strict=True)]
        prompt = torch.cat((roots.prompt_index, roots.prompt_index[root]))
        found[name] = measure(roots.new_tokens + grown.new_tokens, prompt, [*roots.tokens, *whole])
    for row in found.values():
        row["token_ratio"] = row["new_tokens"] / found["60 independent"]["new_tokens"]
    return found


class Watched(RLVRModule):
    """Training that records greedy accuracy on held-out problems."""

    def evaluate(self) -> dict[str, float]:
        """Share of held-out problems that the most likely response solves."""
        prompts = [self.task.prompt(problem) for problem in self.eval_problems]
        greedy = self.sampler.generate(prompts, 1, temperature=0.0, max_new_tokens=self.max_new_tokens)
        pairs = zip(self.eval_problems, greedy.tokens, strict=True)
        return {"greedy": sum(self.task.reward(problem, tokens) for problem, tokens in pairs) / len(prompts)}


def run(name: str, start: nn.Module, task: RunSum, steps: int, seed: int) -> TrainingHistory:
    """Part 2: one arm from the warm-started model."""
    quiet_lightning()
    module = Watched(
        copy.deepcopy(start),
        task,
        ARMS[name](),
        samples=20,
        minibatches=2,
        lr=3e-4,
        old_log_probs="sampler",
        reference=copy.deepcopy(start),
        eval_problems=task.test(200, seed=1),
        eval_every=3,
        seed=seed,
    )
    plain_trainer().fit(module, PromptLoader(task.train(400, seed=2), 8, steps, seed=seed))
    return module.history


def summarize(histories: Sequence[TrainingHistory]) -> dict[str, Any]:
    """Start and end of each run, and the diagnostics of its votes, over seeds."""
    rows = []
    for history in histories:
        names = history.names()
        column = {key: history.column(key)[1] for key in names}
        row = {
            "greedy_start": column["greedy"][0],
            "greedy_end": column["greedy"][-1],
            "reward_start": column["reward"][0],
            "reward_end": sum(column["reward"][-3:]) / 3,
            "entropy_start": column["entropy"][0],
            "entropy_end": sum(column["entropy"][-3:]) / 3,
        }
        further = {"label_accuracy": "label_accuracy", "reward_accuracy": "reward_accuracy"}
        for key, metric in {**further, "negative": "negative_scale_fraction"}.items():
            values = column.get(f"loss/{metric}")
            if values is not None:
                row[key] = sum(values) / len(values)
        rows.append(row)
    return spreads(rows)


def main() -> None:
    parser = base_parser(__doc__, slug="ettrl", seeds=3)
    parser.add_argument("--steps", type=int, default=None, help="rollout batches per run (none given: 8)")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 3))]
    steps = args.steps or (30 if args.full else 8)
    task = RunSum(terms=4, noise=0.12)
    votes: dict[str, list[dict[str, float]]] = {}
    histories: dict[str, list[TrainingHistory]] = {name: [] for name in ARMS}
    model = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=64, seed=args.seed)
    warm_start(model, task, task.train(3000), steps=350, seed=args.seed)
    with tqdm(total=len(seeds) * (len(ARMS) + 1), unit="run") as bar:
        for seed in seeds:
            for name, row in voting(model, task, task.test(25), seed).items():
                votes.setdefault(name, []).append(row)
            bar.update()
            for name in ARMS:
                histories[name].append(run(name, model, task, steps, seed))
                bar.update()
    results = {name: summarize(found) for name, found in histories.items()}
    voted = {name: spreads(rows, VOTING) for name, rows in votes.items()}
    write_ledger(
        args.out / "ettrl.json",
        slug="ettrl",
        claim=CLAIM,
        experiment=(
            "RunSum (four digits, noise 0.12), decoder of 64 dimensions and 2 layers, 350 supervised steps, one start "
            "for all seeds. Training without labels: 8 prompts a step, 20 votes, 2 updates, Adam 3e-4, KL penalty "
            f"0.001, {steps} steps; greedy is the accuracy of the most likely response on 200 held-out problems, "
            "reward the share of right samples in training (at the end: of the last 3 steps, like the entropy), label "
            "and reward accuracy are means over the run. Voting, without training: 25 held-out problems, 12 "
            "trees with 2 forks and 2 branches each against 60 independent samples, new tokens per problem"
        ),
        seeds=seeds,
        results=results,
        voting=voted,
        curves=curves(histories, ("greedy", "entropy")),
    )
    titles = {"greedy": "greedy accuracy, held out", "entropy": "entropy, nats per token"}
    plot_curves(histories, args.out / "ettrl.png", titles, "RunSum: learning from the majority of one's own answers")
    digits = {"new_tokens": 0}
    print_table(("votes", *VOTING), [table_row(n, s, VOTING, digits) for n, s in voted.items()])
    print()
    keys = [key for key in KEYS if all(key in row for row in results.values())]
    print_table(("rewards", *keys), [table_row(n, s, keys, {}) for n, s in results.items()])


if __name__ == "__main__":
    main()

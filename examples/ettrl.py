"""TTRL and ETTRL: can a model learn from the majority of its own answers, and what does entropy add?

RunSum: running sums modulo 10, learned from demonstrations with wrong digits, so that single samples are right about
half the time and the majority nearly always. Part 1 compares 60 independent votes with trees that fork at the most
uncertain tokens, and with trees that fork anywhere. Part 2 trains without labels: rewards by majority, plain or
reshaped, of independent votes or of trees, against rewards by the true answer.

    python examples/ettrl.py                         three seeds, about a minute on a CPU
    python examples/ettrl.py --full                  six digits, 30 steps, five seeds: about five minutes

Finished runs are kept in --out/runs and taken up again. Written to --out: ettrl.json and ettrl.png.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from _arms import curves, plot_curves, table_row
from _branching import BranchingModule, grow
from common import (
    base_parser,
    kept_run,
    plain_trainer,
    print_table,
    quiet_lightning,
    run_file,
    spreads,
    write_ledger,
)
from torch import Tensor, nn
from tqdm import tqdm

from infotorch.losses import Recipe, majority_labels, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptBatch, PromptLoader, RLVRModule, TrainingHistory, warm_start
from infotorch.rlvr.responses import ResponseBatch, answer_ids
from infotorch.rlvr.tasks import RunSum
from infotorch.rollout import HFSampler, PaddedRollouts, fork_positions

TREES, FORKS, BRANCHES = 12, 2, 2
VOTES = TREES * (1 + FORKS * BRANCHES)
# Training: 20 votes a problem, or 4 trees of 5, or as many independent votes as cost the tokens of the trees.
TRAINED, TRAINED_TREES, SAME_TOKENS = 20, 4, 13
CLAIM = (
    "Llama-3.1-8B, AIME24: TTRL 10.0, with trees 16.9, with Adv-Res 13.5; MATH-500 63.7, 59.5, 61.3; trees use about "
    "60 % of the tokens of as many independent votes; Adv-Res is at least as good as Adv-Clip (arXiv 2508.11356)."
)


class Arm(NamedTuple):
    """A recipe, its independent votes a problem, and which tokens its trees fork at: none without trees."""

    recipe: Callable[[], Recipe]
    votes: int = TRAINED
    forks: str | None = None


TTRL = partial(recipe, "ttrl")
ARMS = {
    "true labels (GRPO, KL)": Arm(partial(recipe, "kl")),
    "TTRL": Arm(TTRL),
    "TTRL, Adv-Clip": Arm(partial(recipe, "ettrl", mode="clip")),
    "TTRL, Adv-Res": Arm(partial(recipe, "ettrl")),
    "TTRL, Adv-Res, y_min 0": Arm(partial(recipe, "ettrl", y_min=0.0)),
    "TTRL, trees": Arm(TTRL, forks="entropy"),
    "TTRL, trees that fork anywhere": Arm(TTRL, forks="random"),
    "TTRL, 13 votes": Arm(TTRL, votes=SAME_TOKENS),
}
KEYS = (
    "greedy_start",
    "greedy_end",
    "pass@1_start",
    "pass@1_end",
    "entropy_start",
    "entropy_end",
    "label_accuracy",
    "reward_accuracy",
    "negative",
    "tokens",
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


class Trainer(BranchingModule):
    """Training on independent votes or on trees."""

    roots, branches = TRAINED_TREES, BRANCHES
    forks: str | None = None

    def cuts(self, roots: PaddedRollouts, generator: torch.Generator) -> Tensor:
        """Forks at the highest entropy, or anywhere."""
        entropies = roots.entropies
        scores = entropies if self.forks == "entropy" else torch.rand(entropies.shape, generator=generator)
        return fork_positions(scores, roots.mask, FORKS)

    def roll_out(self, batch: PromptBatch) -> ResponseBatch:
        """Trees where the arm has them."""
        return RLVRModule.roll_out(self, batch) if self.forks is None else super().roll_out(batch)


def run(name: str, start: nn.Module, task: RunSum, steps: int, seed: int) -> list[dict[str, float]]:
    """Part 2: one arm from the warm-started model, as rows of its history."""
    quiet_lightning()
    arm = ARMS[name]
    module = Trainer(
        copy.deepcopy(start),
        task,
        arm.recipe(),
        samples=arm.votes,
        minibatches=2,
        lr=3e-4,
        old_log_probs="sampler",
        reference=copy.deepcopy(start),
        eval_problems=task.test(200, seed=1),
        eval_every=max(2, steps // 10),
        eval_samples=4,
        seed=seed,
    )
    module.forks = arm.forks
    plain_trainer().fit(module, PromptLoader(task.train(400, seed=2), 8, steps, seed=seed))
    return module.history.rows


def summarize(histories: Sequence[TrainingHistory]) -> dict[str, Any]:
    """Held-out start and end of each run, and the diagnostics of its votes, over seeds."""
    rows = []
    for history in histories:
        names = history.names()
        column = {key: history.column(key)[1] for key in names}
        row = {"tokens": sum(column["tokens"]) / len(column["tokens"])}
        for key in ("greedy", "pass@1", "eval_entropy"):
            name = key.removeprefix("eval_")
            row[f"{name}_start"], row[f"{name}_end"] = column[key][0], column[key][-1]
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
    terms, supervised = (6, 1500) if args.full else (4, 350)
    task = RunSum(terms=terms, noise=0.12)
    model = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=64, seed=args.seed)
    warm_start(model, task, task.train(3000), steps=supervised, seed=args.seed)
    settings = {"terms": terms, "supervised": supervised, "steps": steps, "seed": args.seed}
    votes: dict[str, list[dict[str, float]]] = {}
    histories: dict[str, list[TrainingHistory]] = {name: [] for name in ARMS}
    with tqdm(total=len(seeds) * (len(ARMS) + 1), unit="run") as bar:
        for seed in seeds:
            for name, row in voting(model, task, task.test(25), seed).items():
                votes.setdefault(name, []).append(row)
            bar.update()
            for name, arm in ARMS.items():
                path = run_file(args.out, f"{name}-{seed}", [settings, *arm[1:], arm.recipe().to_dict()])
                rows = kept_run(path, lambda name=name, seed=seed: run(name, model, task, steps, seed))
                histories[name].append(TrainingHistory(rows))
                bar.update()
    results = {name: summarize(found) for name, found in histories.items()}
    voted = {name: spreads(rows, VOTING) for name, rows in votes.items()}
    write_ledger(
        args.out / "ettrl.json",
        slug="ettrl",
        claim=CLAIM,
        experiment=(
            f"RunSum ({terms} digits, noise 0.12), decoder of 64 dimensions and 2 layers, {supervised} supervised "
            f"steps, one start for all seeds. Training without labels: 8 prompts a step, {TRAINED} votes, 2 updates, "
            f"Adam 3e-4, KL penalty 0.001, {steps} steps; trees: {TRAINED_TREES} roots with 2 forks and 2 branches "
            "each, of which the new tokens are trained; on 200 held-out problems: greedy is the accuracy of the most "
            "likely response, pass@1 that of 4 samples, entropy theirs; tokens: what a step samples; label and reward "
            "accuracy: means over the run. Voting, without training: 25 held-out problems, 12 trees with 2 forks and 2 "
            "branches each against 60 independent samples, new tokens per problem"
        ),
        seeds=seeds,
        results=results,
        voting=voted,
        curves=curves(histories, ("greedy", "pass@1", "eval_entropy")),
    )
    titles = {"greedy": "greedy accuracy", "eval_entropy": "entropy, nats per token", "pass@1": "pass@1"}
    plot_curves(histories, args.out / "ettrl.png", titles, "RunSum: learning from the majority of one's own answers")
    digits = {"new_tokens": 0, "tokens": 0}
    print_table(("votes", *VOTING), [table_row(n, s, VOTING, digits) for n, s in voted.items()])
    print()
    keys = [key for key in KEYS if any(key in row for row in results.values())]
    print_table(("rewards", *keys), [table_row(n, s, keys, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

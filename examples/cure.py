"""CURE: do branches at uncertain tokens keep entropy, and is it the uncertainty or the branching?

RunSum (see examples/ettrl.py). DAPO with 16 responses a problem, against 4 responses of which each is cut at one of its
most uncertain digits and finished three times more, and against cuts at random digits. Stage 1 is followed by stage 2,
plain DAPO. The vocabulary has single characters only, so CURE's filter asks for one, and separators are excluded.

    python examples/cure.py                          three seeds, about two minutes on a CPU

Written to --out: cure.json and cure.png.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from _arms import curves, plot_curves, table_row
from _branching import grow
from common import (
    base_parser,
    plain_trainer,
    print_table,
    quiet_lightning,
    spread,
    spreads,
    write_ledger,
)
from torch import nn
from tqdm import tqdm

from infotorch.losses import cure_origins, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptBatch, PromptLoader, RLVRModule, TrainingHistory, warm_start
from infotorch.rlvr.responses import ResponseBatch
from infotorch.rlvr.tasks import RunSum
from infotorch.rollout import Rollouts, allowed_tokens, critical_positions, draw_position

ORIGINALS, BRANCHES = 4, 3
GROUP = ORIGINALS * (1 + BRANCHES)
CLAIM = (
    "Qwen2.5-Math-7B, mean of six sets: stage 1 52.1, stage 2 54.3, Clip-Cov 50.9, KL-Cov 50.7; entropy stays above "
    "DAPO's in stage 1 (arXiv 2508.11016)."
)
ARMS = {"DAPO": None, "CURE, uncertain tokens": "entropy", "CURE, random tokens": "random"}
KEYS = (
    "entropy_start",
    "entropy_stage1",
    "entropy_end",
    "pass@1_start",
    "pass@1_stage1",
    "pass@1_end",
    "pass@16_end",
    "tokens_stage1",
)


class CURE(RLVRModule):
    """Training with branches for the first ``stage1`` steps; then as any other."""

    cut: str | None = None
    stage1 = 0

    def roll_out(self, batch: PromptBatch) -> ResponseBatch:
        """Originals, and branches of each from a critical token, as one group per prompt."""
        if self.cut is None or self.rollout_step >= self.stage1:
            return super().roll_out(batch)
        prompts = [self.task.prompt(problem) for problem in batch.problems]
        roots = self._generate(prompts, batch.ids, ORIGINALS, self.temperature, self.seed)
        padded, codec = roots.padded(self.task.codec.pad_id), self.task.codec
        texts = ["", "", *(codec.decode([i]) for i in range(2, codec.vocab_size))]
        digits = [i for i, text in enumerate(texts) if text.isdigit()]
        special = [i for i in range(codec.vocab_size) if i not in digits]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.rollout_step)
        candidates = critical_positions(
            padded.entropies,
            padded.tokens,
            padded.mask,
            allowed_tokens(texts, special, min_chars=1),
            mode=str(self.cut),
            generator=generator,
        )
        at = draw_position(candidates, generator)
        ids = batch.ids[roots.prompt_index] * ORIGINALS + torch.arange(len(roots)) % ORIGINALS
        starts, grown, root = grow(
            self.sampler,  # pyright: ignore[reportArgumentType]
            prompts,
            roots,
            at.unsqueeze(1),
            BRANCHES,
            budget=self.max_new_tokens,
            seed=self.seed + 1,
            ids=ids,
        )
        # Branches of a prompt behind its originals; a branch's kept beginning belongs to its prompt and is not trained.
        everything = Rollouts.join((roots, dataclasses.replace(grown, prompt_index=grown.prompt_index + len(prompts))))
        group = torch.cat((roots.prompt_index, roots.prompt_index[root]))
        order = group.sort(stable=True).indices
        everything, group = take(everything, order), group[order]
        cure_origins(group, originals=ORIGINALS, branches=BRANCHES)
        beginnings = [*prompts, *starts]
        whole = [
            torch.cat((beginnings[p][len(prompts[g]) :], tokens))
            for p, g, tokens in zip(everything.prompt_index.tolist(), group.tolist(), everything.tokens, strict=True)
        ]
        scored = dataclasses.replace(everything, tokens=whole, prompt_index=group)
        rewards, answers = self._score(batch, scored)
        responses = ResponseBatch.from_rollouts(everything, beginnings, rewards, answers, codec.pad_id)
        return dataclasses.replace(responses, group=group)


def take(rollouts: Rollouts, rows: torch.Tensor) -> Rollouts:
    """The given rows."""
    chosen: dict[str, Any] = {}
    for name in ("tokens", "logprobs", "entropies", "finish_reason"):
        chosen[name] = [getattr(rollouts, name)[i] for i in rows.tolist()]
    for name in ("prompt_index", "n_new_tokens", "n_prefill_tokens", "n_prefill_cached"):
        chosen[name] = getattr(rollouts, name)[rows]
    return dataclasses.replace(rollouts, **chosen)


def run(name: str, start: nn.Module, task: RunSum, stage1: int, steps: int, seed: int) -> TrainingHistory:
    """One arm from the warm-started model."""
    quiet_lightning()
    module = CURE(
        copy.deepcopy(start),
        task,
        recipe("cure_stage1"),
        samples=GROUP,
        minibatches=2,
        lr=3e-4,
        old_log_probs="recompute",
        eval_problems=task.test(50, seed=1),
        eval_every=max(1, stage1 // 4),
        seed=seed,
    )
    module.cut, module.stage1 = ARMS[name], stage1
    plain_trainer().fit(module, PromptLoader(task.train(400, seed=2), 8, steps, seed=seed))
    return module.history


def summarize(histories: Sequence[TrainingHistory], stage1: int) -> dict[str, Any]:
    """Held-out accuracy and entropy at the start, after stage 1 and at the end; tokens sampled in stage 1."""
    rows = []
    for history in histories:
        row = {}
        for key, column in (("entropy", "eval_entropy"), ("pass@1", "pass@1"), ("pass@16", "pass@16")):
            steps, values = history.column(column)
            row[f"{key}_start"], row[f"{key}_end"] = values[0], values[-1]
            row[f"{key}_stage1"] = values[steps.index(stage1)]
        row["tokens_stage1"] = sum(history.column("tokens")[1][:stage1])
        rows.append(row)
    return spreads(rows, KEYS)


def at_equal_tokens(histories: dict[str, list[TrainingHistory]], stage1: int) -> dict[str, Any]:
    """DAPO at its first evaluation after as many sampled tokens as each arm used in stage 1."""
    found: dict[str, Any] = {}
    for name, runs in histories.items():
        rows = []
        for mine, plain in zip(runs, histories["DAPO"], strict=True):
            budget = sum(mine.column("tokens")[1][:stage1])
            used = torch.tensor(plain.column("tokens")[1]).cumsum(0)
            step = int((used >= budget).nonzero()[0]) + 1
            steps, entropy = plain.column("eval_entropy")
            at = next(i for i, s in enumerate(steps) if s >= step)
            rows.append((steps[at], entropy[at], plain.column("pass@1")[1][at]))
        keys = ("dapo_step", "dapo_entropy", "dapo_pass@1")
        found[name] = {key: spread([float(row[i]) for row in rows]) for i, key in enumerate(keys)}
    return found


def main() -> None:
    parser = base_parser(__doc__, slug="cure", seeds=3)
    parser.add_argument("--steps", type=int, default=None, help="steps of stage 1 (none given: 6); stage 2 is half")
    args = parser.parse_args()
    stage1 = args.steps or (40 if args.full else 6)
    steps = stage1 + stage1 // 2
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    task = RunSum(terms=4, noise=0.12)
    model = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=64, seed=args.seed)
    warm_start(model, task, task.train(3000), steps=350, seed=args.seed)
    histories: dict[str, list[TrainingHistory]] = {name: [] for name in ARMS}
    with tqdm(total=len(seeds) * len(ARMS), unit="run") as bar:
        for seed in seeds:
            for name in ARMS:
                histories[name].append(run(name, model, task, stage1, steps, seed))
                bar.update()
    results = {name: summarize(found, stage1) for name, found in histories.items()}
    write_ledger(
        args.out / "cure.json",
        slug="cure",
        claim=CLAIM,
        experiment=(
            "RunSum (four digits, noise 0.12), decoder of 64 dimensions and 2 layers, 350 supervised steps, one start "
            "for all seeds; 8 prompts a step, groups of 16 (4 originals and 3 branches of each in stage 1), 2 updates, "
            f"Adam 3e-4, {stage1} steps of stage 1 and {steps - stage1} of plain DAPO; branches get what their "
            "original had left, prompts of equal rewards are not replaced; entropy and pass@k on 50 held-out problems "
            "with 16 samples"
        ),
        seeds=seeds,
        results=results,
        dapo_at_equal_tokens=at_equal_tokens(histories, stage1),
        curves=curves(histories, ("eval_entropy", "pass@1")),
    )
    titles = {"eval_entropy": "entropy, nats per token, held out", "pass@1": "pass@1, held out"}
    plot_curves(histories, args.out / "cure.png", titles, "RunSum: branches at uncertain and at random tokens")
    digits = {"tokens_stage1": 0}
    print_table(("rollouts", *KEYS), [table_row(n, s, KEYS, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

"""CURE: do branches at uncertain tokens keep entropy, and is it the uncertainty or the branching?

RunSum (see examples/ettrl.py). DAPO with 16 responses a problem, against 4 responses of which each is cut at one of its
most uncertain digits and finished three times more, and against cuts at random digits. Stage 1 is followed by stage 2,
plain DAPO. The vocabulary has single characters only, so CURE's filter asks for one, and separators are excluded.

    python examples/cure.py                          three seeds, less than a minute on a CPU
    python examples/cure.py --full                   six digits, 40 steps of stage 1, five seeds: about five minutes

Finished runs are kept in --out/runs and taken up again. Written to --out: cure.json and cure.png.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from _arms import curves, plot_curves, table_row
from _branching import BranchingModule
from common import (
    base_parser,
    kept_run,
    plain_trainer,
    print_table,
    quiet_lightning,
    run_file,
    spread,
    spreads,
    write_ledger,
)
from torch import Tensor, nn
from tqdm import tqdm

from infotorch.losses import cure_origins, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptBatch, PromptLoader, RLVRModule, TrainingHistory, warm_start
from infotorch.rlvr.responses import ResponseBatch
from infotorch.rlvr.tasks import RunSum
from infotorch.rollout import PaddedRollouts, allowed_tokens, critical_positions, draw_position

ORIGINALS, BRANCHES = 4, 3
GROUP = ORIGINALS * (1 + BRANCHES)
# Published: 20 candidates of a thousand tokens. All digits of a response, of which there are six or so, would make the
# uncertain ones the same as any.
CANDIDATES = 2
CLAIM = (
    "Qwen2.5-Math-7B, mean of six sets: stage 1 52.1, stage 2 54.3, Clip-Cov 50.9, KL-Cov 50.7; entropy stays above "
    "DAPO's in stage 1 (arXiv 2508.11016)."
)
METHOD = partial(recipe, "cure_stage1")  # DAPO's loss in both stages
ARMS = {"DAPO": None, "CURE, uncertain tokens": "entropy", "CURE, random tokens": "random"}
KEYS = (
    "entropy_start",
    "entropy_stage1",
    "entropy_end",
    "pass@1_start",
    "pass@1_stage1",
    "pass@1_end",
    "pass@16_stage1",
    "pass@16_end",
    "greedy_stage1",
    "greedy_end",
    "tokens_stage1",
)


class CURE(BranchingModule):
    """Training with branches for the first ``stage1`` steps; then as any other."""

    roots, branches = ORIGINALS, BRANCHES
    cut: str | None = None
    stage1 = 0

    def cuts(self, roots: PaddedRollouts, generator: torch.Generator) -> Tensor:
        """One critical digit of every original."""
        codec = self.task.codec
        texts = ["", "", *(codec.decode([i]) for i in range(2, codec.vocab_size))]
        special = [i for i, text in enumerate(texts) if not text.isdigit()]
        candidates = critical_positions(
            roots.entropies,
            roots.tokens,
            roots.mask,
            allowed_tokens(texts, special, min_chars=1),
            top_k=CANDIDATES,
            mode=str(self.cut),
            generator=generator,
        )
        return draw_position(candidates, generator).unsqueeze(1)

    def roll_out(self, batch: PromptBatch) -> ResponseBatch:
        """Originals and branches; without a kind of cut and in stage 2, independent responses."""
        if self.cut is None or self.rollout_step >= self.stage1:
            return RLVRModule.roll_out(self, batch)
        responses = super().roll_out(batch)
        cure_origins(responses.group, originals=ORIGINALS, branches=BRANCHES)
        return responses


def run(name: str, start: nn.Module, task: RunSum, stage1: int, held_out: int, seed: int) -> list[dict[str, float]]:
    """One arm from the warm-started model, as rows of its history."""
    quiet_lightning()
    module = CURE(
        copy.deepcopy(start),
        task,
        METHOD(),
        samples=GROUP,
        minibatches=2,
        lr=3e-4,
        old_log_probs="recompute",
        eval_problems=task.test(held_out, seed=1),
        eval_every=max(1, stage1 // 10),
        seed=seed,
    )
    module.cut, module.stage1 = ARMS[name], stage1
    steps = stage1 + stage1 // 2
    plain_trainer().fit(module, PromptLoader(task.train(400, seed=2), 8, steps, seed=seed))
    return module.history.rows


def summarize(histories: Sequence[TrainingHistory], stage1: int) -> dict[str, Any]:
    """Held-out accuracy and entropy at the start, after stage 1 and at the end; tokens sampled in stage 1."""
    rows = []
    for history in histories:
        row = {}
        for key in ("entropy", "pass@1", "pass@16", "greedy"):
            steps, values = history.column("eval_entropy" if key == "entropy" else key)
            row[f"{key}_start"], row[f"{key}_end"] = values[0], values[-1]
            row[f"{key}_stage1"] = values[max(i for i, step in enumerate(steps) if step <= stage1)]
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


def at_equal_accuracy(histories: dict[str, list[TrainingHistory]]) -> dict[str, Any]:
    """Held-out entropy where pass@1 first reaches a level, between evaluations by a straight line."""
    found: dict[str, Any] = {name: {} for name in histories}
    for level in (0.7, 0.8, 0.9):
        crossed: dict[str, list[float]] = {name: [] for name in histories}
        for name, runs in histories.items():
            for history in runs:
                accuracy, entropy = history.column("pass@1")[1], history.column("eval_entropy")[1]
                at = next((i for i, value in enumerate(accuracy) if value >= level), 0)
                if at:
                    part = (level - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
                    crossed[name].append(entropy[at - 1] + part * (entropy[at] - entropy[at - 1]))
        if all(len(values) == len(histories[name]) for name, values in crossed.items()):
            for name, values in crossed.items():
                found[name][f"entropy_at_{level}"] = spread(values)
    return found


def main() -> None:
    parser = base_parser(__doc__, slug="cure", seeds=3)
    parser.add_argument("--steps", type=int, default=None, help="steps of stage 1 (none given: 6); stage 2 is half")
    args = parser.parse_args()
    stage1 = args.steps or (40 if args.full else 6)
    terms, supervised, held_out = (6, 1500, 200) if args.full else (4, 350, 50)
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 3))]
    task = RunSum(terms=terms, noise=0.12)
    model = TinyDecoder(task.codec.vocab_size, dim=64, layers=2, heads=4, max_length=64, seed=args.seed)
    warm_start(model, task, task.train(3000), steps=supervised, seed=args.seed)
    settings = {"terms": terms, "supervised": supervised, "held_out": held_out, "stage1": stage1, "seed": args.seed}
    histories: dict[str, list[TrainingHistory]] = {name: [] for name in ARMS}
    with tqdm(total=len(seeds) * len(ARMS), unit="run") as bar:
        for seed in seeds:
            for name in ARMS:
                path = run_file(args.out, f"{name}-{seed}", [settings, CANDIDATES, METHOD().to_dict()])
                rows = kept_run(path, lambda name=name, seed=seed: run(name, model, task, stage1, held_out, seed))
                histories[name].append(TrainingHistory(rows))
                bar.update()
    results = {name: summarize(found, stage1) for name, found in histories.items()}
    write_ledger(
        args.out / "cure.json",
        slug="cure",
        claim=CLAIM,
        experiment=(
            f"RunSum ({terms} digits, noise 0.12), decoder of 64 dimensions and 2 layers, {supervised} supervised "
            "steps, one start for all seeds; 8 prompts a step, groups of 16 (4 originals and 3 branches of each in "
            f"stage 1), cuts at one of the {CANDIDATES} most uncertain digits but the first, or at any; 2 updates, "
            f"Adam 3e-4, {stage1} steps of stage 1 and {stage1 // 2} of plain DAPO; branches get what their original "
            f"had left, prompts of equal rewards are not replaced; entropy and pass@k on {held_out} held-out problems "
            "with 16 samples, greedy: of the most likely response; dapo_at_equal_tokens: plain DAPO after as many "
            "sampled tokens as the method took in stage 1"
        ),
        seeds=seeds,
        results=results,
        dapo_at_equal_tokens=at_equal_tokens(histories, stage1),
        entropy_at_equal_pass_at_1=at_equal_accuracy(histories),
        curves=curves(histories, ("eval_entropy", "pass@1")),
    )
    titles = {"eval_entropy": "entropy, nats per token, held out", "pass@1": "pass@1, held out"}
    plot_curves(histories, args.out / "cure.png", titles, "RunSum: branches at uncertain and at random tokens")
    digits = {"tokens_stage1": 0}
    print_table(("rollouts", *KEYS), [table_row(n, s, KEYS, digits) for n, s in results.items()])


if __name__ == "__main__":
    main()

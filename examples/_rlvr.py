"""One training run on the main job's task, and what is read off it: shared by the main job and the leaderboard."""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

import torch
from common import plain_trainer, quiet_lightning
from lightning import Callback, LightningModule, Trainer
from torch import nn
from tqdm import tqdm

from infotorch.losses import fit_entropy_law, recipe
from infotorch.rlvr import PromptLoader, RLVRModule, TrainingHistory
from infotorch.rlvr.tasks import Countdown, Task

K = 16


def countdown() -> Task[Any]:
    """The task: small numbers, so that most problems have many correct answers."""
    return Countdown(max_number=6, max_target=12, min_solutions=12)


class StepBar(Callback):
    """One progress bar per run, with the two quantities of interest."""

    def __init__(self, label: str, steps: int, position: int) -> None:
        self.bar = tqdm(total=steps, desc=f"{label:<22}", unit="step", mininterval=0.5, position=position)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        assert isinstance(pl_module, RLVRModule)
        last = pl_module.history.rows[-1]
        if "reward" not in last:  # an evaluation row
            last = pl_module.history.rows[-2]
        self.bar.set_postfix(reward=f"{last['reward']:.2f}", entropy=f"{last['entropy']:.3f}", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar standing."""
        self.bar.close()


def leave_with_parent() -> None:
    """In a worker: end when the process that started it is killed, which tells a pool's workers nothing."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def build(
    start: nn.Module,
    task: Task[Any],
    name: str,
    options: Mapping[str, Any],
    held_out: list[Any],
    seed: int,
    args: argparse.Namespace,
) -> RLVRModule:
    """A method with a copy of the warm-started model; without held-out problems nothing is evaluated."""
    torch.set_num_threads(args.threads)
    quiet_lightning()
    method = recipe(name, **options)
    return RLVRModule(
        copy.deepcopy(start),
        task,
        method,
        samples=args.samples,
        minibatches=args.minibatches,
        lr=args.lr,
        old_log_probs="sampler",
        reference=copy.deepcopy(start) if "ref_log_probs" in method.required else None,
        eval_problems=held_out,
        eval_every=max(1, args.steps // 10) if held_out else 0,
        eval_samples=K,
        seed=seed,
    )


def train(
    start: nn.Module,
    task: Task[Any],
    name: str,
    options: Mapping[str, Any],
    label: str,
    problems: list[Any],
    held_out: list[Any],
    seed: int,
    position: int | None,
    args: argparse.Namespace,
) -> tuple[TrainingHistory, float]:
    """Reinforcement learning with one method from a copy of the warm-started model: its curves and seconds.

    ``position`` is the line of its progress bar; None shows none.
    """
    begun = time.perf_counter()
    module = build(start, task, name, options, held_out, seed, args)
    bar = [] if position is None else [StepBar(label, args.steps, position)]
    plain_trainer(accelerator="auto", callbacks=bar).fit(
        module, PromptLoader(problems, args.prompts, args.steps, seed=seed)
    )
    return module.history, time.perf_counter() - begun


class StepClock(Callback):
    """Seconds of every step: of the processor, which other jobs do not lengthen, or on the clock with a GPU."""

    def __init__(self) -> None:
        self.read = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.begun, self.seconds = 0.0, list[float]()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin."""
        self.begun = self.read()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End."""
        self.seconds.append(self.read() - self.begun)


def step_seconds(
    start: nn.Module,
    task: Task[Any],
    name: str,
    options: Mapping[str, Any],
    problems: list[Any],
    seed: int,
    args: argparse.Namespace,
) -> float:
    """Time of a step of one method from the warm-started model: the median of five after the first."""
    clock = StepClock()
    module = build(start, task, name, options, [], seed, args)
    plain_trainer(accelerator="auto", callbacks=[clock]).fit(module, PromptLoader(problems, args.prompts, 6, seed=seed))
    return median(clock.seconds[1:])


def summarize(history: TrainingHistory, seconds: float) -> dict[str, float]:
    """The numbers of the table. Start: the first step. Middle and end: means over a tenth of the steps.

    Single evaluations fluctuate, so those of the end are means of the last three.
    """
    reward, entropy = history.column("reward")[1], history.column("entropy")[1]
    tenth, half = max(1, len(reward) // 10), len(reward) // 2
    middle = slice(max(0, half - tenth // 2), half - tenth // 2 + tenth)
    summary = {
        "reward_start": reward[0],
        "reward_end": mean(reward[-tenth:]),
        "entropy_start": entropy[0],
        "entropy_middle": mean(entropy[middle]),
        "entropy_end": mean(entropy[-tenth:]),
        "seconds": seconds,
        "tokens_per_second": sum(history.column("tokens")[1]) / sum(history.column("seconds")[1]),
    }
    for column in ("pass@1", f"pass@{K}", "distinct"):
        values = history.column(column)[1]
        summary[f"{column}_start"], summary[f"{column}_end"] = values[0], mean(values[-3:])
    law = fit_law([history])
    return summary | ({} if law is None else law)


def fit_law(histories: list[TrainingHistory]) -> dict[str, float] | None:
    """R = -a exp(H) + b over the evaluations: entropy and accuracy on held-out problems."""
    entropy = torch.tensor([value for history in histories for value in history.column("eval_entropy")[1]])
    reward = torch.tensor([value for history in histories for value in history.column("pass@1")[1]])
    if len(entropy.unique()) < 2 or len(reward.unique()) < 2:
        return None
    law = fit_entropy_law(entropy.double(), reward.double())
    return {f"law_{name}": float(getattr(law, name)) for name in ("a", "b", "r2", "ceiling")}


def smooth(values: list[float], width: int) -> list[float]:
    """Trailing mean over ``width`` values."""
    return [mean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def average(histories: list[TrainingHistory], column: str) -> tuple[list[int], list[float]]:
    """A curve averaged over seeds."""
    steps = histories[0].column(column)[0]
    return steps, [mean(values) for values in zip(*(h.column(column)[1] for h in histories), strict=True)]

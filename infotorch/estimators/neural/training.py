"""The training loop: gradient ascent on batches of pairs, stopped by validation pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Pairs = tuple[Tensor, Tensor]

EVAL_STEPS = 10  # small samples are overfitted within a few dozen steps
EVAL_SHARE = 8  # training steps for each validation batch, at least: validation must not take the time


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        batch_size: Pairs per step.
        max_steps: Steps at most.
        learning_rate: Of Adam.
        patience: Steps without improvement on the validation pairs before training stops.
    """

    batch_size: int
    max_steps: int
    learning_rate: float
    patience: int


@dataclass
class History:
    """What was seen on the way.

    Attributes:
        step: Steps at which the validation pairs were looked at.
        train: Mean objective of the training batches since the last look.
        validation: Criterion on the validation pairs (empty without any).
        best_step: Step whose parameters were kept; 0 are the initial ones.
        diverged: Whether training ended in values that are not finite.
    """

    step: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_step: int = 0
    diverged: bool = False

    def still_rising(self, by: float) -> bool:
        """Whether the last fifth of the steps raised the criterion by more than ``by``."""
        seen = self.validation or self.train
        early = [value for step, value in zip(self.step, seen, strict=True) if step <= 0.8 * self.step[-1]]
        return bool(early) and max(seen) > max(early) + by


def split(n: int, validation: float, test: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for training, validation and test, drawn without replacement."""
    order = torch.randperm(n, generator=generator)
    n_validation, n_test = math.ceil(validation * n), math.ceil(test * n)
    return order[n_validation + n_test :], order[:n_validation], order[n_validation : n_validation + n_test]


def in_batches(pairs: Pairs, size: int) -> list[Pairs]:
    """All pairs in as few batches of at most ``size`` as there can be, of nearly equal size."""
    count = math.ceil(len(pairs[0]) / size)
    return list(zip(*(part.tensor_split(count) for part in pairs), strict=True))


def ascend(
    module: nn.Module,
    objective: Callable[[Tensor, Tensor], Tensor],
    criterion: Callable[[Tensor, Tensor], Tensor],
    train: Pairs,
    validation: Pairs,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    progress: bool | str = False,
) -> History:
    """Raise ``objective`` on training pairs; leave the parameters that did best on the validation pairs.

    Args:
        module: What is trained, in place.
        objective: Of a batch ``(x, y)``: a scalar to ascend.
        criterion: Of a batch, without gradient: decides when to stop and what to keep.
        train: Training pairs.
        validation: Validation pairs; without any, all steps are made and the last parameters kept.
        schedule: How long and how fast.
        generator: Order of the pairs.
        progress: Show a bar; a text is its title.

    Raises:
        RuntimeError: Not one finite value was seen.
    """
    from tqdm import tqdm

    held_out = in_batches(validation, schedule.batch_size) if len(validation[0]) else []
    every = max(EVAL_STEPS, EVAL_SHARE * len(held_out))
    optimizer = _optimizer(module, schedule.learning_rate)
    batches = _shuffled(train, min(schedule.batch_size, len(train[0])), generator)
    history, kept = History(), _copy(module)
    best = _mean(criterion, held_out, module) if held_out else -math.inf
    best = best if math.isfinite(best) else -math.inf
    total, last = torch.zeros((), device=train[0].device), 0
    title = progress if isinstance(progress, str) else None
    module.train()
    with tqdm(total=schedule.max_steps, desc=title, disable=not progress, unit="step") as bar:
        for step in range(1, schedule.max_steps + 1):
            value = objective(*next(batches))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += value.detach()
            bar.update()
            if step % every and step < schedule.max_steps:
                continue
            reached = float(total) / (step - last)
            seen = _mean(criterion, held_out, module) if held_out else reached
            history.step.append(step)
            history.train.append(reached)
            history.validation += [seen] if held_out else []
            bar.set_postfix_str(
                f"train {reached:.3f}" + (f", validation {seen:.3f}" if held_out else ""), refresh=False
            )
            total.zero_()
            last = step
            if not math.isfinite(seen + reached):
                history.diverged = True
                break
            if seen > best or not held_out:
                best, kept, history.best_step = seen, _copy(module), step
            if held_out and step - history.best_step >= schedule.patience:
                break
    if history.diverged and history.best_step == 0:
        raise RuntimeError(
            f"training diverged within {history.step[-1]} steps: expected finite values, got {history.train[-1]}; "
            f"lower learning_rate (now {schedule.learning_rate:g})"
        )
    module.load_state_dict(kept)
    module.eval()
    return history


def _optimizer(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, maximize=True, fused=fused)


def _shuffled(pairs: Pairs, size: int, generator: torch.Generator) -> Iterator[Pairs]:
    """Batches of exactly ``size``, in a new order each epoch; one gather an epoch."""
    x, y = pairs
    while True:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        mixed_x, mixed_y = x[order], y[order]
        for start in range(0, len(x) - size + 1, size):
            yield mixed_x[start : start + size], mixed_y[start : start + size]


def _mean(criterion: Callable[[Tensor, Tensor], Tensor], batches: list[Pairs], module: nn.Module) -> float:
    module.eval()
    with torch.no_grad():
        seen = torch.stack([criterion(x, y) for x, y in batches])
        sizes = seen.new_tensor([len(x) for x, _ in batches])
    module.train()
    return float((seen * sizes).sum() / sizes.sum())


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}

"""Supervised warm start: cross-entropy on demonstrations, so that reinforcement learning starts from a real policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from infotorch.core import token_stats
from infotorch.losses import LossOutput, TokenBatch
from infotorch.rlvr.tasks.base import Task

__all__ = ["demonstration_batch", "warm_start"]


def demonstration_batch(
    task: Task[Any], problems: Sequence[Any], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """One demonstration per problem as a right-padded batch.

    Returns:
        ``input_ids [N, S]``, ``labels [N, S]`` (the next token) and ``mask [N, S]``, True where the next token belongs
        to the demonstration: prompts are not learned.
    """
    prompts = [task.prompt(problem) for problem in problems]
    rows = [
        torch.cat((prompt, task.demonstration(problem, generator)))
        for prompt, problem in zip(prompts, problems, strict=True)
    ]
    full = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=task.codec.pad_id)
    position = torch.arange(full.shape[1] - 1)
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None]
    ends = torch.tensor([len(row) - 1 for row in rows])[:, None]
    return full[:, :-1], full[:, 1:], (position >= starts) & (position < ends)


def warm_start(
    model: nn.Module,
    task: Task[Any],
    problems: Sequence[Any],
    *,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    loss: Callable[[TokenBatch], LossOutput] | None = None,
    progress: bool = True,
) -> list[float]:
    """Train ``model`` in place on demonstrations with AdamW and a one-cycle cosine schedule.

    Args:
        model: Causal language model (see `infotorch.nn.TinyDecoder`).
        task: Source of prompts and demonstrations.
        problems: Problems to draw from, with replacement; a new demonstration is drawn each time.
        steps: Updates; 0 leaves the model as it is.
        batch_size: Demonstrations per update.
        lr: Peak learning rate.
        seed: Seed of the problems and demonstrations drawn.
        loss: What to minimize, such as ``recipe("entropy_sft")``; None: cross-entropy.
        progress: Show a progress bar.

    Returns:
        Cross-entropy (nats per demonstration token) of every step.

    Raises:
        ValueError: If there are no problems or a size is out of range.
    """
    if not len(problems):
        raise ValueError("problems: expected at least one problem, got none")
    if steps < 0 or batch_size < 1:
        raise ValueError(f"steps, batch_size: expected steps >= 0 and batch_size >= 1, got {steps}, {batch_size}")
    if steps == 0:
        return []
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    rising = 0.1 if steps > 10 else 0.0  # less than a step would divide by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=rising)
    losses: list[float] = []
    training = model.training
    model.train()
    bar = tqdm(range(steps), desc="warm start", unit="step", disable=not progress)
    for _ in bar:
        drawn = torch.randint(len(problems), (batch_size,), generator=generator).tolist()
        batch = demonstration_batch(task, [problems[index] for index in drawn], generator)
        input_ids, labels, mask = (tensor.to(device) for tensor in batch)
        stats = token_stats(model(input_ids).logits, labels, mask=mask)
        assert stats.log_probs is not None
        cross_entropy = -stats.log_probs.sum() / mask.sum()
        optimizer.zero_grad(set_to_none=True)
        if loss is None:
            cross_entropy.backward()
        else:
            loss(TokenBatch(log_probs=stats.log_probs, entropy=stats.entropy, mask=mask)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(cross_entropy.detach()))
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.train(training)
    return losses

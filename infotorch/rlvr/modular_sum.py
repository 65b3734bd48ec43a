"""Run a recipe on the tabular ModularSum task: a complete policy-optimization experiment in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core import TokenStats, token_stats
from infotorch.losses import AUXILIARY, ON_POLICY, REPLAY, LossOutput, Recipe, TokenBatch
from infotorch.losses import recipe as named_recipe
from infotorch.rlvr.metrics import TrainingHistory
from infotorch.rlvr.responses import batch_fields, concatenate, each
from infotorch.rlvr.tasks.modular_sum import ModularSum, TabularPolicy

__all__ = ["run_modular_sum"]


def run_modular_sum(
    recipe: Recipe | str,
    *,
    steps: int = 200,
    seed: int = 0,
    samples: int = 8,
    epochs: int = 4,
    lr: float = 0.05,
    task: ModularSum | None = None,
    final_samples: int = 256,
) -> TrainingHistory:
    """Train a tabular policy on `ModularSum` with Adam and record its reward and exact entropy.

    Every step draws ``samples`` responses to every prompt and makes ``epochs`` updates on the whole batch. Recipes that
    ask for auxiliary samples at another temperature or for rows of earlier steps get them.

    Args:
        recipe: A `Recipe` or the name of one.
        steps: Rollout batches.
        seed: Seed of the task (when none is given), the policy and the samples.
        samples: Responses per prompt and step.
        epochs: Updates per rollout batch.
        lr: Adam's learning rate.
        task: The task; by default 16 prompts, 6 tokens out of 12, modulus 7.
        final_samples: Responses per prompt for the last row.

    Returns:
        One row per step with ``reward`` (mean of its samples), ``entropy`` (exact, nats per token, before the
        update), the first update's ``loss`` and the loss's metrics as ``loss/<name>`` (mean over the updates;
        ``replay/<name>`` for optimizer steps on repeated rows alone); a last
        row with ``reward``, ``entropy`` and ``distinct`` (mean number of different correct answers per prompt in
        ``final_samples``).

    Raises:
        ValueError: If a count is not positive.

    Example:
        >>> history = run_modular_sum("grpo", steps=2, final_samples=8)
        >>> [name for name in sorted(history.names()) if "/" not in name]
        ['distinct', 'entropy', 'loss', 'reward']
    """
    for name, value in {
        "steps": steps,
        "samples": samples,
        "epochs": epochs,
        "final_samples": final_samples,
    }.items():
        if value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value}")
    recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
    task = ModularSum(seed=seed) if task is None else task
    policy = TabularPolicy(task, seed=seed + 1)
    start = policy.table.detach().log_softmax(-1)  # of the frozen start, for reference terms
    generator = torch.Generator().manual_seed(seed + 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    history = TrainingHistory()

    every = torch.arange(task.prompts)
    for step in range(steps):
        rolled = [_Responses(every, policy.sample(samples, generator, recipe.sampling_temperature(1.0)))]
        rewards = task.reward(rolled[0].tokens)
        history.append(step, reward=float(rewards.mean()), entropy=policy.mean_entropy())
        extras: dict[str, Tensor] = {}
        if recipe.wants_auxiliary:
            with torch.no_grad():
                plan = recipe.auxiliary(_record(task, rolled, start, _stats(policy, rolled), extras))
            if plan is not None:
                # Counted on from step to step, so that every prompt has its turn.
                chosen = every[plan.chosen(every + step)]
                more = policy.sample(plan.samples or samples, generator, plan.temperature, prompts=chosen)
                rolled.append(_Responses(chosen, more, AUXILIARY))
                if plan.rescore:
                    with torch.no_grad():
                        tempered = _stats(policy, rolled, temperature=plan.temperature).log_probs
                    assert tempered is not None
                    extras["tempered_log_probs"] = tempered
        with torch.no_grad():
            stats = _stats(policy, rolled, **recipe.token_options)
        batch = recipe.prepare(_record(task, rolled, start, stats, extras))
        updates = _with_replay(recipe, batch, rolled)
        outputs: list[list[LossOutput]] = [[] for _ in updates]
        for _ in range(epochs):
            for (record, responses), done in zip(updates, outputs, strict=True):
                stats = _stats(policy, responses, **recipe.token_options)
                output = recipe(record.replace(**batch_fields(stats, record.extras)))
                optimizer.zero_grad(set_to_none=True)
                output.loss.backward()
                optimizer.step()
                recipe.after_step()
                done.append(output)
        metrics = {
            f"{prefix}/{name}": float(torch.stack([output.metrics[name] for output in done]).mean())
            for prefix, done in zip(("loss", "replay"), outputs, strict=False)
            for name in done[0].metrics
        }
        history.append(step, loss=float(outputs[0][0].loss.detach()), **metrics)
    tokens = policy.sample(final_samples, generator)
    history.append(
        steps,
        reward=float(task.reward(tokens).mean()),
        entropy=policy.mean_entropy(),
        distinct=float(task.distinct_correct(tokens).float().mean()),
    )
    return history


@dataclass(frozen=True)
class _Responses:
    """Responses ``[P, n, L]`` to the prompts numbered, and their source."""

    prompts: Tensor
    tokens: Tensor
    source: int = ON_POLICY


def _with_replay(
    recipe: Recipe, batch: TokenBatch, rolled: Sequence[_Responses]
) -> list[tuple[TokenBatch, Sequence[_Responses]]]:
    """What to train on: the rollout batch, with the rows that the recipe wants repeated in it or after it."""
    assert batch.group is not None
    assert batch.tokens is not None
    replay = recipe.replay(batch, {"tokens": batch.tokens, "prompt": batch.group.unsqueeze(1)})
    if replay is None:
        return [(batch, rolled)]
    rows = replay.payload
    earlier = _Responses(rows["prompt"].squeeze(1), rows["tokens"].unsqueeze(1), REPLAY)
    if replay.separate:
        return [(batch, rolled), (replay.batch, [earlier])]
    whole = TokenBatch.cat([batch, replay.batch])
    num_tokens, num_sequences = whole.counts()
    return [(whole.replace(num_tokens=num_tokens, num_sequences=num_sequences), [*rolled, earlier])]


def _stats(policy: TabularPolicy, rolled: Sequence[_Responses], **options: Any) -> TokenStats:
    """Token statistics of all responses, one row each."""
    parts = [token_stats(policy(r.tokens, r.prompts), r.tokens, **options) for r in rolled]
    return concatenate([each(part, lambda x: x.flatten(0, 1)) for part in parts])


def _record(
    task: ModularSum, rolled: Sequence[_Responses], start: Tensor, stats: TokenStats, extras: Mapping[str, Tensor]
) -> TokenBatch:
    """The complete record of a rollout batch; ``start`` are the reference's log-probabilities."""
    positions = torch.arange(task.length)

    def rows(function: Callable[[_Responses], Tensor]) -> Tensor:
        """What the function gives for responses ``[P, n, ...]``, as rows."""
        return torch.cat([function(r).flatten(0, 1) for r in rolled])

    def ref_log_probs(r: _Responses) -> Tensor:
        return start[r.prompts[:, None, None], positions, task.states(r.tokens)[..., :-1], r.tokens]

    tokens = rows(lambda r: r.tokens)
    source = None
    if any(r.source for r in rolled):
        source = rows(lambda r: torch.full(r.tokens.shape[:2], r.source))
    return TokenBatch(
        **batch_fields(stats, extras),
        mask=torch.ones_like(tokens, dtype=torch.bool),
        old_log_probs=stats.log_probs,
        ref_log_probs=rows(ref_log_probs),
        rewards=rows(lambda r: task.reward(r.tokens, r.prompts)),
        group=rows(lambda r: r.prompts[:, None].expand(r.tokens.shape[:2])),
        tokens=tokens,
        answer=rows(lambda r: task.answer(r.tokens)),
        turn=(positions // 2).expand_as(tokens),  # two tokens a turn, for methods that work on the turns of a dialogue
        trajectory=torch.arange(len(tokens)),
        source=source,
    )

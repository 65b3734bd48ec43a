"""Run a recipe on the tabular ModularSum task: a complete policy-optimization experiment in seconds."""

from __future__ import annotations

from typing import Any

import torch

from infotorch.core import token_stats
from infotorch.losses import LossOutput, Recipe, TokenBatch
from infotorch.losses import recipe as named_recipe
from infotorch.rlvr.metrics import TrainingHistory
from infotorch.rlvr.responses import each
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

    Every step draws ``samples`` responses to every prompt and makes ``epochs`` updates on the whole batch.

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
        update), the first update's ``loss`` and the loss's metrics as ``loss/<name>`` (mean over the updates); a last
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
    reference = token_stats(policy.table.detach()).log_normalizer  # of the frozen start, for reference terms
    start = policy.table.detach().clone()
    generator = torch.Generator().manual_seed(seed + 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    history = TrainingHistory()

    group = torch.arange(task.prompts).repeat_interleave(samples)
    mask = torch.ones(task.prompts * samples, task.length, dtype=torch.bool)
    # Two tokens a turn, for methods that work on the turns of a dialogue.
    turn = (torch.arange(task.length) // 2).expand_as(mask)
    index = (torch.arange(task.prompts)[:, None, None], torch.arange(task.length))
    for step in range(steps):
        tokens = policy.sample(samples, generator, recipe.sampling_temperature(1.0))
        rewards = task.reward(tokens)
        history.append(step, reward=float(rewards.mean()), entropy=policy.mean_entropy())
        state = task.states(tokens)[..., :-1]
        ref_log_probs = start[(*index, state, tokens)] - reference[(*index, state)]
        batch: TokenBatch | None = None
        outputs: list[LossOutput] = []
        for _ in range(epochs):
            stats = each(token_stats(policy(tokens), tokens, **recipe.token_options), lambda x: x.flatten(0, 1))
            assert stats.log_probs is not None
            current = {
                "log_probs": stats.log_probs,
                "entropy": stats.entropy,
                "top_p_entropy": stats.top_p_entropy,
            }
            if batch is None:
                frozen: dict[str, Any] = {name: None if x is None else x.detach() for name, x in current.items()}
                batch = recipe.prepare(
                    TokenBatch(
                        **frozen,
                        mask=mask,
                        old_log_probs=frozen["log_probs"],
                        ref_log_probs=ref_log_probs.flatten(0, 1),
                        rewards=rewards.flatten(),
                        group=group,
                        tokens=tokens.flatten(0, 1),
                        answer=task.answer(tokens).flatten(),
                        turn=turn,
                        trajectory=torch.arange(len(mask)),
                    )
                )
            output = recipe(batch.replace(**current))
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            optimizer.step()
            recipe.after_step()
            outputs.append(output)
        metrics = {f"loss/{k}": float(torch.stack([o.metrics[k] for o in outputs]).mean()) for k in outputs[0].metrics}
        history.append(step, loss=float(outputs[0].loss.detach()), **metrics)
    tokens = policy.sample(final_samples, generator)
    history.append(
        steps,
        reward=float(task.reward(tokens).mean()),
        entropy=policy.mean_entropy(),
        distinct=float(task.distinct_correct(tokens).float().mean()),
    )
    return history

"""Sampling with TRL's trainer at other temperatures than its own, and apart from its logs."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from infotorch.rollout import TemperatureProcessor


@contextmanager
def token_temperatures(model: Any, rule: Callable[[Tensor], Tensor], base: float) -> Iterator[None]:
    """Let ``model.generate`` sample at the rule's temperatures.

    Args:
        model: A model of transformers.
        rule: From logits ``(N, V)`` to temperatures ``(N,)``.
        base: The temperature by which ``generate`` divides besides.
    """
    before = model.__dict__.get("generate")
    process = TemperatureProcessor(lambda logits: rule(logits) / base)
    model.generate = functools.partial(model.generate, logits_processor=[process])
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


@contextmanager
def apart(trainer: Any, *, temperature: float, samples: int) -> Iterator[dict[str, list[float]]]:
    """Let a trainer generate and score at another temperature and group size, without a trace in its logs.

    Yields:
        The metrics that it would have logged, by name.
    """
    mode = "train" if trainer.model.training else "eval"
    metrics: dict[str, Any] = {name: defaultdict(list) for name in ("train", "eval")}
    # The same kinds of containers; what they hold is thrown away.
    logs = {}
    for name, kind in trainer._logs.items():
        logs[name] = type(kind)(kind.default_factory) if isinstance(kind, defaultdict) else type(kind)()
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    kept = [(trainer, name, getattr(trainer, name)) for name in ("_metrics", "_logs", "num_generations")]
    kept.append((sampler, "temperature", sampler.temperature))
    if not trainer.use_vllm:  # transformers looks there, too
        kept.append((trainer, "generation_kwargs", trainer.generation_kwargs))
        trainer.generation_kwargs = {**trainer.generation_kwargs, "temperature": temperature}
    trainer._metrics, trainer._logs, trainer.num_generations = metrics, logs, samples
    sampler.temperature = temperature
    try:
        yield metrics[mode]
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
        trainer._metrics[mode]["num_tokens"] = [trainer.state.num_input_tokens_seen]


def shares(prompts: Sequence[int], samples: int, processes: int) -> list[tuple[list[int], int]]:
    """The prompt of every row of each process where every prompt is sampled several times, and how many are wanted.

    Every process gets as many rows as the others, and all of them together whole groups, since that is how TRL hands
    prompts to its samplers. Rows too many repeat the last prompt.

    >>> shares([5, 7, 8], samples=2, processes=2)
    [([5, 5, 7], 3), ([7, 8, 8], 3)]
    """
    wanted = [prompt for prompt in prompts for _ in range(samples)]
    unit = samples // math.gcd(samples, processes)
    rows = math.ceil(math.ceil(len(wanted) / processes) / unit) * unit
    padded = wanted + wanted[-1:] * (rows * processes - len(wanted))
    starts = range(0, len(padded), rows)
    return [(padded[start : start + rows], min(rows, max(0, len(wanted) - start))) for start in starts]

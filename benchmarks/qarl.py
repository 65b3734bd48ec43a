"""Steps per second of an environment with its adversary on, off, and without the wrapper."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import Built, Case, Options, Results, Subject, register
from benchmarks.machine import version_of

# Environment and the body that is pushed.
ENVIRONMENTS = {"Pendulum-v1": "pole", "InvertedPendulum-v5": "pole", "Hopper-v5": "foot"}
QUICK_STEPS, STEPS = 200, 5000
PLAIN, OFF = "the environment alone", "wrapper, adversary off"


@register("qarl", "steps of an environment whose bodies a second player pushes")
def cases(options: Options) -> list[Case]:
    """All environments; steps per second are the steps in the case's name over the time."""
    steps = QUICK_STEPS if options.quick else STEPS
    names = ["Pendulum-v1"] if options.quick else ENVIRONMENTS
    return [Case(f"{name}/{steps} steps", partial(_build, name, steps, options.seed)) for name in names]


def _build(name: str, steps: int, seed: int) -> Built:
    rng = np.random.default_rng(seed)
    draws = rng.uniform(-1, 1, (steps, 8)).astype(np.float32)
    try:
        wrapped, plain = _make(name)
    except ImportError as error:
        missing = Subject("AdversaryWrapper", _version(), None, str(error))
        return Built(missing, [], dict, draws.nbytes)
    version = version_of("gymnasium") or "-"
    return Built(
        ours=Subject("AdversaryWrapper, adversary on", _version(), partial(_wrapped, wrapped, draws, seed, True)),
        peers=[
            Subject(OFF, _version(), partial(_wrapped, wrapped, draws, seed, False)),
            Subject(PLAIN, version, partial(_plain, plain, draws, seed), "computes less: no force", floor=True),
        ],
        reference=partial(_wrapped, _make(name)[0], draws, seed, True),
        input_bytes=draws.nbytes,
    )


def _version() -> str:
    return version_of("infotorch") or "source tree"


def _make(name: str) -> tuple[Any, Any]:
    import gymnasium

    from infotorch.rl import AdversaryWrapper

    return AdversaryWrapper(gymnasium.make(name), [ENVIRONMENTS[name]], "xz", 1.0), gymnasium.make(name)


def _wrapped(env: Any, draws: np.ndarray, seed: int, pushed: bool) -> Results:
    env.reset(seed)
    total, size = 0.0, env.action_size
    for row in draws:
        turn = env.step(row[:size], row[6:] if pushed else None)
        total += turn.reward
        if turn.over:
            env.reset()
    # The return is compared where the same work was done.
    return {"return": torch.tensor(total, dtype=torch.float64)} if pushed else {}


def _plain(env: Any, draws: np.ndarray, seed: int) -> Results:
    env.reset(seed=seed)
    size, high = env.action_space.shape[0], env.action_space.high
    for row in draws:
        *_, terminated, truncated, _ = env.step(row[:size] * high)
        if terminated or truncated:
            env.reset()
    return {}

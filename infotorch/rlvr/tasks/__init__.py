"""Verifiable tasks: problems generated offline, answers checked by a program."""

from typing import Any

from infotorch.rlvr.tasks.base import CharCodec, Codec, Task, TokenizerCodec
from infotorch.rlvr.tasks.countdown import Countdown, CountdownProblem
from infotorch.rlvr.tasks.running_sum import RunSum, RunSumProblem

__all__ = [
    "CharCodec",
    "Codec",
    "Countdown",
    "CountdownProblem",
    "RunSum",
    "RunSumProblem",
    "Task",
    "TokenizerCodec",
    "task",
]

_TASKS: dict[str, type[Task[Any]]] = {"countdown": Countdown, "runsum": RunSum}


def task(name: str, **options: Any) -> Task[Any]:
    """Build a task by name.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> task("runsum", terms=4).max_response
        10
    """
    if name not in _TASKS:
        raise ValueError(f"name: expected one of {sorted(_TASKS)}, got {name!r}")
    return _TASKS[name](**options)

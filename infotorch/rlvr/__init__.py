"""Reinforcement learning with verifiable rewards: tasks, warm start, the Lightning module, and its metrics.

The Lightning module is imported on first use, so that the tasks and the tabular experiment stay light.
"""

from typing import TYPE_CHECKING, Any

from infotorch.rlvr.loader import PromptBatch, PromptLoader
from infotorch.rlvr.metrics import TrainingHistory, distinct_correct, pass_at_k
from infotorch.rlvr.warmup import warm_start

if TYPE_CHECKING:
    from infotorch.rlvr.modular_sum import run_modular_sum
    from infotorch.rlvr.module import RLVRModule

__all__ = [
    "PromptBatch",
    "PromptLoader",
    "RLVRModule",
    "TrainingHistory",
    "distinct_correct",
    "pass_at_k",
    "run_modular_sum",
    "warm_start",
]


def __getattr__(name: str) -> Any:
    if name == "RLVRModule":
        from infotorch.rlvr.module import RLVRModule

        return RLVRModule
    if name == "run_modular_sum":
        from infotorch.rlvr.modular_sum import run_modular_sum

        return run_modular_sum
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

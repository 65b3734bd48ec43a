"""A configuration of TRL for a few quick steps on a CPU."""

from __future__ import annotations

from typing import Any

from trl import GRPOConfig


def config(folder: Any, **options: Any) -> GRPOConfig:
    defaults = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return GRPOConfig(output_dir=str(folder), **{**defaults, **options})

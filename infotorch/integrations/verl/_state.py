"""State of recipes beside verl's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from infotorch.losses import Recipe

STATE = "infotorch_recipe"


def save_state(folder: str | Path, method: Recipe, rank: int = 0) -> None:
    """Write a recipe's state into a checkpoint's folder, a file for each process: nodes may have disks of their own."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(method.state_dict(), _file(folder, rank))


def load_state(folder: str | Path, method: Recipe | None, rank: int = 0) -> None:
    """Continue a recipe where a checkpoint left it.

    Raises:
        ValueError: The checkpoint was made with another recipe, without one, or with one while this run has none.
    """
    path = _file(folder, rank)
    path = path if path.exists() else _file(folder, 0)  # another number of processes
    if method is None:
        if path.exists():
            made = torch.load(path, map_location="cpu", weights_only=True).get("_extra_state")
            raise ValueError(f"checkpoint: {folder} was made with {made}, it cannot continue a run without it")
        return
    if not path.exists():
        raise ValueError(f"checkpoint: {folder} holds no state of a recipe ({path.name}), it was made without one")
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    method.load_state_dict(state)


def _file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"{STATE}_rank_{rank}.pt"

"""Batches of problems for a training loop: seeded, sharded over processes, and exactly resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infotorch.core import distributed as dist

__all__ = ["PromptBatch", "PromptLoader"]


class PromptBatch(NamedTuple):
    """Problems of one rollout batch and their draw numbers, which are unique over a whole run."""

    problems: tuple[Any, ...]
    ids: Tensor


class PromptLoader:
    """Yields ``steps`` batches of problems; every pass over the problems is a new seeded permutation.

    Under data parallelism each process takes its contiguous share of every batch, so that all processes
    together see what one process would. Lightning saves and restores the position through ``state_dict``.

    Args:
        problems: The training problems.
        batch_size: Problems per batch, over all processes.
        steps: Batches in total.
        seed: Seed of the permutations.

    Raises:
        ValueError: If there are no problems or a size is out of range.

    Example:
        >>> loader = PromptLoader("abcd", batch_size=2, steps=4, seed=0)
        >>> sorted("".join(p for batch in loader for p in batch.problems))
        ['a', 'a', 'b', 'b', 'c', 'c', 'd', 'd']
    """

    def __init__(self, problems: Sequence[Any], batch_size: int, steps: int, *, seed: int = 0) -> None:
        if not len(problems):
            raise ValueError("problems: expected at least one problem, got none")
        if batch_size < 1 or steps < 1:
            raise ValueError(
                f"batch_size, steps: expected positive integers, got batch_size={batch_size}, steps={steps}"
            )
        self.problems = problems
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self._next = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[PromptBatch]:
        world, rank = dist.world_size(), dist.rank()
        if self.batch_size % world:
            raise ValueError(f"batch_size: expected a multiple of the {world} processes, got {self.batch_size}")
        share = self.batch_size // world
        while self._next < self.steps:
            start = self._next * self.batch_size + rank * share
            self._next += 1
            ids = torch.arange(start, start + share)
            yield PromptBatch(tuple(self._problem(int(index)) for index in ids), ids)
        self._next = 0

    def _problem(self, index: int) -> Any:
        epoch, place = divmod(index, len(self.problems))
        if getattr(self, "_order_of", None) != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._order = torch.randperm(len(self.problems), generator=generator)
            self._order_of = epoch
        return self.problems[int(self._order[place])]

    def state_dict(self) -> dict[str, int]:
        """Number of batches already handed out."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches of ``state``."""
        self._next = int(state["next"])

"""Fields of the record that adapters derive from what a framework has."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from infotorch.losses import Part, Recipe

# What a part may read at the start of a step without a forward pass of the sampling policy.
_GIVEN = frozenset({"rewards", "group", "answer", "tokens", "turn", "trajectory", "source", "advantages"})


def answer_ids(answers: Sequence[Hashable | None]) -> Tensor:
    """Numbers that are equal for equal answers, in every process; None is -1.

    >>> answer_ids(["7", None, "7"])[[0, 1]].tolist() == answer_ids(["7", None])[[0, 1]].tolist()
    True
    """
    return torch.tensor([-1 if answer is None else _stable_hash(answer) for answer in answers], dtype=torch.long)


def _stable_hash(value: Hashable) -> int:
    """63 bits of a digest: Python's own hash of strings differs between processes."""
    import hashlib

    digest = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def turns_of(mask: Tensor) -> Tensor:
    """Number the runs of the policy's own tokens in each row; -1 elsewhere (what tools wrote, padding).

    >>> turns_of(torch.tensor([[True, True, False, True, False]]))
    tensor([[ 0,  0, -1,  1, -1]])
    """
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    return torch.where(mask, starts.long().cumsum(1) - 1, -1)


def reads_sampling_policy(recipe: Recipe) -> bool:
    """Whether advantages, rewards, a part's history or its rows are formed from the sampling policy's statistics."""
    for part in recipe.parts():
        hooks = type(part).observe is not Part.observe or type(part).rearrange is not Part.rearrange
        early = hooks or part.info.kind in ("reward", "advantage")
        wanted = {name for name in part.info.requires if not name.startswith("extras.")}
        if early and wanted - _GIVEN:
            return True
    return False


def sets_temperatures(recipe: Recipe) -> bool:
    """Whether a recipe wants each token sampled at a temperature of its own.

    >>> from infotorch.losses import recipe
    >>> sets_temperatures(recipe("hapo")), sets_temperatures(recipe("hapo", tau=0))
    (True, False)
    """
    return callable(recipe.sampling_temperature(1.0))


def optimizer_window(step: int, per_generation: int, accumulation: int) -> range:
    """Which micro-batches of a generation batch make up the optimizer step that micro-batch ``step`` belongs to.

    Where the two are not aligned it is the whole generation batch.

    >>> optimizer_window(5, per_generation=4, accumulation=2), optimizer_window(1, per_generation=2, accumulation=4)
    (range(0, 2), range(0, 2))
    """
    if per_generation % accumulation:
        return range(per_generation)
    start = step % per_generation // accumulation * accumulation
    return range(start, start + accumulation)

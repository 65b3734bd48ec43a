"""Trees of responses in two waves: roots, and branches that leave them at given positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infotorch.rollout import HFSampler, Rollouts


def grow(
    sampler: HFSampler,
    prompts: Sequence[Tensor],
    roots: Rollouts,
    positions: Tensor,
    branches: int,
    *,
    budget: int,
    seed: int,
    ids: Tensor | None = None,
) -> tuple[list[Tensor], Rollouts, Tensor]:
    """Sample ``branches`` continuations of every root at each of its positions, in one call.

    Args:
        sampler: Of the roots too.
        prompts: Those of the roots.
        roots: First wave.
        positions: Where to branch, ``(roots, F)``; -1 for nowhere. ``root[:t]`` is kept, token t is drawn again.
        branches: Continuations per position.
        budget: Tokens of a whole response; a branch may use what its root had left at the position.
        seed: Of the second wave.
        ids: Number of each root in the random hash; None: its place.

    Returns:
        The branches' prompts, their new tokens, and the root of each row.
    """
    row, column = (positions >= 0).nonzero(as_tuple=True)
    at = positions[row, column].tolist()
    which = roots.prompt_index.tolist()
    starts = [torch.cat((prompts[which[r]], roots.tokens[r][:t])) for r, t in zip(row.tolist(), at, strict=True)]
    numbers = row if ids is None else ids[row]
    grown = sampler.generate(
        starts,
        branches,
        max_new_tokens=[budget - t for t in at],
        seed=seed,
        prompt_ids=numbers * positions.shape[1] + column,
    )
    return starts, grown, row[grown.prompt_index]

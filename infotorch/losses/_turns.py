"""The turns of a batch of dialogues, whether a row holds a whole dialogue or one turn of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infotorch.core.reduce import segment_count, segment_ids
from infotorch.losses.batch import TokenBatch


@dataclass(frozen=True)
class Turns:
    """Turns numbered by trajectory, then by turn: the number after a turn's is its trajectory's next turn's.

    Shapes are fixed: there are as many slots as tokens, of which the first so many as there are turns are used.

    Attributes:
        segment: Number of each token's turn, ``(B, T)``; -1 outside the mask and every turn.
        owner: Number of each turn's trajectory, ``(B * T,)``; -1 in slots that are not used.
    """

    segment: Tensor
    owner: Tensor

    @property
    def used(self) -> Tensor:
        """Boolean ``(B * T,)``: the slots that hold a turn."""
        return self.owner >= 0

    @property
    def trajectories(self) -> Tensor:
        """Number of trajectories with a valid token."""
        return (segment_count(self.owner) > 0).sum()


def turns_of(batch: TokenBatch) -> Turns:
    """Tokens of equal ``trajectory`` and ``turn`` make up a turn.

    Without ``trajectory`` every row is one; without ``turn`` every row is a turn, of the trajectory it belongs to.
    """
    rows = torch.arange(batch.mask.shape[0], device=batch.mask.device)
    trajectory = (rows if batch.trajectory is None else batch.trajectory).unsqueeze(1).expand_as(batch.mask)
    turn = rows.unsqueeze(1).expand_as(batch.mask) if batch.turn is None else batch.turn
    valid = batch.mask & (turn >= 0)
    segment = segment_ids(trajectory, turn, mask=valid)
    slots = segment.numel()
    into = torch.where(valid, segment, slots).reshape(-1)  # one slot more for tokens of no turn
    owner = segment_ids(trajectory, mask=valid).reshape(-1)
    return Turns(segment, owner.new_full((slots + 1,), -1).scatter(0, into, owner)[:slots])

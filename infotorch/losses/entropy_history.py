"""The running mean of entropies that corridor methods compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core import distributed
from infotorch.core.reduce import segment_sum
from infotorch.losses.batch import widen


class EntropyHistory(nn.Module):
    """Running mean of the mean token entropies of rollout batches, of all turns together or of each.

    A step's mean is taken over the tokens of all ranks, and every step counts once. Turns that a step did not reach
    are left out of their mean. Everything is in ``state_dict``, whose number of turns grows as they occur.

    Args:
        per_turn: Keep a mean for every turn.

    Reference: 2025, arXiv:2509.22576 (deviations: :mod:`infotorch.losses.epo`).

    >>> history = EntropyHistory()
    >>> history.reference()
    tensor(nan, dtype=torch.float64)
    >>> for value in (1.0, 2.0):
    ...     history.update(torch.full((1, 3), value), torch.ones(1, 3, dtype=torch.bool))
    >>> history.reference()
    tensor(1.5000, dtype=torch.float64)
    """

    total: Tensor
    steps: Tensor
    latest: Tensor
    anchor: Tensor

    def __init__(self, *, per_turn: bool = False) -> None:
        super().__init__()
        self.per_turn = per_turn
        slots = 0 if per_turn else 1
        for name in ("total", "steps", "latest", "anchor"):
            fill = torch.nan if name in ("latest", "anchor") else 0.0
            self.register_buffer(name, torch.full((slots,), fill, dtype=torch.float64))

    def update(self, entropy: Tensor, mask: Tensor, turn: Tensor | None = None) -> None:
        """Add a rollout batch: entropies ``(B, T)`` in nats, valid tokens, and with ``per_turn`` their turns.

        Raises:
            ValueError: ``turn`` is missing.
        """
        slot = torch.where(mask, 0, -1)
        if self.per_turn:
            if turn is None:
                raise ValueError("turn: expected integers of shape (B, T) for a history per turn, got None")
            slot = torch.where(mask, turn, -1)
            self._grow(1 + int(distributed.all_reduce_max(slot.max())))
        size = self.total.numel()
        values = widen(entropy.detach()).double()
        # Counts as sums of ones, so that one reduction over ranks does for both.
        sums = torch.stack([segment_sum(x, slot, size) for x in (values, torch.ones_like(values))])
        sums, counts = distributed.all_reduce_sum(sums).to(self.total.device)
        seen = counts > 0
        mean = sums / counts.clamp(min=1)
        self.total += torch.where(seen, mean, 0.0)
        self.steps += seen
        self.latest.copy_(torch.where(seen, mean, torch.nan))

    def reference(self) -> Tensor:
        """Mean over the steps so far: a number, or one per turn ``(turns,)``; NaN where there is none."""
        mean = torch.where(self.steps > 0, self.total / self.steps.clamp(min=1), torch.nan)
        return mean if self.per_turn else mean.squeeze(0)

    def hold(self) -> None:
        """Keep the present reference as ``anchor`` while further steps are added."""
        self.anchor.copy_(self.reference().reshape(-1))

    def held(self) -> Tensor:
        """The reference when :meth:`hold` was last called."""
        return self.anchor.clone() if self.per_turn else self.anchor[0]

    def _grow(self, size: int) -> None:
        missing = size - self.total.numel()
        if missing > 0:
            for name, buffer in list(self.named_buffers()):
                fill = torch.nan if name in ("latest", "anchor") else 0.0
                setattr(self, name, torch.cat((buffer, buffer.new_full((missing,), fill))))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in list(self.named_buffers()):
            if self.per_turn and f"{prefix}{name}" in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[f"{prefix}{name}"].shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

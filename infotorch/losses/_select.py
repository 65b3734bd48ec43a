"""Choosing tokens by rank, over one batch or over all data-parallel ranks, with fixed shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_choice, is_traced
from infotorch.losses.batch import widen

SCOPES = ("local", "global")


def summed(x: Tensor, scope: str) -> Tensor:
    """Sums ``x`` of this batch, or added up over all ranks (``"global"``); without gradient there."""
    return distributed.all_reduce_sum(x) if scope == "global" else x


class Pool:
    """The tokens among which a choice is made: this batch's, or those of all ranks in rank order.

    With ``scope="global"`` every rank sees the same flat vector, which is also what one process would see that
    holds the concatenated batch; so it makes the same choice.
    """

    def __init__(self, mask: Tensor, scope: str) -> None:
        check_choice("scope", scope, SCOPES)
        self.shared = scope == "global" and distributed.is_active()
        self.shape = mask.shape
        self.start = 0
        if self.shared:
            counts = distributed.gather_counts(mask.numel(), mask.device)
            self.start = sum(counts[: distributed.rank()])
        self.mask = self.flat(mask)

    def flat(self, x: Tensor) -> Tensor:
        """All tokens' values in one vector, without gradient."""
        x = x.detach().reshape(-1)
        return distributed.gather_cat(x) if self.shared else x

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """A uniform number for every token; where ranks choose together, they use rank 0's draw."""
        noise = torch.rand(self.mask.shape, device=self.mask.device, generator=generator)
        return distributed.from_first_rank(noise) if self.shared else noise

    def own(self, flat: Tensor) -> Tensor:
        """This rank's part of a vector over all tokens, as ``(B, T)``."""
        return flat[self.start : self.start + self.shape.numel()].view(self.shape)


def lowest(scores: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """Boolean: the ``count`` eligible entries of lowest score (ties: lowest index first).

    >>> lowest(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([True, True, True]), torch.tensor(1))
    tensor([False,  True, False])
    """
    # Eligible entries come first even where their score is infinite.
    scores = scores.clamp(max=torch.finfo(scores.dtype).max)
    ranked = torch.where(eligible, scores, torch.inf)
    if ranked.device.type == "cpu" and not is_traced():
        # A CPU may ask how many: a partition is enough, and mostly there is no tie to break.
        wanted = min(int(count), int(eligible.count_nonzero()))
        if wanted <= 0:
            return torch.zeros_like(eligible)
        ordered = widen(ranked).numpy()
        ordered.partition(wanted - 1)
        boundary = float(ordered[wanted - 1])
        chosen = eligible & (scores <= boundary)
        surplus = int(chosen.count_nonzero()) - wanted
        if surplus > 0:
            chosen[(eligible & (scores == boundary)).nonzero()[-surplus:]] = False
        return chosen
    place = (count - 1).long().clamp(0, ranked.numel() - 1).reshape(1)
    boundary = torch.where(count > 0, ranked.sort().values.gather(0, place), -torch.inf)
    below = ranked < boundary
    tied = eligible & (ranked == boundary)
    return (below | (tied & (tied.cumsum(0) <= count - below.sum()))) & eligible


def fraction(count: Tensor, ratio: float) -> Tensor:
    """``max(1, floor(count * ratio))``, safe from a product that falls a rounding error short of an integer."""
    return (count.double() * (ratio * (1 + 1e-12))).floor().clamp(min=1).long()
